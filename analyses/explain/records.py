"""A record of each unit: where it is active, where it nearly is, where it is not; at most one example a story a list.

| list | which tokens |
| --- | --- |
| `top` | of the greatest activations |
| `spread` | at evenly spaced ranks of up to 64 active tokens drawn at random, one of each of 64 stories |
| `near_same` | the least activations on tokens that the top examples fire on, where the unit is not active |
| `near_other` | the greatest activations on any other tokens |
| `negative` | inactive, drawn at random |

Explainers that read the top alone overstate what a unit does (Neuron2Graph's recall on the bulk is the case in
point), hence `spread`; the near-misses say what the words are not.
"""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.explain.sampling import Chosen, TokenExtremes, random_priority
from analyses.explain.splits import Source
from analyses.texts import Stories

LISTS = ("top", "spread", "near_same", "near_other", "negative")
POOL = 64
"""Active tokens drawn at random a unit, of which `spread` and the quantiles are made."""
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
INACTIVE = 0.2
"""A near-miss on the same token lies in the lowest fifth of the way from the threshold to the maximum."""
BEFORE, AFTER = 12, 4
"""Tokens shown before and after the example's own."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A token and what stands around it.

    Args:
        story: row of the stories.
        pos: position in it.
        tokens: of the window.
        values: activation at each token of the window.
        at: place of the example's own token in the window.
    """

    story: int
    pos: int
    tokens: tuple[int, ...]
    values: tuple[float, ...]
    at: int

    @property
    def value(self) -> float:
        """Activation at the example's own token."""
        return self.values[self.at]


@dataclasses.dataclass(frozen=True)
class Record:
    """One unit; see the module for the lists.

    Args:
        unit: its place among the units.
        examples: by list.
        maximum, mean: of its activation over the tokens that count; NaN without any.
        quantiles: of `QUANTILES`, over up to 64 active tokens drawn at random; NaN for a dead unit.
        n, n_active: tokens, and those at which it was active.
    """

    unit: int
    examples: dict[str, tuple[Example, ...]]
    maximum: float
    mean: float
    quantiles: tuple[float, ...]
    n: int
    n_active: int

    @property
    def positives(self) -> tuple[Example, ...]:
        """Top and spread."""
        return self.examples["top"] + self.examples["spread"]

    @property
    def near_misses(self) -> tuple[Example, ...]:
        """On the same tokens, then on others."""
        return self.examples["near_same"] + self.examples["near_other"]

    @property
    def negatives(self) -> tuple[Example, ...]:
        """Drawn at random."""
        return self.examples["negative"]


@dataclasses.dataclass(frozen=True)
class Places:
    """One list of all units, descending by activation but for `negative`; -1 where it has no more.

    Args:
        rows, positions: where the examples stand.
        windows: activation of the unit around each; NaN outside of the story.
    """

    rows: Int[Tensor, "example unit"]
    positions: Int[Tensor, "example unit"]
    windows: Float[Tensor, "example unit window"]


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of all units; `records[unit]` is one, and they can be gone through.

    Args:
        stories: whose rows the examples name.
        places: by list.
        maximum, mean, quantiles, n, n_active: see `Record`.
        mass: what activation exceeds the threshold by, summed over active tokens.
    """

    stories: Stories
    places: dict[str, Places]
    maximum: Float[Tensor, " unit"]
    mean: Float[Tensor, " unit"]
    quantiles: Float[Tensor, "quantile unit"]
    n: int
    n_active: Int[Tensor, " unit"]
    mass: Float[Tensor, " unit"]

    def __len__(self) -> int:
        return len(self.mean)

    def __iter__(self) -> Iterator[Record]:
        return (self[unit] for unit in range(len(self)))

    def __getitem__(self, unit: int) -> Record:
        if not 0 <= unit < len(self):
            raise IndexError(f"a unit must be one of 0 to {len(self) - 1}; got {unit}")
        examples = {name: tuple(self._examples(places, unit)) for name, places in self.places.items()}
        return Record(
            unit,
            examples,
            float(self.maximum[unit]),
            float(self.mean[unit]),
            tuple(self.quantiles[:, unit].tolist()),
            self.n,
            int(self.n_active[unit]),
        )

    def _examples(self, places: Places, unit: int) -> Iterator[Example]:
        own = (places.rows[:, unit], places.positions[:, unit], places.windows[:, unit])
        for row, pos, window in zip(own[0].tolist(), own[1].tolist(), own[2], strict=True):
            if row >= 0:
                first, last = max(0, pos - BEFORE), min(int(self.stories.lengths[row]), pos + AFTER + 1)
                values = window[first - pos + BEFORE : last - pos + BEFORE]
                tokens = self.stories.tokens[row, first:last]
                yield Example(row, pos, tuple(tokens.tolist()), tuple(values.tolist()), pos - first)


def records(source: Source, stories: Stories, *, n: int = 10, threshold: float | int = 0.0, seed: int = 0) -> Records:
    """The records of all units. The order of the batches makes no difference.

    Args:
        source: batches of the stories to explain from; a story in one batch.
        stories: whose rows these are.
        n: examples a list, at most.
        threshold: what is greater is active.
        seed: of the random examples.

    Raises:
        ValueError: no tokens, or fewer than one example.

    Cost: two passes over the source, the second for what stands around the examples. Memory a unit: 64 places,
    5 n windows of 17 numbers, and 4 numbers for each token that occurs.
    """
    if n < 1:
        raise ValueError(f"a record needs at least 1 example a list; got {n}")
    top, active, inactive = Chosen(n), Chosen(POOL), Chosen(n)
    extremes = TokenExtremes(stories.tokens.unique())
    total, mass, n_active, n_tokens = torch.zeros(()), torch.zeros(()), torch.zeros((), dtype=torch.long), 0
    for batch in source():
        values, keep, n_pos = batch.values, batch.keep, batch.values.shape[1]
        fires, kept = values > threshold, keep[..., None].expand_as(values)
        chance = random_priority(batch.rows, n_pos, values.shape[-1], seed, values.device)
        top.update(values.double(), values, batch.rows, fires & kept)
        active.update(chance, values, batch.rows, fires & kept)
        inactive.update(chance, values, batch.rows, ~fires & kept)
        place = batch.rows[:, None] * stories.tokens.shape[1] + torch.arange(n_pos)
        here = keep.cpu()
        extremes.update(values[keep], stories.tokens[batch.rows, :n_pos][here], place[here])
        total = total + values[keep].double().sum(0).cpu()
        mass = mass + (values[keep].double() - threshold).clamp(min=0).sum(0).cpu()
        n_active = n_active + (fires & kept).sum((0, 1)).cpu()
        n_tokens += int(here.sum())
    if not n_tokens:
        raise ValueError("records need at least 1 token; the source gave none")
    found = {"top": _places(top), "spread": _spread(active, n), "negative": _places(inactive)}
    found |= _near_misses(found["top"], extremes, stories, threshold, n)
    pool = active.values.where(active.priority > -torch.inf, torch.nan)
    quantiles = torch.nanquantile(pool, torch.tensor(QUANTILES, dtype=torch.float64), 0)
    maximum = extremes.most.cpu().amax(0)
    windows = _windows(source, stories, {name: found[name] for name in LISTS})
    places = {name: Places(*found[name], windows[name]) for name in LISTS}
    return Records(stories, places, maximum, total / n_tokens, quantiles, n_tokens, n_active, mass)


def _places(chosen: Chosen) -> tuple[Tensor, Tensor]:
    there = chosen.priority > -torch.inf
    return chosen.rows.where(there, -1), chosen.positions.where(there, -1)


def _spread(active: Chosen, n: int) -> tuple[Tensor, Tensor]:
    """Of each unit's pool, in descending order, `n` at evenly spaced ranks from the first to the last."""
    rows, positions = _places(active)
    order = active.values.where(rows >= 0, -torch.inf).argsort(stable=True, dim=0, descending=True)
    n_found = (rows >= 0).sum(0)
    share = torch.linspace(0, 1, n, dtype=torch.float64)[:, None]
    ranks = (share * (n_found - 1).clamp(min=0)).round().long()
    ranks = torch.where(n_found > n, ranks, torch.arange(n)[:, None].clamp(max=len(rows) - 1))
    chosen = order.gather(0, ranks)
    there = torch.arange(n)[:, None] < n_found
    return rows.gather(0, chosen).where(there, -1), positions.gather(0, chosen).where(there, -1)


def _near_misses(
    top: tuple[Tensor, Tensor], extremes: TokenExtremes, stories: Stories, threshold: float | int, n: int
) -> dict[str, tuple[Tensor, Tensor]]:
    most, negated = extremes.most.cpu(), extremes.negated.cpu()
    fired = torch.zeros(most.shape, dtype=torch.bool)
    rows, positions = (part.where(top[0] >= 0, part[:1]).clamp(min=0) for part in top)  # the first stands for none
    live = top[0][0] >= 0
    fired.scatter_(0, torch.searchsorted(extremes.ids, stories.tokens[rows, positions]), True)
    fired &= live
    ceiling = threshold + INACTIVE * (most.amax(0) - threshold).clamp(min=0)
    same = negated.where(fired & (-negated <= ceiling), -torch.inf)
    other = most.where(~fired & live, -torch.inf)
    n_pos = stories.tokens.shape[1]
    return {
        "near_same": _first_of_stories(same, extremes.least_at.cpu(), n_pos, n),
        "near_other": _first_of_stories(other, extremes.most_at.cpu(), n_pos, n),
    }


def _first_of_stories(priority: Tensor, places: Tensor, n_pos: int, n: int) -> tuple[Tensor, Tensor]:
    """Places of the greatest priority, one a story, looked for among the first 4 n."""
    k = min(4 * n, len(priority))
    order = priority.argsort(stable=True, dim=0, descending=True)[:k]
    place = places.gather(0, order).where(priority.gather(0, order) > -torch.inf, -1)
    row = place.div(n_pos, rounding_mode="floor").where(place >= 0, -1)
    earlier = (row[:, None] == row[None]) & torch.ones(k, k, dtype=torch.bool).tril(-1)[..., None]
    fresh = (row >= 0) & ~earlier.any(1)
    first = (~fresh).long().argsort(stable=True, dim=0)[:n]
    kept = place.gather(0, first).where(fresh.gather(0, first), -1)
    return kept.div(n_pos, rounding_mode="floor").where(kept >= 0, -1), (kept % n_pos).where(kept >= 0, -1)


def _windows(
    source: Source, stories: Stories, places: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Float[Tensor, "example unit window"]]:
    """Activations around all places, in one pass."""
    sizes = [len(rows) for rows, _ in places.values()]
    rows = torch.cat([rows for rows, _ in places.values()])
    at = torch.cat([pos for _, pos in places.values()])[..., None] + torch.arange(-BEFORE, AFTER + 1)
    inside = (rows[..., None] >= 0) & (at >= 0) & (at < stories.lengths[rows.clamp(min=0)][..., None])
    found = torch.full(at.shape, torch.nan, dtype=torch.float32)
    for batch in source():
        local = torch.full((stories.n + 1,), -1)
        local[batch.rows] = torch.arange(len(batch.rows))
        example, unit = (local[rows] >= 0).nonzero(as_tuple=True)  # row -1 reads the last, which is none
        values = batch.values
        there = inside[example, unit] & (at[example, unit] < values.shape[1])
        pos = at[example, unit].clamp(0, values.shape[1] - 1)
        index = (local[rows[example, unit]][:, None], pos, unit[:, None])
        read = values[tuple(part.to(values.device) for part in index)].float().cpu()
        found[example, unit] = read.where(there, torch.nan)
    return dict(zip(places, found.split(sizes), strict=True))
