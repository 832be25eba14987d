"""streaming: what comes in batches, in any grouping, is summed up as numpy sums up all of it at once."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_lens.streaming import CoActivation, Covariance, Histogram, Moments, TopExamples, largest_rows

EDGES = torch.linspace(-2, 2, 9)
KINDS = {
    "moments": (Moments, lambda r, x, rows: r.update(x.flatten(0, 1))),
    "covariance": (Covariance, lambda r, x, rows: r.update(x.flatten(0, 1))),
    "histogram": (lambda: Histogram(EDGES), lambda r, x, rows: r.update(x.flatten(0, 1))),
    "top examples": (lambda: TopExamples(5), lambda r, x, rows: r.update(x, rows)),
    "co-activation": (CoActivation, lambda r, x, rows: r.update((x > 0).flatten(0, 1))),
}


def sample(n: int, seed: int = 0) -> torch.Tensor:
    """[n, 4, 3] float64, rounded so that many values are equal."""
    return torch.randn(n, 4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).round(decimals=1)


def reduced(kind: str, values: torch.Tensor, rows: torch.Tensor, batch: int):
    make, update = KINDS[kind]
    reducer = make()
    for part in rows.split(batch):
        update(reducer, values[part], part)
    return reducer


def assert_same(a, b):
    for field in dataclasses.fields(a):
        mine, its = getattr(a, field.name), getattr(b, field.name)
        if isinstance(mine, torch.Tensor):
            torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)
        else:
            assert mine == its


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 12), min_size=2, max_size=2), batch=st.integers(1, 12), seed=st.integers(0, 99))
def test_shares_merged_in_any_grouping_are_all_data(kind, cuts, batch, seed):
    values, (low, high) = sample(12, seed), sorted(cuts)
    shares = [reduced(kind, values, rows, batch) for rows in torch.arange(12).tensor_split([low, high])]
    everything = reduced(kind, values, torch.arange(12), 12)
    a, b, c = shares
    assert_same(a.merge(b).merge(c), everything)
    assert_same(a.merge(b.merge(c)), everything)
    assert_same(c.merge(a).merge(b), everything)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_changes_neither_and_nothing_is_neutral(kind):
    values, (make, _) = sample(6), KINDS[kind]
    a, b = (reduced(kind, values, rows, 2) for rows in torch.arange(6).split(3))
    before = copy.deepcopy((a, b))
    a.merge(b)
    assert_same(a, before[0])
    assert_same(b, before[1])
    assert_same(make().merge(a), a)
    assert_same(a.merge(make()), a)
    make().merge(make())


@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_of_many_sequences_is_no_larger_than_that_of_few(kind):
    few, many = (reduced(kind, sample(n), torch.arange(n), 8) for n in (8, 400))
    assert [p.shape for p in vars(few).values() if isinstance(p, torch.Tensor)] == [
        p.shape for p in vars(many).values() if isinstance(p, torch.Tensor)
    ]


def test_moments_by_hand_with_weights():
    moments = Moments()
    moments.update(torch.tensor([[1.0, 0.0], [4.0, 6.0]]), torch.tensor([2.0, 1.0]))
    # unit 0: mean (2 + 4) / 3 = 2; squares 2 * 1 + 1 * 4 = 6; unit 1: mean 2; 2 * 4 + 16 = 24
    assert moments.mean.tolist() == [2.0, 2.0]
    assert moments.variance.tolist() == [2.0, 8.0]
    assert moments.weight.item() == 3


def test_moments_are_numpys_far_from_zero():
    values = torch.randn(1000, 3, generator=torch.Generator().manual_seed(1)) + 1e4
    moments = functools.reduce(lambda m, x: m.update(x) or m, values.split(7), Moments())
    assert np.allclose(moments.mean, values.double().numpy().mean(0), rtol=1e-12)
    assert np.allclose(moments.variance, values.double().numpy().var(0), rtol=1e-9)


def test_weights_of_two_axes_keep_positions_apart():
    values, keep = sample(9), torch.arange(4) < torch.tensor([4, 3, 3, 2, 1, 1, 1, 2, 1])[:, None]
    moments = Moments()
    for rows in torch.arange(9).split(4):
        moments.update(values[rows], keep[rows])
    for pos in range(4):
        kept = values[keep[:, pos], pos]
        torch.testing.assert_close(moments.mean[pos], kept.mean(0))
        torch.testing.assert_close(moments.variance[pos], kept.var(0, correction=0))


def test_where_no_weight_is_the_mean_is_0():
    moments = Moments()
    moments.update(torch.ones(2, 3), torch.zeros(2))
    assert moments.mean.tolist() == [0.0] * 3 and moments.variance.tolist() == [0.0] * 3
    moments.update(torch.full((1, 3), 5.0))
    assert moments.mean.tolist() == [5.0] * 3


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"leading axes of \(4, 3\); got \(4, 2\)"):
        Moments().update(torch.zeros(4, 3), torch.ones(4, 2))


def test_covariance_is_numpys_with_weights():
    draw = torch.Generator().manual_seed(2)
    values, weights = torch.randn(50, 4, generator=draw) + 100, torch.rand(50, generator=draw)
    found = Covariance()
    for rows in torch.arange(50).split(8):
        found.update(values[rows], weights[rows])
    expected = np.cov(values.double().numpy().T, aweights=weights.double().numpy(), ddof=0)
    assert np.allclose(found.covariance, expected, rtol=1e-8)
    assert np.allclose(found.mean, np.average(values.double().numpy(), axis=0, weights=weights.double().numpy()))


def test_histogram_by_hand():
    histogram = Histogram(torch.tensor([0.0, 1.0, 2.0]))
    histogram.update(torch.tensor([-3.0, 0.0, 0.5, 1.0, 9.0]))
    assert histogram.counts.tolist() == [1, 2, 1, 1]  # a value on an edge is in the bin above it
    assert (histogram.least, histogram.most) == (-3, 9)
    # half of 5 values is 2.5: 1 below the bin [0, 1), so 1.5 / 2 of the way through it
    assert histogram.quantile(0.5).item() == 0.75
    assert (histogram.quantile(0.0).item(), histogram.quantile(1.0).item()) == (-3, 9)


@settings(deadline=None)
@given(st.integers(0, 200), st.floats(0, 1))
def test_a_quantile_is_numpys_to_within_a_bin(seed, q):
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).clamp(-1.9, 1.9)
    histogram = Histogram(EDGES)
    for part in values.split(9):
        histogram.update(part)
    for method in ("lower", "higher"):  # of 40 values the quantile lies between two, and so does ours
        expected = torch.from_numpy(np.quantile(values.numpy(), q, axis=0, method=method))
        sides = histogram.quantile(q) - expected
        assert ((sides > -0.5001) if method == "lower" else (sides < 0.5001)).all()


def test_a_histogram_counts_what_is_kept_and_knows_when_it_is_nothing():
    histogram = Histogram(EDGES)
    histogram.update(torch.ones(3, 2), torch.tensor([False, False, False]))
    assert histogram.quantile(0.5).isnan().all()
    histogram.update(torch.tensor([[0.1, 0.1], [1.1, 1.1]]), torch.tensor([True, False]))
    assert histogram.counts.sum(0).tolist() == [1, 1] and histogram.most.tolist() == pytest.approx([0.1, 0.1])


def test_top_examples_are_those_of_a_stable_sort_of_everything():
    values, found = sample(40), TopExamples(7)
    for rows in torch.arange(40).split(6):
        found.update(values[rows], rows)
    order = values.flatten(0, 1).argsort(stable=True, dim=0, descending=True)[:7]
    assert torch.equal(found.values, values.flatten(0, 1).gather(0, order))
    assert torch.equal(found.rows * 4 + found.positions, order)


def test_tokens_that_are_not_kept_are_no_examples():
    values, keep = torch.tensor([[3.0, 9.0], [1.0, 2.0]])[..., None], torch.tensor([[True, False], [True, True]])
    found = TopExamples(5)
    found.update(values, torch.tensor([4, 8]), keep)
    assert found.values[:, 0].tolist() == [3, 2, 1]
    assert found.rows[:, 0].tolist() == [4, 8, 8] and found.positions[:, 0].tolist() == [0, 1, 0]


@settings(deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(-2, 2), min_size=9, max_size=9))
def test_the_largest_rows_are_the_first_of_equals(k, values):
    x = torch.tensor(values)[:, None]
    assert largest_rows(x, k)[:, 0].tolist() == sorted(sorted(range(9), key=lambda i: (-values[i], i))[:k])


def test_what_cannot_be_put_in_order_is_refused():
    with pytest.raises(ValueError, match="NaN came"):
        TopExamples(1).update(torch.full((1, 1, 1), torch.nan), torch.tensor([0]))
    with pytest.raises(ValueError, match="NaN came"):
        Histogram(EDGES).update(torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match="rows must ascend"):
        TopExamples(1).update(torch.zeros(2, 1, 1), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="at least 1 example; got 0"):
        TopExamples(0)
    with pytest.raises(ValueError, match="must ascend"):
        Histogram(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="edges are equal"):
        Histogram(EDGES).merge(Histogram(EDGES + 1))
    with pytest.raises(ValueError, match="got 1 and 2"):
        TopExamples(1).merge(TopExamples(2))
    with pytest.raises(ValueError, match="between 0 and 1; got 95"):
        Histogram(EDGES).quantile(95.0)


def test_co_activation_by_hand():
    counts = CoActivation()
    counts.update(torch.tensor([[True, True, False], [True, False, False], [True, True, False]]))
    assert counts.together.tolist() == [[3, 2, 0], [2, 2, 0], [0, 0, 0]] and counts.n == 3
    # units 0 and 1: together at 2 tokens, either at 3
    assert counts.jaccard[0].tolist() == pytest.approx([1, 2 / 3, 0])
    assert counts.jaccard[2, 2] == 0


def test_summaries_of_what_inference_gave_can_be_learned_from():
    moments = Moments()
    with torch.inference_mode():
        values = torch.ones(2, 3, dtype=torch.float64)
    moments.update(values)
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (moments.mean * weight).sum().backward()  # torch refuses this of an inference tensor
    assert weight.grad.tolist() == [1.0] * 3
