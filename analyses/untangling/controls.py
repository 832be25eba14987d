"""Sets of the same size that were not chosen for the task: what removing as much would do anyway."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def random_set(alive: Bool[Tensor, " part"], n: int, generator: torch.Generator) -> list[int]:
    """n of the parts that are ever active, at random (all of them, where there are fewer)."""
    parts = alive.nonzero().flatten()
    return parts[torch.randperm(len(parts), generator=generator)[:n]].tolist()


def magnitude_matched(magnitude: Float[Tensor, " part"], chosen: list[int]) -> list[int]:
    """For each chosen part another one of nearly its magnitude, each once, none of them chosen.

    The nearest in ratio, the largest chosen part first; fewer, where nothing that is active is left.
    """
    free = magnitude > 0
    free[chosen] = False
    found = []
    for j in sorted(chosen, key=lambda part: -float(magnitude[part])):
        if not free.any() or magnitude[j] <= 0:
            break
        distance = (magnitude.clamp(min=1e-30).log() - magnitude[j].log()).abs().masked_fill(~free, torch.inf)
        found.append(int(distance.argmin()))
        free[found[-1]] = False
    return found


def dealt_labels(target: Bool[Tensor, " example"], generator: torch.Generator) -> Bool[Tensor, " example"]:
    """The labels of the two tasks dealt anew among the examples."""
    return target[torch.randperm(len(target), generator=generator)]
