"""A task put to a model that is taken apart: what every method of finding a circuit is given.

A method is a function of a Setting and of knobs of its own, and gives one score an edge:

    scores = method(setting, ...)          # [source destination], NaN where there is no edge

A score says how much the value of the task falls when the edge is cut: positive means that the edge
helps. The value (larger is better) is a mean over prompts of

    logit_diff   logit of the answer minus logit of the wrong answer, logits
    kl           -KL(intact model || circuit) over the whole vocabulary, nats; 0 for the intact model

both at the last token of a prompt.
"""

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.localization.graph import Graph
from analyses.localization.parts import Parts
from analyses.localization.runner import Contrast, contrast, end_logits
from analyses.metrics import kl_divergence, logit_difference
from sat_lens.distributed import gather_rows, shard
from sat_lens.memory import require
from sat_lens.tasks import Task

UNITS: dict[str, str] = {"logit_diff": "logits", "kl": "nats"}
Scores = Float[np.ndarray, "source destination"]


@dataclasses.dataclass(frozen=True)
class Group:
    """Prompts of one length.

    Args:
        rows: which prompts of the task.
        contrast: what sources write on them, and what cut edges carry.
        answers, wrong_answers: ids.
        intact: logits of the intact model at the last token.
        other: logits of the other run, all edges cut.
    """

    rows: Int[Tensor, " n"]
    contrast: Contrast
    answers: Int[Tensor, " n"]
    wrong_answers: Int[Tensor, " n"]
    intact: Float[Tensor, "n d_vocab"]
    other: Float[Tensor, "n d_vocab"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """Prompts by length, what cut edges carry, and what a circuit's logits are worth.

    Args:
        parts: of the model.
        groups: every prompt of the task in one of them.
        value: what is measured; see the module.
        ablation: what cut edges carry, by name.
        frozen_norm: divide by the intact run's scale in the final norm, not by the circuit's own.
    """

    parts: Parts
    groups: tuple[Group, ...]
    value: str = "logit_diff"
    ablation: str = "resample"
    frozen_norm: bool = False

    @property
    def graph(self) -> Graph:
        return self.parts.graph

    @property
    def unit(self) -> str:
        """Of values and scores."""
        return UNITS[self.value]

    @property
    def n(self) -> int:
        """Prompts."""
        return sum(len(group.rows) for group in self.groups)

    def measured(self, logits: Float[Tensor, "*variant n d_vocab"], group: Group) -> Float[Tensor, "*variant n"]:
        """What logits at the last token are worth, prompt by prompt; differentiable."""
        return measured(self.value, logits, group)

    def values(self, members: Bool[Any, "circuit source destination"]) -> Float[np.ndarray, "circuit n"]:
        """What each circuit is worth on each prompt, prompts in the order of the task.

        Cost: about a forward pass for each circuit and prompt; circuits are divided among processes.
        """
        mine = shard(len(members))
        own = torch.as_tensor(np.asarray(members)[mine.start : mine.stop])
        found = torch.empty(len(own), self.n, dtype=torch.float64)
        with torch.inference_mode():
            for group in self.groups if len(own) else ():
                logits = end_logits(group.contrast, own.to(group.answers.device), self.frozen_norm)
                found[:, group.rows.cpu()] = self.measured(logits, group).double().cpu()
        return gather_rows(found).numpy()

    @cached_property
    def intact_values(self) -> Float[np.ndarray, " n"]:
        """Of the intact model, prompts in the order of the task; 0 for `kl`."""
        return self._by_prompt([self.measured(group.intact, group) for group in self.groups])

    @cached_property
    def other_values(self) -> Float[np.ndarray, " n"]:
        """With every edge cut, prompts in the order of the task."""
        return self._by_prompt([self.measured(group.other, group) for group in self.groups])

    def _by_prompt(self, found: list[Tensor]) -> Float[np.ndarray, " n"]:
        values = np.empty(self.n)
        for group, part in zip(self.groups, found, strict=True):
            values[group.rows.numpy(force=True)] = part.double().numpy(force=True)
        return values

    def with_other(self, contrasts: list[Contrast], ablation: str) -> "Setting":
        """The same prompts with cut edges that carry something else; one contrast a group."""
        groups = [
            dataclasses.replace(group, contrast=other, other=_other_logits(other, self.frozen_norm))
            for group, other in zip(self.groups, contrasts, strict=True)
        ]
        return dataclasses.replace(self, groups=tuple(groups), ablation=ablation)


def measured(value: str, logits: Float[Tensor, "*variant n d_vocab"], group: Any) -> Float[Tensor, "*variant n"]:
    """What logits at the last token are worth, prompt by prompt, larger is better; differentiable.

    Args:
        value: `logit_diff`, or `kl`: minus the divergence of these logits from the intact ones.
        group: prompts with `intact` logits, `answers` and `wrong_answers`.
    """
    if value == "kl":
        return -kl_divergence(group.intact.expand_as(logits), logits)
    ids = (group.answers.expand(logits.shape[:-1]), group.wrong_answers.expand(logits.shape[:-1]))
    return logit_difference(logits, *ids)


def setting_of(
    model: Any,
    task: Task,
    *,
    ablation: str = "resample",
    value: str = "logit_diff",
    frozen_norm: bool = False,
    batch: int = 64,
) -> Setting:
    """Run a task's prompts and counterfactuals through a model, taken apart by source.

    Args:
        model: a HookedTransformer, or one with masks, whose clean stream counts.
        task: prompts, each with a counterfactual of the same length.
        ablation: what a cut edge carries: `resample` (what its source writes on the counterfactual), `mean`,
            `positional_mean` (of what it writes on the counterfactuals of that length), `zero`, or `optimal`
            (`optimal.optimal_setting`: constants fitted so that random circuits lose least).
        value: what circuits are worth.
        frozen_norm: divide by the intact run's scale in the final norm.
        batch: prompts of a group at most. Means are over all prompts of a length, whatever the batch.

    Raises:
        ValueError: prompts longer than the context, ids beyond the vocabulary, an unknown kind, too little memory.

    Cost: two forward passes over the task; memory 2 x source x n x pos x d_model, about.
    """
    if value not in UNITS:
        raise ValueError(f"value must be {' or '.join(UNITS)}; got {value!r}")
    parts = Parts(model)
    task.require_fit(model.cfg)
    longest, device = int(task.lengths.max()), str(model.cfg.device)
    width = torch.finfo(model.cfg.dtype).bits // 8
    need = 3 * len(parts.graph.sources) * task.n * longest * model.cfg.d_model * width
    require(need, f"what {len(parts.graph.sources)} sources write on {task.n} prompts", device, "lower --n")
    kind = "resample" if ablation == "optimal" else ablation
    with torch.no_grad():  # gradients with respect to inputs may be wanted later
        groups = [
            group
            for length in task.lengths.unique().tolist()
            for group in _groups(parts, task, torch.nonzero(task.lengths == length)[:, 0], kind, batch, frozen_norm)
        ]
    setting = Setting(parts, tuple(groups), value, kind, frozen_norm)
    if ablation != "optimal":
        return setting
    from analyses.localization.optimal import optimal_setting

    return optimal_setting(setting)


def _groups(
    parts: Parts, task: Task, rows: Int[Tensor, " n"], kind: str, batch: int, frozen_norm: bool
) -> Iterator[Group]:
    device, length = parts.cfg.device, int(task.lengths[rows[0]])
    clean, corrupt = (tokens[rows, :length].to(device) for tokens in (task.clean, task.corrupt))
    whole = contrast(parts, clean, corrupt, kind)
    for at in torch.arange(len(rows)).split(batch):
        part = Contrast(parts, whole.clean[:, at], whole.other[:, at])
        last = len(parts.graph.destinations) - 1
        yield Group(
            rows=rows[at],
            contrast=part,
            answers=task.answers[rows[at]].to(device),
            wrong_answers=task.wrong_answers[rows[at]].to(device),
            intact=parts.logits(part.clean_input(last)[:, -1]),
            other=_other_logits(part, frozen_norm),
        )


def _other_logits(part: Contrast, frozen_norm: bool) -> Float[Tensor, "n d_vocab"]:
    last = len(part.parts.graph.destinations) - 1
    with torch.no_grad():
        scale = part.parts.final_scale(part.clean_input(last)[:, -1]) if frozen_norm else None
        return part.parts.logits(part.other_input(last)[:, -1], scale)
