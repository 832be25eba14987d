"""Faithfulness: how much of what the model does a circuit does, by size, as areas, and the size it needs.

    f(C) = (m(C) - m(no edge)) / (m(all edges) - m(no edge))

m is the mean over prompts of the setting's value: f is a ratio of means, not a mean of ratios. 1 is the
intact model, 0 the other run; below 0 and above 1 are possible (a circuit may leave out what works against
the answer). For `kl`, m(all edges) is 0.

Intervals are 95 % bootstraps over prompts; circuit, intact model and other run are resampled together.
Where the interval of m(all edges) - m(no edge) itself reaches 0, a share of it says nothing: the interval is
NaN and `note` has the reason, and where the two are equal f is NaN too.

    CPR   area under f over the sizes, larger is better
    CMD   area of |1 - f| over the sizes, smaller is better

Both are sums of trapezoids between neighbouring sizes, with nothing to the left of the smallest. `axis` is
`share` (linear; as MIB's leaderboard: with MIB_SIZES the width is .999, so f = 1 everywhere gives CPR .999 and
CMD 0, and no edge at any size but the last gives .25 and .749) or `log` (over log10 of the size, divided by its
width: f = 1 everywhere gives CPR 1). Where f <= 1 at every size, CPR + CMD is the area of f = 1.

Source: arXiv 2504.13151 (MIB); differs: intervals, both rules of choosing edges by `sign`, a log axis.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analyses.localization.circuit import largest
from analyses.localization.setting import Scores, Setting
from analyses.statistics import bootstrap_weights

MIB_SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
SIGNS = ("absolute", "signed")
TAILS = (0.025, 0.975)
SMALLEST_GAP = 1e-6
"""In the setting's unit: a difference below it is rounding."""


@dataclasses.dataclass(frozen=True)
class Gap:
    """What a circuit has to explain: the intact model's values and the other run's, by prompt.

    Args:
        intact: values with all edges.
        empty: values with no edge.
        unit: of both.
        n_bootstrap, seed: resamples of the prompts.
    """

    intact: Float[np.ndarray, " n"]
    empty: Float[np.ndarray, " n"]
    unit: str = "logits"
    n_bootstrap: int = 1000
    seed: int = 0

    @cached_property
    def weights(self) -> Float[np.ndarray, "resample n"]:
        return bootstrap_weights(len(self.intact), self.n_bootstrap, self.seed)

    @cached_property
    def size(self) -> float:
        """m(all edges) - m(no edge)."""
        return float((self.intact - self.empty).mean())

    @cached_property
    def note(self) -> str:
        """Why shares of the gap say nothing; empty where they do."""
        low, high = np.quantile(self.weights @ (self.intact - self.empty), TAILS)
        if abs(self.size) < SMALLEST_GAP:
            return f"intact model and other run have the same value ({self.intact.mean():.3g} {self.unit})"
        if low <= 0 <= high:
            return f"intact minus other run is {self.size:.3g} ({low:.3g} to {high:.3g}) {self.unit}: it may be 0"
        return "" if self.size > 0 else f"the intact model is worse than the other run, by {-self.size:.3g} {self.unit}"

    def faithfulness(self, values: Float[np.ndarray, "circuit n"]) -> Float[np.ndarray, " circuit"]:
        """f of each circuit from its values; NaN where there is no gap."""
        if abs(self.size) < SMALLEST_GAP:
            return np.full(len(values), np.nan)
        return (values - self.empty).mean(1) / self.size

    def resampled(self, values: Float[np.ndarray, "circuit n"]) -> Float[np.ndarray, "circuit resample"]:
        """f of each circuit on each resample of the prompts; NaN where the gap may be 0."""
        gaps = self.weights @ (self.intact - self.empty)
        low, high = np.quantile(gaps, TAILS)
        if low <= 0 <= high or abs(self.size) < SMALLEST_GAP:
            return np.full((len(values), len(gaps)), np.nan)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (values - self.empty) @ self.weights.T / gaps

    def interval(self, values: Float[np.ndarray, "circuit n"]) -> Float[np.ndarray, "2 circuit"]:
        """Lower and upper end of each circuit's f."""
        return np.quantile(self.resampled(values), TAILS, axis=1)


def gap_of(setting: Setting, *, n_bootstrap: int = 1000, seed: int = 0) -> Gap:
    """A setting's gap. Both ends are measured as circuits are: with the final norm frozen where the setting says so."""
    ends = setting.values(np.stack([setting.graph.possible, np.zeros_like(setting.graph.possible)]))
    return Gap(ends[0], ends[1], setting.unit, n_bootstrap, seed)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Circuits of growing size: values by prompt, from which everything else follows.

    Args:
        sizes: shares of the graph's edges, ascending.
        n_edges: edges of each circuit, floor(size x edges of the graph).
        n_pruned: edges that a path leads through, from the input to the logits.
        values: of each circuit on each prompt.
        gap: what f is a share of.
        sign: rule by which edges were chosen.
    """

    sizes: Float[np.ndarray, " size"]
    n_edges: Int[np.ndarray, " size"]
    n_pruned: Int[np.ndarray, " size"]
    values: Float[np.ndarray, "size n"]
    gap: Gap
    sign: str

    @property
    def faithfulness(self) -> Float[np.ndarray, " size"]:
        return self.gap.faithfulness(self.values)

    @property
    def table(self) -> pd.DataFrame:
        """One row a size: share, n_edges, n_edges_pruned, faithfulness, low, high, value (unit), n, sign, note."""
        low, high = self.gap.interval(self.values)
        return pd.DataFrame(
            {
                "share": self.sizes,
                "n_edges": self.n_edges,
                "n_edges_pruned": self.n_pruned,
                "faithfulness": self.faithfulness,
                "low": low,
                "high": high,
                "value": self.values.mean(1),
                "n": self.values.shape[1],
                "sign": self.sign,
                "note": self.gap.note,
            }
        )


def curve(
    setting: Setting,
    scores: Scores,
    *,
    sizes: Sequence[float] = MIB_SIZES,
    sign: str = "absolute",
    prune: bool = True,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Curve:
    """Faithfulness of the circuits of the largest scores, size by size.

    Args:
        sizes: shares of the graph's edges, ascending, above 0 and up to 1.
        sign: edges with the largest |score| (`absolute`) or the largest score (`signed`) first. A method's two
            curves differ, and so do their areas: say which.
        prune: take out dead ends before running. With counterfactuals as the other run this changes no value; a
            mean or a constant into a node that no path from the input reaches makes it write something of its own.
        n_bootstrap, seed: resamples of the prompts.

    Raises:
        ValueError: sizes or sign as none of these, or scores with gaps.

    Cost: about a forward pass for each size and prompt, and two for the gap.
    """
    if not sizes or any(not 0 < size <= 1 for size in sizes) or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"sizes must be ascending shares above 0 and up to 1; got {tuple(sizes)}")
    n_edges = np.array([int(size * setting.graph.n_edges + 1e-9) for size in sizes])
    whole, pruned = circuits_of(setting, scores, n_edges, sign)
    values = setting.values(pruned if prune else whole)
    gap = gap_of(setting, n_bootstrap=n_bootstrap, seed=seed)
    return Curve(np.array(sizes, dtype=np.float64), n_edges, pruned.sum((1, 2)), values, gap, sign)


def circuits_of(
    setting: Setting, scores: Scores, n_edges: Int[np.ndarray, " size"], sign: str = "absolute"
) -> tuple[Bool[np.ndarray, "size source destination"], Bool[np.ndarray, "size source destination"]]:
    """Members of the circuits of the largest scores, with dead ends and without."""
    if sign not in SIGNS:
        raise ValueError(f"sign must be {' or '.join(SIGNS)}; got {sign!r}")
    found = [largest(setting.graph, scores, int(n), absolute=sign == "absolute") for n in n_edges]
    return np.stack([c.members for c in found]), np.stack([c.pruned().members for c in found])


class Area(NamedTuple):
    """An area with its 95 % interval over prompts."""

    value: float
    low: float
    high: float


def cpr(curve: Curve, axis: str = "share") -> Area:
    """Area under f; larger is better. `axis`: `share` or `log`, see the module."""
    return _area(curve, axis, lambda f: f)


def cmd(curve: Curve, axis: str = "share") -> Area:
    """Area of |1 - f|; smaller is better, 0 at best. `axis`: `share` or `log`, see the module."""
    return _area(curve, axis, lambda f: np.abs(1 - f))


def _area(curve: Curve, axis: str, height: Callable[[np.ndarray], np.ndarray]) -> Area:
    value = area(curve.sizes, height(curve.faithfulness), axis)
    low, high = np.quantile(area(curve.sizes, height(curve.gap.resampled(curve.values).T), axis), TAILS)
    return Area(float(value), float(low), float(high))


def area(
    sizes: Float[np.ndarray, " size"], heights: Float[np.ndarray, "*resample size"], axis: str = "share"
) -> np.ndarray:
    """Trapezoids between neighbouring sizes, on either axis.

    Raises:
        ValueError: another axis, or fewer than two sizes, between which there is no area.
    """
    if axis not in ("share", "log"):
        raise ValueError(f"axis must be share or log; got {axis!r}")
    if len(sizes) < 2:
        raise ValueError(f"an area needs at least 2 sizes; got {len(sizes)}")
    x = np.asarray(sizes) if axis == "share" else np.log10(sizes) / np.log10(sizes[-1] / sizes[0])
    return np.asarray(np.trapezoid(heights, x, axis=-1))
