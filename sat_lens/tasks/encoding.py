"""Prompts to tokens: the beginning-of-text token, answers as continuations, padding on the right."""

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
