"""Which units do the masks of a self-ablating model name on a task, and are they special to it?

Usage of a unit is the share of a prompt's tokens whose mask names it (`all`), or whether the mask of the
last token does (`end`), as a mean over prompts: 0..1. The difference to its usage on other text, the
counterfactual prompts or stories, says how special the unit is to the task.

Source: arXiv 2505.00509 (the masks); the measure is our own.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

from analyses.localization.unit_circuit import Units, units_of
from analyses.result import Result
from analyses.statistics import bootstrap_interval, bootstrap_weights, holm
from analyses.texts import Stories
from sat_lens.activations import inference
from sat_lens.gates import LayerUnits, masks
from sat_lens.memory import require
from sat_lens.tasks import Task

POSITIONS = ("all", "end")
COLUMNS = {
    **dict.fromkeys(("usage", "ci_low", "ci_high", "usage_other"), "share of tokens"),
    **dict.fromkeys(("difference", "difference_low", "difference_high"), "share of tokens"),
    **dict.fromkeys(("p", "p_holm"), "probability"),
    "n": "prompts",
    "n_other": "rows of other text",
}


def refuse_without_masks(model: Any) -> None:
    """Raises: ValueError: a model that has no gates."""
    if getattr(getattr(model, "ablation", None), "mask", "none") == "none":
        raise ValueError("masks need a model that has gates; this one has none")


def text_masks(model: Any, tokens: Int[Tensor, "n pos"], batch: int = 64) -> Bool[Tensor, "n pos unit"]:
    """The units that the masks name at every token, in the order of `unit_circuit`; of soft masks, the k largest.

    Raises:
        ValueError: a model without masks, or too little memory.

    Cost: a forward pass of the clean stream; one byte a unit and token.
    """
    refuse_without_masks(model)
    hard = dataclasses.replace(model.ablation, forward="hard")
    require(2 * tokens.numel() * units_of(model.cfg).n, f"masks of {tokens.numel():,} tokens", "cpu", "lower --n")
    found = []
    with inference(model):
        for part in tokens.split(batch):
            relevance = _relevance(model, part.to(model.cfg.device))
            named = masks(relevance, hard, model.cfg.d_head)
            row = [layer.attn.flatten(2) for layer in named] + [layer.mlp for layer in named if layer.mlp is not None]
            found.append((torch.cat(row, -1) > 0.5).cpu())
    return torch.cat(found)


def _relevance(model: Any, tokens: Int[Tensor, "n pos"]) -> list[LayerUnits]:
    seen: dict[str, Tensor] = {}
    names = [name for name in model.hook_dict if name.endswith("hook_relevance")]
    with model.hooks(fwd_hooks=[(name, lambda x, hook: seen.__setitem__(hook.name, x)) for name in names]):
        model.masks_of(model.clean_stream(tokens))
    at = [f"blocks.{layer}" for layer in range(model.cfg.n_layers)]
    return [LayerUnits(seen[f"{b}.attn.hook_relevance"], seen.get(f"{b}.mlp.hook_relevance")) for b in at]


def usage(
    named: Bool[Tensor, "n pos unit"], lengths: Int[Tensor, " n"], positions: str = "all"
) -> Float[np.ndarray, "n unit"]:
    """Share of each row's tokens (padding left out) whose mask names the unit; `end`: of the last one alone."""
    columns = torch.arange(named.shape[1])
    counted = columns < lengths[:, None] if positions == "all" else columns == lengths[:, None] - 1
    weights = counted.double() / counted.sum(1, keepdim=True)
    found = np.empty((len(named), named.shape[2]))
    for i, (mask, weight) in enumerate(zip(named, weights, strict=True)):
        found[i] = (weight @ mask.double()).numpy()
    return found


@dataclasses.dataclass(frozen=True)
class Compared:
    """Usage of every unit on a task and on other text, row by row.

    Args:
        units: the order of a row.
        task: prompts of the task.
        other: rows of the other text.
    """

    units: Units
    task: Float[np.ndarray, "n unit"]
    other: Float[np.ndarray, "n_other unit"]


def compared_usage(
    model: Any,
    task: Task,
    positions: str,
    other: Stories | None = None,
    named: Bool[Tensor, "n pos unit"] | None = None,
) -> Compared:
    """Usage on a task and on other text.

    Args:
        positions: `all` or `end` of the prompts.
        other: stories, all of whose tokens count; None: the counterfactual prompts at the same positions.
        named: `text_masks` of the task, where they are known.
    """
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}; got {positions!r}")
    named = text_masks(model, task.clean) if named is None else named
    if other is None:
        elsewhere = usage(text_masks(model, task.corrupt), task.lengths, positions)
    else:
        elsewhere = usage(text_masks(model, other.tokens), other.lengths)
    return Compared(units_of(model.cfg), usage(named, task.lengths, positions), elsewhere)


def mask_usage(
    model: Any,
    task: Task,
    *,
    other: Stories | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> Result:
    """Usage of every unit on a task, and how it differs from that on other text.

    Args:
        model: a SelfAblatingTransformer with a mask.
        task: prompts; the counterfactuals are the other text when there is no `other`.
        other: stories.
        n_bootstrap, seed: of the 95 % intervals over prompts and over rows of the other text.

    Returns:
        One row a unit and kind of position, the largest |difference| of each first: `usage`, its interval,
        `usage_other`, `difference` (usage minus usage_other: positive where the task calls the unit) and its
        interval; `p` of "task and other text are alike" by the normal distribution with the variance that
        dealing their labels anew would give, `p_holm` corrected over the units.

    Raises:
        ValueError: a model without masks.

    Cost: a forward pass over the task and the other text.
    """
    refuse_without_masks(model)
    named = text_masks(model, task.clean)
    tables = [
        _rows(compared_usage(model, task, positions, other, named), positions, n_bootstrap, seed)
        for positions in POSITIONS
    ]
    knobs = {"other": "counterfactuals" if other is None else "stories", "n_bootstrap": n_bootstrap, "seed": seed}
    meta = {"task": {"name": task.name, "n": task.n}, "knobs": knobs, "ablation": model.ablation.to_dict()}
    return Result("mask_usage", pd.concat(tables, ignore_index=True), COLUMNS, meta)


def _rows(compared: Compared, positions: str, n_bootstrap: int, seed: int) -> pd.DataFrame:
    task, other = compared.task, compared.other
    low, high = bootstrap_interval(task, n_resamples=n_bootstrap, seed=seed)
    resampled = (
        bootstrap_weights(len(task), n_bootstrap, seed) @ task
        - bootstrap_weights(len(other), n_bootstrap, seed + 1) @ other
    )
    difference_low, difference_high = np.quantile(resampled, [0.025, 0.975], axis=0)
    p = label_p_value(task, other)
    table = pd.DataFrame(
        {
            "name": compared.units.names,
            "site": list(_site_of(compared.units)),
            "positions": positions,
            "usage": task.mean(0), "ci_low": low, "ci_high": high,
            "usage_other": other.mean(0),
            "difference": task.mean(0) - other.mean(0),
            "difference_low": difference_low, "difference_high": difference_high,
            "p": p, "p_holm": holm(p),
            "n": len(task), "n_other": len(other),
        }
    )  # fmt: skip
    return table.sort_values("difference", key=lambda x: -x.abs(), kind="stable", ignore_index=True)


def _site_of(units: Units) -> Iterator[str]:
    for layer, site in units.sites:
        columns = units.columns(layer, site)
        yield from [site] * (columns.stop - columns.start)


def label_p_value(a: Float[np.ndarray, "n column"], b: Float[np.ndarray, "m column"]) -> Float[np.ndarray, " column"]:
    """Two-sided p of the difference of two means when labels are dealt anew, by the normal distribution with
    the permutations' own variance, S^2 (1/n + 1/m), S^2 that of the pooled rows. 1 where all rows are equal."""
    pooled = np.concatenate([a, b])
    spread = np.sqrt(pooled.var(0, ddof=1) * (1 / len(a) + 1 / len(b)))
    difference = np.abs(a.mean(0) - b.mean(0))
    z = np.divide(difference, spread, out=np.zeros_like(difference), where=spread > 1e-12)
    return 2 * stats.norm.sf(z)
