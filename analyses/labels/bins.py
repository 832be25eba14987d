"""Counts as a few classes: bins that widen."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def binned(counts: Int[Tensor, "story pos"], edges: Sequence[int]) -> tuple[tuple[str, ...], Int[Tensor, "story pos"]]:
    """Names of the bins, and the bin of each count; -1 stays -1.

    Args:
        counts: numbers from `edges[0]` up, or -1.
        edges: first number of each bin, rising; the last bin has no end.
    """
    ends = [following - 1 for following in edges[1:]]
    names = [str(edge) if edge == end else f"{edge}-{end}" for edge, end in zip(edges, ends, strict=False)]
    values = torch.bucketize(counts, torch.tensor(edges), right=True) - 1
    return (*names, f"{edges[-1]}+"), torch.where(counts >= 0, values, -1)
