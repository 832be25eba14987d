"""What a rule may know of a token besides its id: its text, and what the text alone tells."""

import dataclasses
import json
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

CLASSES: tuple[str, ...] = ("capitalized word", "word", "word piece", "number", "punctuation", "space", "other")
QUOTES = '"“”'


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The texts of all tokens, by id.

    Args:
        texts: as the tokenizer decodes each id alone.
        special: ids that are no text, such as the beginning of text.
    """

    texts: tuple[str, ...]
    special: frozenset[int] = frozenset()

    @staticmethod
    def of(tokenizer: Any, n: int) -> "Vocabulary":
        """The first `n` ids; `id 17` and the like without a tokenizer."""
        if tokenizer is None:
            return Vocabulary(tuple(f"id {i}" for i in range(n)))
        return Vocabulary(tuple(tokenizer.decode([i]) for i in range(n)), frozenset(tokenizer.all_special_ids))

    @property
    def n(self) -> int:
        """Tokens."""
        return len(self.texts)

    def quoted(self, token: int) -> str:
        """The token's text in quotation marks, escaped as in JSON."""
        return json.dumps(self.texts[token], ensure_ascii=False) if 0 <= token < self.n else f"id {token}"

    @cached_property
    def classes(self) -> Int[Tensor, " token"]:
        """Index in `CLASSES`."""
        named = [
            "other" if i in self.special or text.startswith("id ") else token_class(text)
            for i, text in enumerate(self.texts)
        ]
        return torch.tensor([CLASSES.index(name) for name in named])

    @cached_property
    def quotes(self) -> Int[Tensor, " token"]:
        """Quotation marks in each token."""
        return torch.tensor([sum(text.count(mark) for mark in QUOTES) for text in self.texts])

    @cached_property
    def newline(self) -> Bool[Tensor, " token"]:
        """Tokens that end a line."""
        return torch.tensor(["\n" in text for text in self.texts])

    @cached_property
    def sentence_end(self) -> Bool[Tensor, " token"]:
        """Tokens that end a sentence or a line; special ones do, too."""
        ends = [text.rstrip().rstrip(QUOTES + "'’)").endswith((".", "!", "?")) for text in self.texts]
        return torch.tensor([end or i in self.special for i, end in enumerate(ends)]) | self.newline


def token_class(text: str) -> str:
    """By spelling alone: a word begins with a space or a capital letter."""
    word = text.strip()
    if not word:
        return "space" if text else "other"
    if word[0].isdigit():
        return "number"
    if not any(letter.isalnum() for letter in word):
        return "punctuation"
    if word[0].isupper():
        return "capitalized word"
    return "word" if text[0].isspace() else "word piece"
