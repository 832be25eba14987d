"""Erasure by projection: does a later component write the negative of what an earlier one wrote?

    ratio = sum over tokens of (o_later . o_early) / sum over tokens of |o_early|^2

-1: all of the early output is taken back; 0: left alone. Both direct effects may then be large and mean nothing.
Outputs are what heads (without b_O) and MLP layers add to the stream, their mean over d_model taken off where the
final norm does so.

Null: o_early of another token of the story, half of its tokens further on. What is left of the ratio then is what the
component always writes, whatever the early one said.

Source: arXiv 2310.07325; differs: ratio of sums rather than mean of ratios, null.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.result import Result
from analyses.self_repair.mechanisms import columns
from analyses.self_repair.mechanisms.estimates import Sums, answered, entries, ratio
from analyses.self_repair.mechanisms.scene import Scene, Take
from analyses.texts import Stories
from sat_lens.memory import require
from sat_lens.repair.ablations import Zero
from sat_lens.repair.components import Site

MEASURES = {"ratio": "(o_later . o_early) / |o_early|^2, ratio of sums over tokens; -1: erased"}


def erasure_projection(
    model: Any, stories: Stories, *, batch_size: int = 16, target: Any = "next_token", progress: bool = False
) -> Result:
    """The ratio for every pair of an earlier and a later component, on all tokens from position 1 on.

    Returns:
        Rows by `early` and `later`.

    Cost: one clean pass and, a story, the products of all outputs with all others; memory for sums of 16 bytes for
        each pair and story, and for the outputs of one story.
    """
    scene = Scene(model, stories, ablation=Zero(), target=target, batch_size=batch_size, progress=progress)
    names, at = columns.names(scene), np.asarray(columns.layers(scene))
    require(16 * len(names) ** 2 * scene.n, "sums by pair and story", "cpu", "take fewer stories")
    sums = Sums(scene.n)
    for take in scene.takes():
        outputs = scene.readout.norm.centred(_outputs(take))
        for number, keep in enumerate(take.keep):
            mine = outputs[number, keep]
            moved = mine.roll(len(mine) // 2, 0)
            row = take.rows[number : number + 1]
            for name, early in (("real", mine), ("null", moved)):
                sums.put(name, row, torch.einsum("pem,plm->el", early, mine)[None])
    size = np.einsum("nee->ne", sums["real"])
    is_mlp = np.asarray([name.startswith("mlp") for name in names])
    later = at[None] > at[:, None]
    if scene.runner.sequential:
        later |= (at[None] == at[:, None]) & is_mlp[None] & ~is_mlp[:, None]
    e, i = later.nonzero()
    ends = (ratio(sums[name][:, e, i], size[:, e]) for name in ("real", "null"))
    n = {"n_tokens": int(scene.rows.keep.sum()), "n_stories": int(scene.rows.keep.any(1).sum())}
    found = entries("ratio", "ratio", *ends, early=np.asarray(names)[e], later=np.asarray(names)[i], **n)
    meta = {
        "ablation": "nothing taken out",
        "selection": "all tokens from position 1 on",
        "n_kept_tokens": n["n_tokens"],
        "n_sequences": scene.n,
        "null": "the early output of a token half of the story further on",
    }
    return answered("self_repair_erasure_projection", [found], MEASURES, meta)


def _outputs(take: Take) -> Float[Tensor, "batch pos column d_model"]:
    """What every head and MLP layer adds to the stream."""
    clean, found = take.clean, []
    for layer in range(take.scene.n_layers):
        weight = take.scene.model.blocks[layer].attn.W_O
        found.append(torch.einsum("bphd,hdm->bphm", clean.sites[Site(layer, "z")], weight))
        if take.scene.has_mlp:
            found.append(clean.mlp_out[layer][:, :, None])
    return torch.cat(found, 2)
