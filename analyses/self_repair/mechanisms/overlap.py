"""Are the top units of one token the top units of another? Jaccard overlap of sets of one size.

Null: random sets of the same size; the overlap's mean is then known exactly (hypergeometric).
"""

import numpy as np
from scipy import stats

from analyses.self_repair.mechanisms.estimates import Estimate, divided, estimate

MOST = 2000
"""Tokens that are compared with one another; a seeded sample of them where there are more."""


def identity_overlap(top: np.ndarray, rows: np.ndarray, n_units: int, *, seed: int = 0) -> tuple[Estimate, int, int]:
    """Mean Jaccard overlap of two tokens' top sets, over all pairs of tokens from different stories.

    Args:
        top: indices of each token's top units, [token k].
        rows: the story of each token, [token].
        n_units: that the sets are from.

    Returns:
        The overlap (0..1) with its interval over stories; NaN with less than two stories. Tokens; stories.

    Cost: memory for MOST x (n_units + MOST) numbers of 4 bytes.
    """
    if len(top) > MOST:
        chosen = np.sort(np.random.default_rng(seed).choice(len(top), MOST, replace=False))
        top, rows = top[chosen], rows[chosen]
    k = top.shape[1]
    member = np.zeros((len(top), n_units), dtype=np.float32)
    np.put_along_axis(member, top, 1.0, axis=1)
    shared = member @ member.T
    labels, story = np.unique(rows, return_inverse=True)
    by_story = np.zeros((len(labels), len(top)))
    by_story[story, np.arange(len(top))] = 1
    overlap = by_story @ (shared / (2 * k - shared)) @ by_story.T
    pairs = np.outer(by_story.sum(1), by_story.sum(1))
    np.fill_diagonal(overlap, 0.0)
    np.fill_diagonal(pairs, 0.0)

    def mean(weights: np.ndarray) -> np.ndarray:
        return divided(((weights @ overlap) * weights).sum(1), ((weights @ pairs) * weights).sum(1))

    return estimate(mean, len(labels), seed=seed), len(top), len(labels)


def overlap_by_chance(k: int, n_units: int) -> float:
    """Mean Jaccard overlap of two random sets of k of n units."""
    shared = np.arange(k + 1)
    return float((stats.hypergeom.pmf(shared, n_units, k, k) * shared / (2 * k - shared)).sum())
