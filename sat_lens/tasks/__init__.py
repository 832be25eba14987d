"""Tasks that circuits are looked for in: `ioi`, and auto-circuit JSON or EAP-IG CSV files by path."""

import random
from pathlib import Path
from typing import Any

from sat_lens.tasks.files import READERS, task_from_file
from sat_lens.tasks.ioi import Split, ioi_task
from sat_lens.tasks.task import Task, TaskError

__all__ = ["Task", "TaskError", "ioi_task", "load_task", "task_from_file"]


def load_task(
    name_or_path: str | Path, tokenizer: Any, *, n: int = 256, seed: int = 0, split: Split = "held_out"
) -> Task:
    """The task of that name, or of that file.

    Args:
        name_or_path: `ioi`, or a file that ends in .json or .csv.
        tokenizer: a transformers tokenizer, as `model.tokenizer`.
        n: prompts; a longer file is sampled without replacement, its order kept; a shorter one is
            taken whole.
        seed: of the prompts, or of the sample.
        split: pairs of names of `ioi`; a file has no splits.

    Raises:
        TaskError: an unknown name, or a file that is not a task.
    """
    if tokenizer is None:
        raise TaskError("a task needs the model's tokenizer; this model has none")
    if not 1 <= n <= 1_000_000:
        raise TaskError(f"n must be at least 1 prompt and at most 1,000,000; got {n}")
    if str(name_or_path) == "ioi":
        return ioi_task(tokenizer, n=n, seed=seed, split=split)
    if Path(name_or_path).suffix.lower() not in READERS:
        raise TaskError(f"a task is ioi, or a file that ends in {' or '.join(READERS)}; got {str(name_or_path)!r}")
    task = task_from_file(name_or_path, tokenizer)
    return task if task.n <= n else task.subset(sorted(random.Random(seed).sample(range(task.n), n)))
