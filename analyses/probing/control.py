"""Labels that a probe should not be able to read: what it reads of them nevertheless is its own doing.

The control task gives each token type a class at random, drawn from the classes' shares among the rows. A probe
that does as well on it as on the task has memorised types. Selectivity is the accuracy on the task minus that on
the control. The shuffle deals the labels out anew over all rows: nothing is left to read.

Where the label is no function of the token (names so far, the holder), the control can be easier than the task, and
selectivity is then below 0 for a good probe; the untrained model and the description length are the comparison to read.

Source: Hewitt and Liang, arXiv 1909.03368; differs: one draw a fold, so that intervals cover the draw.
"""

import torch
from jaxtyping import Int
from torch import Tensor


def control_labels(
    types: Int[Tensor, " row"], labels: Int[Tensor, " row"], n_draws: int, seed: int = 0
) -> Int[Tensor, "draw row"]:
    """A class for each token type, the same wherever the type stands; another assignment a draw."""
    generator = torch.Generator().manual_seed(seed)
    names, of_row = types.unique(return_inverse=True)
    chosen = torch.randint(len(labels), (n_draws, len(names)), generator=generator)
    return labels[chosen][:, of_row]


def shuffled(labels: Int[Tensor, " row"], n_draws: int, seed: int = 0) -> Int[Tensor, "draw row"]:
    """The labels in another order; another order a draw."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(n_draws)])
