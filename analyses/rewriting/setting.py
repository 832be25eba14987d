"""What every step works on: a model, a coder, the latents of stories, and which of these stories serve for what.

Stories are dealt to four splits, copies together, so that no number is of a story that anything was fitted on:

| split | for |
| --- | --- |
| explain | explanations are made from it |
| score | latents are ranked by scores on it |
| calibrate | calibrations and cuts are fitted on it |
| evaluate | the loss is measured on it |

The coder is trained on yet other stories.
"""

import dataclasses
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.explain import Source, Vocabulary
from analyses.explain.splits import dealt
from analyses.texts import Stories
from analyses.unit_streams import real_tokens
from sat_lens.coders import LatentActs, collect
from sat_lens.coders.substitute import AnyCoder

SHARES = (0.5, 0.15, 0.15, 0.2)


class FourSplits(NamedTuple):
    """Rows of the stories, ascending."""

    explain: Int[Tensor, " story"]
    score: Int[Tensor, " story"]
    calibrate: Int[Tensor, " story"]
    evaluate: Int[Tensor, " story"]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A coder's latents on stories.

    Args:
        acts: of all stories, whose numbers are the rows of `stories`; tokens that are no text have none.
    """

    model: Any
    coder: AnyCoder
    stories: Stories
    splits: FourSplits
    acts: LatentActs
    vocabulary: Vocabulary
    seed: int = 0

    @property
    def n_latents(self) -> int:
        """Of the coder."""
        return self.acts.n_latents

    @property
    def keep(self) -> Bool[Tensor, "story pos"]:
        """Tokens that count, of all stories."""
        return self.acts.keep

    def of(self, split: str) -> LatentActs:
        """The latents of one split's stories."""
        return self.acts.restricted(getattr(self.splits, split))

    def source(self, split: str, latents: Int[Tensor, " latent"] | None = None) -> Source:
        """Batches of one split's stories, for some latents; None: all."""
        acts = self.of(split)
        return lambda: acts.batches(latents)


def four_splits(stories: Stories, seed: int = 0) -> FourSplits:
    """Stories dealt at random by SHARES.

    Raises:
        ValueError: fewer than four different stories.
    """
    return FourSplits(*dealt(stories, SHARES, seed))


def setting(model: Any, coder: AnyCoder, stories: Stories, *, acts: LatentActs | None = None, seed: int = 0) -> Setting:
    """The stories dealt out, and the latents collected unless they are given.

    Raises:
        ValueError: fewer than four different stories, or latents of other stories or of another coder.
    """
    keep = real_tokens(model, stories)
    if acts is None:
        acts = collect(model, coder, stories.tokens, stories.lengths, keep=keep)
    if acts.n_latents != coder.cfg.n_latents or not torch.equal(acts.keep, keep):
        raise ValueError("the latents are of other stories, or of another coder")
    vocabulary = Vocabulary.of(model.tokenizer, model.cfg.d_vocab)
    return Setting(model, coder, stories, four_splits(stories, seed), acts, vocabulary, seed)


def disjoint(stories: Stories, others: Stories) -> Stories:
    """The `others` that are none of the stories, nor a copy of one."""
    known, rows = (
        [tuple(row[:length]) for row, length in zip(of.tokens.tolist(), of.lengths.tolist(), strict=True)]
        for of in (stories, others)
    )
    seen = set(known)
    fresh = [i for i, row in enumerate(rows) if row not in seen]
    return others.subset(torch.tensor(fresh, dtype=torch.long))


def high(acts: LatentActs, share: float = 0.99) -> Float[Tensor, " latent"]:
    """A quantile of each latent over the tokens at which it is above 0; 0 where it never is.

    Args:
        share: 1: the maximum.
    """
    first, _, value = acts.by_latent
    latent = torch.repeat_interleave(torch.arange(acts.n_latents), first.diff())
    latent, value = latent[value > 0], value[value > 0]
    order = value.argsort(stable=True)
    order = order[latent[order].argsort(stable=True)]
    counts = torch.bincount(latent, minlength=acts.n_latents)
    ends = counts.cumsum(0)
    at = (ends - counts + (share * (counts - 1).clamp(min=0)).ceil().long()).clamp(max=max(len(value) - 1, 0))
    if not len(value):
        return torch.zeros(acts.n_latents)
    return torch.where(counts > 0, value[order][at], 0.0)


def mass(acts: LatentActs) -> Float[Tensor, " latent"]:
    """Activation above 0 of each latent, summed over the tokens; float64."""
    index = acts.index.to(torch.int32).long()
    return torch.zeros(acts.n_latents, dtype=torch.float64).index_add_(0, index, acts.value.double().clamp(min=0))


def n_active(acts: LatentActs) -> Int[Tensor, " latent"]:
    """Tokens at which each latent is above 0."""
    return torch.bincount(acts.index.to(torch.int32)[acts.value > 0], minlength=acts.n_latents)
