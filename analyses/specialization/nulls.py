"""What a unit of the same sparsity would look like that cares for nothing.

    shuffled          labels dealt out anew within each story: the unit keeps its values, story by story, and loses
                      what they came with; of co-activation: each unit's activity dealt out by itself
    random mask       the ablated stream's activations behind the masks of other tokens of the same story: every unit
                      is let through as often, and every token has as many winners, but not for its own sake
    rectified normal  a standard normal cut off where it leaves the unit's usage: for kurtosis, Hoyer and Gini, which
                      no shuffle changes. `half normal` for units without a sign, whose usage is set by a quantile

For the entry of a mask `shuffled` is the random mask: unit by unit the two are one distribution.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

SHUFFLED, RANDOM_MASK, RECTIFIED, HALF_NORMAL, DIRECTIONS = (
    "shuffled", "random mask", "rectified normal", "half normal", "random directions",
)  # fmt: skip


def shuffled_order(keep: Bool[Tensor, "row pos"], generator: torch.Generator) -> Int[Tensor, "row pos"]:
    """A random order of each row's kept positions; the others stay where they are.

    Drawn on the CPU, so that it is the same on every device.
    """
    kept = keep.cpu()
    keys = torch.rand(kept.shape, generator=generator, dtype=torch.float64)
    drawn = keys.masked_fill(~kept, 2.0).argsort(1)
    places = (~kept).long().argsort(dim=1, stable=True)
    count = torch.arange(kept.shape[1]) < kept.sum(1, keepdim=True)
    order = torch.empty_like(places).scatter_(1, places, drawn.where(count, places))
    return order.to(keep.device)


def shuffled_units(
    active: Bool[Tensor, "row pos unit"], keep: Bool[Tensor, "row pos"], generator: torch.Generator
) -> Bool[Tensor, "row pos unit"]:
    """Each unit's activity dealt out anew over the kept positions of each row, independently of the other units'.

    All units of a row share one random order, in which each starts at a random place of its own: two units share
    that by chance once in as many rows as a row has tokens.
    """
    n_rows, n_pos, n_units = active.shape
    places = (~keep).long().argsort(dim=1, stable=True)  # kept positions first, ascending
    drawn = shuffled_order(keep, generator).gather(1, places)
    lengths = keep.sum(1).clamp(min=1)[:, None, None]
    start = (torch.rand(n_rows, 1, n_units, generator=generator).to(keep.device) * lengths).long()
    index = torch.arange(n_pos, device=keep.device)[None, :, None] + start
    index -= lengths * (index >= lengths)
    source = drawn.gather(1, index.clamp(max=n_pos - 1).flatten(1)).view(n_rows, n_pos, n_units)
    dealt = active.gather(1, source)
    return torch.zeros_like(active).scatter_(1, places[:, :, None].expand_as(dealt), dealt) & keep[:, :, None]


def rectified_normal(usage: Float[np.ndarray, " unit"], n: int) -> dict[str, Float[np.ndarray, " unit"]]:
    """Kurtosis, Hoyer's measure and Gini coefficient of max(z - c, 0) with P(z > c) = usage.

    Args:
        usage: of each unit; NaN comes out where it is 0 or 1.
        n: tokens, for Hoyer's measure.
    """
    inside = (usage > 0) & (usage < 1)
    share = np.where(inside, usage, 0.5)
    cut, levels = stats.norm.isf(share), (np.arange(400) + 0.5) / 400
    powers = [share, stats.norm.pdf(cut) - cut * share]
    for k in (2, 3, 4):  # E max(z - c, 0)^k, by parts
        powers.append((k - 1) * powers[k - 2] - cut * powers[k - 1])
    _, first, second, third, fourth = powers
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    above = stats.norm.isf(share[:, None] * levels) - cut[:, None]  # the active values, largest first
    gini = 1 - 2 * share * (above * share[:, None] * levels).mean(1) / first
    hoyer = (1 - first / np.sqrt(second)) * np.sqrt(n) / (np.sqrt(n) - 1)
    found = {"kurtosis": central / variance**2 - 3, "hoyer": hoyer, "gini": gini}
    return {name: np.where(inside, value, np.nan) for name, value in found.items()}


def half_normal(n_units: int, n: int) -> dict[str, Float[np.ndarray, " unit"]]:
    """The same of |z|: 8 (pi - 3) / (pi - 2)^2, 1 - sqrt(2 / pi), sqrt(2) - 1."""
    hoyer = (1 - np.sqrt(2 / np.pi)) * np.sqrt(n) / (np.sqrt(n) - 1)
    values = {"kurtosis": 8 * (np.pi - 3) / (np.pi - 2) ** 2, "hoyer": hoyer, "gini": np.sqrt(2) - 1}
    return {name: np.full(n_units, value) for name, value in values.items()}
