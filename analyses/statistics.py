"""How sure we are: bootstrap intervals, permutation p-values, Holm's correction."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import stats

_COLUMNS = 4096  # columns whose resamples are held at once: 1,000 x 4,096 float64 are 32 MiB


def bootstrap_weights(n: int, n_resamples: int = 1000, seed: int = 0, groups: Any = None) -> np.ndarray:
    """Bootstrap resamples of `n` rows as weights [n_resamples, n], each row summing to 1.

    `weights @ values` are resampled means; the same weights serve all columns, so that differences
    between columns keep their pairing.

    Args:
        n: rows.
        n_resamples: resamples.
        seed: of the resampling.
        groups: a label a row (such as the training seed); rows are resampled within their group.
    """
    if n < 1 or n_resamples < 1:
        raise ValueError(f"a bootstrap needs at least 1 row and 1 resample; got {n} and {n_resamples}")
    draw = np.random.default_rng(seed)
    labels = np.zeros(n, dtype=int) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    weights = np.zeros((n_resamples, n))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        weights[:, rows] = draw.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=n_resamples)
    return weights / n


def bootstrap_interval(
    values: Any, *, confidence: float = 0.95, n_resamples: int = 1000, seed: int = 0, groups: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over rows, for each column of `values` [n, ...].

    One row gives an interval of width 0: there is nothing to resample.

    Returns:
        Lower and upper end, in the unit of the values, [...].

    Cost: memory for n_resamples x n weights, whatever the columns: rows are sequences, not tokens.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1; got {confidence}")
    values = np.asarray(values, dtype=np.float64)
    weights = bootstrap_weights(len(values), n_resamples, seed, groups)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    flat = values.reshape(len(values), -1)
    ends = [np.quantile(weights @ part, tails, axis=0) for part in _column_parts(flat)]
    low, high = np.concatenate(ends, axis=1) if ends else np.empty((2, 0))
    return low.reshape(values.shape[1:]), high.reshape(values.shape[1:])


def _column_parts(flat: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, flat.shape[1], _COLUMNS):
        yield flat[:, start : start + _COLUMNS]


def sign_flip_p_value(values: Any, *, n_permutations: int | None = None, seed: int = 0) -> np.ndarray:
    """Two-sided p-value of "each row is as likely +x as -x" against the mean's distance from 0.

    The paired permutation test. Without `n_permutations`, the normal distribution with the exact
    variance of the flipped sum (sum of squares) stands in for the permutations: it has no smallest
    p-value, which a correction over thousands of units needs. A column of zeros has p = 1.

    Args:
        values: paired differences, [n, ...].
        n_permutations: random sign flips; the smallest p-value is then 1 / (n_permutations + 1).
        seed: of the flips.
    """
    values = np.asarray(values, dtype=np.float64)
    flat = values.reshape(len(values), -1)
    observed = np.abs(flat.sum(0))
    if n_permutations is None:
        spread = np.sqrt((flat**2).sum(0))
        z = np.divide(observed, spread, out=np.zeros_like(observed), where=spread > 0)
        return (2 * stats.norm.sf(z)).reshape(values.shape[1:])
    draw = np.random.default_rng(seed)
    reached = np.ones(flat.shape[1])
    slack = 1e-12 * np.abs(flat).sum(0)  # a flip that gives the same sum in another order is a tie
    for start in range(0, n_permutations, 1000):
        signs = draw.choice([-1.0, 1.0], size=(min(1000, n_permutations - start), len(flat)))
        reached += (np.abs(signs @ flat) >= observed - slack).sum(0)
    return (reached / (n_permutations + 1)).reshape(values.shape[1:])


def permutation_p_value(a: Any, b: Any, *, n_permutations: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value of "a and b are from one distribution" against the difference of their means.

    Exact when there are no more than `n_permutations` ways to deal the labels.
    """

    def difference(x: Any, y: Any, axis: int) -> Any:
        return x.mean(axis=axis) - y.mean(axis=axis)

    samples = tuple(np.asarray(sample, dtype=np.float64) for sample in (a, b))
    test = stats.permutation_test(
        samples, difference, vectorized=True, n_resamples=n_permutations, rng=np.random.default_rng(seed)
    )
    return float(test.pvalue)


def holm(p_values: Any) -> np.ndarray:
    """Holm's step-down correction: p-values that control the chance of any false claim. 0..1.

    The i-th smallest of m is multiplied by m - i + 1 and made no smaller than the one before it. NaN
    stays NaN and is not counted.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def share_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share. Unlike a bootstrap it has a width when all or none succeed. 0..1."""
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)
