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

from sat_lens.corpora import is_mixture, mixture_parts, read_stories
from sat_lens.story_truth import StoryTruth, labelled_stories
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
        truths: of each row, what is true in the part that its tokens hold; empty unless all are the generator's.
    """

    tokens: Int[Tensor, "story pos"]
    lengths: Int[Tensor, " story"]
    texts: tuple[str, ...] = ()
    truths: tuple[StoryTruth, ...] = ()

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
        texts, truths = (tuple(of[i] for i in rows.tolist()) if of else () for of in (self.texts, self.truths))
        return Stories(self.tokens[rows], self.lengths[rows], texts, truths)


def text_spans(text: str, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of `text` alone, as `text_ids` gives them, and the characters of each: start, and end exclusive.

    A character of several tokens belongs to each of them; whether a token holds the space before its word is
    the tokenizer's choice.

    Raises:
        ValueError: a tokenizer that does not know the characters of its tokens.
    """
    if not is_fast(tokenizer):
        raise ValueError(f"the characters of tokens need a fast tokenizer; got {type(tokenizer).__name__}")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [(start, end) for start, end in encoded["offset_mapping"]]


def is_fast(tokenizer: Any) -> bool:
    """Whether a tokenizer knows the characters of its tokens."""
    return bool(getattr(tokenizer, "is_fast", False))


def is_generator(corpus: str | None) -> bool:
    """Whether a corpus is the embedded generator alone: None, `stories`, or `stories` with a weight."""
    if corpus is None or corpus == "stories":
        return True
    return is_mixture(corpus) and [name for name, _ in mixture_parts(corpus)] == ["stories"]


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
    seed += HELD_OUT_SEED if corpus is None else 0
    known = is_generator(corpus) and is_fast(model.tokenizer)
    read = labelled_stories(seed) if known else read_stories(corpus or "stories", seed=seed)
    rows, texts, truths = [], [], []
    for story in islice(read, 2 * n):
        if len(rows) == n:
            break
        text = story.text if isinstance(story, StoryTruth) else story
        whole = start + text_ids(text, model.tokenizer)
        row = whole[: model.cfg.n_ctx]
        if len(row) > 1:
            rows.append(row)
            texts.append(text)
            if isinstance(story, StoryTruth):
                truths.append(story if row == whole else _until_cut(story, len(row) - len(start), model.tokenizer))
    if len(rows) < 2:
        raise ValueError(f"a corpus must hold at least 2 stories of 2 tokens; {corpus or 'stories'} has {len(rows)}")
    return Stories(right_padded(rows), torch.tensor([len(row) for row in rows]), tuple(texts), tuple(truths))


def _until_cut(story: StoryTruth, n_tokens: int, tokenizer: Any) -> StoryTruth:
    """What the first `n_tokens` of a story tell."""
    _, spans = text_spans(story.text, tokenizer)
    return story.until(spans[n_tokens - 1][1])
