"""Which heads, z channels and neurons does a task need? Each is ablated alone, the rest left as it is."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from analyses import metrics, needs
from analyses.localization.concentration import concentration
from analyses.localization.replay import (
    Baseline,
    Site,
    baseline,
    end_logits,
    end_residuals,
    fused_activations,
    hook_name,
    sites,
)
from analyses.result import Result
from analyses.statistics import bootstrap_interval, holm, share_interval, sign_flip_p_value
from sat_lens.ablate import Ablation, mean, mean_activations, resample, zero
from sat_lens.cache_size import cache_bytes
from sat_lens.distributed import dealt, sum_over_ranks, world_size
from sat_lens.memory import require
from sat_lens.tasks import Task

SITE_OF: dict[str, Site] = {"head": "attn", "channel": "attn", "neuron": "mlp"}
CHOICES = {"ablation": ("zero", "mean", "resample"), "stream": ("clean", "ablated"), "positions": ("all", "end")}
UNITS = {
    **dict.fromkeys(("effect_logit_diff", "ci_low", "ci_high"), "logits"),
    **dict.fromkeys(("effect_loss", "loss_ci_low", "loss_ci_high"), "nats"),
    **dict.fromkeys(("p", "p_holm"), "probability"),
    "n": "prompts",
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """Logit difference (logits) and loss of the answer (nats) at the end of each prompt, [... prompt]."""

    logit_diff: np.ndarray
    loss: np.ndarray


def unit_effects(
    model: Any,
    task: Task,
    *,
    units: Sequence[str] = ("head", "channel", "neuron"),
    ablation: str = "mean",
    stream: str = "clean",
    positions: str = "all",
    reference: tuple[Int[Tensor, "rows ctx"], Int[Tensor, " rows"]] | None = None,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch: int = 128,
    memory_mb: int = 64,
    progress: bool = False,
) -> Result:
    """Effect of ablating each unit alone on the task, with bootstrap intervals over prompts.

    Args:
        model: a HookedTransformer; the ablated stream needs a model with masks.
        task: prompts; the logits at `end` count. `resample` takes activations from its counterfactuals.
        units: `head` (all channels of one head), `channel` (one dimension of z), `neuron` (one of post).
        ablation: see `sat_lens.ablate`. The mean is taken over the positions that are ablated.
        stream: `clean`, or `ablated`: units of the ablated stream (`hook_gated_z`, `hook_gated_post`),
            while masks, and keys and values of earlier positions, stay the clean stream's.
        positions: ablate at `all` positions, or at `end` only. The ablated stream at `end` depends on
            itself at no other position, so that there the two differ only in what the mean is over.
        reference: tokens (padded on the right) and lengths to take means over, instead of the task's own.
        n_bootstrap: resamples of prompts, the same for all units.
        seed: of the resamples.
        batch: prompts whose activations are held at once.
        memory_mb: what the copies of one forward pass may take, about; larger is not faster on a CPU.
        progress: show a bar on stderr, when that is a terminal.

    Returns:
        One row a unit, kinds in the order asked for, the largest |effect_logit_diff| first.
        `effect_logit_diff` (logits) is the logit difference before minus after, `effect_loss` (nats)
        the cross entropy of the answer after minus before: positive means that the unit helps. `ci_`
        are the ends of 95 % intervals. `p` is a two-sided sign-flip test of
        `effect_logit_diff` over prompts, `p_holm` is corrected within the kind.
        meta["task"] says how well the model solves the task, meta["concentration"] how unevenly
        |effect_logit_diff| is spread over the units of a kind.

    Raises:
        ValueError: a stream or units that the model does not have, prompts longer than its context.

    Under torchrun the ranks share the units.

    Cost: for each unit of layer l, the layers above it once per prompt, the last of them at one token;
    about n_units / 3 forward passes over the task. 4 layers of width 64, 4,096 ids, 1,296 units and 128
    prompts take 12 s on one core; 6 s at `end` and in the ablated stream, most of it for the logits.
    """
    for name, value in (("ablation", ablation), ("stream", stream), ("positions", positions)):
        if value not in CHOICES[name]:
            raise ValueError(f"{name} must be one of {', '.join(CHOICES[name])}; got {value!r}")
    needs.require(model, "localization")
    kinds = _checked_kinds(model, task, units, stream)
    pos = int(task.lengths.max())
    kept = cache_bytes(model.cfg, batch=min(batch, task.n), pos=pos, stream=stream) + memory_mb * 2**20
    require(kept, f"a batch of {batch} prompts of {pos} tokens", str(model.cfg.device), "lower batch (--n)")
    with torch.no_grad(), fused_activations(model):  # no_grad: TransformerLens may cache tensors on the way
        means = _means(model, task, stream, positions, reference) if ablation == "mean" else {}
        before, after = _measure(model, task, kinds, ablation, means, stream, positions, batch, memory_mb, progress)
    effects = {
        kind: Measured(before.logit_diff - after[kind].logit_diff, after[kind].loss - before.loss) for kind in kinds
    }
    table = pd.concat([_rows(model.cfg, kind, effects[kind], n_bootstrap, seed) for kind in kinds], ignore_index=True)
    meta = {
        "task": task_summary(task, before),
        "knobs": {
            "units": list(kinds), "ablation": ablation, "stream": stream, "positions": positions,
            "mean_over": "task" if reference is None else "reference", "n_bootstrap": n_bootstrap, "seed": seed,
        },
        "concentration": [
            row for kind in kinds for row in concentration(kind, effects[kind].logit_diff, n_bootstrap, seed)
        ],
    }  # fmt: skip
    return Result("localization", table, UNITS, meta)


def task_summary(task: Task, before: Measured) -> dict[str, Any]:
    """How well the unablated stream solves the task; `solved` is false when chance (0.5) is not ruled out."""
    right = int((before.logit_diff > 0).sum())
    low, high = share_interval(right, task.n)
    return {
        "name": task.name,
        "n": task.n,
        "accuracy": right / task.n,
        "accuracy_low": low,
        "accuracy_high": high,
        "solved": low > 0.5,
        "logit_diff": float(before.logit_diff.mean()),
        "loss_nats": float(before.loss.mean()),
    }


def _checked_kinds(model: Any, task: Task, units: Sequence[str], stream: str) -> list[str]:
    cfg = model.cfg
    if stream == "ablated" and getattr(getattr(model, "ablation", None), "mask", "none") == "none":
        raise ValueError("the ablated stream needs a model with masks; this one has none, so take the clean stream")
    if unknown := set(units) - set(SITE_OF):
        raise ValueError(f"units are head, channel and neuron; got {sorted(unknown)[0]!r}")
    if cfg.attention_dir != "causal" or cfg.positional_embedding_type == "shortformer":
        raise ValueError("localization needs a causal model, and not one with shortformer embeddings")
    if cfg.num_experts or cfg.load_in_4bit or cfg.n_devices > 1:
        raise ValueError("localization needs a model without experts or 4-bit weights, on one device")
    task.require_fit(cfg)
    kinds = [kind for kind in dict.fromkeys(units) if kind != "neuron" or not cfg.attn_only]
    if not kinds:
        raise ValueError(f"there is nothing to ablate: the model has no {' or '.join(units) or 'unit'} asked for")
    return kinds


def _means(
    model: Any,
    task: Task,
    stream: str,
    positions: str,
    reference: tuple[Tensor, Tensor] | None,
) -> dict[tuple[int, Site], Ablation]:
    tokens, lengths = (task.clean, task.lengths) if reference is None else reference
    columns = torch.arange(tokens.shape[1])
    keep = columns < lengths[:, None]
    if positions == "end" and reference is None:
        keep = columns == lengths[:, None] - 1
    keys = sites(model.cfg)
    if stream == "clean":
        names, forward = [hook_name(*key) for key in keys], {"return_type": None, "padding_side": "right"}
    else:
        gated = {"attn": "attn.hook_gated_z", "mlp": "mlp.hook_gated_post"}
        names, forward = [f"blocks.{layer}.{gated[site]}" for layer, site in keys], {"stream": "ablated"}
    means = mean_activations(model, tokens.to(model.cfg.device), names, keep=keep, **forward)
    return {key: mean(means[name].flatten()) for key, name in zip(keys, names, strict=True)}


def _measure(
    model: Any,
    task: Task,
    kinds: Sequence[str],
    ablation: str,
    means: dict[tuple[int, Site], Ablation],
    stream: str,
    positions: str,
    batch: int,
    memory_mb: int,
    progress: bool,
) -> tuple[Measured, dict[str, Measured]]:
    """Logit difference and loss of every prompt, unablated [n] and by kind of unit [unit n].

    Each rank takes every n-th chunk of units and leaves zeros for the rest, so that the sum over ranks is the whole:
    to the last bit, since a chunk is computed in the same way whoever does it.
    """
    columns = {kind: unit_columns(model.cfg, kind) for kind in kinds}
    n_units = {kind: model.cfg.n_layers * len(columns[kind]) for kind in kinds}
    before = Measured(np.zeros(task.n), np.zeros(task.n))
    after = {kind: Measured(np.zeros((n, task.n)), np.zeros((n, task.n))) for kind, n in n_units.items()}
    with tqdm(total=sum(n_units.values()) * task.n, unit="ablation", disable=None if progress else True) as bar:
        for rows in batches(task.lengths, batch):
            part = task.subset(rows)
            length = int(part.lengths[0])
            clean, corrupt = (tokens[:, :length].to(model.cfg.device) for tokens in (part.clean, part.corrupt))
            base = baseline(model, clean, stream=stream, positions=positions)
            donor = baseline(model, corrupt, stream=stream, positions=positions) if ablation == "resample" else None
            unablated = _at_end(model, base.resid_post[-1][None, :, -1], part)
            before.logit_diff[rows.numpy()], before.loss[rows.numpy()] = unablated[0][0], unablated[1][0]
            for kind in kinds:
                width = len(columns[kind])
                for layer, chunk in dealt(_chunks(model.cfg, base, columns[kind], memory_mb)):
                    key = (layer, SITE_OF[kind])
                    values = means.get(key) or (resample(donor.activations[key]) if donor else zero())
                    ends = end_residuals(model, base, *key, columns[kind][chunk].to(model.cfg.device), values)
                    index = np.ix_(layer * width + chunk.numpy(), rows.numpy())
                    after[kind].logit_diff[index], after[kind].loss[index] = _at_end(model, ends, part)
                    bar.update(len(chunk) * len(rows) * world_size())
    return before, {kind: _over_ranks(measured) for kind, measured in after.items()}


def _over_ranks(part: Measured) -> Measured:
    return Measured(*(sum_over_ranks(torch.from_numpy(values)).numpy() for values in (part.logit_diff, part.loss)))


def unit_columns(cfg: Any, kind: str) -> Int[Tensor, "unit channels"]:
    """The columns of a layer's z (heads side by side) or post that make up each unit."""
    if kind == "neuron":
        return torch.arange(cfg.d_mlp)[:, None]
    channels = torch.arange(cfg.n_heads * cfg.d_head)
    return channels.reshape(cfg.n_heads, cfg.d_head) if kind == "head" else channels[:, None]


def batches(lengths: Int[Tensor, " n"], batch: int) -> Iterator[Int[Tensor, " rows"]]:
    """Rows of equal length, at most `batch` at a time."""
    for length in lengths.unique():
        yield from (lengths == length).nonzero()[:, 0].split(batch)


def _chunks(cfg: Any, base: Baseline, columns: Tensor, memory_mb: int) -> Iterator[tuple[int, Int[Tensor, " copies"]]]:
    """Layer and units of one forward pass, so many that their copies fit the memory."""
    n, pos, d_model = base.resid_pre[0].shape
    per_token = 6 * d_model + 4 * cfg.n_heads * cfg.d_head + 4 * (cfg.d_mlp or 0) + 3 * cfg.n_heads * pos
    past = 0 if base.past is None else 4 * base.past[0].past_keys[0].numel()
    bytes_a_copy = n * (pos * per_token + past + 2 * cfg.d_vocab) * base.resid_pre[0].element_size()
    copies = max(1, (memory_mb << 20) // bytes_a_copy)
    for layer in range(cfg.n_layers):
        for chunk in torch.arange(len(columns)).split(copies):
            yield layer, chunk


def _at_end(model: Any, ends: Float[Tensor, "copies rows d_model"], task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Logit difference and loss [copies rows] from the last layer's output at the last token."""
    copies = len(ends)
    logits = end_logits(model, ends.flatten(0, 1))
    right, wrong = (ids.to(logits.device).repeat(copies) for ids in (task.answers, task.wrong_answers))
    measured = (metrics.logit_difference(logits, right, wrong), metrics.cross_entropy(logits, right))
    logit_diff, loss = (x.double().cpu().numpy().reshape(copies, -1) for x in measured)
    return logit_diff, loss


def _rows(cfg: Any, kind: str, effects: Measured, n_bootstrap: int, seed: int) -> pd.DataFrame:
    per_layer = len(effects.loss) // cfg.n_layers
    unit = np.arange(len(effects.loss))
    layer, inside = unit // per_layer, unit % per_layer
    head = {"head": inside, "channel": inside // cfg.d_head}.get(kind)
    columns: dict[str, Any] = {
        "kind": kind,
        "layer": layer,
        "head": head,
        "channel": inside % cfg.d_head if kind == "channel" else None,
        "neuron": inside if kind == "neuron" else None,
    }
    for names, values in ((list(UNITS)[:3], effects.logit_diff), (list(UNITS)[3:6], effects.loss)):
        interval = bootstrap_interval(values.T, n_resamples=n_bootstrap, seed=seed)
        columns |= dict(zip(names, (values.mean(1), *interval), strict=True))
    p = sign_flip_p_value(effects.logit_diff.T)
    table = pd.DataFrame({**columns, "p": p, "p_holm": holm(p), "n": effects.loss.shape[1]}, index=unit)
    table = table.astype(dict.fromkeys(("layer", "head", "channel", "neuron"), "Int64"))
    return table.sort_values("effect_logit_diff", key=lambda x: -x.abs(), kind="stable", ignore_index=True)
