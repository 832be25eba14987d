"""Drawing prompts with counterfactuals until the tokenizer splits the two evenly."""

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from sat_lens.tasks.encoding import column_at, continuation_ids, start_ids, task_from_ids, text_ids
from sat_lens.tasks.names import checked_corruption
from sat_lens.tasks.task import Task, TaskError

Kind = TypeVar("Kind")
TRIES = 200


class Pair(NamedTuple):
    """A prompt and its counterfactual as texts.

    Args:
        answer, wrong_answer: what continues the prompt, the leading space included.
        places: where in the prompt the words that matter begin, by name.
    """

    text: str
    corrupt: str
    answer: str
    wrong_answer: str
    places: dict[str, int]


class Row(NamedTuple):
    """A pair in tokens; answers are (right, wrong)."""

    text: str
    clean: list[int]
    corrupt: list[int]
    answers: tuple[int, int]
    positions: dict[str, int]


def even_row(pair: Pair, tokenizer: Any) -> Row | None:
    """The pair in tokens, or None where the tokenizer does not fit it.

    It fits when both have equally many ids, none of them unknown, the words that matter begin an id, and
    the answers continue the prompt with different first ids.
    """
    start, unknown = start_ids(tokenizer), tokenizer.unk_token_id  # the two may be one id, as in GPT-2's
    bodies = [text_ids(text, tokenizer) for text in (pair.text, pair.corrupt)]
    if len(bodies[0]) != len(bodies[1]) or unknown in bodies[0] + bodies[1]:
        return None
    clean, corrupt = (start + body for body in bodies)
    try:
        answers = [continuation_ids(pair.text, answer, tokenizer)[0] for answer in (pair.answer, pair.wrong_answer)]
    except TaskError:
        return None
    at = {name: column_at(pair.text, place, clean, tokenizer) for name, place in pair.places.items()}
    positions = {name: column for name, column in at.items() if column is not None}
    if len(positions) < len(at) or answers[0] == answers[1] or unknown in answers:
        return None
    return Row(pair.text, clean, corrupt, (answers[0], answers[1]), positions)


def drawn_task(name: str, tokenizer: Any, kinds: Sequence[Kind], pair_of: Callable[[Kind], Pair]) -> Task:
    """A prompt of each kind, the first of `TRIES` draws that the tokenizer fits.

    Raises:
        TaskError: none of them fits.
    """
    rows = []
    for kind in kinds:
        found = (even_row(pair_of(kind), tokenizer) for _ in range(TRIES))
        row = next((row for row in found if row is not None), None)
        if row is None:
            raise TaskError(
                f"{name}: none of {TRIES} prompts drawn fits the tokenizer (clean and corrupt of equally many known "
                "ids, answers that differ in the first); read a task from a file instead"
            )
        rows.append(row)
    texts, clean, corrupt, answers, at = zip(*rows, strict=True)
    return task_from_ids(name, clean, corrupt, answers, {key: [row[key] for row in at] for key in at[0]}, texts)


def balanced(n: int, kinds: Sequence[Kind], draw: random.Random) -> list[Kind]:
    """`n` kinds, each as often as the others or once more, in random order.

    Neighbours among `kinds` are balanced first: of [a, b, c, d] and n = 2 the first two come.
    """
    chosen = [kinds[i % len(kinds)] for i in range(n)]
    draw.shuffle(chosen)
    return chosen


def checked(task: str, n: int, corrupt: str | None) -> str:
    """The corruption that is meant; see `names.checked_corruption`.

    Raises:
        TaskError: no prompt is asked for, or a corruption that the task does not have.
    """
    if n < 1:
        raise TaskError(f"n must be at least 1 prompt; got {n}")
    try:
        return checked_corruption(task, corrupt)
    except ValueError as error:
        raise TaskError(str(error)) from None
