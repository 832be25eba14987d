"""The shortest description: how a rule's bits are weighed against its errors.

With Gaussian errors of a variance that is not known, n activations take n/2 log2(variance left) bits (up to a
constant) beside those of the rule. For a given variance a rule of least length can be found exactly, error counted as
squared error / (2 variance ln 2) bits; the variance is then what that rule leaves. From two starts, the variance
of the unit and the variance that the greatest rule leaves, since one of them alone can be caught far from the best.

Source: Rissanen 1978.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

STEPS = 2

Pruned = tuple[list[Tensor], Tensor, Tensor]
"""What a rule is made of ([..., unit]), the sum of its squared errors and its bits, of each unit."""


def bits_per_square(variance: Float[Tensor, " unit"]) -> Float[Tensor, " unit"]:
    """Bits that a squared error of 1 takes."""
    return 1 / (2 * math.log(2) * variance.clamp(min=1e-300))


def shortest(
    pruned: Callable[[Float[Tensor, " unit"]], Pruned],
    starts: Sequence[Float[Tensor, " unit"]],
    floor: Float[Tensor, " unit"],
    n: float | int,
) -> list[Shaped[Tensor, "..."]]:
    """Of each unit the shortest of the rules that are met.

    Args:
        pruned: the rule of least length at a given price of errors (`bits_per_square`).
        starts: variances to begin with.
        floor: least variance, such as that of rounding.
        n: activations.
    """
    best: list[Tensor] = []
    least = torch.full_like(floor, torch.inf)
    for variance in starts:
        for _ in range(STEPS):
            made, errors, bits = pruned(bits_per_square(torch.maximum(variance, floor)))
            variance = errors.clamp(min=0) / n
            length = n / 2 * torch.maximum(variance, floor).clamp(min=1e-300).log2() + bits
            better = length < least
            best = [new.where(better, old) for new, old in zip(made, best or made, strict=True)]
            least = torch.minimum(least, length)
    return best
