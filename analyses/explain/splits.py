"""Stories dealt into those that explanations are made from, chosen and calibrated on, and scored on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.texts import Stories

Source = Callable[[], Iterable[Any]]
"""Gives batches with `rows`, `values` [row pos unit] and `keep` [row pos] (see `analyses.unit_streams.UnitBatch`),
as often as it is called; `pos` may end where the longest story of a batch does."""


class Splits(NamedTuple):
    """Rows of the stories, ascending; no story is in two, nor a copy of it."""

    explain: Int[Tensor, " story"]
    calibrate: Int[Tensor, " story"]
    evaluate: Int[Tensor, " story"]


def story_splits(stories: Stories, shares: Sequence[float | int] = (0.5, 0.25, 0.25), seed: int = 0) -> Splits:
    """Stories dealt at random; those of equal tokens go together.

    Raises:
        ValueError: shares that are not three positive numbers, or fewer than three different stories.
    """
    if len(shares) != 3 or min(shares) <= 0:
        raise ValueError(f"shares must be three positive numbers; got {list(shares)}")
    return Splits(*dealt(stories, shares, seed))


def dealt(stories: Stories, shares: Sequence[float | int], seed: int = 0) -> tuple[Int[Tensor, "_"], ...]:
    """Rows of the stories dealt at random to as many parts as there are shares, ascending in each.

    No story is in two parts, nor a copy of it; each part has at least one.

    Raises:
        ValueError: shares that are not positive, or fewer different stories than parts.
    """
    if not shares or min(shares) <= 0:
        raise ValueError(f"shares must be positive numbers; got {list(shares)}")
    group = torch.unique(stories.tokens, dim=0, return_inverse=True)[1]
    n, parts = int(group.max()) + 1 if len(group) else 0, len(shares)
    if n < parts:
        words = {3: "three", 4: "four"}.get(parts, str(parts))
        raise ValueError(f"{words} splits need at least {parts} different stories; got {n}")
    place = torch.empty(n, dtype=torch.long)
    place[torch.randperm(n, generator=torch.Generator().manual_seed(seed))] = torch.arange(n)
    ends = [0]
    for i in range(1, parts):
        wanted = round(n * sum(shares[:i]) / sum(shares))
        ends.append(min(max(ends[-1] + 1, wanted), n - parts + i))
    where = place[group]
    return tuple(
        ((where >= first) & (where < last)).nonzero()[:, 0] for first, last in zip(ends, [*ends[1:], n], strict=True)
    )


def restricted(source: Source, rows: Int[Tensor, " story"]) -> Source:
    """The same batches with these stories alone.

    Cost: the source's own, whole: where its stories can be chosen, choose them there.
    """
    wanted = torch.zeros(int(rows.max()) + 1 if len(rows) else 0, dtype=torch.bool)
    wanted[rows] = True

    def batches() -> Iterator[Any]:
        for batch in source():
            inside = batch.rows < len(wanted)
            chosen = inside & wanted[batch.rows.where(inside, 0)] if len(wanted) else inside & False
            if chosen.all():
                yield batch
            elif chosen.any():
                yield _Part(batch.rows[chosen], batch.values[chosen], batch.keep[chosen])

    return batches


class _Part(NamedTuple):
    rows: Tensor
    values: Tensor
    keep: Tensor
