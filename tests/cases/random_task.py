"""A task that nothing solves: random prompts of three lengths, for what must not depend on how work is divided."""

import torch

from sat_lens.tasks import Task


def random_task(n: int) -> Task:
    """At most 7 prompts of 29 ids, with counterfactuals; an answer and another id each."""
    draw = torch.Generator().manual_seed(3)
    clean, corrupt = (torch.randint(29, (n, 8), generator=draw) for _ in range(2))
    answers = torch.randint(29, (n,), generator=draw)
    ends = torch.tensor([7, 4, 7, 5, 4, 7, 7])[:n]
    return Task("random", clean, corrupt, answers, (answers + 1) % 29, {"end": ends})
