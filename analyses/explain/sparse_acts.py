"""Activations of units that are mostly 0, kept as (token, unit, value): 12 bytes for each that is not.

400,000 tokens of 16 active latents are 77 MB, where the dense table of 32,768 latents would be 52 GB. `batches` gives
what was collected again, for all units or for some, so that explainers can work through units in blocks.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.explain.splits import Source


class SparseBatch(NamedTuple):
    """A batch as `Source` gives it."""

    rows: Int[Tensor, " row"]
    values: Float[Tensor, "row pos unit"]
    keep: Bool[Tensor, "row pos"]


@dataclasses.dataclass(frozen=True)
class SparseActs:
    """What a source gave, by story.

    Args:
        rows: which stories, in the order of collecting.
        keep: tokens that count, one row each.
        first: where each story's values begin, and the end of the last's.
        pos, unit: int32, of each value.
        value: float32.
        n_units: units of the source.
    """

    rows: Int[Tensor, " story"]
    keep: Bool[Tensor, "story pos"]
    first: Int[Tensor, " story_and_end"]
    pos: Int[Tensor, " value"]
    unit: Int[Tensor, " value"]
    value: Float[Tensor, " value"]
    n_units: int

    @property
    def density(self) -> float:
        """Share of all kept tokens and units that is not 0."""
        return len(self.value) / max(1, int(self.keep.sum()) * self.n_units)

    def batches(self, units: Int[Tensor, " unit"] | None = None, size: int = 16) -> Iterator[SparseBatch]:
        """Dense batches of `size` stories.

        Args:
            units: which, in the order wanted; None: all.
        """
        units = torch.arange(self.n_units) if units is None else units
        column = torch.full((self.n_units,), -1)
        column[units] = torch.arange(len(units))
        for part in torch.arange(len(self.rows)).split(size):
            begin, end = int(self.first[part[0]]), int(self.first[part[-1] + 1])
            wanted = column[self.unit[begin:end].long()]
            row = torch.repeat_interleave(torch.arange(len(part)), self.first[part + 1] - self.first[part])
            values = torch.zeros(len(part), self.keep.shape[1], len(units))
            there = wanted >= 0
            values[row[there], self.pos[begin:end].long()[there], wanted[there]] = self.value[begin:end][there]
            yield SparseBatch(self.rows[part], values, self.keep[part])


def sparse_acts(source: Source, n_pos: int, threshold: float | int = 0.0) -> SparseActs:
    """Collect what exceeds a threshold, in one pass; anything else counts as 0.

    Args:
        n_pos: positions of the longest story.
    """
    rows, keeps, counts, parts, n_units = [], [], [], [], 0
    for batch in source():
        n, given, n_units = batch.values.shape
        keep = torch.zeros(n, n_pos, dtype=torch.bool)
        keep[:, :given] = batch.keep.cpu()
        story, pos, unit = ((batch.values > threshold) & batch.keep[..., None]).nonzero(as_tuple=True)
        value = batch.values[story, pos, unit].float().cpu()
        rows.append(batch.rows)
        keeps.append(keep)
        counts.append(story.cpu().bincount(minlength=n))
        parts.append((pos.int().cpu(), unit.int().cpu(), value))
    if not rows:
        raise ValueError("activations to keep need at least 1 story; the source gave none")
    pos, unit, value = (torch.cat(column) for column in zip(*parts, strict=True))
    first = torch.cat([torch.zeros(1, dtype=torch.long), torch.cat(counts).cumsum(0)])
    return SparseActs(torch.cat(rows), torch.cat(keeps), first, pos, unit, value, n_units)
