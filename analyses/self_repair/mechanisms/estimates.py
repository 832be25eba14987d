"""Sums by story, estimates from them with intervals, and the one table that all studies give.

Stories are what is resampled: every estimate is a function of sums by story, computed again for each resample.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from analyses.result import Result
from analyses.statistics import bootstrap_weights

N_RESAMPLES = 1000
_COLUMNS = 2048  # columns whose resamples are held at once


class Estimate(NamedTuple):
    """A value with the ends of its interval; arrays of one shape."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Sums:
    """Sums over selected tokens by story, float64 on the CPU.

    Args:
        n: stories.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._of: dict[str, Tensor] = {}

    def add(
        self,
        name: str,
        rows: Int[Tensor, " batch"],
        values: Shaped[Tensor, "batch pos *shape"],
        tokens: Bool[Tensor, "batch pos"],
        share: float | int = 1.0,
    ) -> None:
        """The values of a batch at these tokens, times `share` (1 / draws)."""
        where = tokens.reshape(*tokens.shape, *[1] * (values.ndim - 2))
        self.put(name, rows, values.where(where, 0).double().sum(1), share)

    def put(
        self, name: str, rows: Int[Tensor, " batch"], sums: Shaped[Tensor, "batch *shape"], share: float | int = 1.0
    ) -> None:
        """Sums that are by story already."""
        if name not in self._of:
            self._of[name] = torch.zeros(self.n, *sums.shape[1:], dtype=torch.float64)
        self._of[name].index_add_(0, rows.cpu(), sums.double().cpu() * share)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._of[name].numpy()

    @property
    def names(self) -> list[str]:
        """Of all sums."""
        return list(self._of)

    def __contains__(self, name: str) -> bool:
        return name in self._of


def estimate(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, *, seed: int = 0, confidence: float = 0.95
) -> Estimate:
    """A statistic and its percentile bootstrap interval.

    Args:
        statistic: from weights of stories [resample story] to values [resample ...].
        n: stories.
    """
    value = statistic(np.full((1, n), 1 / n))[0]
    draws = statistic(bootstrap_weights(n, N_RESAMPLES, seed))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    if np.isfinite(draws).all():  # many times quicker than to look for what is missing
        return Estimate(np.asarray(value), *np.quantile(draws, tails, axis=0))
    draws = np.where(np.isfinite(draws), draws, np.nan)
    empty = np.isnan(draws).all(0)
    low, high = np.nanquantile(np.where(empty, 0.0, draws), tails, axis=0)
    return Estimate(np.asarray(value), np.where(empty, np.nan, low), np.where(empty, np.nan, high))


def ratio(part: np.ndarray, whole: np.ndarray, *, seed: int = 0) -> Estimate:
    """Sum of `part` [story ...] over sum of `whole` [story] or [story ...]; NaN where that is 0."""
    part = np.asarray(part, dtype=np.float64)
    flat = part.reshape(len(part), -1)
    below = np.asarray(whole, dtype=np.float64).reshape(len(part), -1)
    pieces = []
    for start in range(0, flat.shape[1], _COLUMNS):
        columns = slice(start, start + _COLUMNS)
        mine = below if below.shape[1] == 1 else below[:, columns]
        pieces.append(_ratio_of(flat[:, columns], mine, seed))
    shape = part.shape[1:]
    return Estimate(*(np.concatenate(ends).reshape(shape) for ends in zip(*pieces, strict=True)))


def _ratio_of(part: np.ndarray, whole: np.ndarray, seed: int) -> Estimate:
    return estimate(lambda weights: divided(weights @ part, weights @ whole), len(part), seed=seed)


def median(values: np.ndarray, row: np.ndarray, n: int, *, seed: int = 0) -> Estimate:
    """Median over tokens, with its interval over stories; of an even number the mean of the two in the middle.

    Args:
        values: of each token.
        row: its story.
        n: stories.
    """
    order = values.argsort(kind="stable")
    ordered, story = values[order], row[order]
    at_once = max(1, 4_000_000 // max(1, len(values)))

    def of(weights: np.ndarray) -> np.ndarray:
        along = np.cumsum(weights[:, story], axis=1)
        total = along[:, -1:]
        below, upto = (along < (0.5 - 1e-9) * total).sum(1), (along <= (0.5 + 1e-9) * total).sum(1)
        last = len(ordered) - 1
        middle = (ordered[np.minimum(below, last)] + ordered[np.minimum(upto, last)]) / 2
        return np.where(total[:, 0] > 0, middle, np.nan)

    def statistic(weights: np.ndarray) -> np.ndarray:
        parts = np.split(weights, range(at_once, len(weights), at_once))
        return np.concatenate([of(part) for part in parts])

    if not len(values):
        return exactly(np.nan)
    return estimate(statistic, n, seed=seed)


def divided(part: Any, whole: Any) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    shape = np.broadcast_shapes(part.shape, whole.shape)
    return np.divide(part, whole, out=np.full(shape, np.nan), where=np.broadcast_to(whole != 0, shape))


def moments(
    x: Shaped[Tensor, "batch pos *shape"], y: Shaped[Tensor, "batch pos *shape"]
) -> Shaped[Tensor, "batch pos *shape 6"]:
    """What a regression of y on x needs of each token."""
    x, y = x.double(), y.double()
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], -1)


def line(sums: np.ndarray, *, seed: int = 0) -> dict[str, Estimate]:
    """Least-squares line of y on x from sums of `moments` by story, [story ... 6].

    Returns:
        `slope`, `intercept`, `r2`, and `through_origin`, the slope of the line through 0.
    """
    flat = sums.reshape(len(sums), -1)

    def of(weights: np.ndarray) -> np.ndarray:
        n, x, y, xx, xy, yy = np.moveaxis((weights @ flat).reshape(len(weights), *sums.shape[1:]), -1, 0)
        covariance, var_x, var_y = n * xy - x * y, n * xx - x * x, n * yy - y * y
        tiny = 1e-12
        covariance = np.where(np.abs(var_x) > tiny * n * xx, covariance, np.nan)
        slope = divided(covariance, var_x)
        intercept = divided(y - slope * x, n)
        r2 = divided(covariance**2, np.where(var_y > tiny * n * yy, var_x * var_y, 0.0))
        return np.stack([slope, intercept, r2, divided(xy, xx)], -1)

    found = estimate(of, len(sums), seed=seed)
    names = ("slope", "intercept", "r2", "through_origin")
    return {name: Estimate(*(ends[..., i] for ends in found)) for i, name in enumerate(names)}


def entries(
    measure: str,
    unit: str,
    found: Estimate,
    null: Estimate | None = None,
    *,
    n_tokens: Any,
    n_stories: Any,
    **index: Any,
) -> pd.DataFrame:
    """Rows of the table: one a value of the estimate.

    Args:
        measure: its name; a study's `meta["measures"]` says what it means.
        null: the same under the null.
        index: what the values stand for; arrays that broadcast to the estimate's shape.
    """
    shape = np.shape(found.value)
    columns: dict[str, Any] = {"measure": measure}
    columns |= {name: np.broadcast_to(np.asarray(value), shape).ravel() for name, value in index.items()}
    columns["value"], columns["ci_low"], columns["ci_high"] = (np.ravel(ends) for ends in found)
    nothing = np.full(shape, np.nan)
    ends = (nothing, nothing, nothing) if null is None else null
    for name, of in zip(("null", "null_low", "null_high"), ends, strict=True):
        columns[name] = np.broadcast_to(np.asarray(of, dtype=np.float64), shape).ravel()
    columns["unit"] = unit
    for name, of in (("n_tokens", n_tokens), ("n_stories", n_stories)):
        columns[name] = np.broadcast_to(np.asarray(of), shape).ravel().astype(np.int64)
    return pd.DataFrame(columns, index=range(int(np.prod(shape, dtype=int))))


def exactly(value: Any) -> Estimate:
    """A number that is known, as an estimate."""
    value = np.asarray(value, dtype=np.float64)
    return Estimate(value, value, value)


def answered(name: str, frames: list[pd.DataFrame], measures: Mapping[str, str], meta: Mapping[str, Any]) -> Result:
    """The Result of a study: `value` with its interval (95 %, bootstrap over stories) and its null, a row each.

    Args:
        measures: what each measure means.
    """
    table = pd.concat(frames, ignore_index=True)
    first = ["measure", *[c for c in table.columns if c not in _LAST and c != "measure"]]
    table = table[[*first, *_LAST]]
    units = dict.fromkeys(("value", "ci_low", "ci_high", "null", "null_low", "null_high"), "as `unit` says")
    units |= {"n_tokens": "tokens", "n_stories": "stories"}
    unknown = sorted(set(table.measure) - set(measures))
    if unknown:
        raise ValueError(f"every measure needs its meaning; {unknown[0]} has none")
    return Result(name, table, units, {**meta, "measures": dict(measures), "n_resamples": N_RESAMPLES})


_LAST = ["value", "ci_low", "ci_high", "null", "null_low", "null_high", "unit", "n_tokens", "n_stories"]
