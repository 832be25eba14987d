"""Targets that the ids alone give: the token, its neighbours, its kind, its place.

Classes of the three token targets are the ids of the vocabulary, so that two sets of stories agree on them
(`Labels.compact` keeps those that occur). Each is named by the token's text, its leading space kept and
unprintable characters escaped; a token that is no text by itself (a byte of a character), as the vocabulary spells
it. The beginning-of-text token counts as a token, padding does not.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.labels.bins import binned
from analyses.labels.target import Labels
from analyses.labels.token_classes import CLASSES, token_classes
from analyses.labels.token_texts import token_texts
from analyses.texts import Stories

POSITION_EDGES: tuple[int, ...] = (0, 1, 2, 3, 5, 9, 17, 33, 65, 129, 257, 513)
"""First position of each bin: 0 (beginning of text), 1, 2, 3-4, 5-8, 9-16 ... 257-512, 513 and more."""


def current_token(stories: Stories, tokenizer: Any) -> Labels:
    """The token itself."""
    return _of_ids("current_token", stories, stories.tokens, _held(stories), tokenizer)


def previous_token(stories: Stories, tokenizer: Any) -> Labels:
    """The token before; none for the first."""
    held = _held(stories)
    held[:, 0] = False
    return _of_ids("previous_token", stories, stories.tokens.roll(1, 1), held, tokenizer)


def next_token(stories: Stories, tokenizer: Any) -> Labels:
    """The token after; none for the last."""
    return _of_ids("next_token", stories, stories.tokens.roll(-1, 1), stories.predicted, tokenizer)


def token_class(stories: Stories, tokenizer: Any) -> Labels:
    """Kind of token by its text alone (`analyses.labels.token_classes`)."""
    of_id = torch.from_numpy(token_classes(tokenizer, _n_ids(stories, tokenizer))).long()
    return Labels("token_class", CLASSES, torch.where(_held(stories), of_id[stories.tokens], -1), "rules")


def position(stories: Stories, tokenizer: Any) -> Labels:
    """Tokens before this one, in bins (`POSITION_EDGES`)."""
    places = torch.arange(stories.tokens.shape[1]).expand_as(stories.tokens)
    names, values = binned(torch.where(_held(stories), places, -1), POSITION_EDGES)
    return Labels("position", names, values, "tokens")


def token_names(tokenizer: Any, n: int) -> tuple[str, ...]:
    """Names of the first `n` ids, as the class names of the token targets; numbers without a tokenizer."""
    if tokenizer is None:
        return tuple(f"<{i}>" for i in range(n))
    size = min(n, len(tokenizer))
    texts = token_texts(tokenizer, size)
    spelt = tokenizer.convert_ids_to_tokens(list(range(size)))
    named = [
        _escaped(text) if text and "\ufffd" not in text else _escaped(spelling)
        for text, spelling in zip(texts, spelt, strict=True)
    ]
    return (*named, *(f"<{i}>" for i in range(size, n)))


def _escaped(text: str) -> str:
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(
        letter if letter.isprintable() and letter != "\\" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _of_ids(
    name: str,
    stories: Stories,
    ids: Int[Tensor, "story pos"],
    held: Bool[Tensor, "story pos"],
    tokenizer: Any,
) -> Labels:
    names = token_names(tokenizer, _n_ids(stories, tokenizer))
    return Labels(name, names, torch.where(held, ids, -1), "tokens")


def _n_ids(stories: Stories, tokenizer: Any) -> int:
    return max(int(stories.tokens.max()) + 1, 0 if tokenizer is None else len(tokenizer))


def _held(stories: Stories) -> Bool[Tensor, "story pos"]:
    """Positions that are no padding."""
    return torch.arange(stories.tokens.shape[1]) < stories.lengths[:, None]
