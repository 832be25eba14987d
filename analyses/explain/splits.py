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
    group = torch.unique(stories.tokens, dim=0, return_inverse=True)[1]
    n = int(group.max()) + 1 if len(group) else 0
    if n < 3:
        raise ValueError(f"three splits need at least 3 different stories; got {n}")
    place = torch.empty(n, dtype=torch.long)
    place[torch.randperm(n, generator=torch.Generator().manual_seed(seed))] = torch.arange(n)
    first = min(max(1, round(n * shares[0] / sum(shares))), n - 2)
    second = min(max(first + 1, round(n * (shares[0] + shares[1]) / sum(shares))), n - 1)
    where = place[group]
    parts = (where < first, (where >= first) & (where < second), where >= second)
    return Splits(*(part.nonzero()[:, 0] for part in parts))


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
