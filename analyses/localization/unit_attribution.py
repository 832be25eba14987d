"""How much each unit matters to a task, to first order: gradients with respect to gates on the units.

A gate g on unit u passes  other + g (live - other).  All gates at 1 are the intact model, all at 0 the
circuit without units. With V the value of the task,

    score(u) = sum over positions of  dV/dg_u           steps = 1: at the intact model,
                                                        (live - other) . gradient: attribution patching
    score(u) = the mean of dV/dg_u along g = 0 ... 1    steps > 1: integrated gradients, all gates at once

Positive: the unit helps, V falls when it is taken out. Along the path scores add up to the value of the
intact model minus that of the empty circuit (exact as steps grow). The path is that of the gates, and
not of the embedding, which no unit is and which stays as it is here.

Source: arXiv 2310.10348 (steps = 1), 1703.01365 (integrated gradients) with gates as inputs.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from analyses.localization.replay import fused_activations
from analyses.localization.unit_circuit import UnitCircuit, Units, largest_units
from analyses.localization.unit_setting import UnitGroup, UnitSetting
from sat_lens.distributed import dealt, sum_over_ranks


@dataclasses.dataclass(frozen=True)
class UnitScores:
    """Scores of every unit on every prompt, in the unit of the setting; positive helps.

    Args:
        units: the order of a row.
        by_prompt: summed over the positions of the setting.
    """

    units: Units
    by_prompt: Float[np.ndarray, "n unit"]

    @property
    def mean(self) -> Float[np.ndarray, " unit"]:
        """Over prompts."""
        return self.by_prompt.mean(0)

    def circuit(self, n: int, absolute: bool = True) -> UnitCircuit:
        """The n units with the largest |score| or, not `absolute`, score."""
        return largest_units(self.units, self.mean, n, absolute)


def unit_attribution(setting: UnitSetting, *, steps: int = 5, progress: bool = False) -> UnitScores:
    """Scores of all units.

    Args:
        steps: 1 takes gradients at the intact model; more take midpoints of the path of the gates.
        progress: show a bar on stderr, when that is a terminal.

    Raises:
        ValueError: steps below 1; `kl` with one step, where its gradient is 0.

    Cost: `steps` forward and backward passes over the task; batches of prompts are dealt among processes.
    """
    found = torch.zeros(setting.n, setting.units.n, dtype=torch.float64)
    for group in tqdm(list(dealt(setting.groups)), unit="batch", disable=None if progress else True):
        found[group.rows] = token_attribution(setting, group, steps).sum(1).double().cpu()
    return UnitScores(setting.units, sum_over_ranks(found).numpy())


def token_attribution(setting: UnitSetting, group: UnitGroup, steps: int = 5) -> Float[Tensor, "n one_or_pos unit"]:
    """Scores at each position (with positions `end`, at the last one) of a group's prompts."""
    if isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be 1 or more; got {steps}")
    if steps == 1 and setting.value == "kl":
        raise ValueError("kl has gradient 0 at the intact model, so all scores would be 0; take more steps")
    n, pos = group.tokens.shape
    shape = (1, n, 1 if setting.positions == "end" else pos, setting.units.n)
    total = torch.zeros(shape[1:], dtype=group.intact.dtype, device=group.tokens.device)
    for share in [1.0] if steps == 1 else [(k + 0.5) / steps for k in range(steps)]:
        with torch.inference_mode(False), torch.enable_grad(), fused_activations(setting.model):
            gates = torch.full(shape, share, dtype=total.dtype, device=total.device, requires_grad=True)
            value = setting.measured(setting.end_logits(gates, group), group).sum()
            total += torch.autograd.grad(value, gates)[0][0] / steps
    return total
