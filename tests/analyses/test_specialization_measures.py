"""Measures against naive loops and other libraries; intervals and nulls against brute force."""

from collections import Counter
from math import log2

import networkx as nx
import numpy as np
import pytest
import torch
from scipy import stats

from analyses import metrics
from analyses.specialization import intervals, nulls
from analyses.specialization.activity import Activity, calibrated
from analyses.specialization.measures import best_labels, measures
from analyses.specialization.modularity import communities, modularity, together
from analyses.specialization.tables import Tables, without
from analyses.statistics import share_interval

N, U, L = 400, 5, 7


@pytest.fixture
def data():
    """Values of five units at 400 tokens, their labels (some missing), and a group of stories each."""
    draw = np.random.default_rng(0)
    label = draw.integers(-1, L, N)
    values = draw.normal(size=(N, U)) - 0.5 + (label[:, None] == np.arange(U)) * np.array([3, 1, 0.3, 0, -2.0])
    group = np.repeat(np.arange(4), N // 4)
    return torch.tensor(values), torch.tensor(label), group


def filled(values: torch.Tensor, label: torch.Tensor, group: np.ndarray, activity: Activity) -> Tables:
    tables = Tables(4, U, {"current_token": L}, "current_token", whole=True, like=values)
    for g in range(4):
        rows = torch.as_tensor(group == g)
        tables.add(g, activity.seen(values[rows]), {"current_token": label[rows]})
    return tables


def naive_information(active: list[bool], label: list[int]) -> float:
    n, joint, a, b = len(label), Counter(zip(active, label, strict=True)), Counter(active), Counter(label)
    return sum(c / n * log2(c * n / (a[x] * b[y])) for (x, y), c in joint.items())


def test_every_measure_is_what_a_naive_loop_says(data):
    values, label, group = data
    found = measures(filled(values, label, group, calibrated(values, "positive", 0.0)).total)
    x, known = values.numpy(), label.numpy() >= 0
    strength = np.maximum(x, 0)
    for u in range(U):
        active, of = (x[known, u] > 0).tolist(), label.numpy()[known].tolist()
        information = naive_information(active, of)
        share = information / stats.entropy([np.mean(active), 1 - np.mean(active)], base=2)
        mean = x[known, u].mean()
        between = sum((x[known & (label.numpy() == k), u].mean() - mean) ** 2 * of.count(k) for k in range(L))
        weights = [strength[label.numpy() == k, u].sum() for k in range(L)]
        right = {
            ("mutual information", "current_token"): information,
            ("information share", "current_token"): share,
            ("variance explained", "current_token"): between / ((x[known, u] - mean) ** 2).sum(),
            ("context entropy", "-"): stats.entropy(weights, base=2),
            ("effective contexts", "-"): 2 ** stats.entropy(weights, base=2),
            ("usage", "-"): (x[:, u] > 0).mean(),
            ("negative share", "-"): np.maximum(-x[:, u], 0).sum() / np.abs(x[:, u]).sum(),
            ("kurtosis", "-"): stats.kurtosis(strength[:, u]),
            ("hoyer", "-"): (N**0.5 - strength[:, u].sum() / np.linalg.norm(strength[:, u])) / (N**0.5 - 1),
        }
        for key, expected in right.items():
            assert found[key][u].item() == pytest.approx(expected, rel=1e-9, abs=1e-12), key
        assert found["gini", "-"][u].item() == pytest.approx(metrics.gini(strength[:, u]), abs=5e-3)
    assert set(found) == {*right, ("gini", "-")}


def test_leaving_a_group_out_is_a_subtraction(data):
    values, label, group = data
    activity = calibrated(values, "positive", 0.0)
    tables = filled(values, label, group, activity)
    errors, left_out = {}, [measures(without(tables.total, part)) for part in tables.slots()]
    for g in range(4):
        kept = torch.as_tensor(group != g)
        alone = Tables(1, U, {"current_token": L}, "current_token", whole=True, like=values)
        alone.add(0, activity.seen(values[kept]), {"current_token": label[kept]})
        for key, value in measures(alone.total).items():
            torch.testing.assert_close(left_out[g][key], value, rtol=1e-9, atol=1e-10)
            errors.setdefault(key, []).append(value.numpy())
    brute = np.stack(errors["mutual information", "current_token"])
    expected = np.sqrt(3 / 4 * ((brute - brute.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(intervals.jackknife_error(brute), expected)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    groups = np.random.default_rng(1).normal(size=(16, 3))
    left_out = np.stack([np.delete(groups, g, axis=0).mean(0) for g in range(16)])
    np.testing.assert_allclose(intervals.jackknife_error(left_out), stats.sem(groups, axis=0))
    low, high = intervals.jackknife_interval(groups.mean(0), left_out)
    right = stats.t.interval(0.95, 15, groups.mean(0), stats.sem(groups, axis=0))
    np.testing.assert_allclose([low, high], right)


def test_a_unit_that_never_is_active_has_no_context_and_no_label():
    tables = Tables(1, 2, {"current_token": 2}, "current_token", whole=True, like=torch.zeros(1, dtype=torch.float64))
    values = torch.tensor([[-1.0, 2.0], [-2.0, 2.0], [-1.0, 2.0]], dtype=torch.float64)
    tables.add(0, calibrated(values, "positive", 0.0).seen(values), {"current_token": torch.tensor([0, 1, 1])})
    found = measures(tables.total)
    assert found["effective contexts", "-"].isnan().tolist() == [True, False]
    assert found["information share", "current_token"].isnan().all()  # neither nothing nor everything has an entropy
    assert found["variance explained", "current_token"].isnan().tolist() == [False, True]  # a constant has no variance
    label, lift = best_labels(tables.total["active/current_token"][:-1], tables.total["labelled/current_token"][:-1])
    assert label[0] == -1 and lift[0].isnan() and lift[1] == 1


def test_the_best_label_is_often_enough_and_over_represented():
    active = torch.tensor([[1.0, 0.0], [30.0, 0.0], [30.0, 4.0]])  # tokens at which each of two units is active
    label, lift = best_labels(active, torch.tensor([1.0, 40.0, 959.0]))
    assert label.tolist() == [1, 2]  # class 0 has the greatest lift, once
    assert lift[0].item() == pytest.approx((30 / 40) / (61 / 1000))


def test_modularity_is_networkx_s_and_planted_communities_are_found():
    draw = np.random.default_rng(2)
    block = np.repeat([0, 1, 2], [6, 8, 10])
    weights = draw.poisson(np.where(block[:, None] == block, 9.0, 1.0)).astype(float)
    weights = np.triu(weights, 1) + np.triu(weights, 1).T
    weights[:, 3] = weights[3] = 0.0  # a unit that never is active with another
    found = communities(weights)
    live = np.arange(24) != 3
    assert found[3] == -1 and len(set(found[live])) == 3
    assert all(len(set(found[live & (block == b)])) == 1 for b in range(3))
    sets = [set(np.flatnonzero(found == c).tolist()) for c in set(found.tolist())]
    expected = nx.community.modularity(nx.from_numpy_array(weights), sets, weight="weight")
    assert modularity(weights, found) == pytest.approx(expected)
    best = nx.community.louvain_communities(nx.from_numpy_array(weights), seed=0)
    assert modularity(weights, found) >= nx.community.modularity(nx.from_numpy_array(weights), best) - 1e-9
    assert modularity(np.zeros((4, 4)), communities(np.zeros((4, 4)))) == 0


def test_co_activation_counts_pairs_within_a_layer():
    active = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.4
    counts = together(active, 2)
    assert counts.shape == (2, 3, 3)
    assert counts[1, 0, 2] == (active[:, 3] & active[:, 5]).sum()


@pytest.mark.parametrize("usage", [0.02, 0.3, 0.9])
def test_the_rectified_normal_is_that_of_a_large_sample(usage: float):
    z = stats.norm.isf((np.arange(200_000) + 0.5) / 200_000)
    sample = np.maximum(z - stats.norm.isf(usage), 0)
    found = nulls.rectified_normal(np.array([usage, 0.0]), len(sample))
    assert found["kurtosis"][0] == pytest.approx(stats.kurtosis(sample), rel=0.01)
    assert found["gini"][0] == pytest.approx(metrics.gini(sample), abs=1e-3)
    ratio = sample.sum() / np.linalg.norm(sample)
    assert found["hoyer"][0] == pytest.approx((len(z) ** 0.5 - ratio) / (len(z) ** 0.5 - 1), abs=1e-3)
    assert np.isnan(found["gini"][1])
    half = nulls.half_normal(1, len(z))
    assert half["kurtosis"][0] == pytest.approx(stats.kurtosis(np.abs(z)), rel=0.01)
    assert half["gini"][0] == pytest.approx(metrics.gini(np.abs(z)), abs=1e-3)


def test_shuffles_stay_within_stories_and_keep_each_unit_s_usage():
    keep = torch.tensor([[False, True, True, True, True, True], [False, True, True, True, False, False]])
    generator = torch.Generator().manual_seed(0)
    orders = torch.stack([nulls.shuffled_order(keep, generator) for _ in range(400)])
    assert (orders.sort(-1).values == torch.arange(6)).all()
    assert (orders[:, ~keep] == torch.arange(6).expand(2, 6)[~keep]).all()
    for place in range(1, 6):  # each kept place gets each kept token equally often: 80 +- 8 of 400
        counts = orders[:, 0, place].bincount(minlength=6)[1:]
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    active = (torch.rand(2, 6, 40, generator=generator) < 0.5) & keep[:, :, None]
    dealt = torch.stack([nulls.shuffled_units(active, keep, generator) for _ in range(50)])
    assert (dealt.sum(2) == active.sum(1)).all() and not dealt[:, ~keep].any()
    assert not all(torch.equal(one, active) for one in dealt)
    twins = active[:, :, :1].expand(-1, -1, 40).contiguous()  # equal units do not stay equal
    dealt = nulls.shuffled_units(twins, keep, generator)
    assert (dealt != dealt[:, :, :1]).any()


def test_intervals_of_shares_are_wilson_s():
    for successes in (0, 3, 20):
        found = intervals.wilson(np.array([successes / 20]), 20)
        np.testing.assert_allclose([found.low[0], found.high[0]], share_interval(successes, 20), atol=1e-12)


def test_p_against_draws_is_uniform_under_the_null():
    draws = np.random.default_rng(3).normal(size=(11, 4000))
    p = intervals.p_against_draws(draws[0], draws[1:])
    assert stats.kstest(p, "uniform").pvalue > 0.001
    assert intervals.p_against_draws(np.array([2.0, 1.0]), np.ones((5, 2))).tolist() == [0.0, 1.0]
    assert np.isnan(intervals.false_discovery(np.array([np.nan, 0.01]))).tolist() == [True, False]
