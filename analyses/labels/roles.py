"""Targets of a story's words: role, number of names so far, part of speech, place in the sentence.

The roles of the generator's stories are its own (`sat_lens.story_truth`). In other texts, rules tell: names,
speech and pronouns as in `analyses.labels.words`; objects and places are the words of OBJECTS and PLACES, or
those with an s, in small letters. Where spans lie in one another, the first of name, pronoun, object, place,
speech holds, so that `speech` is what else is said between quotes; `other` is all the rest.

On 100 of the generator's stories, the rules give 99.85 % of 10,643 tokens their true role; May, Mark, Pat and Rose
are missed where they open a sentence first, and a cake that is food counts as an object. Command:
`pytest tests/analyses/test_labels.py -k true_role`.
"""

from typing import Any

import numpy as np
import torch

from analyses.labels.alignment import Characters, characters
from analyses.labels.bins import binned
from analyses.labels.part_of_speech import PARTS, parts_of_speech
from analyses.labels.target import Labels
from analyses.labels.words import PRONOUNS, names, sentence_starts, speeches, words
from analyses.texts import Stories
from sat_lens.stories import OBJECTS, PLACES
from sat_lens.story_truth import ROLES

MOST_NAMES = 5
SENTENCE_EDGES: tuple[int, ...] = (0, 1, 2, 3, 5, 9)
"""First distance of each bin: 0 (the first token of a sentence), 1, 2, 3-4, 5-8, 9 and more."""

_PAINTED = ("speech", "place", "object", "pronoun", "name")
_OF_WORDS = {word: "object" for base in OBJECTS for word in (base, f"{base}s")} | {
    word: "place" for base in PLACES for word in (base, f"{base}s")
}


def role(stories: Stories, tokenizer: Any) -> Labels:
    """Role in the story: name, object, place, speech, pronoun or other."""
    at = characters(stories, tokenizer)
    spans = [[(span.start, span.end, span.role) for span in truth.spans] for truth in stories.truths]
    spans = spans or [spans_by_rules(text) for text in stories.texts]
    rows = [_painted(len(text), of) for text, of in zip(stories.texts, spans, strict=True)]
    return Labels("role", ROLES, at.labelled(rows), _source(stories))


def spans_by_rules(text: str) -> list[tuple[int, int, str]]:
    """Start, end (exclusive) and role of what the rules find in a text."""
    spans = [(*speech, "speech") for speech in speeches(text)]
    spans += [(word.start, word.end, "name") for word in names(text)]
    for word in words(text):
        found = "pronoun" if word.text.lower() in PRONOUNS else _OF_WORDS.get(word.text)
        if found:
            spans.append((word.start, word.end, found))
    return spans


def _painted(n_characters: int, spans: list[tuple[int, int, str]]) -> np.ndarray:
    row = np.full(n_characters, ROLES.index("other"))
    for kind in _PAINTED:
        for start, end, role in spans:
            if role == kind:
                row[start:end] = ROLES.index(kind)
    return row


def n_names(stories: Stories, tokenizer: Any) -> Labels:
    """Distinct names that the text up to and with this token holds whole: 0 to 4, and 5 or more."""
    at = characters(stories, tokenizer)
    mentions = [[(span.end, span.character) for span in truth.spans if span.role == "name"] for truth in stories.truths]
    mentions = mentions or [[(word.end, word.text) for word in names(text)] for text in stories.texts]
    rows = []
    for text, named in zip(stories.texts, mentions, strict=True):
        first = {name: end for end, name in reversed(named)}
        row = np.zeros(len(text) + 1, dtype=np.int64)
        np.add.at(row, list(first.values()), 1)
        rows.append(row.cumsum())
    classes, values = binned(at.read_up_to(rows), tuple(range(MOST_NAMES + 1)))
    return Labels("n_names", classes, values, _source(stories))


def part_of_speech(stories: Stories, tokenizer: Any) -> Labels:
    """Part of speech of the token's word (`analyses.labels.part_of_speech`); none for white space."""
    rows = []
    for text in stories.texts:
        row = np.full(len(text), -1)
        for start, end, part in parts_of_speech(text):
            row[start:end] = PARTS.index(part)
        rows.append(row)
    return Labels("part_of_speech", PARTS, characters(stories, tokenizer).labelled(rows), "rules")


def sentence_distance(stories: Stories, tokenizer: Any) -> Labels:
    """Tokens between this one and the start of its sentence (`analyses.labels.words`), in bins."""
    at = characters(stories, tokenizer)
    values = torch.stack([_distances(at, row, sentence_starts(text)) for row, text in enumerate(stories.texts)])
    classes, bins = binned(values, SENTENCE_EDGES)
    return Labels("sentence_distance", classes, bins, "rules")


def _distances(at: Characters, row: int, starts: list[int]) -> torch.Tensor:
    sentence = np.searchsorted(starts, at.first[row], side="right")
    places = np.arange(len(sentence))
    opens = np.diff(sentence, prepend=-1) != 0
    since = places - np.maximum.accumulate(np.where(opens, places, 0))
    return torch.from_numpy(np.where(at.first[row] >= 0, since, -1))


def _source(stories: Stories) -> str:
    return "generator" if stories.truths else "rules"
