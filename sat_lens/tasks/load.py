"""A task by its name, or from a file by its path."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sat_lens.tasks.agreement import agreement_task
from sat_lens.tasks.files import READERS, task_from_file
from sat_lens.tasks.gendered_pronoun import gendered_pronoun_task
from sat_lens.tasks.greater_than import greater_than_task
from sat_lens.tasks.induction import induction_task
from sat_lens.tasks.ioi import ioi_task
from sat_lens.tasks.names import TASKS
from sat_lens.tasks.repeated_name import repeated_name_task
from sat_lens.tasks.task import Task, TaskError

_GENERATORS: dict[str, Callable[..., Task]] = {
    "gendered_pronoun": gendered_pronoun_task,
    "induction": induction_task,
    "repeated_name": repeated_name_task,
    "agreement": agreement_task,
    "greater_than": greater_than_task,
}


def load_task(
    name_or_path: str | Path,
    tokenizer: Any,
    *,
    n: int = 256,
    seed: int = 0,
    split: str = "held_out",
    corrupt: str | None = None,
) -> Task:
    """The task of that name, or of that file.

    Args:
        name_or_path: one of `names.TASKS`, or a file that ends in .json or .csv.
        tokenizer: a transformers tokenizer, as `model.tokenizer`.
        n: prompts; a longer file is sampled without replacement, its order kept; a shorter one is
            taken whole.
        seed: of the prompts, or of the sample.
        split: pairs of names of `ioi`; nothing else has splits.
        corrupt: how counterfactuals differ, one of `names.CORRUPTIONS[name]`, its first by default; a
            file has its own.

    Raises:
        TaskError: an unknown name or corruption, a file that is not a task, a tokenizer that the task
            does not fit.
    """
    if tokenizer is None:
        raise TaskError("a task needs the model's tokenizer; this model has none")
    if not 1 <= n <= 1_000_000:
        raise TaskError(f"n must be at least 1 prompt and at most 1,000,000; got {n}")
    name = str(name_or_path)
    if name == "ioi":
        return ioi_task(tokenizer, n=n, seed=seed, split=split, corrupt=corrupt)
    if name in _GENERATORS:
        return _GENERATORS[name](tokenizer, n=n, seed=seed, corrupt=corrupt)
    if Path(name_or_path).suffix.lower() not in READERS:
        raise TaskError(f"a task is {', '.join(TASKS)}, or a file that ends in {' or '.join(READERS)}; got {name!r}")
    if corrupt is not None:
        raise TaskError(f"a file has counterfactuals of its own; got corrupt={corrupt!r} for {Path(name).name}")
    task = task_from_file(name_or_path, tokenizer)
    return task if task.n <= n else task.subset(sorted(random.Random(seed).sample(range(task.n), n)))
