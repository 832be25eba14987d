"""Repeated name: induction in a text. "Tom Hill and Ann Reed went to the park. Then Tom" -> " Hill", not " Reed".

Half of the prompts come back to the person named first, half to the second one.

Source: own; what induction heads do (arXiv 2209.11895), put into sentences that fit stories.
"""

import random
from typing import Any

from sat_lens.stories import NAMES, PLACES
from sat_lens.tasks.encoding import words_of_one_length
from sat_lens.tasks.pairs import Pair, balanced, checked, drawn_task
from sat_lens.tasks.task import Task

FAMILY_NAMES: tuple[str, ...] = tuple(
    (
        "Baker Bell Black Brown Clark Cook Fox Green Hall Hill Jones King Lake Lewis Miller Moore Reed Smith Stone "
        "White Wolf Wood Young"
    ).split()
)
TEMPLATES: tuple[str, ...] = (
    "{A} {X} and {B} {Y} went to the {PLACE}. Then {ASKED}",
    "{A} {X} and {B} {Y} were friends. One day, {ASKED}",
    "{A} {X} met {B} {Y} at the {PLACE}. Soon {ASKED}",
    "One day, {A} {X} and {B} {Y} played at the {PLACE}. Then {ASKED}",
    "Once upon a time, {A} {X} lived near {B} {Y}. One day, {ASKED}",
    "{A} {X} was happy. {B} {Y} was sad. Then {ASKED}",
)


def repeated_name_task(tokenizer: Any, *, n: int = 256, seed: int = 0, corrupt: str | None = None) -> Task:
    """`n` prompts, a pure function of the arguments; positions `match`, `answer` (first ids) and `end`.

    Names of one kind have equally many ids, one where enough have; the answer is the first id of the
    family name, on which the two differ.

    Args:
        tokenizer: a transformers tokenizer.
        n: prompts; an odd number comes back once more to the person named first.
        seed: any integer.
        corrupt: `fresh` (two other people at first), `swap` (the family names change places, so that the answer
            flips) or `match` (another name before the answer).

    Raises:
        TaskError: too few names, or no prompt that the tokenizer splits evenly.
    """
    corrupt = checked("repeated_name", n, corrupt)
    draw = random.Random(seed)
    given = sorted(words_of_one_length(NAMES, tokenizer, 5, "repeated_name"))
    family = sorted(words_of_one_length(FAMILY_NAMES, tokenizer, 5, "repeated_name"))

    def pair(asks_first: bool) -> Pair:
        a, b, c, d = draw.sample(given, 4)
        x, y, z, w = draw.sample(family, 4)
        template, place = draw.choice(TEMPLATES), draw.choice(PLACES)
        asked, right, wrong = (a, x, y) if asks_first else (b, y, x)
        others = {
            "fresh": (c, d, z, w),
            "swap": (a, b, y, x),
            "match": (c, b, x, y) if asks_first else (a, c, x, y),
        }[corrupt]
        text, changed = (
            template.format(A=one, B=two, X=first, Y=second, ASKED=asked, PLACE=place)
            for one, two, first, second in ((a, b, x, y), others)
        )
        match = text.index(f"{asked} {right}")
        return Pair(text, changed, f" {right}", f" {wrong}", {"match": match, "answer": match + len(asked) + 1})

    return drawn_task("repeated_name", tokenizer, balanced(n, (True, False), draw), pair)
