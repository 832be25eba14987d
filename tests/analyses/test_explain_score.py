"""Scores against numpy and naive definitions, floors, selection and coverage."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.explain import (
    Explanation,
    Ngrams,
    RuleSimulator,
    Trees,
    constant_explanations,
    coverage,
    random_tokens,
    restricted,
    selected,
    shuffled,
    tally,
)
from analyses.explain.rule import constant, patterns
from analyses.explain.score import UNITS
from analyses.statistics import bootstrap_weights
from tests.cases.explained import ID, VOCABULARY, WORDS, batches, kept, material, planted, random_stories, split

STORIES = random_stories(25, 30, seed=2)
REAL = kept(STORIES)


class Given:
    """A simulator that knows the answer."""

    def __init__(self, values: torch.Tensor) -> None:
        self.table = {tuple(row.tolist()): y for row, y in zip(STORIES.tokens, values, strict=True)}
        flat = values.flatten(0, 1)
        self.low, self.high = flat.amin(0), flat.amax(0)

    def __call__(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        whole = {key[: tokens.shape[1]]: y for key, y in self.table.items()}
        return torch.stack([whole[tuple(row.tolist())][: tokens.shape[1]] for row in tokens])


def example(n_units: int = 4, levels: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    """True and simulated activations; the latter with few values, so that there are ties."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, levels, (25, 30, n_units), generator=generator).float()
    x = (y - 4 + 4 * torch.randn(y.shape, generator=generator)).clamp(min=0) + 7.0 * (torch.arange(n_units) == 1)
    return x, y


X, Y = example()
TALLY = tally(Given(Y), lambda: batches(STORIES, X), STORIES)


def test_correlation_and_r2_are_numpys() -> None:
    x, y = X[REAL].double().numpy(), Y[REAL].double().numpy()
    for unit in range(4):
        assert float(TALLY.pearson[unit]) == pytest.approx(np.corrcoef(x[:, unit], y[:, unit])[0, 1], abs=1e-12)
        error, total = ((x - y) ** 2)[:, unit].sum(), ((x - x.mean(0)) ** 2)[:, unit].sum()
        assert float(TALLY.r2[unit]) == pytest.approx(1 - error / total, abs=1e-12)


def test_average_precision_and_rates_are_counted_cut_by_cut() -> None:
    x, y = X[REAL] > 0, Y[REAL]
    for unit in (0, 2, 3):
        previous, wanted = 0.0, 0.0
        best = (-1.0, 0.0)
        for cut in sorted(set(y[:, unit].tolist()), reverse=True):
            called = y[:, unit] >= cut
            hits = int((called & x[:, unit]).sum())
            recall = hits / int(x[:, unit].sum())
            wanted += (recall - previous) * hits / int(called.sum())
            previous = recall
            f1 = 2 * hits / (int(called.sum()) + int(x[:, unit].sum()))
            best = max(best, (f1, cut))
        assert float(TALLY.average_precision[unit]) == pytest.approx(wanted, abs=1e-12)
        rates = TALLY.rates(TALLY.best_cut)
        called = y[:, unit] >= best[1]
        hits = int((called & x[:, unit]).sum())
        assert float(rates["precision"][unit]) == pytest.approx(hits / int(called.sum()))
        assert float(rates["recall"][unit]) == pytest.approx(hits / int(x[:, unit].sum()))
        assert float(rates["false_positives"][unit]) == pytest.approx((int(called.sum()) - hits) / len(x))


def test_average_precision_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for unit in range(4):
        wanted = metrics.average_precision_score((X[REAL] > 0)[:, unit].numpy(), Y[REAL][:, unit].numpy())
        assert float(TALLY.average_precision[unit]) == pytest.approx(wanted, abs=1e-12)


def test_the_interval_resamples_stories() -> None:
    """The same weights, each story repeated as often as it was drawn, by numpy."""
    low, high = TALLY.pearson_interval(n_resamples=60, seed=3)
    weights = np.rint(bootstrap_weights(25, 60, 3) * 25).astype(int)
    rows, _ = REAL.nonzero(as_tuple=True)
    for unit in (0, 1):
        x, y = X[REAL][:, unit].double().numpy(), Y[REAL][:, unit].double().numpy()
        found = [np.corrcoef(np.repeat(x, w[rows]), np.repeat(y, w[rows]))[0, 1] for w in weights]
        assert (low[unit], high[unit]) == pytest.approx(tuple(np.quantile(found, (0.025, 0.975))), abs=1e-10)
        assert low[unit] < float(TALLY.pearson[unit]) < high[unit]


@given(st.permutations(range(25)), st.lists(st.integers(1, 24), max_size=5, unique=True))
@settings(max_examples=15, deadline=None)
def test_the_order_of_the_batches_makes_no_difference(order: list[int], cuts: list[int]) -> None:
    ends = [0, *sorted(cuts), 25]
    dealt = [sorted(order[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    other = tally(Given(Y), lambda: batches(STORIES, X, dealt), STORIES)
    for field in dataclasses.fields(TALLY):
        torch.testing.assert_close(getattr(TALLY, field.name), getattr(other, field.name))


def test_scale_and_shift_leave_the_correlation_and_a_large_mean_does_not_blur_it() -> None:
    moved = tally(Given(Y), lambda: batches(STORIES, X.double() * 3 + 1e6), STORIES)
    torch.testing.assert_close(moved.pearson, TALLY.pearson, atol=1e-6, rtol=0)


def test_a_constant_says_nothing_and_a_dead_unit_cannot_be_scored() -> None:
    x = torch.stack([X[..., 0], torch.zeros(25, 30), torch.full((25, 30), 0.1)], -1)
    y = torch.stack([torch.full((25, 30), 0.1), Y[..., 0], Y[..., 0]], -1)
    found = tally(Given(y), lambda: batches(STORIES, x), STORIES)
    assert float(found.pearson[0]) == 0
    assert found.pearson[1:].isnan().all() and found.r2[1:].isnan().all()
    assert bool(found.average_precision[1].isnan()) and float(found.average_precision[0]) == pytest.approx(
        float((x[REAL][:, 0] > 0).double().mean())
    )
    table = found.table(found.best_cut)
    assert table["r_low"].isna().tolist() == [False, True, True]
    assert set(table.columns) == set(UNITS)
    assert bool(found.rates(found.best_cut)["recall"][1].isnan())


def test_missing_predictions_do_not_count_unit_by_unit() -> None:
    """Unit 0 misses some tokens, unit 1 all but one story, unit 2 none, unit 3 all: each against numpy on its pairs."""
    metrics = pytest.importorskip("sklearn.metrics")
    y = Y.clone()
    y[..., 0][torch.rand(25, 30, generator=torch.Generator().manual_seed(5)) < 0.4] = torch.nan
    y[1:, :, 1], y[..., 3] = torch.nan, torch.nan
    given = Given(y)
    given.low, given.high = torch.zeros(4), torch.full((4,), 8.0)
    found = tally(given, lambda: batches(STORIES, X, [list(range(9)), list(range(9, 25))]), STORIES)
    cut = torch.full((4,), 100)  # of the bins 0..255 of 0..8: from 100 / 255 * 8 = 3.1 on
    table = found.table(cut, n_resamples=60, seed=3)
    weights = np.rint(bootstrap_weights(25, 60, 3) * 25).astype(int)
    rows = REAL.nonzero()[:, 0].numpy()
    for unit in range(3):
        there = (~y[REAL][:, unit].isnan()).numpy()
        a, b = (v[REAL][:, unit].double().numpy()[there] for v in (X, y))
        row = table.loc[unit]
        assert row.n_tokens == there.sum() == len(a) and row.n_stories == len(set(rows[there]))
        assert row.n_active == (a > 0).sum() and row.base_rate == pytest.approx((a > 0).mean())
        assert row.r == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-10)
        assert row.r2 == pytest.approx(1 - ((a - b) ** 2).sum() / ((a - a.mean()) ** 2).sum(), abs=1e-10)
        assert row.average_precision == pytest.approx(metrics.average_precision_score(a > 0, b), abs=1e-12)
        assert row.false_positives == pytest.approx(((b >= 4) & (a <= 0)).sum() / len(a))
        drawn = [w[rows[there]] for w in weights]
        resampled = [np.corrcoef(np.repeat(a, w), np.repeat(b, w))[0, 1] for w in drawn if w.any()]
        assert (row.r_low, row.r_high) == pytest.approx(tuple(np.quantile(resampled, (0.025, 0.975))), abs=1e-8)
    nothing = table.loc[3]
    assert nothing.n_tokens == nothing.n_stories == nothing.n_active == 0
    assert np.isnan([nothing.r, nothing.r_low, nothing.r2, nothing.average_precision]).all()
    for name in ("n", "mean_x", "xy"):  # what others miss changes nothing for a unit that misses none
        torch.testing.assert_close(getattr(found, name)[:, 2], getattr(TALLY, name)[:, 2])


def test_a_tally_needs_tokens_and_the_same_units() -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        tally(Given(Y), lambda: [], STORIES)
    with pytest.raises(ValueError, match="4 units; got 3"):
        tally(Given(Y[..., :3]), lambda: batches(STORIES, X), STORIES)


def explanations(n: int) -> list[Explanation]:
    return [Explanation(i, "rules:test", str(i), patterns(1.0, 0, [[[i + 1], 127]]), 10.0 + i, "") for i in range(n)]


@given(st.integers(0, 50), st.lists(st.integers(2, 6), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_no_unit_keeps_its_explanation_and_none_leaves_its_group(seed: int, sizes: list[int]) -> None:
    groups = [g for g, size in enumerate(sizes) for _ in range(size)]
    made = explanations(len(groups))
    dealt = shuffled(made, groups, seed)
    assert [e.unit for e in dealt] == list(range(len(groups)))
    givers = [int(e.text) for e in dealt]
    assert sorted(givers) == list(range(len(groups)))
    assert all(giver != unit and groups[giver] == groups[unit] for unit, giver in enumerate(givers))


def test_a_group_of_one_cannot_be_shuffled() -> None:
    with pytest.raises(ValueError, match="group 7 has 1 unit"):
        shuffled(explanations(3), [1, 1, 7])
    with pytest.raises(ValueError, match="3 units; got 2"):
        shuffled(explanations(3), [1, 1])


def test_each_unit_keeps_the_best_of_its_explanations_less_their_length() -> None:
    one, other = explanations(4), [dataclasses.replace(e, explainer="rules:other", bits=500.0) for e in explanations(4)]
    better = dataclasses.replace(TALLY, xy=TALLY.xy * torch.tensor([1.2, 0.8, 1.001, 1.0]))
    tallies = {"one": TALLY, "other": better}
    chosen = selected({"one": one, "other": other}, tallies, penalty=0)
    assert float(better.pearson[2]) > float(TALLY.pearson[2]) > 0
    assert [e.explainer for e in chosen] == ["rules:other", "rules:test", "rules:other", "rules:test"]
    chosen = selected({"one": one, "other": other}, tallies, penalty=1e-5)
    assert [e.explainer for e in chosen] == ["rules:other", "rules:test", "rules:test", "rules:test"]
    with pytest.raises(ValueError, match="needs a tally"):
        selected({"one": one}, {"two": TALLY})


# --- planted units, from stories to scores

PLANTED = random_stories(150, 40, seed=6)
for part, words in enumerate(("the dog ran", "of dog ran", "the cat ran", "the A B")):  # trigram, nearly it, bigram
    PLANTED.tokens[part::4, 5:8] = torch.tensor([ID[f" {word}"] for word in words.split()])
NAMES, UNIT_VALUES = planted(PLANTED)
PARTS = split(PLANTED)
HELD = batches(PLANTED, UNIT_VALUES)
MATERIAL = material(PLANTED, UNIT_VALUES, PARTS)


def scored(made: list[Explanation]) -> dict[str, Any]:
    found = tally(RuleSimulator(made, VOCABULARY), restricted(lambda: HELD, PARTS.evaluate), PLANTED)
    return dict(zip(NAMES, found.pearson.tolist(), strict=True))


def test_planted_units_are_explained_by_the_explainers_that_can() -> None:
    token, ngram = scored(Ngrams(order=1).explain(MATERIAL)), scored(Ngrams().explain(MATERIAL))
    tree = scored(Trees().explain(MATERIAL))
    for found in (token, ngram, tree):
        assert found["token"] == pytest.approx(1)
        assert np.isnan(found["nothing"]) and np.isnan(found["everything"])
    for name in ("bigram", "trigram"):
        assert ngram[name] > 0.99 and tree[name] > 0.99
    assert tree["position"] == pytest.approx(1) and tree["quote"] == pytest.approx(1)
    assert token["bigram"] < 0.6 and token["trigram"] < 0.6
    assert abs(token["position"]) < 0.35 and token["quote"] < 0.6


def test_shuffled_and_random_explanations_of_planted_units_are_at_the_floor() -> None:
    names = ["token", "bigram", "trigram"]
    made = Ngrams().explain(MATERIAL)[:3]
    found = tally(
        RuleSimulator(shuffled(made)),
        lambda: [b._replace(values=b.values[..., :3]) for b in restricted(lambda: HELD, PARTS.evaluate)()],
        PLANTED,
    )
    assert all(abs(r) < 0.1 for r in found.pearson.tolist()), names
    made = Ngrams(order=2).explain(MATERIAL)
    drawn = [scored(random_tokens(made, MATERIAL, seed)) for seed in range(12)]  # one draw can hit a word of so few
    assert all(abs(np.mean([one[name] for one in drawn])) < 0.15 for name in names)
    flat = scored(constant_explanations(MATERIAL))
    assert [flat[name] for name in names] == [0, 0, 0]


def test_coverage_names_dead_and_silent_units() -> None:
    made = Ngrams(order=1).explain(MATERIAL)
    found = coverage(made, MATERIAL.records)
    silent = {NAMES[i] for i in found.silent}
    assert {NAMES[i] for i in found.dead} == {"nothing"} and "everything" in silent and "token" not in silent
    explained = [i for i, e in enumerate(made) if e.rule["entries"]]
    assert found.by_count == pytest.approx(len(explained) / 7)
    x = UNIT_VALUES[PARTS.explain][kept(PLANTED)[PARTS.explain]].sum(0)
    assert found.by_mass == pytest.approx(float(x[explained].sum() / x.sum()))
    assert found.n_units == 7
    assert "Nothing is known" in made[NAMES.index("everything")].text


def test_explanations_are_made_from_their_own_stories_alone() -> None:
    """What stands in the other stories changes nothing."""
    changed = UNIT_VALUES.clone()
    changed[torch.cat([PARTS.calibrate, PARTS.evaluate])] = 77.0
    other = material(PLANTED, changed, PARTS)
    for explainer in (Ngrams(order=2), Trees(depth=1)):
        assert explainer.explain(other) == explainer.explain(MATERIAL)
    assert MATERIAL.train_rows == other.train_rows
    assert constant(0.5)["default"] == 127 and len(WORDS) == VOCABULARY.n
