"""How many bits the labels cost someone who knows the features: the online (prequential) code.

Stories come in a random order, in blocks that double in size. The first block is sent at log2(classes) bits a
label; each further one at -log2 p of a probe fitted on all blocks before it. The whole is sent once with each
penalty, and the shortest is kept, for log2(penalties) bits that say which. A probe that reads the label well from
few rows makes a short code, however accurate the last one is. Compression: bits of the uniform code over bits of
this one.

`prior_bits` is the same code without features: the running shares of the classes, each class counted once more
than seen.

Source: Voita and Titov, arXiv 2003.12298, section 2.2; differs: blocks end where a story ends, and a penalty takes the
place of stopping early.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.probing.linear import TOLERANCE, fit

BLOCKS: tuple[float, ...] = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
"""Where blocks end, in shares of the stories."""


@dataclasses.dataclass(frozen=True)
class Code:
    """An online code of the labels.

    Args:
        bits: of each label.
        prior_bits: of each label, without features.
        penalty: of the shortest code.
        overhead: bits that say which penalty.
        uniform: bits of a label if all classes are equally likely.
    """

    bits: Float[np.ndarray, " row"]
    prior_bits: Float[np.ndarray, " row"]
    penalty: float
    overhead: float
    uniform: float

    @property
    def total(self) -> float:
        """Bits of all labels, with the overhead."""
        return float(self.bits.sum()) + self.overhead

    @property
    def compression(self) -> float:
        """Bits of the uniform code over bits of this one; 1 where nothing is gained."""
        return len(self.bits) * self.uniform / self.total


def blocks(story: Int[Tensor, " row"], seed: int = 0, ends: Sequence[float] = BLOCKS) -> Int[Tensor, " row"]:
    """The block of each row: stories in an order of the seed's, at least one in the first block."""
    names, row = story.unique(return_inverse=True)
    place = torch.empty(len(names), dtype=torch.long)
    place[torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))] = torch.arange(len(names))
    edges = torch.tensor([max(1, round(end * len(names))) for end in ends])
    return torch.bucketize(place, edges, right=True).clamp(max=len(ends) - 1)[row]


def online_code(
    x: Float[Tensor, "row unit"],
    labels: Int[Tensor, " row"],
    block: Int[Tensor, " row"],
    n_classes: int,
    penalties: Sequence[float],
    tolerance: float = TOLERANCE,
) -> Code:
    """Code the labels block by block.

    Args:
        x: standardized features.
        labels: classes, from 0.
        block: of each row, of `blocks`; a block may be empty.
        n_classes: classes.
        penalties: c, of which the best is taken.
        tolerance: of the fits.

    Cost: penalties x blocks fits, on twice the rows in all.
    """
    uniform = float(np.log2(n_classes))
    present = block.unique().tolist()
    bits = torch.full((len(penalties), len(x)), uniform, dtype=torch.float64)
    prior = torch.full((len(x),), uniform, dtype=torch.float64)
    for b in present[1:]:
        before, now = (block < b).nonzero()[:, 0], (block == b).nonzero()[:, 0]
        known = labels[before].expand(len(penalties), -1)
        probes = fit(
            x[before], known, torch.ones_like(known, dtype=torch.bool), torch.tensor(penalties), n_classes,
            tolerance=tolerance,
        )  # fmt: skip
        right = labels[now].expand(1, len(penalties), -1)
        bits[:, now] = -probes.log_probabilities(x[now]).gather(0, right)[0].double() / np.log(2)
        counts = torch.bincount(labels[before], minlength=n_classes).double() + 1
        prior[now] = -(counts / counts.sum()).log2()[labels[now]]
    best = int(bits.sum(1).argmin())
    return Code(bits[best].numpy(), prior.numpy(), float(penalties[best]), float(np.log2(len(penalties))), uniform)
