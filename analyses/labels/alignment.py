"""Tokens and the characters of their story.

A token takes the label of the character that is its first one other than white space; a token of white space
alone, that of its first character. What is known once a token is read is what its characters, and those before
them, tell. The beginning-of-text token and padding have no characters.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.texts import Stories, text_spans
from sat_lens.tasks.encoding import start_ids


@dataclasses.dataclass(frozen=True)
class Characters:
    """Characters of each token, counted in its story; -1 where a token has none.

    Args:
        first: the one whose label the token takes.
        end: just after the token's last.
    """

    first: Int[np.ndarray, "story pos"]
    end: Int[np.ndarray, "story pos"]

    def labelled(self, of_characters: list[np.ndarray]) -> Int[Tensor, "story pos"]:
        """Labels of tokens from one array per story of the labels of its characters."""
        return self._filled([of[first] for of, first, _ in self._rows(of_characters)])

    def read_up_to(self, of_prefixes: list[np.ndarray]) -> Int[Tensor, "story pos"]:
        """Labels of tokens from one array per story of what holds after 0, 1, 2 ... characters."""
        return self._filled([of[end] for of, _, end in self._rows(of_prefixes)])

    def _rows(self, per_story: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        held = [row >= 0 for row in self.first]
        return [
            (of, first[here], end[here])
            for of, first, end, here in zip(per_story, self.first, self.end, held, strict=True)
        ]

    def _filled(self, rows: list[np.ndarray]) -> Int[Tensor, "story pos"]:
        values = np.full(self.first.shape, -1, dtype=np.int64)
        if rows:
            values[self.first >= 0] = np.concatenate(rows)
        return torch.from_numpy(values)


def characters(stories: Stories, tokenizer: Any) -> Characters:
    """The characters of every token of `stories`.

    Raises:
        ValueError: no texts or no tokenizer, a tokenizer that does not know the characters of its tokens, or
            one that gives other tokens.
    """
    if tokenizer is None or len(stories.texts) != stories.n:
        raise ValueError(
            f"labels of words need the tokenizer and the text of each of the {stories.n} stories; got "
            f"{len(stories.texts)} texts{' and no tokenizer' if tokenizer is None else ''}"
        )
    first = np.full(tuple(stories.tokens.shape), -1, dtype=np.int64)
    end = first.copy()
    start = start_ids(tokenizer)
    for story, text in enumerate(stories.texts):
        row = stories.tokens[story, : int(stories.lengths[story])].tolist()
        ids, spans = text_spans(text, tokenizer)
        skipped = next((n for n in (len(start), 0) if (start[:n] + ids)[: len(row)] == row), None)
        if skipped is None:
            raise ValueError(f"stories must be tokens of their texts by this tokenizer; story {story} is not")
        columns = slice(skipped, len(row))
        begins, ends = np.array(spans[: len(row) - skipped], dtype=np.int64).reshape(-1, 2).T
        first[story, columns], end[story, columns] = _first_visible(text, begins, ends), ends
    return Characters(first, end)


def _first_visible(text: str, begins: Int[np.ndarray, " token"], ends: Int[np.ndarray, " token"]) -> np.ndarray:
    """The first character of each token that is no white space, else its first one."""
    places = np.array([len(text) if character.isspace() else i for i, character in enumerate(text)] + [len(text)])
    visible = np.minimum.accumulate(places[::-1])[::-1][begins]
    return np.minimum(np.where(visible < ends, visible, begins), len(text) - 1)
