"""Indirect object identification: who receives, when the other one of two names acts?

"Then, Rob and Sue went to the park. Sue gave a bone to" -> " Rob", not " Sue". Half of the prompts
name the receiver first (ABBA), half name it second (BABA). A counterfactual has three fresh names.

Source: arXiv 2211.00593, section 2, and the prompt set behind the circuit counts of arXiv 2505.00509;
differs: templates and names are those of `sat_lens.stories`, both orders are balanced exactly, and
the pairs of names are ones that its stories never put side by side.
"""

import random
import re
from collections.abc import Iterator
from typing import Any

from sat_lens.stories import IOI_TEMPLATES, NAMES, OBJECTS, PLACES, is_held_out_pair
from sat_lens.tasks.encoding import (
    column_at,
    continuation_ids,
    start_ids,
    task_from_ids,
    text_ids,
    words_of_one_length,
)
from sat_lens.tasks.pairs import TRIES, checked
from sat_lens.tasks.task import Task, TaskError

_FEWEST_NAMES = 5  # two of the prompt and three fresh ones


def ioi_task(
    tokenizer: Any, *, n: int = 256, seed: int = 0, split: str = "held_out", corrupt: str | None = None
) -> Task:
    """`n` prompts, a pure function of the arguments.

    Names are single ids of the tokenizer. One that has fewer than five such names (llama2.c's 512
    ids) gets names of several ids, all of one length; the answer is then the first id, on which the
    two names differ.

    Args:
        tokenizer: a transformers tokenizer.
        n: prompts; an odd number has one ABBA more than BABA.
        seed: any integer.
        split: `held_out` (pairs that never meet in `sat_lens.stories`) or `train` (the others).
        corrupt: `fresh` (three other names: "A B .. B" -> "X Y .. Z"), or a minimal pair, one name changed:
            `swap` (the other one acts, so that the answer flips), or a third name for the receiver (`io`), for
            the first (`s1`) or for the second mention of the actor (`s2`). See `names.CORRUPTIONS`.

    Raises:
        TaskError: too few usable names, or no prompt that the tokenizer splits evenly.
    """
    corrupt = checked("ioi", n, corrupt)
    if split not in ("held_out", "train"):
        raise TaskError(f"split is held_out or train; got {split!r}")
    draw = random.Random(seed)
    names = usable_names(tokenizer)
    orders = [i % 2 == 0 for i in range(n)]
    draw.shuffle(orders)
    candidates = [_prompt(abba, names, tokenizer, draw, split, corrupt) for abba in orders]
    texts, clean, other, answers, positions = zip(*candidates, strict=True)
    return task_from_ids(
        "ioi", clean, other, answers, {key: [at[key] for at in positions] for key in positions[0]}, texts
    )


def usable_names(tokenizer: Any) -> dict[str, int]:
    """Names of one length in tokens, each with its first id; single ids if there are enough of them."""
    return words_of_one_length(NAMES, tokenizer, _FEWEST_NAMES, "ioi")


def _prompt(
    abba: bool, names: dict[str, int], tokenizer: Any, draw: random.Random, split: str, corrupt: str
) -> tuple[str, list[int], list[int], tuple[int, int], dict[str, int]]:
    """Text, clean ids, corrupt ids, (answer, wrong answer), positions, of the first draw that fits."""
    for pair in _pairs(names, draw, split):
        io, s = pair
        a, b = (io, s) if abba else (s, io)
        fresh = draw.sample([name for name in names if name not in pair], 3)
        words = {"PLACE": draw.choice(PLACES), "OBJECT": draw.choice(OBJECTS)}
        template = draw.choice(IOI_TEMPLATES)
        text = template.format(A=a, B=b, S=s, **words)
        x, y, z = _changed(a, b, io, s, fresh, corrupt)
        clean, other = (
            start_ids(tokenizer) + text_ids(t, tokenizer) for t in (text, template.format(A=x, B=y, S=z, **words))
        )
        at = _name_positions(text, io, s, clean, tokenizer)
        if at is not None and len(clean) == len(other) and _continues(text, io, s, names, tokenizer):
            return text, clean, other, (names[io], names[s]), at
    raise TaskError(f"no {split} prompt in {TRIES} draws that the tokenizer splits evenly; try another split")


def _changed(a: str, b: str, io: str, s: str, fresh: list[str], corrupt: str) -> tuple[str, str, str]:
    """First and second name and actor of the counterfactual."""
    if corrupt == "fresh":
        return fresh[0], fresh[1], fresh[2]
    gone = {"io": io, "s1": s}.get(corrupt)
    one, two = (fresh[0] if name == gone else name for name in (a, b))
    return one, two, {"swap": io, "s2": fresh[0]}.get(corrupt, s)


def _pairs(names: dict[str, int], draw: random.Random, split: str) -> Iterator[tuple[str, str]]:
    """Pairs of the split whose first ids differ, at random and in either order."""
    known = sorted(names)
    pairs = [
        (one, other)
        for one in known
        for other in known
        if names[one] != names[other] and is_held_out_pair(one, other) == (split == "held_out")
    ]
    if not pairs:
        raise TaskError(f"none of the {len(known)} usable names form a {split} pair; try another split")
    for _ in range(TRIES):
        yield draw.choice(pairs)


def _name_positions(text: str, io: str, s: str, ids: list[int], tokenizer: Any) -> dict[str, int] | None:
    """Columns of the first ids of IO, S1 and S2, or None where a prefix is split otherwise."""
    places = [*re.finditer(rf"\b{io}\b", text), *re.finditer(rf"\b{s}\b", text)]
    at = {}
    for key, match in zip(("IO", "S1", "S2"), places, strict=True):
        column = column_at(text, match.start(), ids, tokenizer)
        if column is None:
            return None
        at[key] = column
    return at


def _continues(text: str, io: str, s: str, names: dict[str, int], tokenizer: Any) -> bool:
    try:
        return all(continuation_ids(text, f" {name}", tokenizer)[0] == names[name] for name in (io, s))
    except TaskError:
        return False
