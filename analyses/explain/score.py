"""How well explanations predict activations: sums of one pass, and the scores that follow from them.

Of simulated activation y and true activation x of a unit, over the tokens of stories that were not explained from
(those at which y is NaN, a missing value, are left out, unit by unit, and `n` says how many are left):

- Pearson's r: 0 where y is constant, NaN where x is. Interval: bootstrap over stories.
- R2 = 1 - sum (x - y)^2 / sum (x - mean)^2: no scale is fitted, so it can be far below 0.
- average precision of "x is active" ranked by y (area under the precision-recall curve); by chance the base rate.
- precision, recall and false positives a token where y is at least a cut, chosen on other stories.

Source: Bills et al. 2023, "Language models can explain neurons in language models" (correlation score); Chan, Golub,
LeVeque 1979 (sums about a mean).
"""

import dataclasses

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from analyses.explain.simulate import Simulator
from analyses.explain.splits import Source
from analyses.statistics import bootstrap_weights
from analyses.texts import Stories

BINS = 256
"""Of simulated activation between its bounds: a rule has no more levels, so that ranks are exact."""
_UNITS = 512  # whose resamples are held at once


@dataclasses.dataclass(frozen=True)
class Tally:
    """What scores need, one row a story.

    Args:
        rows: which stories, ascending.
        n: tokens of each at which the unit has a simulated value.
        mean_x, mean_y: of the true and the simulated activation.
        xx, yy, xy: summed squares and products of the distances from these means.
        active, inactive: tokens where the unit is (in)active, by bin of simulated activation.
        low, high: of the bins, the simulator's bounds.
    """

    rows: Int[Tensor, " story"]
    n: Float[Tensor, "story unit"]
    mean_x: Float[Tensor, "story unit"]
    mean_y: Float[Tensor, "story unit"]
    xx: Float[Tensor, "story unit"]
    yy: Float[Tensor, "story unit"]
    xy: Float[Tensor, "story unit"]
    active: Int[Tensor, "bin unit"]
    inactive: Int[Tensor, "bin unit"]
    low: Float[Tensor, " unit"]
    high: Float[Tensor, " unit"]

    @property
    def n_units(self) -> int:
        """Units."""
        return self.mean_x.shape[1]

    @property
    def n_tokens(self) -> Int[Tensor, " unit"]:
        """Tokens of all stories at which each unit has a simulated value."""
        return self.n.sum(0).long()

    @property
    def n_active(self) -> Int[Tensor, " unit"]:
        """Tokens at which each unit is active."""
        return self.active.sum(0)

    @property
    def pearson(self) -> Float[Tensor, " unit"]:
        """Correlation over all tokens. -1..1; NaN where the unit is constant, or has no token."""
        return self._pearson(torch.ones(1, len(self.n), dtype=torch.float64), slice(None))[0]

    def pearson_interval(
        self, n_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper end for each unit, by bootstrap over stories; NaN where a unit is constant."""
        weights = torch.from_numpy(bootstrap_weights(len(self.n), n_resamples, seed)) * len(self.n)
        tails = [(1 - confidence) / 2, (1 + confidence) / 2]
        parts = torch.arange(self.n_units).split(_UNITS)
        ends = [_quantiles(self._pearson(weights, part).numpy(), tails) for part in parts]
        low, high = np.concatenate(ends, 1)
        return low, high

    def _pearson(self, weights: Float[Tensor, "resample story"], units: Tensor | slice) -> Tensor:
        n = self.n[:, units]
        whole = n.sum(0).clamp(min=1)
        x, y = self.mean_x[:, units], self.mean_y[:, units]
        x, y = x - (n * x).sum(0) / whole, y - (n * y).sum(0) / whole  # about the mean of all, for the digits
        total = weights @ n
        some = total.where(total > 0, 1.0)
        mean_x, mean_y = weights @ (n * x) / some, weights @ (n * y) / some
        xx = weights @ (self.xx[:, units] + n * x * x) - total * mean_x * mean_x
        yy = weights @ (self.yy[:, units] + n * y * y) - total * mean_y * mean_y
        xy = weights @ (self.xy[:, units] + n * x * y) - total * mean_x * mean_y
        tiny = 1e-12
        varies = xx > tiny * (weights @ (n * self.mean_x[:, units].square()) + xx)
        says = yy > tiny * (weights @ (n * self.mean_y[:, units].square()) + yy)
        r = torch.where(says, xy / (xx * yy).clamp(min=1e-300).sqrt(), 0.0).clamp(-1, 1)
        return r.where(varies, torch.nan)

    @property
    def r2(self) -> Float[Tensor, " unit"]:
        """1 - squared error / variance. Up to 1; NaN where the unit is constant."""
        n = self.n
        error = (self.xx + self.yy - 2 * self.xy + n * (self.mean_x - self.mean_y).square()).sum(0)
        apart = self.mean_x - (n * self.mean_x).sum(0) / n.sum(0)
        total = (self.xx + n * apart.square()).sum(0)
        return (1 - error / total).where(~self.pearson.isnan(), torch.nan)

    @property
    def average_precision(self) -> Float[Tensor, " unit"]:
        """Sum over cuts of precision x the recall that the cut adds. 0..1; NaN for a unit that is never active."""
        active, inactive = (part.flip(0).double() for part in (self.active, self.inactive))
        hits = active.cumsum(0)
        precision = hits / (hits + inactive.cumsum(0)).clamp(min=1)
        return (precision * active).sum(0) / self.n_active.where(self.n_active > 0, torch.nan)

    @property
    def best_cut(self) -> Int[Tensor, " unit"]:
        """The bin of simulated activation from which on "active" has the best F1, the greatest of equals."""
        hits, called = self._from()
        f1 = 2 * hits / (called + self.n_active).clamp(min=1)
        return (BINS - 1) - f1.flip(0).argmax(0)

    def rates(self, cut: Int[Tensor, " unit"]) -> dict[str, Float[Tensor, " unit"]]:
        """Precision (NaN where nothing is called active), recall, false positives a token, at a cut (a bin)."""
        hits, called = (part.gather(0, cut[None])[0] for part in self._from())
        return {
            "precision": hits / called.where(called > 0, torch.nan),
            "recall": hits / self.n_active.where(self.n_active > 0, torch.nan),
            "false_positives": (called - hits) / self.n_tokens,
        }

    def _from(self) -> tuple[Tensor, Tensor]:
        """Active tokens, and all tokens, from each bin on."""
        active, inactive = (part.flip(0).cumsum(0).flip(0).double() for part in (self.active, self.inactive))
        return active, active + inactive

    def table(self, cut: Int[Tensor, " unit"] | None = None, n_resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row a unit: `UNITS` names the unit of each column.

        Args:
            cut: of `best_cut` on other stories; None: the rates at a cut are left out.
        """
        low, high = self.pearson_interval(n_resamples, seed=seed)
        columns = {
            "unit": np.arange(self.n_units),
            "n_stories": (self.n > 0).sum(0),
            "n_tokens": self.n_tokens,
            "n_active": self.n_active,
            "r": self.pearson,
            "r_low": low,
            "r_high": high,
            "r2": self.r2,
            "average_precision": self.average_precision,
            "base_rate": self.n_active / self.n_tokens,
        }
        return pd.DataFrame(columns | (self.rates(cut) if cut is not None else {}))


UNITS = {
    "unit": "index",
    "n_stories": "stories",
    "n_tokens": "tokens",
    "n_active": "tokens",
    "r": "correlation",
    "r_low": "correlation",
    "r_high": "correlation",
    "r2": "share of variance",
    "average_precision": "0..1",
    "base_rate": "share of tokens",
    "precision": "share",
    "recall": "share",
    "false_positives": "a token",
}
"""Of the columns of `Tally.table`."""


def tally(simulator: Simulator, source: Source, stories: Stories, threshold: float | int = 0.0) -> Tally:
    """Simulate and compare, in one pass; the order of the batches makes no difference.

    A simulated value that is NaN is missing: the unit is then not compared at this token.

    Args:
        simulator: of the source's units.
        source: batches of the stories to score on; a story in one batch.
        stories: whose rows these are.
        threshold: what is greater is active.

    Raises:
        ValueError: no tokens, or as many units simulated as not.

    Cost: memory for a batch, 6 numbers a story and unit, 512 counts a unit.
    """
    low, high = simulator.low.double(), simulator.high.double()
    parts: list[tuple[Tensor, ...]] = []
    active = inactive = torch.zeros(BINS, len(low), dtype=torch.long)
    n_tokens = 0
    for batch in source():
        n_pos, keep = batch.values.shape[1], batch.keep.cpu()
        x = batch.values.cpu().double()
        y = simulator(stories.tokens[batch.rows, :n_pos], stories.lengths[batch.rows].clamp(max=n_pos)).double()
        if x.shape != y.shape:
            raise ValueError(f"explanations must be of the source's {x.shape[-1]} units; got {y.shape[-1]}")
        there = keep[..., None] & ~y.isnan()
        y = y.nan_to_num(0.0)
        parts.append((batch.rows, *_moments(x, y, there)))
        width = (high - low).where(high > low, 1.0)
        bins = ((y[keep] - low) / width * (BINS - 1)).round().clamp(0, BINS - 1).long() * len(low)
        bins += torch.arange(len(low))
        fires, known = x[keep] > threshold, there[keep]
        active = active + bins[fires & known].bincount(minlength=BINS * len(low)).reshape(BINS, -1)
        inactive = inactive + bins[~fires & known].bincount(minlength=BINS * len(low)).reshape(BINS, -1)
        n_tokens += int(keep.sum())
    if not n_tokens:
        raise ValueError("scores need at least 1 token; the source gave none")
    rows, *moments = (torch.cat(column) for column in zip(*parts, strict=True))
    order = rows.argsort()
    return Tally(rows[order], *(part[order] for part in moments), active, inactive, low, high)


def _moments(x: Tensor, y: Tensor, there: Tensor) -> tuple[Tensor, ...]:
    """n, means and centred sums of each story and unit."""
    k = there.double()
    n = k.sum(1)
    mean_x, mean_y = ((part * k).sum(1) / n.clamp(min=1) for part in (x, y))
    dx, dy = (x - mean_x[:, None]) * k, (y - mean_y[:, None]) * k
    return n, mean_x, mean_y, (dx * dx).sum(1), (dy * dy).sum(1), (dx * dy).sum(1)


def _quantiles(values: NDArray[np.float64], tails: list[float]) -> NDArray[np.float64]:
    """NaN where a resample has none, quietly."""
    constant = np.isnan(values).all(0)
    found = np.nanquantile(np.where(constant, 0.0, values), tails, axis=0)
    return np.where(constant, np.nan, found)
