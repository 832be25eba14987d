"""Folds of stories: no story is ever on two sides of a split.

With F folds, the probe of fold f trains on F - 2 of them, takes its penalty by the loss on fold f + 1, and is judged on
fold f, so that every row is judged once, by a probe whose story it has not seen in any way.
"""

import dataclasses

import torch
from jaxtyping import Bool, Int
from torch import Tensor

FEWEST = 3
"""Folds: one to train on, one for the penalty, one to judge."""


@dataclasses.dataclass(frozen=True)
class Folds:
    """The fold of each row, by its story.

    Args:
        of_row: fold of each row.
        n: folds.
    """

    of_row: Int[Tensor, " row"]
    n: int

    def train(self, fold: int) -> Bool[Tensor, " row"]:
        """Rows that the probe of this fold is fitted on."""
        return ~(self.judged(fold) | self.validation(fold))

    def validation(self, fold: int) -> Bool[Tensor, " row"]:
        """Rows by which its penalty is chosen."""
        return self.of_row == (fold + 1) % self.n

    def judged(self, fold: int) -> Bool[Tensor, " row"]:
        """Rows by which it is judged."""
        return self.of_row == fold


def folds(story: Int[Tensor, " row"], n: int, seed: int = 0) -> Folds:
    """Deal the stories out to `n` folds of like size, in an order of the seed's.

    Raises:
        ValueError: fewer than three folds, or fewer stories than folds.
    """
    if n < FEWEST:
        raise ValueError(f"folds must be at least {FEWEST}: to train, to choose the penalty, to judge; got {n}")
    names, row = story.unique(return_inverse=True)
    if len(names) < n:
        raise ValueError(f"{n} folds need at least {n} stories with labels; got {len(names)}")
    fold = torch.empty(len(names), dtype=torch.long)
    fold[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))] = torch.arange(len(names)) % n
    return Folds(fold[row], n)
