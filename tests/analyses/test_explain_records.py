"""Records, splits and kept activations against naive loops."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.explain import records, restricted, sparse_acts, story_splits
from analyses.explain.records import BEFORE, INACTIVE, LISTS
from analyses.explain.sampling import random_priority
from analyses.texts import Stories
from tests.cases.explained import ID, batches, kept, planted, random_stories

STORIES = random_stories(30, 24)
VALUES = torch.randn(30, 24, 6, generator=torch.Generator().manual_seed(3)).clamp(min=-0.5)
RECORDS = records(lambda: batches(STORIES, VALUES), STORIES, n=5)


def test_top_examples_are_the_best_of_each_story() -> None:
    x = VALUES.where(kept(STORIES)[..., None], -9.0)
    for unit, record in enumerate(RECORDS):
        best = sorted(((float(x[row, :, unit].max()), row) for row in range(30)), key=lambda one: (-one[0], one[1]))
        assert [(e.value, e.story) for e in record.examples["top"]] == best[:5]
        for e in record.examples["top"]:
            assert e.value == float(x[e.story, e.pos, unit])


def test_windows_show_the_tokens_and_activations_around_the_example() -> None:
    shown = 0
    for record in RECORDS:
        for name in LISTS:
            for e in record.examples[name]:
                first = max(0, e.pos - BEFORE)
                end = first + len(e.tokens)
                assert e.at == e.pos - first and end <= int(STORIES.lengths[e.story])
                assert list(e.tokens) == STORIES.tokens[e.story, first:end].tolist()
                assert list(e.values) == VALUES[e.story, first:end, record.unit].tolist()
                shown += 1
    assert shown > 100


def test_no_list_has_two_examples_of_a_story() -> None:
    for record in RECORDS:
        for name, examples in record.examples.items():
            assert len({e.story for e in examples}) == len(examples), name


def test_each_list_holds_what_it_says() -> None:
    for record in RECORDS:
        peak_tokens = {e.tokens[e.at] for e in record.examples["top"]}
        assert all(e.value <= 0 for e in record.negatives) and len(record.negatives) == 5
        assert all(e.value > 0 for e in record.positives)
        assert all(e.tokens[e.at] in peak_tokens for e in record.examples["near_same"])
        assert all(e.value <= INACTIVE * record.maximum for e in record.examples["near_same"])
        assert all(e.tokens[e.at] not in peak_tokens for e in record.examples["near_other"])
        spread = [e.value for e in record.examples["spread"]]
        assert spread == sorted(spread, reverse=True) and spread[-1] < 0.5 * spread[0]


def test_the_nearest_misses_are_the_least_and_the_greatest_there_are() -> None:
    real = kept(STORIES)
    for unit, record in enumerate(RECORDS):
        peak = torch.tensor(sorted({e.tokens[e.at] for e in record.examples["top"]}))
        same = torch.isin(STORIES.tokens, peak) & real
        x = VALUES[..., unit]
        assert record.examples["near_same"][0].value == float(x[same].min())
        assert record.examples["near_other"][0].value == float(x[real & ~same].max())


def test_sums_are_those_of_all_tokens() -> None:
    x = VALUES[kept(STORIES)].double()
    torch.testing.assert_close(RECORDS.mean, x.mean(0))
    torch.testing.assert_close(RECORDS.maximum, x.amax(0))
    torch.testing.assert_close(RECORDS.mass, x.clamp(min=0).sum(0))
    assert RECORDS.n == len(x) and torch.equal(RECORDS.n_active, (x > 0).sum(0))


@given(st.permutations(range(12)), st.lists(st.integers(1, 11), max_size=4, unique=True))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_batches_makes_no_difference(order: list[int], cuts: list[int]) -> None:
    stories = STORIES.subset(torch.arange(12))
    values = VALUES[:12].round(decimals=0)  # many ties
    ends = [0, *sorted(cuts), 12]
    dealt = [sorted(order[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
    one = records(lambda: batches(stories, values), stories, n=3, seed=2)
    other = records(lambda: batches(stories, values, dealt), stories, n=3, seed=2)
    for name in LISTS:
        assert torch.equal(one.places[name].rows, other.places[name].rows), name
        assert torch.equal(one.places[name].positions, other.places[name].positions), name
        torch.testing.assert_close(one.places[name].windows, other.places[name].windows, equal_nan=True)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.quantiles, other.quantiles, equal_nan=True)


def test_random_examples_are_uniform_and_change_with_the_seed() -> None:
    chance = random_priority(torch.arange(50), 40, 8, seed=0)
    assert chance.unique().numel() == chance.numel() and 0 <= float(chance.min()) < float(chance.max()) < 1
    counts = chance.flatten().histc(10, 0, 1)
    assert float((counts - 1600).square().sum() / 1600) < 27.9  # chi squared with 9 degrees, p = .001
    flat = chance.flatten(0, 1)
    assert float((torch.corrcoef(flat.T) - torch.eye(8)).abs().max()) < 0.1
    assert (random_priority(torch.arange(50), 40, 8, seed=1) != chance).all()
    assert torch.equal(random_priority(torch.tensor([7]), 40, 8, seed=0)[0], chance[7])


def test_spread_examples_are_at_all_ranks_of_the_activation() -> None:
    """Activation uniform in 0..1 at all tokens: the ranks must be, too."""
    stories = Stories(torch.ones(200, 12, dtype=torch.long), torch.full((200,), 12))
    values = torch.rand(200, 12, 20, generator=torch.Generator().manual_seed(0)) + 1e-6
    found = records(lambda: batches(stories, values), stories, n=9)
    middle = torch.tensor([record.examples["spread"][4].value for record in found])
    assert abs(float(middle.mean()) - 0.5) < 0.05
    torch.testing.assert_close(
        found.quantiles.mean(1).float(), torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9]), atol=0.05, rtol=0
    )


def test_planted_units_have_the_records_one_would_write() -> None:
    stories = random_stories()
    names, values = planted(stories)
    found = records(lambda: batches(stories, values), stories)
    by_name = dict(zip(names, found, strict=True))
    assert {e.tokens[e.at] for e in by_name["token"].positives} == {ID[" cat"]}
    assert not by_name["token"].examples["near_same"]
    missed = by_name["bigram"].examples["near_same"]
    assert missed and {e.tokens[e.at] for e in missed} == {ID[" B"]} and all(e.value == 0 for e in missed)
    dead = by_name["nothing"]
    assert not dead.positives and not dead.near_misses and len(dead.negatives) == 10 and dead.n_active == 0
    assert not by_name["everything"].negatives and by_name["everything"].n_active == by_name["everything"].n


def test_a_record_needs_tokens_and_an_example() -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        records(lambda: [], STORIES)
    with pytest.raises(ValueError, match="at least 1 example"):
        records(lambda: [], STORIES, n=0)
    with pytest.raises(IndexError, match="0 to 5"):
        RECORDS[6]


def test_splits_share_no_story_and_no_copy_of_one() -> None:
    tokens = random_stories(40).tokens
    doubled = Stories(torch.cat([tokens, tokens[:20]]), torch.full((60,), tokens.shape[1]))
    parts = story_splits(doubled, seed=4)
    assert sorted(torch.cat(list(parts)).tolist()) == list(range(60))
    texts = [{tuple(doubled.tokens[row].tolist()) for row in part} for part in parts]
    assert not (texts[0] & texts[1] or texts[1] & texts[2] or texts[0] & texts[2])
    assert [len(t) for t in texts] == [20, 10, 10]
    assert not torch.equal(story_splits(doubled, seed=5).explain, parts.explain)


def test_splits_need_three_stories_and_three_shares() -> None:
    same = Stories(torch.ones(5, 4, dtype=torch.long), torch.full((5,), 4))
    with pytest.raises(ValueError, match="at least 3 different stories; got 1"):
        story_splits(same)
    with pytest.raises(ValueError, match="three positive numbers"):
        story_splits(same, (1, 0, 1))
    assert [len(p) for p in story_splits(random_stories(3), (0.98, 0.01, 0.01))] == [1, 1, 1]


def test_a_restricted_source_gives_the_stories_asked_for_alone() -> None:
    held = batches(STORIES, VALUES)
    wanted = torch.tensor([0, 8, 9, 29])
    source = restricted(lambda: held, wanted)
    for _ in range(2):
        found = list(source())
        assert torch.cat([b.rows for b in found]).tolist() == wanted.tolist()
        for b in found:
            assert torch.equal(b.values, VALUES[b.rows, : b.values.shape[1]])


@pytest.mark.parametrize("units", [None, [4, 1]])
def test_sparse_activations_are_given_back(units: list[int] | None) -> None:
    acts = sparse_acts(lambda: batches(STORIES, VALUES), STORIES.tokens.shape[1], threshold=0.5)
    chosen: Any = slice(None) if units is None else units
    x = VALUES.where((VALUES > 0.5) & kept(STORIES)[..., None], 0.0)[..., chosen]
    found = list(acts.batches(None if units is None else torch.tensor(units), size=4))
    for b in found:
        assert torch.equal(b.values, x[b.rows])
        assert torch.equal(b.keep, kept(STORIES)[b.rows])
    assert torch.cat([b.rows for b in found]).tolist() == list(range(30))
    assert acts.density == pytest.approx(float((VALUES[kept(STORIES)] > 0.5).double().mean()))
