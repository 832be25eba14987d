"""The latents of a set of stories: each that is not 0, with its token; 6 bytes each, by token and by latent.

400,000 tokens of 16 active latents are 40 MB, where the dense table of 32,768 latents would be 52 GB. By token they are
collected and saved; the view by latent (8 bytes more each) is made when it is first asked for.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sat_lens import files
from sat_lens.coders.coder import Coder
from sat_lens.coders.neurons import NeuronCoder
from sat_lens.coders.sites import kept_tokens, site_batches
from sat_lens.memory import require

SHORT = 2**15
"""Latents whose numbers fit into 16 bits."""
FORMAT = "sat_lens latents 1"


class ActsBatch(NamedTuple):
    """Some stories, dense for some latents, as `analyses.explain` takes it."""

    rows: Int[Tensor, " row"]
    values: Float[Tensor, "row pos unit"]
    keep: Bool[Tensor, "row pos"]


class Column(NamedTuple):
    """One latent: where it is active, story by story, and how much.

    Args:
        story: rows of `LatentActs.keep`.
    """

    story: Int[Tensor, " active"]
    pos: Int[Tensor, " active"]
    value: Float[Tensor, " active"]


class LatentActs:
    """Latents of stories.

    Args:
        rows: which stories, by the numbers they have elsewhere.
        keep: tokens that count; those that do not have no latents here. Tokens are counted story by story.
        first: where each token's latents begin, and the end of the last's.
        index: which latent; int16 where that is enough (PyTorch 2.6 cannot pick from uint16).
        value: of each, not 0.
        n_latents: of the coder.
    """

    def __init__(
        self,
        rows: Int[Tensor, " story"],
        keep: Bool[Tensor, "story pos"],
        first: Int[Tensor, " token_and_end"],
        index: Tensor,
        value: Float[Tensor, " active"],
        n_latents: int,
    ) -> None:
        self.rows, self.keep, self.first, self.index, self.value = rows, keep, first, index, value
        self.n_latents = n_latents

    @property
    def n_tokens(self) -> int:
        """Tokens that count."""
        return len(self.first) - 1

    @property
    def density(self) -> float:
        """Share of all tokens and latents that is not 0."""
        return len(self.value) / max(1, self.n_tokens * self.n_latents)

    @property
    def nbytes(self) -> int:
        """Bytes by token, without the view by latent."""
        return sum(of.numel() * of.element_size() for of in (self.rows, self.keep, self.first, self.index, self.value))

    @functools.cached_property
    def place(self) -> tuple[Int[Tensor, " token"], Int[Tensor, " token"]]:
        """Story (a row of `keep`) and position of each token."""
        story, pos = self.keep.nonzero(as_tuple=True)
        return story.int(), pos.int()

    @functools.cached_property
    def story_first(self) -> Int[Tensor, " story_and_end"]:
        """Where each story's tokens begin, and the end of the last's."""
        return torch.cat([torch.zeros(1, dtype=torch.long), self.keep.sum(1).cumsum(0)])

    @functools.cached_property
    def counts(self) -> Int[Tensor, " latent"]:
        """Tokens at which each latent is active."""
        return torch.bincount(self.index.to(torch.int32), minlength=self.n_latents)

    @functools.cached_property
    def by_latent(self) -> tuple[Int[Tensor, " latent_and_end"], Int[Tensor, " active"], Float[Tensor, " active"]]:
        """Where each latent's tokens begin; the tokens (int32), ascending for each latent; the values."""
        order = self.index.to(torch.int32).argsort(stable=True)
        token = torch.repeat_interleave(torch.arange(self.n_tokens, dtype=torch.int32), self.first.long().diff())
        first = torch.cat([torch.zeros(1, dtype=torch.long), self.counts.cumsum(0)])
        return first, token[order], self.value[order]

    def of(self, latent: int) -> Column:
        """Where one latent is active."""
        if not 0 <= latent < self.n_latents:
            raise ValueError(f"a latent must be one of 0 to {self.n_latents - 1}; got {latent}")
        first, token, value = self.by_latent
        span = slice(int(first[latent]), int(first[latent + 1]))
        story, pos = (of[token[span].long()] for of in self.place)
        return Column(story, pos, value[span])

    def restricted(self, rows: Int[Tensor, " row"]) -> "LatentActs":
        """These rows of `keep` alone, in this order; their `rows` go with them."""
        tokens = _spans(self.story_first[rows], self.story_first[rows + 1])
        active = _spans(self.first[tokens].long(), self.first[tokens + 1].long())
        lengths = self.first.long().diff()[tokens]
        return LatentActs(
            self.rows[rows], self.keep[rows], _first(lengths), self.index[active], self.value[active], self.n_latents
        )

    def dense(self, story: int) -> Float[Tensor, "pos latent"]:
        """All latents of one story."""
        return next(iter(self.restricted(torch.tensor([story])).batches(size=1))).values[0]

    def batches(self, units: Int[Tensor, " unit"] | None = None, size: int = 16) -> Iterator[ActsBatch]:
        """Dense batches of `size` stories, as `analyses.explain.splits.Source` gives them.

        Args:
            units: which latents, in the order wanted; None: all. A block at a time, where there are many.
        """
        units = torch.arange(self.n_latents) if units is None else units
        column = torch.full((self.n_latents,), -1)
        column[units] = torch.arange(len(units))
        story, pos = self.place
        for part in torch.arange(len(self.rows)).split(size):
            begin, end = int(self.story_first[part[0]]), int(self.story_first[part[-1] + 1])
            span = slice(int(self.first[begin]), int(self.first[end]))
            unit = column[self.index[span].long()]
            token = torch.repeat_interleave(torch.arange(begin, end), self.first[begin : end + 1].long().diff())
            there = unit >= 0
            token, values = token[there], torch.zeros(len(part), self.keep.shape[1], len(units))
            values[story[token].long() - part[0], pos[token].long(), unit[there]] = self.value[span][there].float()
            yield ActsBatch(self.rows[part], values, self.keep[part])

    def save(self, path: Path | str) -> Path:
        """Write to a safetensors file, whole or not at all."""
        tensors = {name: getattr(self, name).contiguous() for name in ("rows", "keep", "first", "index", "value")}
        about = json.dumps({"format": FORMAT, "n_latents": self.n_latents})
        files.write_whole(path, save(tensors, metadata={"latents": about}))
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> "LatentActs":
        """Read what `save` wrote.

        Raises:
            ValueError: a file that is not what it says.
            FileNotFoundError: no such file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no latents at {path}")
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {}).get("latents", "{}"))
                tensors = {name: file.get_tensor(name) for name in ("rows", "keep", "first", "index", "value")}
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise ValueError("another format")
            acts = cls(**tensors, n_latents=about["n_latents"])
            acts._check()
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
            raise ValueError(f"{path}: not a readable file of latents ({error})") from None
        return acts

    def _check(self) -> None:
        """Raise a ValueError where the parts do not fit one another."""
        n_tokens = int(self.keep.sum()) if self.keep.dtype == torch.bool else -1
        whole = self.first.ndim == self.index.ndim == self.value.ndim == self.rows.ndim == 1 and self.keep.ndim == 2
        if not whole or len(self.rows) != len(self.keep) or len(self.first) != n_tokens + 1:
            raise ValueError("shapes that do not fit one another")
        first = self.first.long()
        if first[0] != 0 or first[-1] != len(self.value) or (first.diff() < 0).any() or len(self.index) != first[-1]:
            raise ValueError("tokens whose latents do not begin where those of the one before end")
        if not isinstance(self.n_latents, int) or self.n_latents < 1 or self.index.is_floating_point():
            raise ValueError("n_latents must be at least 1, and latents whole numbers")
        if len(self.index) and not 0 <= int(self.index.long().min()) <= int(self.index.long().max()) < self.n_latents:
            raise ValueError("a latent beyond n_latents")
        if not self.value.is_floating_point() or not self.value.isfinite().all():
            raise ValueError("values that are not finite numbers")


def collect(
    model: Any,
    coder: Coder | NeuronCoder,
    tokens: Int[Tensor, "story pos"],
    lengths: Int[Tensor, " story"] | None = None,
    *,
    keep: Bool[Tensor, "story pos"] | None = None,
    rows: Int[Tensor, " story"] | None = None,
    batch_size: int = 32,
) -> LatentActs:
    """The latents of stories, in one streaming pass.

    Args:
        lengths, keep: tokens that count (see `site_batches`); a beginning-of-text token often should not.
        rows: numbers the stories have elsewhere; None: 0, 1, ...

    Raises:
        ValueError: too little memory, or a site that is not the model's.

    Cost: a forward pass as far as the site. Memory: twice the result, `k` times 6 bytes a token (all latents where
    the coder has no k).
    """
    counted = kept_tokens(tokens, lengths, keep)
    n = coder.cfg.n_latents
    narrow = torch.int16 if n <= SHORT else torch.int32
    each = (coder.cfg.k or n) * (4 + narrow.itemsize)
    require(2.0 * int(counted.sum()) * each, f"the latents of {int(counted.sum()):,} tokens")
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in site_batches(model, coder.cfg, tokens, None, counted, batch_size):
        with torch.no_grad():
            latents = coder.encode(batch.x[batch.keep])
        there = latents.values != 0
        parts.append(
            (there.sum(-1).cpu(), latents.indices[there].to(narrow).cpu(), latents.values[there].float().cpu())
        )
    if not parts:
        raise ValueError("latents are collected from at least 1 story; got none")
    lengths_of, index, value = (torch.cat(column) for column in zip(*parts, strict=True))
    rows = torch.arange(len(tokens)) if rows is None else rows
    return LatentActs(rows, counted, _first(lengths_of), index, value, n)


def _first(lengths: Int[Tensor, " token"]) -> Int[Tensor, " token_and_end"]:
    """Where each begins, and the end of the last."""
    first = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return first.int() if int(first[-1]) < 2**31 else first


def _spans(begin: Int[Tensor, " span"], end: Int[Tensor, " span"]) -> Int[Tensor, " place"]:
    """begin ... end - 1 of each span, one after the other."""
    lengths = end - begin
    offset = torch.repeat_interleave(begin - (lengths.cumsum(0) - lengths), lengths)
    return torch.arange(int(lengths.sum())) + offset
