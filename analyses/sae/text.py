"""Text for an SAE: windows to train on, and held-out stories, no text in both."""

import tempfile
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.texts import HELD_OUT_SEED, Stories
from sat_lens.packing import packed

HELD_OUT_TOKENS = 400
"""Tokens of held-out text that are read for each story asked for, at most."""


def training_windows(
    corpus: str | None, tokenizer: Any, n_tokens: int, length: int, seed: int = 0
) -> Int[Tensor, "window pos"]:
    """Windows of `length` tokens through stories one after the other, a separator before each.

    Args:
        corpus: see `sat_lens.corpora`; None: the generator, with a seed that training does not use.
        n_tokens: of the corpus, at most.

    Raises:
        ValueError: a corpus of fewer than `length` tokens.
    """
    tokens, _, _ = _packed(corpus, tokenizer, "train", n_tokens, seed)
    n = len(tokens) // length
    if n < 1:
        raise ValueError(f"a corpus must have a window of {length} tokens to train on; it has {len(tokens)}")
    return torch.from_numpy(tokens[: n * length].astype(np.int64)).view(n, length)


def held_out_stories(corpus: str | None, tokenizer: Any, n: int, n_ctx: int, seed: int = 0) -> Stories:
    """The first `n` stories that training leaves out (one in 64, by the hash of its text), each with its separator.

    Raises:
        ValueError: a corpus with fewer than two.
    """
    tokens, starts, separator = _packed(corpus, tokenizer, "held_out", n * HELD_OUT_TOKENS, seed)
    ends = [*starts[1:].tolist(), len(tokens)]
    rows = [tokens[start : min(end, start + n_ctx)] for start, end in zip(starts.tolist(), ends, strict=True)]
    rows = [row for row in rows if len(row) > 1][:n]
    if len(rows) < 2:
        raise ValueError(
            f"a corpus must hold out at least 2 stories (one in 64 is); {corpus or 'stories'} has {len(rows)}"
        )
    lengths = torch.tensor([len(row) for row in rows])
    padded = np.full((len(rows), int(lengths.max())), separator, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return Stories(torch.from_numpy(padded), lengths)


def _packed(
    corpus: str | None, tokenizer: Any, part: str, n_tokens: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Tokens, starts of stories, and the separator."""
    if tokenizer is None:
        raise ValueError("text needs the model's tokenizer; this model has none")
    seed += HELD_OUT_SEED if corpus is None else 0
    with tempfile.TemporaryDirectory() as cache:
        found = packed(corpus or "stories", tokenizer, cache, max_tokens=n_tokens, seed=seed, part=part)
        return np.array(found.tokens), np.array(found.starts), int(found.manifest["separator"])
