"""What is put in the place of the true latents: which of them, by what, and what is done with the rest.

From the true latents z of a token, the chosen ones are overwritten by simulated and calibrated activations, and the
result is decoded. A simulator errs in three ways, which oracles take away:

| oracle | simulated activations are | errors that are left |
| --- | --- | --- |
| `none` | taken as they are | false positives, misses, magnitude |
| `active` | 0 wherever the latent is silent | misses, magnitude |
| `value` | the true value wherever the simulator calls an active latent active | false positives, misses |
| `both` | the true value where the simulator calls the latent active, else 0 | misses |

A latent is active above 0, and called active at a cut of the raw simulated activation (best F1 on the split to
calibrate on). With
`keep="topk"` the k largest of what results are decoded, as published: simulated and true latents then compete, and
false positives drive out true ones.

Source: arXiv 2501.18838 (the fraction, best first and at random, top k); the oracles are ours.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.rewriting.choices import CALIBRATIONS, KEEPS, ORACLES, ORDERS
from sat_lens.coders.latents import top_latents
from sat_lens.coders.sites import SiteBatch
from sat_lens.coders.substitute import AnyCoder, Edit, edited_latents


@dataclasses.dataclass(frozen=True)
class Plan:
    """One way to rewrite.

    Args:
        explanations: whose simulations.
        fraction: of the latents that are explained, 0 to 1.
        order: best score first, at random, or (`density`) the most often active first.
        calibration, keep, oracle: see the module, and `calibration`.
        skip, bias: whether the coder's skip connection and bias stay.

    Raises:
        ValueError: anything else.
    """

    explanations: str
    fraction: float | int = 1.0
    order: str = "score"
    calibration: str = "none"
    keep: str = "all"
    oracle: str = "none"
    skip: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"a fraction must lie between 0 and 1; got {self.fraction}")
        known = {"order": ORDERS, "calibration": CALIBRATIONS, "keep": KEEPS, "oracle": ORACLES}
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}; got {getattr(self, name)!r}")


class Said(NamedTuple):
    """What simulators say of the explained latents in a batch.

    Args:
        value: calibrated.
        active: whether a latent is called active.
    """

    value: Float[Tensor, "row pos unit"]
    active: Bool[Tensor, "row pos unit"]


def ranked_latents(
    latents: Int[Tensor, " unit"], scores: Float[Tensor, " unit"], order: str, seed: int = 0
) -> Int[Tensor, " unit"]:
    """Places of the explained latents in the order in which they are rewritten.

    Args:
        scores: greater is better; a latent without one (NaN) comes last.
    """
    if order == "random":
        return torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))
    return scores.double().nan_to_num(nan=-torch.inf).argsort(stable=True, descending=True)


def plan_edit(
    coder: AnyCoder,
    plan: Plan,
    latents: Int[Tensor, " unit"],
    ranked: Int[Tensor, " unit"],
    said: Callable[[SiteBatch], Said],
) -> Edit:
    """The edit that a plan makes at the coder's site.

    Args:
        latents: that are explained.
        ranked: their places, best first.
        said: what is simulated of them in a batch.

    Raises:
        ValueError: the k largest of a coder that has no k.
    """
    if plan.keep == "topk" and coder.cfg.k is None:
        raise ValueError("keep=topk needs a coder of k winners; this one keeps all that are not 0")
    chosen = ranked[: round(plan.fraction * len(latents))].sort().values
    columns = latents[chosen]

    def change(site: SiteBatch, z: Tensor) -> Tensor:
        if len(chosen):
            known, found = z[..., columns], said(site)
            value, active = found.value[..., chosen].to(z), found.active[..., chosen].to(z.device)
            z = z.clone()
            z[..., columns] = _told(plan.oracle, known, value, active)
        if plan.keep == "topk":
            z = top_latents(z, coder.cfg.k, signed=coder.cfg.kind == "neurons").dense(coder.cfg.n_latents)
        return z

    return edited_latents(coder, change, plan.skip, plan.bias)


def _told(oracle: str, true: Tensor, value: Tensor, active: Tensor) -> Tensor:
    if oracle == "active":
        return value.where(true > 0, 0.0)
    if oracle == "value":
        return torch.where(active & (true > 0), true, value)
    return true.where(active & (true > 0), 0.0) if oracle == "both" else value
