"""The Hydra effect: when a whole layer is ablated at the last token, how much do later layers make up for?

One prompt a story, its last token; the target is the model's own first choice there; the final norm keeps its clean
scale, so all adds up. Of a layer's attention or MLP, replaced by another story's at its last token (means over
draws):

    DE = what of the target's logit is taken out directly          logits, positive: the layer spoke for the target
    CE = what later layers add in answer                           positive: they compensate
    TE = DE - CE = what of the target's logit is lost in all

CE is regressed on DE over stories: slope 1 would be full compensation. No norm's share is in it, so self-repair is CE
plus that of the norm. `unembed` is the layer's clean direct effect.

Null: a random direction of the same length in place of what is taken out; the slope and R2 that come of it.

Source: arXiv 2307.15771; differs: DE is of what is replaced, not of the clean output; compensation is positive.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.result import Result
from analyses.self_repair.mechanisms import noise
from analyses.self_repair.mechanisms.estimates import answered, entries, line, moments, ratio
from analyses.self_repair.mechanisms.scene import Scene, Take
from analyses.texts import Stories
from sat_lens.repair.ablations import Zero
from sat_lens.repair.runner import Hooks

MEASURES = {
    "unembed": "clean direct effect of the layer",
    "de": "mean of what is taken out directly",
    "ce": "mean of what later layers add in answer",
    "te": "mean of what is lost in all, DE - CE",
    "story_de": "DE of one story",
    "story_ce": "CE of one story",
    "slope": "of CE on DE over stories",
    "intercept": "of the same line",
    "r2": "of the same line",
}


def hydra(
    model: Any,
    stories: Stories,
    *,
    draws: int = 15,
    target: Any = "argmax",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """DE, CE and TE of every attention and MLP layer, and the regression of CE on DE.

    Args:
        draws: other stories that stand in for each one; effects are averaged over them.
        target: as for `self_repair`; the model's first choice by default.

    Returns:
        Rows by `measure`, `layer` and `kind` (attn, mlp), and `story` where it is one story's.

    Raises:
        ValueError: fewer than 2 stories.

    Cost: for each story, layer and draw two runs of the layers behind it.
    """
    scene = Scene(model, stories, ablation=Zero(), target=target, batch_size=batch_size, progress=progress)
    if scene.readout.needs_next:
        raise ValueError("the last token of a story has no next one; take the target 'argmax' or given ids")
    if scene.n < 2 or draws < 1:
        raise ValueError(f"hydra needs at least 2 stories and 1 draw; got {scene.n} and {draws}")
    last = torch.zeros_like(scene.rows.keep)
    last[torch.arange(scene.n), scene.rows.lengths - 1] = True
    scene.rows.keep[:] = last & scene.rows.keep
    if not scene.rows.keep.any(1).all():
        raise ValueError("hydra needs a target at the last token of every story; one has none")
    layers = [(layer, kind) for layer in range(scene.n_layers) for kind in ("attn", "mlp")[: 1 + scene.has_mlp]]
    outputs = _last_outputs(scene, layers)
    donors = _donors(scene.n, draws, seed)
    table = torch.zeros(2, scene.n, len(layers), 3, dtype=torch.float64)  # (real, null), (unembed, de, ce)
    for take in scene.takes():
        for number, (layer, kind) in enumerate(layers):
            mine = outputs[number, take.rows].to(take.v)
            for draw in range(donors.shape[1]):
                change = outputs[number, donors[take.rows, draw]].to(take.v) - mine
                random = _random_like(take, change, seed + 7919 * draw)
                for which, what in enumerate((change, random)):
                    table[which, take.rows, number] += _effects(take, layer, kind, mine, what).cpu() / donors.shape[1]
    frames = _frames(table, layers, scene)
    meta = {
        "ablation": f"the layer's output at the last token of {donors.shape[1]} other stories",
        "selection": "the last token of every story",
        "target": scene.readout.name,
        "n_kept_tokens": int(scene.rows.keep.sum()),
        "n_sequences": scene.n,
        "null": "a random direction of the same length in place of what is taken out",
        "study_seed": seed,
    }
    return answered("self_repair_hydra", frames, MEASURES, meta)


def _effects(
    take: Take,
    layer: int,
    kind: str,
    mine: Float[Tensor, "batch d_model"],
    change: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch 3"]:
    """Clean direct effect, DE and CE at each story's last token, in logits."""
    at = take.keep.long().argmax(1)
    row = torch.arange(len(at), device=at.device)
    v, s0 = take.v[row, at], take.s0[row, at]
    final = take.run(layer, _adding_at(layer, kind, at, change))
    de = -(change * v).sum(-1) / s0
    te = -((final[row, at] * v).sum(-1) - take.f0[row, at]) / s0
    return torch.stack([(mine * v).sum(-1) / s0, de, de - te], -1).double()


def _adding_at(layer: int, kind: str, at: Tensor, change: Tensor) -> Hooks:
    def add(value: Tensor) -> Tensor:
        value = value.clone()
        value[torch.arange(len(at), device=at.device), at] += change
        return value

    return [(f"blocks.{layer}.hook_{kind}_out", add)]


def _last_outputs(scene: Scene, layers: list[tuple[int, str]]) -> Float[Tensor, "layer story d_model"]:
    """What each layer adds to the stream at each story's last token."""
    found = torch.zeros(len(layers), scene.n, scene.model.cfg.d_model, dtype=scene.model.W_U.dtype)
    for take in scene.takes():
        at = take.keep.long().argmax(1)
        row = torch.arange(len(at), device=at.device)
        for number, (layer, kind) in enumerate(layers):
            value = (take.clean.attn_out if kind == "attn" else take.clean.mlp_out)[layer]
            found[number, take.rows] = value[row, at].cpu()
    return found


def _donors(n: int, draws: int, seed: int) -> Tensor:
    """For each story others, all different, as steps on one random circle; [story draw]."""
    generator = torch.Generator().manual_seed(seed)
    circle = torch.randperm(n, generator=generator)
    steps = 1 + torch.randperm(n - 1, generator=generator)[: min(draws, n - 1)]
    place = torch.empty_like(circle)
    place[circle] = torch.arange(n)
    return circle[(place[:, None] + steps) % n]


def _random_like(take: Take, change: Tensor, seed: int) -> Tensor:
    return noise.scaled(noise.directions(take.rows, 1, change[:, None], seed), change[:, None])[:, 0]


def _frames(table: Tensor, layers: list[tuple[int, str]], scene: Scene) -> list[pd.DataFrame]:
    n = {"n_tokens": scene.n, "n_stories": scene.n}
    index = {"layer": [layer for layer, _ in layers], "kind": [kind for _, kind in layers]}
    ones = np.ones(scene.n)
    real, null = table.numpy()
    frames = []
    for name, of in {
        "unembed": lambda t: t[..., 0],
        "de": lambda t: t[..., 1],
        "ce": lambda t: t[..., 2],
        "te": lambda t: t[..., 1] - t[..., 2],
    }.items():
        by_chance = None if name == "unembed" else ratio(of(null), ones)
        frames.append(entries(name, "logits", ratio(of(real), ones), by_chance, story=-1, **index, **n))
    lines = [line(moments(side[..., 1], side[..., 2]).numpy()) for side in table]
    for name, unit in {"slope": "logits a logit", "intercept": "logits", "r2": "R2"}.items():
        frames.append(entries(name, unit, lines[0][name], lines[1][name], story=-1, **index, **n))
    each = pd.DataFrame(
        {
            "measure": np.repeat(["story_de", "story_ce"], scene.n * len(layers)),
            "story": np.tile(np.repeat(np.arange(scene.n), len(layers)), 2),
            "layer": np.tile(index["layer"], 2 * scene.n),
            "kind": np.tile(index["kind"], 2 * scene.n),
            "value": np.concatenate([real[..., 1].ravel(), real[..., 2].ravel()]),
            "null": np.concatenate([null[..., 1].ravel(), null[..., 2].ravel()]),
            "unit": "logits",
            "n_tokens": 1,
            "n_stories": 1,
        }
    )
    return [*frames, each.reindex(columns=frames[0].columns)]
