"""Token and n-gram rules: a table by hand, back-off by dictionaries, and the best list by trying all of them."""

import itertools
import math
from collections import defaultdict

import pytest
import torch

from analyses.explain import Ngrams, RuleSimulator
from analyses.explain.context_tree import backoff_means, listed_gains, pruned
from analyses.explain.contexts import context_keys, context_sums
from analyses.explain.rule import LEVELS
from analyses.texts import Stories
from tests.cases.explained import ID, VOCABULARY, WORDS, batches, kept, material, random_stories

WIDE = random_stories(12, 20, seed=5)
STORIES = Stories(torch.where(WIDE.tokens > 5, WIDE.tokens % 3 + 4, WIDE.tokens), WIDE.lengths)
VALUES = torch.randn(12, 20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
V = len(WORDS)


def naive(order: int) -> dict[tuple[int, ...], list[torch.Tensor]]:
    """Activations at each context of `order` tokens at a kept token, of those seen twice."""
    found = defaultdict(list)
    for row, pos in kept(STORIES).nonzero().tolist():
        if pos + 1 >= order:
            found[tuple(STORIES.tokens[row, pos + 1 - order : pos + 1].tolist())].append(VALUES[row, pos])
    return {context: values for context, values in found.items() if len(values) >= 2}


def test_sums_are_those_of_a_loop_over_tokens() -> None:
    sums = context_sums(lambda: batches(STORIES, VALUES), STORIES.tokens, 3, V)
    for order in (1, 2, 3):
        wanted = naive(order)
        got = {tuple(sums.tokens(order, i)): i for i in range(len(sums.keys[order - 1]))}
        assert set(got) == set(wanted) and len(got) > 3
        for context, values in wanted.items():
            i = got[context]
            assert float(sums.n[order - 1][i]) == len(values)
            torch.testing.assert_close(sums.total[order - 1][i], torch.stack(values).sum(0))
            if order > 1:
                parent = int(sums.parents(order)[i])
                assert tuple(sums.tokens(order - 1, parent)) == context[1:]
    x = VALUES[kept(STORIES)]
    torch.testing.assert_close(sums.mean, x.mean(0))
    torch.testing.assert_close(sums.square_all, x.square().sum(0))


def test_backed_off_means_are_those_of_dictionaries() -> None:
    kappa = 1.5
    estimates = backoff_means(context_sums(lambda: batches(STORIES, VALUES), STORIES.tokens, 3, V), kappa)
    sums = context_sums(lambda: batches(STORIES, VALUES), STORIES.tokens, 3, V)

    def expected(context: tuple[int, ...]) -> torch.Tensor:
        if not context:
            return VALUES[kept(STORIES)].mean(0)
        values = naive(len(context))[context]
        return (torch.stack(values).sum(0) + kappa * expected(context[1:])) / (len(values) + kappa)

    for order in (1, 2, 3):
        for i in range(len(sums.keys[order - 1])):
            torch.testing.assert_close(estimates[order][i], expected(tuple(sums.tokens(order, i))))


def test_a_token_rule_lists_the_mean_after_each_token() -> None:
    """Without shrinkage and at next to no price, each token's own mean, to half a level."""
    found = Ngrams(order=1, kappa=0, price=1e-9).explain(material(STORIES, VALUES))
    wanted = naive(1)
    for unit, e in enumerate(found):
        scale = e.rule["scale"]
        assert e.explainer == "rules:token" and len(e.rule["entries"]) >= len(wanted) - 1
        for (token,), level in e.rule["entries"]:
            mean = float(torch.stack(wanted[(token,)]).mean(0)[unit])
            assert abs(scale * level / LEVELS - mean) <= 0.5001 * scale / LEVELS


def test_what_is_listed_is_the_best_of_all_lists() -> None:
    """All subsets of a small tree of contexts, simulated and coded one by one."""
    tokens = torch.tensor([[1, 2, 1, 2, 2, 1, 3, 2, 2, 1, 2, 3, 3, 1, 2, 2]])
    stories = Stories(tokens, torch.tensor([16]))
    values = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    values += 2.0 * (tokens == 1)[..., None] - 1.0 * (context_keys(tokens, 2, V) == 2 + V * 2)[..., None]
    held = batches(stories, values)
    sums = context_sums(lambda: held, tokens, 3, V)
    estimates, bits = backoff_means(sums, 1.0), [2.0, 2.5, 3.0]
    contexts = [(o, i) for o in (1, 2, 3) for i in range(len(sums.keys[o - 1]))]
    assert 8 <= len(contexts) <= 13
    x = values[kept(stories)]
    unit_bits = torch.tensor([1.0, 2.0, 0.5, 0.1], dtype=torch.float64)
    gains, _, _ = pruned(sums, estimates, bits, unit_bits)
    listed = torch.cat(gains) > 0
    places = list(range(1, 16))
    least = torch.full((4,), torch.inf, dtype=torch.float64)
    best = [()] * 4
    fits = {
        (o, i): [
            pos for pos in places if pos + 1 >= o and tokens[0, pos + 1 - o : pos + 1].tolist() == sums.tokens(o, i)
        ]
        for o, i in contexts
    }
    for chosen in itertools.product((False, True), repeat=len(contexts)):
        predicted = estimates[0].repeat(16, 1)
        for (o, i), on in zip(contexts, chosen, strict=True):  # ascending orders: the longest stays
            if on:
                predicted[fits[o, i]] = estimates[o][i]
        error = (x - predicted[1:]).square().sum(0)
        cost = error * unit_bits + sum(bits[o - 1] for (o, _), on in zip(contexts, chosen, strict=True) if on)
        for unit in (cost < least - 1e-12).nonzero()[:, 0].tolist():
            least[unit], best[unit] = cost[unit], chosen
    assert [tuple(listed[:, unit].tolist()) for unit in range(4)] == best
    assert 0 < int(listed.sum()) < listed.numel()


def test_errors_that_the_pruning_reports_are_those_of_the_rule() -> None:
    found = Ngrams(price=0.05).explain(material(STORIES, VALUES))
    sums = context_sums(lambda: batches(STORIES, VALUES), STORIES.tokens, 3, V)
    estimates = backoff_means(sums, 1.0)
    gains, errors, bits = pruned(sums, estimates, [0.3] * 3, torch.ones(3, dtype=torch.float64))
    y = estimates[0].expand(12, 20, 3).clone()
    for order in (1, 2, 3):
        keys = context_keys(STORIES.tokens, order, V)
        for i, key in enumerate(sums.keys[order - 1].tolist()):
            on = (keys == key)[..., None] & (gains[order - 1][i] > 0)
            y = torch.where(on, estimates[order][i], y)
    real = kept(STORIES)
    torch.testing.assert_close(errors, (VALUES - y)[real].square().sum(0))
    torch.testing.assert_close(bits, 0.3 * sum((g > 0).sum(0).double() for g in gains))
    assert any(len(tokens) == 3 for e in found for tokens, _ in e.rule["entries"])


def test_gains_of_noise_do_not_pay_for_a_list() -> None:
    noise = torch.randn(60, 40, 30, generator=torch.Generator().manual_seed(2))
    found = Ngrams().explain(material(random_stories(), noise))
    assert sum(len(e.rule["entries"]) for e in found) <= 1


def test_a_higher_price_or_a_limit_gives_shorter_explanations() -> None:
    stories = random_stories()
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(V, V, 5, generator=generator)
    values = table[stories.tokens, stories.tokens.roll(1, 1)] + 0.1 * torch.randn(60, 40, 5, generator=generator)
    given = material(stories, values)
    by_price = [sum(e.bits for e in Ngrams(price=price, most=999).explain(given)) for price in (0.2, 1, 20, 500)]
    assert by_price == sorted(by_price, reverse=True) and len(set(by_price)) >= 3
    by_limit = [Ngrams(most=most).explain(given) for most in (1, 8, 64)]
    bits = [[e.bits for e in found] for found in by_limit]
    assert all(a < b < c for a, b, c in zip(*bits, strict=True))
    assert all(len(e.rule["entries"]) <= most for most, found in zip((1, 8, 64), by_limit, strict=True) for e in found)


def test_units_in_small_blocks_are_explained_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    given = material(STORIES, VALUES)
    whole = Ngrams(price=0.1).explain(given)
    monkeypatch.setattr("analyses.explain.ngrams._NUMBERS", 1)
    assert Ngrams(price=0.1).explain(given) == whole


def test_the_variance_is_what_the_list_leaves() -> None:
    """A unit of one token without noise: the error is rounding alone, so that the token pays however rare it is."""
    stories = random_stories(40)
    values = (1e-3 * (stories.tokens == ID[" cat"]))[..., None]
    (found,) = Ngrams(kappa=0).explain(material(stories, values))
    assert [[ID[" cat"]], LEVELS] in found.rule["entries"]
    simulated = RuleSimulator([found])(stories.tokens, stories.lengths)
    assert float((simulated - values)[kept(stories)].abs().max()) < 1e-5


def test_gains_are_finite_for_a_dead_unit() -> None:
    sums = context_sums(lambda: batches(STORIES, 0 * VALUES), STORIES.tokens, 2, V)
    gains = listed_gains(sums, backoff_means(sums, 1.0), [1.0, 1.0], 9)
    assert all(bool((g == -math.inf).all()) for g in gains)


def test_contexts_must_have_a_number() -> None:
    with pytest.raises(ValueError, match="no 64-bit number"):
        context_keys(STORIES.tokens, 4, 200_000)
    with pytest.raises(ValueError, match="at least 1 token"):
        context_sums(lambda: [], STORIES.tokens, 1, V)
    with pytest.raises(ValueError, match="start at 1"):
        Ngrams(order=0)


def test_the_stories_are_named_by_their_hash() -> None:
    one, other = material(STORIES, VALUES), material(STORIES.subset(torch.arange(11)), VALUES[:11])
    assert one.train_rows != other.train_rows and len(one.train_rows) == 64
    assert Ngrams(order=1).explain(one)[0].train_rows == one.train_rows
    assert VOCABULARY.n == V
