"""How well a ranking of units names the members of a circuit, for many rankings at once; and its nulls.

    auroc               chance that a member stands above a unit that is none; a tie counts half; chance 0.5
    average_precision   mean over members of the precision at the member's place; chance: share of members
    jaccard             members among as many top units as there are members, over the union of the two

Ties in auroc and average_precision are exact; in jaccard they are broken at random, with a seed.
"""

from functools import partial

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

MEASURES = ("auroc", "average_precision", "jaccard")


def auroc(scores: Float[np.ndarray, "row unit"], members: Bool[np.ndarray, "row unit"]) -> Float[np.ndarray, " row"]:
    """NaN where all units or none are members."""
    n_members, n = members.sum(1), members.shape[1]
    above = (rankdata(scores, axis=1) * members).sum(1) - n_members * (n_members + 1) / 2
    pairs = n_members * (n - n_members)
    return np.divide(above, pairs, out=np.full(len(scores), np.nan), where=pairs > 0)


def average_precision(
    scores: Float[np.ndarray, "row unit"], members: Bool[np.ndarray, "row unit"]
) -> Float[np.ndarray, " row"]:
    """NaN where there are no members."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(members, order, 1).cumsum(1)
    no_worse = rankdata(-scores, method="max", axis=1).astype(int)  # units that score as much or more
    precision = np.take_along_axis(hits, no_worse - 1, 1) / no_worse
    n_members = members.sum(1)
    total = (precision * members).sum(1)
    return np.divide(total, n_members, out=np.full(len(scores), np.nan), where=n_members > 0)


def jaccard(
    scores: Float[np.ndarray, "row unit"], members: Bool[np.ndarray, "row unit"], seed: int = 0
) -> Float[np.ndarray, " row"]:
    """NaN where there are no members."""
    n_members = members.sum(1)
    place = np.empty(scores.shape, dtype=int)
    ties = np.random.default_rng(seed).random(scores.shape)
    order = np.lexsort((ties, -scores), axis=1)
    np.put_along_axis(place, order, np.arange(scores.shape[1])[None], 1)
    shared = ((place < n_members[:, None]) & members).sum(1)
    return np.divide(shared, 2 * n_members - shared, out=np.full(len(scores), np.nan), where=n_members > 0)


def overlaps(
    scores: Float[np.ndarray, "row unit"],
    members: Bool[np.ndarray, "one_or_row unit"],
    measures: tuple[str, ...] = MEASURES,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, " row"]]:
    """Measures by name."""
    members = np.broadcast_to(members, scores.shape)
    of = {"auroc": auroc, "average_precision": average_precision, "jaccard": partial(jaccard, seed=seed)}
    return {measure: of[measure](scores, members) for measure in measures}


def top_members(
    scores: Float[np.ndarray, "row unit"], size: int, absolute: bool = True
) -> Bool[np.ndarray, "row unit"]:
    """The `size` units of each row with the largest |score| or, not `absolute`, score; ties by order."""
    order = np.argsort(-np.abs(scores) if absolute else -scores, axis=1, kind="stable")[:, :size]
    members = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(members, order, True, 1)
    return members


def shuffled(
    scores: Float[np.ndarray, " unit"], strata: Int[np.ndarray, " unit"], n: int, seed: int = 0
) -> Float[np.ndarray, "shuffle unit"]:
    """`n` copies whose units are dealt anew within their stratum."""
    draw = np.random.default_rng(seed)
    found = np.empty((n, len(scores)))
    for stratum in np.unique(strata):
        at = np.flatnonzero(strata == stratum)
        found[:, at] = draw.permuted(np.broadcast_to(scores[at], (n, len(at))), axis=1)
    return found


def quantile_strata(
    values: Float[np.ndarray, " unit"], strata: Int[np.ndarray, " unit"], parts: int = 8
) -> Int[np.ndarray, " unit"]:
    """Each stratum cut by the values' rank into `parts` of about equal number, or fewer so that each has four units."""
    found = np.empty(len(values), dtype=int)
    for i, stratum in enumerate(np.unique(strata)):
        at = np.flatnonzero(strata == stratum)
        place = np.argsort(np.argsort(values[at], kind="stable"), kind="stable")
        found[at] = i * parts + place * max(1, min(parts, len(at) // 4)) // len(at)
    return found


def upper_p_value(observed: float, null: Float[np.ndarray, " shuffle"]) -> float:
    """Share of a null that is as large as the observed or larger, the observed counted in."""
    if np.isnan(observed):
        return float("nan")
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + len(null)))


def middle(values: Float[np.ndarray, " row"]) -> tuple[float, float]:
    """The ends of the middle 95 %, of those that are numbers."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
