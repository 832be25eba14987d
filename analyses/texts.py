"""Stories as rows of tokens, for every question that reads text.

One row is one story from its beginning: cut where the context ends, padded on the right with id 0, which a
causal model never sees from within the story. Rows are what is resampled and what is held out, since
tokens of one story are not independent.
"""

import dataclasses
from itertools import islice
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sat_lens.corpora import read_stories
from sat_lens.tasks.encoding import right_padded, start_ids, text_ids

HELD_OUT_SEED = 1_000_003
"""Seed of the generator's stories here: none that training draws from, unless it is asked to."""


@dataclasses.dataclass(frozen=True)
class Stories:
    """Stories as tokens.

    Args:
        tokens: padded on the right; the beginning-of-text token included.
        lengths: tokens of each row that are no padding, at least 2.
        texts: of each row, whole; empty where only tokens are known.
    """

    tokens: Int[Tensor, "story pos"]
    lengths: Int[Tensor, " story"]
    texts: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Stories."""
        return len(self.tokens)

    @property
    def predicted(self) -> Bool[Tensor, "story pos"]:
        """Positions whose next token is known: all but the last of each row."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None] - 1

    def subset(self, rows: Int[Tensor, " row"]) -> "Stories":
        """The stories of these rows, in this order."""
        return Stories(
            self.tokens[rows], self.lengths[rows], tuple(self.texts[i] for i in rows.tolist()) if self.texts else ()
        )


def stories(corpus: str | None, model: Any, n: int, seed: int = 0) -> Stories:
    """The first `n` stories of a corpus that have at least two tokens.

    Args:
        corpus: see `sat_lens.corpora`; None: the generator, with a seed that training does not use.
        model: whose tokenizer and context count.
        n: stories.
        seed: of the generator; files are read from their beginning.

    Raises:
        ValueError: a model without tokenizer, or a corpus with fewer than two stories.
    """
    if model.tokenizer is None:
        raise ValueError("text needs the model's tokenizer; this model has none")
    start = start_ids(model.tokenizer)
    read = read_stories(corpus or "stories", seed=seed + (HELD_OUT_SEED if corpus is None else 0))
    rows, texts = [], []
    for text in islice(read, 2 * n):
        row = (start + text_ids(text, model.tokenizer))[: model.cfg.n_ctx]
        if len(row) > 1 and len(rows) < n:
            rows.append(row)
            texts.append(text)
    if len(rows) < 2:
        raise ValueError(f"a corpus must hold at least 2 stories of 2 tokens; {corpus or 'stories'} has {len(rows)}")
    return Stories(right_padded(rows), torch.tensor([len(row) for row in rows]), tuple(texts))
