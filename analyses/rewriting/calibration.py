"""Simulated activations made to fit true ones, latent by latent; fitted on a split of its own.

| name | what is done |
| --- | --- |
| `none` | nothing |
| `linear` | the greatest that can be simulated becomes the 99 % quantile over active tokens; from 0, linearly |
| `linear-maximum` | the same with the maximum in the quantile's place: as published |
| `affine` | least squares, a + b y |
| `isotonic` | the best increasing function in least squares |
| `quantile` | by rank: the simulated values take the distribution of the true ones |

In `quantile`, tokens of equal simulated value share the mean of the true values of their ranks, so that sums are kept.

Missing simulated values (NaN) are left out of the fit and stay missing. `isotonic` and `quantile` are tables over
BINS equal parts of the range of simulated values, which tells all levels of a rule apart.

Source: arXiv 2501.18838 and its code (`linear-maximum`; quantile normalisation is described there, and its routine is
not in the code: the reading by ranks is ours).
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from analyses.explain.score import BINS
from analyses.rewriting.choices import CALIBRATIONS
from analyses.rewriting.rewriter import Rewriter, Simulations
from analyses.rewriting.setting import Setting, high
from sat_lens.memory import require

TOP_QUANTILE = 0.99


@dataclasses.dataclass(frozen=True)
class Calibration:
    """From simulated to calibrated activation.

    Args:
        kind: one of CALIBRATIONS.
        low, high: of what can be simulated.
        slope, offset: of the linear ones.
        table: of the others.
    """

    kind: str
    low: Float[Tensor, " unit"]
    high: Float[Tensor, " unit"]
    slope: Float[Tensor, " unit"] | None = None
    offset: Float[Tensor, " unit"] | None = None
    table: Float[Tensor, "bin unit"] | None = None

    def __call__(self, y: Float[Tensor, "row pos unit"]) -> Float[Tensor, "row pos unit"]:
        """The calibrated values; NaN where there is none."""
        if self.kind == "none":
            return y
        if self.table is not None:
            at = bins(y, self.low, self.high)
            units = torch.arange(y.shape[-1]).expand(y.shape)
            return self.table[at, units].float().where(~y.isnan(), torch.nan)
        if self.kind.startswith("linear"):
            y = torch.minimum(y.clamp(min=0), self.high.clamp(min=0).float())
        return y * self.slope.float() + self.offset.float()


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Simulated and true activation at the tokens of the split to calibrate on.

    Args:
        y: simulated; NaN where there is none.
        x: true.
        low, high: of what can be simulated.
        quantile, maximum: of the true ones, over active tokens.
    """

    y: Float[Tensor, "token unit"]
    x: Float[Tensor, "token unit"]
    low: Float[Tensor, " unit"]
    high: Float[Tensor, " unit"]
    quantile: Float[Tensor, " unit"]
    maximum: Float[Tensor, " unit"]


def pairs(setting: Setting, rewriter: Rewriter, simulations: Simulations) -> Pairs:
    """All tokens of the split.

    Args:
        simulations: of its stories.

    Raises:
        ValueError: too little memory; 8 bytes a token and latent.
    """
    acts, rows = setting.of("calibrate"), setting.splits.calibrate
    require(8.0 * acts.n_tokens * len(rewriter.latents), f"{acts.n_tokens:,} tokens to calibrate on")
    place = torch.full((setting.stories.n,), -1)
    place[rows] = torch.arange(len(rows))
    x, y = [], []
    for batch in acts.batches(rewriter.latents):
        x.append(batch.values[batch.keep])
        y.append(simulations.at(place[batch.rows], batch.keep.shape[1])[batch.keep])
    tops = (high(acts, share)[rewriter.latents] for share in (TOP_QUANTILE, 1.0))
    return Pairs(torch.cat(y), torch.cat(x), rewriter.simulator.low, rewriter.simulator.high, *tops)


def calibration(kind: str, found: Pairs) -> Calibration:
    """Fit one of CALIBRATIONS.

    Raises:
        ValueError: another one.
    """
    if kind not in CALIBRATIONS:
        raise ValueError(f"a calibration must be one of {', '.join(CALIBRATIONS)}; got {kind!r}")
    ends = {"kind": kind, "low": found.low.float(), "high": found.high.float()}
    if kind == "none":
        return Calibration(**ends)
    if kind.startswith("linear"):
        top = found.maximum if kind == "linear-maximum" else found.quantile
        slope = torch.where(found.high > 0, top / found.high.where(found.high > 0, 1.0), 0.0)
        return Calibration(**ends, slope=slope, offset=torch.zeros_like(slope))
    if kind == "affine":
        return Calibration(**ends, **_least_squares(found))
    return Calibration(**ends, table=_isotonic(found) if kind == "isotonic" else _quantile(found))


def bins(
    y: Float[Tensor, "*axes unit"], low: Float[Tensor, " unit"], high: Float[Tensor, " unit"]
) -> Int[Tensor, "*axes unit"]:
    """The part of the range in which each value lies; the first for a missing one."""
    low, high = low.double(), high.double()
    width = (high - low).where(high > low, 1.0)
    return ((y.double() - low) / width * (BINS - 1)).round().nan_to_num(0.0).clamp(0, BINS - 1).long()


def _least_squares(found: Pairs) -> dict[str, Tensor]:
    there = ~found.y.isnan()
    n = there.sum(0).clamp(min=1)
    x, y = (of.double().where(there, 0.0) for of in (found.x, found.y))
    mean_x, mean_y = x.sum(0) / n, y.sum(0) / n
    away = (y - mean_y).where(there, 0.0)
    square = away.square().sum(0)
    varies = square > 1e-12 * y.square().sum(0)
    slope = torch.where(varies, (away * x).sum(0) / square.where(varies, 1.0), 0.0)
    return {"slope": slope, "offset": mean_x - slope * mean_y}


def _counts(found: Pairs) -> tuple[Float[Tensor, "bin unit"], Float[Tensor, "bin unit"]]:
    """Tokens in each part of the range, and the true activation summed over them."""
    n_units = found.y.shape[1]
    there = ~found.y.isnan()
    at = bins(found.y, found.low, found.high) * n_units + torch.arange(n_units)
    n = at[there].bincount(minlength=BINS * n_units)
    total = at[there].bincount(found.x.double()[there], minlength=BINS * n_units)
    return n.reshape(BINS, -1).double(), total.reshape(BINS, -1)


def _isotonic(found: Pairs) -> Float[Tensor, "bin unit"]:
    n, total = (of.numpy() for of in _counts(found))
    levels = np.arange(BINS, dtype=np.float64)
    table = np.zeros(n.shape)
    for unit in np.flatnonzero(n.any(0)):  # scikit-learn fits one at a time
        seen = n[:, unit] > 0
        fit = IsotonicRegression(out_of_bounds="clip")
        fit.fit(levels[seen], total[seen, unit] / n[seen, unit], sample_weight=n[seen, unit])
        table[:, unit] = fit.predict(levels)
    return torch.from_numpy(table)


def _quantile(found: Pairs) -> Float[Tensor, "bin unit"]:
    there = ~found.y.isnan()
    n, _ = _counts(found)
    ranked = found.x.double().where(there, torch.inf).sort(0).values
    ranked = ranked.where(ranked < torch.inf, 0.0)
    sums = torch.cat([ranked.new_zeros(1, ranked.shape[1]), ranked.cumsum(0)])
    last = n.cumsum(0).long()
    first = last - n.long()
    mean = (sums.gather(0, last) - sums.gather(0, first)) / n.clamp(min=1)
    # a level that was never simulated here stands between two ranks: it takes the true value there
    between = first.clamp(max=(there.sum(0) - 1).clamp(min=0))
    return mean.where(n > 0, ranked.gather(0, between) if len(ranked) else mean)
