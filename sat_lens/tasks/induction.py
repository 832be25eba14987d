"""Induction: random words, some of which come back: "A B .. C D .. A" -> " B", not " D".

A prompt is 12 different words, then three of them again in their order; asked for is the one that
followed. The wrong answer follows three other words in the same way. Prompts come in twos, with the
same first part, where the answer of one is the wrong answer of the other: a model that prefers certain
words, or certain places, is right in half of them.

Source: arXiv 2209.11895 (repeated random tokens); differs: three ids come back, not the whole part, and
one id of the prompt is compared with another, so that copying anything at all is not enough.
"""

import random
import re
from typing import Any, NamedTuple

from sat_lens.tasks.encoding import start_ids, task_from_ids
from sat_lens.tasks.pairs import checked
from sat_lens.tasks.task import Task, TaskError

N_WORDS = 12
N_REPEATED = 3
_WORDS = (r"[\u0120\u2581 ][a-z]{2,}", r"[A-Za-z0-9]+")
"""Ids that are taken: a space (as byte-level, SentencePiece or plain) and a word, else any letters."""


def induction_task(tokenizer: Any, *, n: int = 256, seed: int = 0, corrupt: str | None = None) -> Task:
    """`n` prompts, a pure function of the arguments; positions `match`, `answer` and `end`.

    `match` is where the last word of the prompt stood first, `answer` the word behind it.

    Args:
        tokenizer: a transformers tokenizer; prompts are ids of its words, and need no splitting.
        n: prompts; an odd number has one without its other half.
        seed: any integer.
        corrupt: `fresh` (12 other words, then the same three), `swap` (answer and wrong answer change places,
            so that the answer flips) or `match` (other words stand before the answer; it stays).

    Raises:
        TaskError: a tokenizer with too few words.
    """
    corrupt = checked("induction", n, corrupt)
    draw = random.Random(seed)
    words, start = word_ids(tokenizer), start_ids(tokenizer)
    clean, other, answers, matches = [], [], [], []
    for question in _questions(words, n, draw):
        repeated = question.first[question.at - N_REPEATED : question.at]
        clean.append([*start, *question.first, *repeated])
        other.append([*start, *_corrupted(question, corrupt), *repeated])
        answers.append((question.first[question.at], question.first[question.elsewhere]))
        matches.append(len(start) + question.at - 1)
    positions = {"match": matches, "answer": [column + 1 for column in matches]}
    texts = [tokenizer.decode(row[len(start) :]) for row in clean]
    return task_from_ids("induction", clean, other, answers, positions, texts)


def word_ids(tokenizer: Any) -> list[int]:
    """Ids of words: lower case with a space before them, or whatever has letters alone where those are few."""
    special = set(tokenizer.all_special_ids)
    written = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    for pattern in _WORDS:
        found = [i for i, text in enumerate(written) if i not in special and text and re.fullmatch(pattern, text)]
        if len(found) >= 2 * N_WORDS:
            return found
    raise TaskError(f"induction needs {2 * N_WORDS} ids that are words; the tokenizer has fewer")


class _Question(NamedTuple):
    """Which word of the first part is asked for, and which is the wrong answer; other words to corrupt with."""

    first: list[int]
    fresh: list[int]
    at: int
    elsewhere: int


def _questions(words: list[int], n: int, draw: random.Random) -> list[_Question]:
    """`n` questions, two about each first part."""
    found = []
    while len(found) < n:
        chosen = draw.sample(words, 2 * N_WORDS)
        one, other = _two_places(draw)
        found += [_Question(chosen[:N_WORDS], chosen[N_WORDS:], *at) for at in ((one, other), (other, one))]
    return found[:n]


def _two_places(draw: random.Random) -> tuple[int, int]:
    """Where answer and wrong answer stand among the words: neither they nor the words before them overlap."""
    while True:
        one, other = (draw.randrange(N_REPEATED, N_WORDS) for _ in range(2))
        if abs(one - other) > N_REPEATED:
            return one, other


def _corrupted(question: _Question, corrupt: str) -> list[int]:
    first, fresh, at, elsewhere = question
    if corrupt == "fresh":
        return fresh
    changed = list(first)
    if corrupt == "swap":
        changed[at], changed[elsewhere] = first[elsewhere], first[at]
    else:
        changed[at - N_REPEATED : at] = fresh[:N_REPEATED]
    return changed
