"""Removing a task through a self-ablating model's own masks.

The model says, for every token of an answer, which channels and neurons speak. How often a unit speaks for each of
the two tasks is all that is asked: no ablation is tried. The same rule as for latents then names the units (tau is a
share of tokens instead of nats), and their gates are closed for good.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.untangling.parts import Units, all_units
from sat_lens.toy.arithmetic import Problems
from sat_lens.toy.model import DecoderToy, counted, states


def mask_usage(toy: DecoderToy, problems: Problems) -> Float[Tensor, "part example"]:
    """Share of each answer's tokens at which each unit's mask is open, 0..1; units in the order of `all_units`.

    Args:
        toy: with `stream` ablated: that is where masks act.
    """
    names = [mask_of(place) for place, _ in all_units(toy).places]
    _, held = states(toy, problems, names)
    counts = counted(problems.answer)
    shares = []
    for name in names:
        opened: Bool[Tensor, "example answer *unit"] = held[name] > 0
        opened = opened.expand(*opened.shape).flatten(2) & counts[..., None]
        shares.append((opened.sum(1) / counts.sum(1, keepdim=True)).T)
    return torch.cat(shares)


def mask_of(place: str) -> str:
    """Hook point of the mask of a gated activation: `blocks.0.attn.hook_gated_z` -> `blocks.0.attn.hook_mask`."""
    return f"{place.rsplit('.', 1)[0]}.hook_mask"


def in_clean_stream(units: Units) -> Units:
    """The same units, where the clean stream has them."""
    return Units(units.name, tuple((place.replace("hook_gated_", "hook_"), size) for place, size in units.places))
