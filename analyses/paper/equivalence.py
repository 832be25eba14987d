"""Is a difference small enough to be called none? Two one-sided tests against a margin that is set beforehand.

That no difference was found is no evidence that there is none: three seeds see little. "Nothing is lost" is therefore
claimed where both "the ratio is above the margin" and "it is below its inverse" are rejected, by Welch's t over seeds.
Ratios are tested on logarithms, so that the margin means the same whichever of the two is the baseline.

Source: Schuirmann 1987 (two one-sided tests); Lakens 2017.
"""

from typing import Any

import numpy as np
from scipy import stats


def equivalence_p_value(values: Any, base: Any, margin: float) -> float:
    """p of "the means are `margin` apart or more", the larger of both sides; NaN for fewer than two values a side.

    Args:
        values, base: one a seed.
        margin: the largest difference that is still none, in the unit of the values.

    Raises:
        ValueError: a margin of 0 or less.
    """
    if not margin > 0:
        raise ValueError(f"a margin of equivalence must be above 0; got {margin}")
    values, base = (np.asarray(x, dtype=np.float64) for x in (values, base))
    if min(len(values), len(base)) < 2:
        return float("nan")
    parts = [x.var(ddof=1) / len(x) for x in (values, base)]
    error, apart = np.sqrt(sum(parts)), values.mean() - base.mean()
    if error == 0:  # no spread at all: nothing to judge a difference by
        return float("nan")
    freedom = sum(parts) ** 2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, (values, base), strict=True))
    sides = [stats.t.sf((margin + sign * apart) / error, freedom) for sign in (1, -1)]
    return float(max(sides))


def ratio_p_value(values: Any, base: Any, margin: float) -> float:
    """The same of positive numbers whose ratio counts: 1.05 is 5 % more, or as much less.

    Raises:
        ValueError: a margin of 1 or less.
    """
    if not margin > 1:
        raise ValueError(f"a margin of ratios must be above 1; got {margin}")
    return equivalence_p_value(
        np.log(np.asarray(values, float)), np.log(np.asarray(base, float)), float(np.log(margin))
    )
