"""Losses of a stream that is no surer of itself than it has reason to be.

Under masks that mean nothing to it, such as those of random heads, the ablated stream is wrong with great
confidence: 13 bits a token and more, most of it noise that differs from draw to draw. So logits are multiplied by
one s in 0..1, that at which the own masks do best; the same s serves every variant of these masks. A trained
stream has s = 1 or near it.
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.leakage.observed import Observed
from analyses.leakage.variants import BITS, Read
from analyses.metrics import cross_entropy

SCALES: tuple[float, ...] = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0)


def scaled_bits(observed: Observed) -> Read:
    """Loss of the next token, bits, under logits multiplied by each of `SCALES`: [position, scale]."""

    def read(rows: np.ndarray, logits: Tensor) -> np.ndarray:
        targets = torch.from_numpy(observed.target[rows]).to(logits.device)
        losses = [cross_entropy(scale * logits, targets) for scale in SCALES]
        return torch.stack(losses, -1).double().numpy(force=True) / BITS

    return read


def at_best_scale(
    losses: Mapping[str, Float[np.ndarray, "position scale"]], own: str
) -> tuple[dict[str, Float[np.ndarray, " position"]], float]:
    """The losses at the scale with the least mean loss of the `own` ones, and that scale."""
    best = int(losses[own].mean(0).argmin())
    return {name: loss[:, best] for name, loss in losses.items()}, SCALES[best]
