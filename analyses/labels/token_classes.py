"""Kinds of tokens, by their text alone: what a table of next tokens is laid out by."""

from typing import Any

import numpy as np
from jaxtyping import Int

from analyses.labels.token_texts import token_texts
from sat_lens.stories import NAMES

CLASSES: tuple[str, ...] = ("name", "pronoun", "function word", "word", "word piece", "punctuation", "other")
_PRONOUNS = frozenset(
    "i you he she it we they me him her us them his hers its their my your our who himself herself".split()
)
_FUNCTION = frozenset(
    (
        "a an the and or but so because if then when while after before that this there to of in on at for from with "
        "by up down out into near under over as is was are were be been had has have do did does not no can could "
        "will would very too all one said went"
    ).split()
)
_NAMES = frozenset(name.lower() for name in NAMES)


def token_classes(tokenizer: Any, n: int) -> Int[np.ndarray, " token"]:
    """Index in `CLASSES` of the first `n` ids; all `other` without a tokenizer."""
    if tokenizer is None:
        return np.full(n, CLASSES.index("other"))
    special = set(tokenizer.all_special_ids)
    kinds = ["other" if i in special else token_class(text) for i, text in enumerate(token_texts(tokenizer, n))]
    return np.array([CLASSES.index(kind) for kind in kinds])


def token_class(text: str) -> str:
    """Of one token's text: names are those of the stories; a word begins with a space or a capital."""
    word = text.strip()
    if not word:
        return "other"
    if not any(letter.isalnum() for letter in word):
        return "punctuation"
    if word[0].isupper() and word.lower() in _NAMES:
        return "name"
    if word.lower() in _PRONOUNS:
        return "pronoun"
    if word.lower() in _FUNCTION:
        return "function word"
    return "word" if text[0].isspace() or word[0].isupper() else "word piece"
