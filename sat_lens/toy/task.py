"""A toy model's operator as a task of `sat_lens.tasks`, so that what is asked of other models can be asked of it.

The prompt is `B12+7E`, the counterfactual the same operands under the other operator, `B12C7E`; the right answer is the
first token of the prompt's answer, the wrong one that of the counterfactual's.
"""

import torch

from sat_lens.tasks.task import Task
from sat_lens.toy.arithmetic import TASKS, TaskData, task_number


def operator_task(data: TaskData, task: str, part: str = "all", n: int = 128, seed: int = 0) -> Task:
    """Up to `n` problems of one task, each with its other operator as the counterfactual.

    Pairs of operands whose two answers begin with the same token are left out.

    Raises:
        ValueError: an unknown task or part, or sources of different lengths (character tokens).
    """
    place = task_number(task)
    problems = data.part(part).of(task)
    if (problems.source == data.tokenizer.pad).any():
        raise ValueError("prompts must have one length, as the tokens of whole numbers do; these are padded")
    rows = (problems.left * data.operands + problems.right) * len(TASKS) + (1 - place)
    others = data.problems.subset(rows)
    differ = (problems.answer[:, 0] != others.answer[:, 0]).nonzero().flatten()
    kept = differ[torch.randperm(len(differ), generator=torch.Generator().manual_seed(seed))[:n]]
    problems, others = problems.subset(kept), others.subset(kept)
    end = torch.full((len(kept),), problems.source.shape[1] - 1)
    return Task(
        f"{task} of two numbers", problems.source, others.source, problems.answer[:, 0], others.answer[:, 0],
        {"operator": torch.full_like(end, 2), "end": end}, tuple(problems.texts()),
    )  # fmt: skip
