"""What every site holds at some tokens of every story, from one pass over the stories.

Tokens are sampled within stories, so that no long story counts more than `per_story` tokens for a target. All sites
are kept at once in float32: 1,344 units at 7,200 tokens are 39 MB.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.probing.sites import stream_of
from analyses.texts import Stories
from sat_lens.activations import activations
from sat_lens.memory import require


@dataclasses.dataclass(frozen=True)
class Rows:
    """Tokens that are looked at, story by story.

    Args:
        story: of each.
        pos: of each, in its story.
    """

    story: Int[Tensor, " row"]
    pos: Int[Tensor, " row"]


def sampled(
    labelled: Bool[Tensor, "target story pos"], per_story: int, seed: int = 0
) -> Bool[Tensor, "target story pos"]:
    """Which labelled tokens each target takes: at most `per_story` of a story, shared where possible."""
    generator = torch.Generator().manual_seed(seed)
    lot = torch.rand(labelled.shape[1:], generator=generator)
    order = lot.masked_fill(~labelled, torch.inf).argsort(-1).argsort(-1)
    return labelled & (order < per_story)


def rows_of(taken: Bool[Tensor, "target story pos"]) -> tuple[Rows, Bool[Tensor, "target row"]]:
    """The tokens that any target takes, and which of them each target takes."""
    story, pos = taken.any(0).nonzero(as_tuple=True)
    return Rows(story, pos), taken[:, story, pos]


def features(
    model: Any, stories: Stories, rows: Rows, sites: Sequence[str], *, batch: int = 32, progress: bool = False
) -> Mapping[str, Float[Tensor, "row _"]]:
    """The vectors of all sites at these tokens, float32, on the CPU.

    Args:
        model: with or without masks.
        stories: rows of tokens.
        rows: tokens, story by story.
        sites: hook points.
        batch: stories a pass.
        progress: show a bar on stderr.

    Raises:
        ValueError: too little memory for all sites, or a site that does not fire.

    Cost: one forward pass of the stories (of both streams, where a site is not of the clean one).
    """
    from tqdm import tqdm

    stream = "clean" if all(stream_of(site) == "clean" for site in sites) else "ablated"
    found: dict[str, Tensor] = {}
    longest = int(stories.lengths.max())
    passes = activations(model, stories.tokens[:, :longest], sites, batch_size=batch, stream=stream)
    n_passes = -(-stories.n // batch)
    for part in tqdm(passes, total=n_passes, desc="activations", leave=False, disable=None if progress else True):
        first, last = torch.searchsorted(rows.story, torch.stack([part.rows[0], part.rows[-1] + 1])).tolist()
        at = (rows.story[first:last] - part.rows[0], rows.pos[first:last])
        if not found:
            widths = {site: part.activations[site].shape[2:].numel() for site in sites}
            needed = 8 * len(rows.story) * sum(widths.values())  # as much again for the fits
            require(needed, f"{len(sites)} sites at {len(rows.story):,} tokens", "cpu", "take fewer sites or stories")
            found = {site: torch.empty(len(rows.story), width) for site, width in widths.items()}
        for site in sites:
            found[site][first:last] = part.activations[site].cpu()[at].flatten(1).float()
    return found
