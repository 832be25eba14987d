"""The same stories with one name exchanged throughout: a context that differs in what need not matter."""

import random
from typing import Any

import torch

from analyses.texts import Stories
from sat_lens.stories import NAMES, pronoun


def name_ids(tokenizer: Any) -> dict[str, tuple[int, int]]:
    """Names of the stories that are one id with a space before them, and one without: both ids."""
    found = {}
    for name in NAMES:
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in (name, f" {name}")]
        if all(len(one) == 1 for one in ids):
            found[name] = (int(ids[0][0]), int(ids[1][0]))
    return found


def paraphrased(stories: Stories, tokenizer: Any, seed: int) -> Stories | None:
    """Each story with one of its names replaced by another that goes by the same pronoun and is not in it.

    A story without names stays as it is; None where no story has any, or there is no tokenizer.
    """
    names = {} if tokenizer is None else name_ids(tokenizer)
    draw, tokens = random.Random(seed), stories.tokens.clone()
    for row in tokens:
        present = set(row.tolist())
        here = [name for name, ids in names.items() if present & set(ids)]
        if not here:
            continue
        old = draw.choice(here)
        others = [name for name in names if name not in here and pronoun(name) == pronoun(old)]
        if others:
            for before, after in zip(names[old], names[draw.choice(others)], strict=True):
                row[row == before] = after
    return None if torch.equal(tokens, stories.tokens) else Stories(tokens, stories.lengths)
