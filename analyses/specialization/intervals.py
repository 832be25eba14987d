"""How sure a measure is: a jackknife over groups of stories, and a test against draws of a null.

Why a jackknife and no bootstrap: tokens of a story are not independent, so stories are what may be left out, and the
measures are functions of sums by class. A bootstrap of 300 stories would need those sums story by story (4 GB for
1,024 neurons); 16 groups of stories need 16 sets of them, and leaving one out is a subtraction. Measures that are
quadratic under the null, such as mutual information, have a jackknife variance that is too large there, not too small
(Efron and Stein 1981).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


class Interval(NamedTuple):
    """95 % interval."""

    low: Float[np.ndarray, "*unit"]
    high: Float[np.ndarray, "*unit"]


def jackknife_error(left_out: Float[np.ndarray, "group *unit"]) -> Float[np.ndarray, "*unit"]:
    """Standard error of a measure, from its values with each group left out: groups of about equal size."""
    n = len(left_out)
    return np.sqrt((n - 1) * left_out.var(0))


def jackknife_interval(
    value: Float[np.ndarray, "*unit"], left_out: Float[np.ndarray, "group *unit"], confidence: float = 0.95
) -> Interval:
    """value +- t standard errors, with as many degrees of freedom as groups less one."""
    half = stats.t.isf((1 - confidence) / 2, len(left_out) - 1) * jackknife_error(left_out)
    return Interval(value - half, value + half)


def p_against_draws(
    value: Float[np.ndarray, "*unit"], draws: Float[np.ndarray, "draw *unit"]
) -> Float[np.ndarray, "*unit"]:
    """Two-sided p of "the value is one more draw of the null", draws taken for normal.

    t = (value - mean) / (sd sqrt(1 + 1 / draws)). It has no smallest p, which a correction over thousands of units
    needs. 1 where neither differs at all; 0 where draws never differ and the value does.
    """
    n = len(draws)
    apart = value - draws.mean(0)
    error = draws.std(0, ddof=1) * np.sqrt(1 + 1 / n)
    tiny = 1e-9 * np.maximum(np.abs(value), 1e-300)
    t = np.where(np.abs(apart) <= tiny, 0.0, np.abs(apart) / np.maximum(error, 1e-300))
    return np.where(np.isnan(apart), np.nan, 2 * stats.t.sf(t, n - 1))


def p_against_number(
    value: Float[np.ndarray, "*unit"], null: Float[np.ndarray, "*unit"], left_out: Float[np.ndarray, "group *unit"]
) -> Float[np.ndarray, "*unit"]:
    """Two-sided p of "the value is `null`", by the jackknife's standard error."""
    t = np.abs(value - null) / np.maximum(jackknife_error(left_out), 1e-300)
    return np.where(np.isnan(t), np.nan, 2 * stats.t.sf(t, len(left_out) - 1))


def false_discovery(p: Float[np.ndarray, " unit"]) -> Float[np.ndarray, " unit"]:
    """Benjamini and Hochberg's q: the share of false claims among the units with a q no larger. NaN is not counted."""
    found = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        found[known] = stats.false_discovery_control(p[known])
    return found


def wilson(share: Float[np.ndarray, " unit"], n: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval of shares of n independent things.

    A unit that is active in none of n stories may be active in up to about 3.8 / n of them: its upper end.
    """
    z = stats.norm.isf((1 - confidence) / 2)
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)
    return Interval(np.where(share == 0, 0.0, low), np.where(share == 1, 1.0, high))
