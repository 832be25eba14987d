"""SAEs of one model compared with those of another: at the same FVU, and along the Pareto front.

An SAE's L0 says nothing without its error: a smaller coefficient buys the one with the other. So L0 and CE score are
read off a model's sweep where its FVU is the one asked for: log L0 and the CE score linear in the FVU between the two
SAEs next to it, nothing beyond the ends of the sweep.

Source: arXiv 2406.04093 and 2407.14435 (trade-off of L0 and reconstruction).
"""

import numpy as np
from jaxtyping import Bool, Float

KNOWN = 0.95
"""Share of resamples that must reach the FVU asked for, for an interval."""


def on_front(l0: Float[np.ndarray, " sae"], fvu: Float[np.ndarray, " sae"]) -> Bool[np.ndarray, " sae"]:
    """Whether no other SAE is as good in both and better in one."""
    better = (l0[:, None] >= l0) & (fvu[:, None] >= fvu) & ((l0[:, None] > l0) | (fvu[:, None] > fvu))
    return np.logical_not(better.any(1))


def at_fvu(
    target: float, fvu: Float[np.ndarray, "sae resample"], value: Float[np.ndarray, "sae resample"]
) -> Float[np.ndarray, " resample"]:
    """The value where the sweep's FVU is `target`, linear between SAEs; NaN beyond them."""
    found = np.full(fvu.shape[1], np.nan)
    for i, (x, y) in enumerate(zip(fvu.T, value.T, strict=True)):
        order = np.argsort(x)
        if x[order[0]] <= target <= x[order[-1]]:
            found[i] = np.interp(target, x[order], y[order])
    return found


def interval(resamples: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    """95 %, percentile; NaN where too many resamples have no value."""
    known = resamples[~np.isnan(resamples)]
    if len(known) < KNOWN * len(resamples):
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)
