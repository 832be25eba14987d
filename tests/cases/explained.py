"""Stories of a small vocabulary and units that are planted in them, for the tests of explanations."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from analyses.explain import Material, Splits, Vocabulary, restricted, story_splits
from analyses.texts import Stories

WORDS = ("<s>", ".", "\n", '"', " A", " B", " cat", " dog", " sat", " ran", " red", "ly", " 7", " the", " of", " was")
VOCABULARY = Vocabulary(WORDS, frozenset({0}))
ID = {word: i for i, word in enumerate(WORDS)}


class Batch(NamedTuple):
    """As a source gives it."""

    rows: Tensor
    values: Tensor
    keep: Tensor


def random_stories(n: int = 60, longest: int = 40, seed: int = 0) -> Stories:
    """Random tokens after <s>, of 10 tokens and more."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, len(WORDS), (n, longest), generator=generator)
    tokens[:, 0] = 0
    lengths = torch.randint(10, longest + 1, (n,), generator=generator)
    return Stories(tokens.where(torch.arange(longest) < lengths[:, None], 0), lengths)


def kept(stories: Stories) -> Tensor:
    """All tokens but padding and the first."""
    place = torch.arange(stories.tokens.shape[1])
    return (place < stories.lengths[:, None]) & (place > 0)


def batches(stories: Stories, values: Tensor, order: Sequence[Sequence[int]] | None = None) -> list[Batch]:
    """The stories dealt to batches, cut where the longest story of each ends; by default 7 a batch."""
    dealt = [list(rows) for rows in order] if order is not None else torch.arange(stories.n).split(7)
    found = []
    for part in dealt:
        rows = torch.as_tensor(part)
        pos = int(stories.lengths[rows].max())
        found.append(Batch(rows, values[rows, :pos], kept(stories)[rows, :pos]))
    return found


def material(stories: Stories, values: Tensor, parts: Splits | None = None) -> Material:
    """To explain from: the first split, or all stories."""
    held = batches(stories, values)
    rows = torch.arange(stories.n) if parts is None else parts.explain
    return Material(restricted(lambda: held, rows), stories, rows, VOCABULARY)


def split(stories: Stories) -> Splits:
    """The usual splits."""
    return story_splits(stories, seed=1)


def planted(stories: Stories) -> tuple[list[str], Tensor]:
    """Units by name, and their activations [story pos unit]: 0 where they do not fire."""
    tokens = stories.tokens
    before = torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], 1)
    twice = torch.cat([torch.full_like(tokens[:, :2], -1), tokens[:, :-2]], 1)[:, : tokens.shape[1]]
    marks = (tokens == ID['"']).long()
    quoted = torch.zeros_like(tokens)
    for row in range(len(tokens)):  # by hand: the state flips at each mark and ends with its line
        state = 0
        for pos in range(tokens.shape[1]):
            state = 0 if int(tokens[row, pos]) == ID["\n"] else (state + int(marks[row, pos])) % 2
            quoted[row, pos] = state
    units = {
        "token": 2.0 * (tokens == ID[" cat"]),
        "bigram": 1.5 * ((tokens == ID[" B"]) & (before == ID[" A"])),
        "trigram": 3.0 * ((tokens == ID[" ran"]) & (before == ID[" dog"]) & (twice == ID[" the"])),
        "position": 1.0 * (torch.arange(tokens.shape[1]) < 8).expand_as(tokens),
        "nothing": torch.zeros(tokens.shape),
        "everything": torch.ones(tokens.shape),
        "quote": 1.0 * quoted,
    }
    return list(units), torch.stack([unit.float() for unit in units.values()], -1)
