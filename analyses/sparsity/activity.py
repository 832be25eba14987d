"""How few units a layer speaks with at a token, and in how few directions.

A unit's part is what it writes: its value times the length of its row of W_out or W_O, so that no rescaling of a unit
against its row counts. At each token the parts of a layer's units are one vector, and its measures are averaged over
tokens. `l0` counts units that are on: ordinary neurons of the clean stream above 0, all others where they are not
exactly 0 (what a hard mask lets through; in the clean stream every channel). The effective rank is that of what the
layer writes, over tokens. `live_units` is the share of units that are on, or that the mask lets through (above 0.5), at
one token of the text at least.

All are functions of sums over groups of stories, so that intervals leave out one group at a time (jackknife).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from analyses.sparsity.measures import VECTOR, effective_rank, singular_values
from analyses.texts import Stories
from analyses.unit_streams import Units, unit_batches, units_of
from sat_lens.distributed import shard, sum_over_ranks

GROUPS = 16
LIVE = 0.5
"""A mask above it lets its unit through."""
Sums = dict[str, Tensor]
"""Each with the groups of stories as its first axis."""


def activity_sums(
    model: Any, stories: Stories, units: Units, *, batch: int = 16, progress: bool = False
) -> tuple[Sums, int]:
    """Sums over tokens, by group of stories, and how many tokens there were.

    Args:
        units: neurons, channels, or entries of a mask (of which only whether they are live is summed).

    Cost: one forward pass, stories divided among processes. Memory: d_model^2 numbers a layer and group, and two
    batches.
    """
    n_groups, layers = min(GROUPS, stories.n), len(units.layers)
    is_mask, d_model = units.kind.startswith("mask"), model.cfg.d_model
    sums: Sums = {
        "tokens": torch.zeros(n_groups, dtype=torch.float64),
        "on": torch.zeros(n_groups, units.n, dtype=torch.float64),
    }
    if not is_mask:
        shape = (n_groups, layers)
        sums |= {f"{part} {name}": torch.zeros(shape, dtype=torch.float64) for name in VECTOR for part in ("sum", "n")}
        sums["write"] = torch.zeros(*shape, d_model, dtype=torch.float64)
        sums["product"] = torch.zeros(*shape, d_model, d_model, dtype=torch.float64)
    writes = None if is_mask else _writes(model, units)
    on = _on(model, units)
    mine = shard(stories.n)
    bar = tqdm(total=len(mine), desc=f"{units.kind} {units.stream}", unit="story", leave=False,
               disable=None if progress else True)  # fmt: skip
    for part in unit_batches(model, stories, units, batch, rows=mine) if mine else ():
        for row, story in enumerate(part.rows.tolist()):
            values = part.values[row][part.keep[row]].double()
            _add(sums, story % n_groups, values, on(values), writes, layers)
        bar.update(len(part.rows))
    bar.close()
    sums = {name: sum_over_ranks(of) for name, of in sums.items()}
    return sums, int(sums["tokens"].sum())


def _add(sums: Sums, group: int, values: Tensor, on: Tensor, writes: Tensor | None, layers: int) -> None:
    sums["tokens"][group] += len(values)
    sums["on"][group] += on.sum(0).cpu()
    if writes is None or not len(values):
        return
    values = values.unflatten(1, (layers, -1))
    for name, measure in VECTOR.items():
        found = measure(values * writes.norm(dim=-1))
        sums[f"sum {name}"][group] += found.nansum(0).cpu()
        sums[f"n {name}"][group] += (~found.isnan()).sum(0).cpu()
    written = torch.einsum("tlu,lud->ltd", values, writes)
    sums["write"][group] += written.sum(1).cpu()
    sums["product"][group] += (written.transpose(1, 2) @ written).cpu()


def _writes(model: Any, units: Units) -> Float[Tensor, "layer unit d_model"]:
    """What one of each unit writes to the residual stream."""
    of = [
        model.blocks[layer].mlp.W_out if units.kind == "neuron" else model.blocks[layer].attn.W_O.flatten(0, 1)
        for layer in units.layers
    ]
    return torch.stack(of).detach().double()


def _on(model: Any, units: Units) -> Callable[[Tensor], Tensor]:
    if units.kind.startswith("mask"):
        return lambda values: values > LIVE
    if units.kind == "neuron" and units.stream == "clean" and not model.cfg.gated_mlp:
        return lambda values: values > 0
    return lambda values: values != 0


def measured(sums: Sums, layers: int) -> dict[str, np.ndarray]:
    """Every metric by layer, then the mean over layers as the last entry."""
    total = {name: value.sum(0) for name, value in sums.items()}
    on = total["on"].view(layers, -1)
    found = {"live_units": (on > 0).double().mean(1)}
    if "write" in total:
        n = total["tokens"]
        mean = total["write"] / n
        covariance = total["product"] / n - mean[:, :, None] * mean[:, None, :]
        found |= {
            "l0": on.sum(1) / n,
            **{name: total[f"sum {name}"] / total[f"n {name}"] for name in VECTOR},
            "effective_rank": effective_rank(singular_values(covariance)),
        }
    return {name: np.append(value.numpy(), value.mean().item()) for name, value in found.items()}


def with_intervals(sums: Sums, layers: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By metric: value, and its 95 % interval over groups of stories (jackknife, t); [layer + 1] as in `measured`."""
    n = len(sums["tokens"])
    whole = measured(sums, layers)
    rest = [measured({k: torch.cat([v[:i], v[i + 1 :]]) for k, v in sums.items()}, layers) for i in range(n)]
    found = {}
    for name, value in whole.items():
        left_out = np.stack([one[name] for one in rest])
        half = stats.t.isf(0.025, n - 1) * np.sqrt((n - 1) * left_out.var(0))
        found[name] = (value, value - half, value + half)
    return found


def kinds_of(model: Any) -> list[Units]:
    """Neurons and channels of both streams, and the masks, as far as the model has them."""
    kinds = ["channel"] if model.cfg.attn_only else ["neuron", "channel"]
    found = [units_of(model, kind) for kind in kinds]
    if getattr(getattr(model, "ablation", None), "mask", "none") != "none":
        found += [units_of(model, kind, "ablated") for kind in kinds]
        found += [units_of(model, f"mask_{kind}") for kind in kinds]
    return found
