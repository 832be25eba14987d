"""Streaming reducers: each takes batches in, keeps a summary of fixed size, and gives an answer.

| reducer | answer | memory, numbers a unit |
| --- | --- | --- |
| `Moments` | mean, variance | 3 |
| `Covariance` | mean, covariance of all pairs of units | 1 + units |
| `Histogram` | counts in bins, quantiles to within a bin | bins + 4 |
| `TopExamples` | the k largest values and where they stand | 3 k |
| `CoActivation` | how often each two units are active together | units |

`a.update(batch)` takes a batch in; `a.merge(b)` is a new reducer of what both have seen, whatever the
order and the grouping, so that several processes can each reduce their share. A reducer that has seen
nothing is neutral. Sums are float64 or int64 and lie on the CPU; a batch is summed where it lies. What
is summed is in fields of tensors, which can be sent to another process as they are.

Source of the merged variance: Chan, Golub, LeVeque 1979.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

COUNTED = 2**23
"""Rows whose co-activations are counted in one product: float32 counts exactly up to 2^24."""


def zeros() -> Tensor:
    """What a sum starts from: it takes the shape of what is added first."""
    return torch.zeros((), dtype=torch.float64)


class Reducer(ABC):
    """A summary that others are merged into."""

    @abstractmethod
    def merge(self, other: Any) -> Any:
        """A new reducer of all that both have seen."""

    def absorb(self, other: Any) -> None:
        """Become the reducer of all that both have seen."""
        for name, value in vars(self.merge(other)).items():
            setattr(self, name, value)


@dataclasses.dataclass
class Moments(Reducer):
    """Weighted mean and variance of each unit.

    Args:
        weight: sum of the weights, which broadcasts against `mean`.
        mean: 0 where no weight is.
        scatter: weighted sum of squared distances from the mean.
    """

    weight: Float[Tensor, "..."] = dataclasses.field(default_factory=zeros)
    mean: Float[Tensor, "..."] = dataclasses.field(default_factory=zeros)
    scatter: Float[Tensor, "..."] = dataclasses.field(default_factory=zeros)

    def update(self, values: Shaped[Tensor, "n *unit"], weights: Shaped[Tensor, "n *leading"] | None = None) -> None:
        """Take `n` observations in.

        Args:
            weights: one an observation, or one an observation and leading axis of the unit (such as
                [n pos] for units [pos d_mlp]); a mask counts as 0 and 1. None: all 1.
        """
        x, w = _float64(values), _weights(values, weights)
        weight = w.sum(0)
        mean = _ratio((x * w).sum(0), weight)
        scatter = ((x - mean).square() * w).sum(0)
        self.absorb(Moments(weight.cpu(), mean.cpu(), scatter.cpu()))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of all that both have seen."""
        weight = self.weight + other.weight
        apart = other.mean - self.mean
        share = _ratio(other.weight, weight)
        return Moments(
            weight, self.mean + apart * share, self.scatter + other.scatter + apart.square() * self.weight * share
        )

    @property
    def variance(self) -> Float[Tensor, "..."]:
        """Mean squared distance from the mean (divided by the weight, not by one less); 0 where no weight is."""
        return _ratio(self.scatter, self.weight)


@dataclasses.dataclass
class Covariance(Reducer):
    """Weighted mean and covariance of the units of a vector.

    Args:
        weight: sum of the weights.
        mean: of each unit; 0 where no weight is.
        scatter: weighted sum of outer products of distances from the mean.
    """

    weight: Float[Tensor, ""] = dataclasses.field(default_factory=zeros)
    mean: Float[Tensor, "*unit"] = dataclasses.field(default_factory=zeros)
    scatter: Float[Tensor, "*pairs"] = dataclasses.field(default_factory=zeros)

    def update(self, values: Shaped[Tensor, "n unit"], weights: Shaped[Tensor, " n"] | None = None) -> None:
        """Take `n` vectors in; one weight each, or None for all 1."""
        x, w = _float64(values), _weights(values, weights)
        weight = w.sum()
        mean = _ratio((x * w).sum(0), weight)
        apart = x - mean
        scatter = apart.T @ (apart * w)
        self.absorb(Covariance(weight.cpu(), mean.cpu(), scatter.cpu()))

    def merge(self, other: "Covariance") -> "Covariance":
        """The covariance of all that both have seen."""
        weight = self.weight + other.weight
        apart = other.mean - self.mean
        share = _ratio(other.weight, weight)
        between = apart[..., :, None] * apart[..., None, :] if apart.ndim else zeros()
        return Covariance(
            weight, self.mean + apart * share, self.scatter + other.scatter + between * self.weight * share
        )

    @property
    def covariance(self) -> Float[Tensor, "*pairs"]:
        """Mean product of distances from the mean, [unit unit] (divided by the weight, not by one less)."""
        return _ratio(self.scatter, self.weight)


@dataclasses.dataclass
class Histogram(Reducer):
    """How many values of each unit fall between each two edges, and its quantiles.

    Args:
        edges: of the bins, ascending; a value on an edge belongs to the bin above it.
        counts: below the first edge, in each bin, from the last edge on.
        least, most: of each unit, exact; +inf and -inf where nothing was seen.
    """

    edges: Float[Tensor, " edge"]
    counts: Int[Tensor, "bin *unit"] = dataclasses.field(default_factory=lambda: zeros().long()[None])
    least: Float[Tensor, "*unit"] = dataclasses.field(default_factory=lambda: zeros() + torch.inf)
    most: Float[Tensor, "*unit"] = dataclasses.field(default_factory=lambda: zeros() - torch.inf)

    def __post_init__(self) -> None:
        self.edges = self.edges.double().cpu()
        if self.edges.ndim != 1 or not len(self.edges) or not (self.edges.diff() > 0).all():
            raise ValueError(f"edges of a histogram must ascend, at least 1; got {self.edges.tolist()}")

    def update(self, values: Shaped[Tensor, "n *unit"], keep: Bool[Tensor, " n"] | None = None) -> None:
        """Take `n` observations in, or those that are kept."""
        x = _kept(_float64(values), keep)
        if not len(x):
            return
        _refuse_nan(x)
        bins = torch.bucketize(x, self.edges.to(x.device), right=True).reshape(len(x), -1)
        n_bins, n_units = len(self.edges) + 1, bins.shape[1]
        flat = (bins * n_units + torch.arange(n_units, device=x.device)).flatten().bincount(minlength=n_bins * n_units)
        counts = flat.reshape(n_bins, *x.shape[1:]).cpu()
        batch = Histogram(self.edges, counts, x.amin(0).cpu(), x.amax(0).cpu())
        self.absorb(batch)

    def merge(self, other: "Histogram") -> "Histogram":
        """The histogram of all that both have seen; their edges must be equal."""
        if not torch.equal(self.edges, other.edges):
            raise ValueError("histograms can be merged when their edges are equal; these differ")
        return Histogram(
            self.edges,
            self.counts + other.counts,
            torch.minimum(self.least, other.least),
            torch.maximum(self.most, other.most),
        )

    def quantile(self, q: float | int) -> Float[Tensor, "*unit"]:
        """The q-quantile of each unit, linear within its bin: off by less than the bin's width.

        The outer bins end at the least and the most value seen. NaN for a unit of which nothing was seen.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile must lie between 0 and 1; got {q}")
        below = self.counts.cumsum(0).double()
        wanted = q * below[-1]
        bin_ = (below < wanted).sum(0).clamp(max=len(self.counts) - 1)[None]
        n_in_bin = self.counts.gather(0, bin_)[0].double()
        share = _ratio(wanted - (below.gather(0, bin_)[0] - n_in_bin), n_in_bin)
        low, high = (self._edge(bin_[0] - 1), self._edge(bin_[0]))
        found = torch.where(n_in_bin > 0, low + (high - low) * share, self.least)
        return torch.where(below[-1] > 0, found, torch.nan)

    def _edge(self, index: Int[Tensor, "*unit"]) -> Float[Tensor, "*unit"]:
        """That edge, within what was seen; -1 is the least value, the number of edges the most."""
        inner = self.edges[index.clamp(0, len(self.edges) - 1)]
        edge = torch.where(index < 0, self.least, torch.where(index >= len(self.edges), self.most, inner))
        return torch.minimum(torch.maximum(edge, self.least), self.most)


@dataclasses.dataclass
class TopExamples(Reducer):
    """The k largest values of each unit, in descending order, and where they stand.

    Of equal values the one of the smaller row comes first, then that of the smaller position, whatever
    the batches were. Where fewer than k tokens were seen there are as many.

    Args:
        k: examples a unit.
        values: [k *unit].
        rows: of the tokens, [k *unit].
        positions: within the row, [k *unit].
    """

    k: int
    values: Float[Tensor, "seen *unit"] = dataclasses.field(default_factory=lambda: zeros()[None][:0])
    rows: Int[Tensor, "seen *unit"] = dataclasses.field(default_factory=lambda: zeros().long()[None][:0])
    positions: Int[Tensor, "seen *unit"] = dataclasses.field(default_factory=lambda: zeros().long()[None][:0])

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1 example; got {self.k}")

    def update(
        self,
        values: Shaped[Tensor, "batch pos *unit"],
        rows: Int[Tensor, " batch"],
        keep: Bool[Tensor, "batch pos"] | None = None,
    ) -> None:
        """Take a batch in.

        Args:
            rows: which rows of the tokens these are, ascending.
            keep: tokens that count, such as those that are no padding; None: all.
        """
        if len(rows) and not (rows.diff() > 0).all():
            raise ValueError(f"rows must ascend; got {rows.tolist()}")
        n_pos = values.shape[1]
        flat = _kept(values.flatten(0, 1), None if keep is None else keep.flatten())
        places = _kept(torch.arange(values.shape[0] * n_pos), None if keep is None else keep.flatten().cpu())
        if not len(flat):
            return
        _refuse_nan(flat)
        first = largest_rows(flat, min(self.k, len(flat)))
        found, places = flat.gather(0, first).double().cpu(), places[first.cpu()]
        batch = TopExamples(self.k, found, rows.cpu()[places // n_pos], places % n_pos)
        self.absorb(batch)

    def merge(self, other: "TopExamples") -> "TopExamples":
        """The k largest of all that both have seen; their k must be equal."""
        if self.k != other.k:
            raise ValueError(f"examples can be merged when k is equal; got {self.k} and {other.k}")
        values, rows, positions = (
            torch.cat(_same_units(mine, its))
            for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)
            if isinstance(mine, Tensor)
        )
        place = rows * (positions.amax() + 1 if positions.numel() else 1) + positions
        order = place.argsort(stable=True, dim=0)
        order = order.gather(0, values.gather(0, order).argsort(stable=True, dim=0, descending=True))[: self.k]
        return TopExamples(self.k, *(part.gather(0, order) for part in (values, rows, positions)))


@dataclasses.dataclass
class CoActivation(Reducer):
    """How often units are active together.

    Args:
        n: tokens seen.
        together: tokens at which both of two units were active; on the diagonal, at which one was.
    """

    n: Int[Tensor, ""] = dataclasses.field(default_factory=lambda: zeros().long())
    together: Int[Tensor, "*pairs"] = dataclasses.field(default_factory=lambda: zeros().long())

    def update(self, active: Bool[Tensor, "n unit"]) -> None:
        """Take `n` tokens in."""
        counts = sum((part.T @ part).long().cpu() for part in (p.float() for p in active.split(COUNTED)))
        self.absorb(CoActivation(torch.tensor(len(active)), counts))

    def merge(self, other: "CoActivation") -> "CoActivation":
        """The counts of all that both have seen."""
        return CoActivation(self.n + other.n, self.together + other.together)

    @property
    def jaccard(self) -> Float[Tensor, "unit unit"]:
        """Tokens with both active / tokens with either active. 0..1; 0 for two that never are."""
        alone = self.together.diagonal()
        return _ratio(self.together.double(), (alone[:, None] + alone - self.together).double())


def largest_rows(values: Shaped[Tensor, "n *unit"], k: int) -> Int[Tensor, "k *unit"]:
    """For each unit the rows of its k largest values, ascending; of equal values the first rows.

    `topk` alone decides between equals as it likes, and a stable sort of everything costs far more.
    """
    least = values.topk(k, 0).values[-1:]
    above, level = values > least, values == least
    chosen = above | (level & (level.cumsum(0) <= k - above.sum(0)))
    row = torch.arange(len(values), device=values.device).reshape(-1, *[1] * (values.ndim - 1))
    return row.where(chosen, len(values)).topk(k, 0, largest=False).values.sort(0).values


def _float64(values: Tensor) -> Tensor:
    """Float64 where the values lie, or on the CPU where the device has none."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def _weights(values: Tensor, weights: Tensor | None) -> Tensor:
    """Float64 weights with an axis for each of the values' own."""
    weights = torch.ones(len(values), dtype=torch.float64) if weights is None else weights
    if weights.shape != values.shape[: weights.ndim]:
        raise ValueError(f"weights must have the leading axes of {tuple(values.shape)}; got {tuple(weights.shape)}")
    weights = weights.to(values.device)
    return _float64(weights).reshape(*weights.shape, *[1] * (values.ndim - weights.ndim))


def _kept(values: Tensor, keep: Tensor | None) -> Tensor:
    return values if keep is None else values[keep.to(values.device)]


def _refuse_nan(values: Tensor) -> None:
    if values.isnan().any():
        raise ValueError("values must be numbers, for they are put in order; NaN came")


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where whole is 0."""
    return torch.where(whole == 0, 0.0, part / whole.where(whole != 0, 1.0))


def _same_units(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the units of the one that has any: a reducer that has seen nothing does not know them."""
    units = torch.broadcast_shapes(a.shape[1:], b.shape[1:])
    return a.reshape(len(a), *units), b.reshape(len(b), *units)
