"""When a unit is active, and how strongly: what counts, entropies and measures of sparsity are taken of.

| unit | strength | active where the strength is above |
| --- | --- | --- |
| neuron of an ordinary MLP | the positive part of its value | 0 |
| neuron of a gated MLP, z channel, head: units with no sign of their own | its magnitude | its own 0.9-quantile |
| any of them behind a hard mask | its magnitude | 0: the mask let it through |
| entry of a mask | its value | 0 (hard), 0.5 (soft) |

GELU's negative tail is no activity; `negative share` says how much of a neuron's magnitude lies there. Behind a hard
mask, activity is what the mask lets through, so that the mask of another token leaves every unit's usage as it is.
Where the threshold is a quantile, usage is near 0.1 by construction and says nothing.

Quantiles, and the mean and scale that keep sums exact, are of the first 32 stories.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.texts import Stories
from analyses.unit_streams import Units, unit_batches

CALIBRATION, QUANTILE = 32, 0.9
"""Stories, and the share of their tokens at which a unit without sign of its own is not active."""


class Seen(NamedTuple):
    """What some tokens made the units do.

    Args:
        values: less the unit's mean.
        strength, negative, magnitude: max(-value, 0) and |value|; in units of the unit's scale.
    """

    values: Float[Tensor, "token unit"]
    active: Bool[Tensor, "token unit"]
    strength: Float[Tensor, "token unit"]
    negative: Float[Tensor, "token unit"]
    magnitude: Float[Tensor, "token unit"]


@dataclasses.dataclass(frozen=True)
class Activity:
    """The rule for some units.

    Args:
        rule: `positive` part, or `magnitude`.
        by_quantile: whether the thresholds are quantiles.
        threshold: strength above which a unit is active.
        mean: about that of the value.
        scale: about the root mean square of the strength; 1 where that is 0.
    """

    rule: str
    by_quantile: bool
    threshold: Float[Tensor, " unit"]
    mean: Float[Tensor, " unit"]
    scale: Float[Tensor, " unit"]

    def strength(self, values: Float[Tensor, "*token unit"]) -> Float[Tensor, "*token unit"]:
        """From 0 up, in the unit of the values."""
        return _strength(values, self.rule)

    def seen(self, values: Float[Tensor, "token unit"]) -> Seen:
        """Values as what is counted and summed of them."""
        strength, scaled = self.strength(values), values / self.scale
        return Seen(
            values - self.mean, strength > self.threshold, strength / self.scale, -scaled.clamp(max=0), scaled.abs()
        )


def activity_of(model: Any, stories: Stories, units: Units) -> Activity:
    """The rule for these units of this model, calibrated on its first stories.

    Cost: a pass over 32 stories, all of whose values are held.
    """
    rule, threshold = rule_of(model, units)
    rows = range(min(CALIBRATION, stories.n))
    values = torch.cat([part.values[part.keep] for part in unit_batches(model, stories, units, rows=rows)])
    return calibrated(values, rule, threshold)


def rule_of(model: Any, units: Units) -> tuple[str, float | None]:
    """`positive` or `magnitude`, and the threshold (None: the quantile)."""
    soft = units.stream == "ablated" and model.ablation.forward != "hard"
    if units.kind.startswith("mask"):
        return "positive", 0.5 if soft else 0.0
    if units.stream == "ablated" and not soft:
        return "magnitude", 0.0
    if units.kind == "neuron" and not model.cfg.gated_mlp:
        return "positive", 0.0
    return "magnitude", None


def calibrated(values: Float[Tensor, "token unit"], rule: str, threshold: float | None) -> Activity:
    """The rule for units that were seen to have these values."""
    strength = _strength(values, rule)
    if threshold is None:
        k = max(1, round(QUANTILE * len(values)))
        level = strength.kthvalue(k, 0).values
    else:
        level = torch.full_like(values[0], threshold)
    scale = strength.square().mean(0).sqrt()
    return Activity(rule, threshold is None, level, values.mean(0), scale.where(scale > 0, 1.0))


def _strength(values: Float[Tensor, "*token unit"], rule: str) -> Float[Tensor, "*token unit"]:
    return values.clamp(min=0) if rule == "positive" else values.abs()
