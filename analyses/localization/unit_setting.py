"""A task put to a model whose units can be taken out: what circuits of units are worth on it.

A unit that is in the circuit is live: it is computed from what the other units of the circuit do. One
that is out is replaced by its value on the counterfactual (`resample`), its mean over the
counterfactuals (`mean`) or 0 (`zero`). The embedding and all biases stay. So the circuit of all units
is the intact model, and the empty one the direct path from the embedding and what the replaced units
write. A circuit may differ by prompt and position: that is what a mask is.

    positions   all   units out of the circuit are replaced at every position
                end   at the last one only, positions before stay whole; with zeros and a model's own
                      masks this is its ablated stream

Values and units are those of `setting`: logits or nats, larger is better.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses import needs
from analyses.localization.replay import end_logits, fused_activations, hook_name
from analyses.localization.setting import UNITS, measured
from analyses.localization.unit_circuit import UnitCircuit, Units, units_of
from analyses.localization.units import batches
from sat_lens.ablate import mean_activations
from sat_lens.activations import inference
from sat_lens.distributed import gather_rows, shard
from sat_lens.memory import require
from sat_lens.tasks import Task

BYTES = 64 * 2**20
"""What the copies of one forward pass may take, about."""
KINDS = ("resample", "mean", "zero")


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """Prompts of one length.

    Args:
        rows: which prompts of the task.
        tokens: the prompts.
        other: what units out of the circuit carry, at the positions that are replaced; broadcasts.
        answers, wrong_answers: ids.
        intact: logits of the intact model at the last token.
    """

    rows: Int[Tensor, " n"]
    tokens: Int[Tensor, "n pos"]
    other: Float[Tensor, "one_or_n one_or_pos unit"]
    answers: Int[Tensor, " n"]
    wrong_answers: Int[Tensor, " n"]
    intact: Float[Tensor, "n d_vocab"]


@dataclasses.dataclass(frozen=True)
class UnitSetting:
    """Prompts by length, what units out of a circuit carry, and what logits are worth; see the module."""

    model: Any
    groups: tuple[UnitGroup, ...]
    value: str
    ablation: str
    positions: str

    @cached_property
    def units(self) -> Units:
        return units_of(self.model.cfg)

    @property
    def unit(self) -> str:
        """Of values and scores."""
        return UNITS[self.value]

    @property
    def n(self) -> int:
        """Prompts."""
        return sum(len(group.rows) for group in self.groups)

    def measured(self, logits: Float[Tensor, "*variant n d_vocab"], group: UnitGroup) -> Float[Tensor, "*variant n"]:
        """What logits at the last token are worth, prompt by prompt; differentiable."""
        return measured(self.value, logits, group)

    def gates(self, members: Tensor, group: UnitGroup) -> Tensor:
        """The part of `members` that a group's gates are: [circuit 1 or n, 1 or pos, unit]."""
        members = members[:, group.rows] if members.shape[1] > 1 else members
        if members.shape[2] > 1:
            length = group.tokens.shape[1]
            members = members[:, :, length - 1 : length] if self.positions == "end" else members[:, :, :length]
        return members.to(group.tokens.device)

    def values(self, members: Bool[Any, "circuit one_or_n one_or_pos unit"]) -> Float[np.ndarray, "circuit n"]:
        """What each circuit is worth on each prompt, prompts in the order of the task.

        Args:
            members: which units are in each circuit, at each prompt and position of the task (padded on the
                right); axes of size 1 are the same for all.

        Cost: a forward pass for each circuit and prompt; circuits are divided among processes.
        """
        mine = shard(len(members))
        own = torch.as_tensor(np.asarray(members)[mine.start : mine.stop])
        found = torch.empty(len(own), self.n, dtype=torch.float64)
        with inference(self.model), fused_activations(self.model):
            for group in self.groups if len(own) else ():
                gates = self.gates(own, group)
                parts = [
                    self.measured(self.end_logits(part, group), group) for part in gates.split(self._copies(group))
                ]
                found[:, group.rows] = torch.cat(parts).double().cpu()
        return gather_rows(found).numpy()

    def end_logits(self, gates: Tensor, group: UnitGroup) -> Float[Tensor, "circuit n d_vocab"]:
        """Logits at the last token with gates [circuit, 1 or n, 1 or pos, unit] on the units; differentiable.

        Boolean gates choose between a unit and what replaces it, others mix the two in that share.
        """
        copies, n = len(gates), len(group.rows)
        rows = gates.expand(copies, n, *gates.shape[2:]).flatten(0, 1)
        other = group.other.expand(n, *group.other.shape[1:]).repeat(copies, 1, 1)
        hooks = [
            (hook_name(layer, site), _gated(rows[..., part], other[..., part], self.positions == "end"))
            for layer, site in self.units.sites
            for part in (self.units.columns(layer, site),)
        ]
        with self.model.hooks(fwd_hooks=hooks):
            resid = self.model(group.tokens.repeat(copies, 1), stop_at_layer=self.units.n_layers, padding_side="right")
        return end_logits(self.model, resid[:, -1]).unflatten(0, (copies, n))

    @cached_property
    def intact_values(self) -> Float[np.ndarray, " n"]:
        """Of the intact model, prompts in the order of the task; 0 for `kl`."""
        found = np.empty(self.n)
        for group in self.groups:
            found[group.rows.numpy()] = self.measured(group.intact, group).double().numpy(force=True)
        return found

    @cached_property
    def empty_values(self) -> Float[np.ndarray, " n"]:
        """Of the circuit without units."""
        return self.values(np.zeros((1, 1, 1, self.units.n), dtype=bool))[0]

    def _copies(self, group: UnitGroup) -> int:
        cfg, (n, pos) = self.model.cfg, group.tokens.shape
        per_token = 6 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head + 4 * (cfg.d_mlp or 0) + 3 * cfg.n_heads * pos
        width = torch.finfo(cfg.dtype).bits // 8
        bytes_a_copy = n * (width * (pos * (per_token + self.units.n) + 2 * cfg.d_vocab) + pos * self.units.n)
        return max(1, BYTES // bytes_a_copy)


def _gated(gates: Tensor, other: Float[Tensor, "row _ unit"], end: bool) -> Callable[..., Tensor]:
    """A hook that lets the part `gates` of its activation pass and takes the rest from `other`."""

    def hook(activation: Tensor, hook: Any = None) -> Tensor:
        x = activation.flatten(2)
        live = x[:, -1:] if end else x
        mixed = torch.where(gates, live, other) if gates.dtype == torch.bool else other + gates * (live - other)
        return (torch.cat([x[:, :-1], mixed], 1) if end else mixed).reshape(activation.shape)

    return hook


def unit_setting_of(
    model: Any,
    task: Task,
    *,
    ablation: str = "resample",
    value: str = "logit_diff",
    positions: str = "all",
    batch: int = 64,
) -> UnitSetting:
    """Run a task's prompts and counterfactuals through a model, and keep what its units do.

    Args:
        model: a HookedTransformer, or one with masks, whose clean stream counts.
        task: prompts, each with a counterfactual of the same length.
        ablation: what units out of a circuit carry: `resample`, `mean` (over all tokens of the
            counterfactuals, one a unit) or `zero`.
        value: `logit_diff` or `kl`, as in `setting`.
        positions: where they carry it: `all`, or `end`, the last token of a prompt.
        batch: prompts of a group at most.

    Raises:
        ValueError: prompts that do not fit the model, an unknown choice, too little memory.

    Cost: two forward passes over the task; memory n x pos x units for `resample`.
    """
    for name, chosen, known in (
        ("ablation", ablation, KINDS), ("value", value, tuple(UNITS)), ("positions", positions, ("all", "end"))
    ):  # fmt: skip
        if chosen not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {chosen!r}")
    needs.require(model, "localization")
    task.require_fit(model.cfg)
    units, device = units_of(model.cfg), model.cfg.device
    width = torch.finfo(model.cfg.dtype).bits // 8
    need = 2 * task.n * int(task.lengths.max()) * units.n * width
    require(need, f"{units.n:,} units on {task.n} prompts", str(device), "lower --n")
    means = _means(model, task, units) if ablation == "mean" else None
    groups = []
    with torch.no_grad(), fused_activations(model):  # no_grad: gradients with respect to gates are wanted later
        for rows in batches(task.lengths, batch):
            length = int(task.lengths[rows[0]])
            clean, corrupt = (tokens[rows, :length].to(device) for tokens in (task.clean, task.corrupt))
            if ablation == "resample":
                other = unit_activations(model, corrupt)
            else:
                other = torch.zeros(1, 1, units.n, dtype=model.cfg.dtype, device=device) if means is None else means
            resid = model(clean, stop_at_layer=units.n_layers, padding_side="right")
            groups.append(
                UnitGroup(
                    rows=rows,
                    tokens=clean,
                    other=other[:, -1:] if positions == "end" else other,
                    answers=task.answers[rows].to(device),
                    wrong_answers=task.wrong_answers[rows].to(device),
                    intact=end_logits(model, resid[:, -1]),
                )
            )
    return UnitSetting(model, tuple(groups), value, ablation, positions)


def unit_activations(model: Any, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n pos unit"]:
    """What every unit of the clean stream does. Cost: one forward pass."""
    seen: dict[str, Tensor] = {}
    names = [hook_name(*at) for at in units_of(model.cfg).sites]
    keep = [(name, lambda x, hook: seen.__setitem__(hook.name, x.flatten(2))) for name in names]
    with model.hooks(fwd_hooks=keep):
        model(tokens, return_type=None, padding_side="right")
    return torch.cat([seen[name] for name in names], -1)


def _means(model: Any, task: Task, units: Units) -> Float[Tensor, "1 1 unit"]:
    names = [hook_name(*at) for at in units.sites]
    keep = torch.arange(task.corrupt.shape[1]) < task.lengths[:, None]
    means = mean_activations(
        model, task.corrupt.to(model.cfg.device), names, keep=keep, return_type=None, padding_side="right"
    )
    return torch.cat([means[name].flatten() for name in names])[None, None]


def stacked(circuits: Sequence[UnitCircuit]) -> Bool[np.ndarray, "circuit 1 1 unit"]:
    """Circuits that are the same at every prompt and position, as `UnitSetting.values` takes them."""
    return np.stack([circuit.row for circuit in circuits])[:, None, None]


def unit_values(
    model: Any, task: Task, circuits: Sequence[UnitCircuit], *, ablation: str = "resample", value: str = "logit_diff"
) -> Float[np.ndarray, "circuit n"]:
    """What each circuit is worth on each prompt, in one call; see `UnitSetting.values`."""
    return unit_setting_of(model, task, ablation=ablation, value=value).values(stacked(circuits))
