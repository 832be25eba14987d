import numpy as np
import pytest
from scipy import stats

from analyses.statistics import (
    bootstrap_interval,
    bootstrap_weights,
    holm,
    permutation_p_value,
    share_interval,
    sign_flip_p_value,
)


def test_bootstrap_weights_are_counts_of_rows_drawn_with_replacement():
    weights = bootstrap_weights(4, 100, seed=0)
    assert weights.shape == (100, 4)
    assert np.allclose(weights.sum(1), 1)
    assert set(np.unique(weights * 4)) <= {0, 1, 2, 3, 4} and (weights == 0).any()


def test_groups_keep_their_size_in_every_resample():
    weights = bootstrap_weights(6, 50, groups=["a", "a", "a", "a", "b", "b"])
    assert np.allclose(weights[:, :4].sum(1), 4 / 6)


def test_the_interval_is_scipys():
    values = np.random.default_rng(0).exponential(size=60)
    low, high = bootstrap_interval(values, n_resamples=20_000, seed=1)
    other = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    assert low == pytest.approx(other.low, abs=0.02) and high == pytest.approx(other.high, abs=0.02)


def test_about_95_of_100_intervals_hold_the_truth():
    samples = np.random.default_rng(0).normal(3.0, 1.0, size=(50, 400))
    low, high = bootstrap_interval(samples, n_resamples=500)
    assert 0.90 <= ((low <= 3.0) & (3.0 <= high)).mean() <= 0.98


def test_columns_share_their_resamples_and_the_seed_decides():
    column = np.random.default_rng(0).normal(size=20)
    low, high = bootstrap_interval(np.stack([column, column], 1), seed=3)
    assert low[0] == low[1] and high[0] == high[1]
    assert bootstrap_interval(column, seed=3)[0] == pytest.approx(low[0])
    assert bootstrap_interval(column, seed=4)[0] != pytest.approx(low[0])


def test_many_columns_are_the_same_as_each_alone():
    values = np.random.default_rng(0).normal(size=(10, 5000))
    low, _ = bootstrap_interval(values, n_resamples=50)
    assert low.shape == (5000,) and low[4999] == pytest.approx(bootstrap_interval(values[:, 4999], n_resamples=50)[0])


def test_one_row_has_an_interval_of_no_width():
    assert [float(end) for end in bootstrap_interval([2.0])] == [2.0, 2.0]
    with pytest.raises(ValueError, match="at least 1 row"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="between 0 and 1; got 95"):
        bootstrap_interval([1.0, 2.0], confidence=95.0)


def test_sign_flips_by_hand():
    # of the 8 sign patterns of (1, 2, 3) two reach |6|: p = 2/8
    assert sign_flip_p_value([1.0, 2.0, 3.0], n_permutations=20_000) == pytest.approx(0.25, abs=0.01)
    # sum 6, spread sqrt(14): z = 1.6036
    assert sign_flip_p_value([1.0, 2.0, 3.0]) == pytest.approx(2 * stats.norm.sf(6 / np.sqrt(14)))


def test_the_normal_p_value_agrees_with_random_flips():
    values = np.random.default_rng(0).normal(0.15, 1, size=(100, 6))
    assert sign_flip_p_value(values) == pytest.approx(sign_flip_p_value(values, n_permutations=20_000), abs=0.02)


def test_no_effect_has_p_1_and_a_constant_one_a_tiny_p():
    p = sign_flip_p_value(np.stack([np.zeros(50), np.full(50, 1e-9)], 1))
    assert p[0] == 1 and p[1] < 1e-10


def test_p_values_under_the_null_are_uniform():
    p = sign_flip_p_value(np.random.default_rng(0).normal(size=(40, 2000)))
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_permutation_by_hand():
    # of the 20 ways to deal (1,2,3 | 10,11,12) two are as far apart: p = 2/20
    assert permutation_p_value([1, 2, 3], [10, 11, 12]) == pytest.approx(0.1)
    assert permutation_p_value([1, 2, 3], [1, 2, 3]) == pytest.approx(1.0)


def test_holm_by_hand():
    # sorted .01 .02 .04 -> x3 .03, x2 .04, x1 .04
    assert holm([0.04, 0.01, 0.02]).tolist() == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]


def test_holm_passes_over_nan():
    adjusted = holm([np.nan, 0.01, 0.5])
    assert np.isnan(adjusted[0]) and adjusted[1:].tolist() == pytest.approx([0.02, 0.5])


def test_a_share_of_all_still_has_an_interval():
    low, high = share_interval(20, 20)
    assert 0.8 < low < 0.9 and high == pytest.approx(1.0)
    assert share_interval(10, 20)[0] < 0.5 < share_interval(10, 20)[1]
