"""Prompts to tokens: the beginning of the text, answers as continuations, words as columns, padding on the right."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sat_lens.tasks.task import Task, TaskError


def text_ids(text: str, tokenizer: Any) -> list[int]:
    """Ids of `text` alone."""
    return list(tokenizer.encode(text, add_special_tokens=False)) if text else []


def start_ids(tokenizer: Any) -> list[int]:
    """The beginning-of-text token, else the end-of-text token, else nothing."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    return []


def continuation_ids(prompt: str, answer: str, tokenizer: Any) -> list[int]:
    """Ids that `answer` adds to `prompt`.

    Raises:
        TaskError: the answer changes how the prompt itself is split, or adds nothing.
    """
    before, whole = text_ids(prompt, tokenizer), text_ids(prompt + answer, tokenizer)
    if whole[: len(before)] != before or len(whole) == len(before):
        raise TaskError(f"{answer!r} must continue {prompt[-40:]!r} as tokens of its own; it does not")
    return whole[len(before) :]


def column_at(text: str, place: int, ids: Sequence[int], tokenizer: Any) -> int | None:
    """Column in `ids`, the tokens of `text`, of the word that begins at character `place`; None inside a token."""
    prefix = start_ids(tokenizer) + text_ids(text[:place].rstrip(" "), tokenizer)
    return len(prefix) if list(ids[: len(prefix)]) == prefix and len(prefix) < len(ids) else None


def words_of_one_length(words: Sequence[str], tokenizer: Any, fewest: int, task: str) -> dict[str, int]:
    """Words of equally many ids after a space, each with its first id; single ids if at least `fewest` are.

    Otherwise the length that most words have.

    Raises:
        TaskError: fewer than `fewest` of any length.
    """
    by_length: dict[int, dict[str, int]] = {}
    for word in words:
        try:
            ids = continuation_ids("said to", f" {word}", tokenizer)
        except TaskError:
            continue
        if tokenizer.unk_token_id is None or tokenizer.unk_token_id not in ids:
            by_length.setdefault(len(ids), {})[word] = ids[0]
    for length in sorted(by_length, key=lambda length: (length != 1, -len(by_length[length]))):
        if len(by_length[length]) >= fewest:
            return by_length[length]
    raise TaskError(
        f"{task} needs at least {fewest} names that the tokenizer splits into equally many ids; got at most "
        f"{max(map(len, by_length.values()), default=0)}; read a task from a file instead"
    )


def right_padded(rows: Sequence[Sequence[int]]) -> Int[Tensor, "n pos"]:
    """Rows of ids as one tensor; the padding is id 0, which a causal model at `end` never sees."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)


def task_from_ids(
    name: str,
    clean: Sequence[Sequence[int]],
    corrupt: Sequence[Sequence[int]],
    answers: Sequence[tuple[int, int]],
    positions: dict[str, Sequence[int]],
    prompts: Sequence[str],
) -> Task:
    """A Task from rows of ids, the beginning-of-text token included; `answers` are (right, wrong)."""
    right, wrong = torch.tensor(answers, dtype=torch.long).unbind(1)
    return Task(
        name=name,
        clean=right_padded(clean),
        corrupt=right_padded(corrupt),
        answers=right,
        wrong_answers=wrong,
        positions={
            **{key: torch.tensor(at, dtype=torch.long) for key, at in positions.items()},
            "end": torch.tensor([len(row) - 1 for row in clean], dtype=torch.long),
        },
        prompts=tuple(prompts),
    )
