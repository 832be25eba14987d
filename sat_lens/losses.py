"""The three losses of a self-ablating transformer, in nats a token.

    total = w_clean CE(clean) + w_ablated CE(ablated) + w_reconstruction R

R is the mean, over the residual stream after each layer and after the final norm, of the mean
squared difference between the two streams' L2-normalised rows (mean over elements: dimensionless,
0..4/d_model). Source: arXiv 2505.00509 and its code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sat_lens.config import SelfAblation


class Losses(NamedTuple):
    """Scalars. A model without a mask has `total` equal to `clean`, and None for the other two."""

    total: Float[Tensor, ""]
    clean: Float[Tensor, ""]
    ablated: Float[Tensor, ""] | None = None
    reconstruction: Float[Tensor, ""] | None = None


def weighted(
    ablation: SelfAblation, clean: Tensor, ablated: Tensor, streams: tuple[Sequence[Tensor], Sequence[Tensor]]
) -> Losses:
    """The weighted sum, with its parts.

    Args:
        streams: the arguments of `reconstruction_loss`, which is 0, not computed, where its weight is 0.
    """
    distance = reconstruction_loss(*streams) if ablation.w_reconstruction else torch.zeros_like(clean)
    total = ablation.w_clean * clean + ablation.w_ablated * ablated + ablation.w_reconstruction * distance
    return Losses(total, clean, ablated, distance)


def reconstruction_loss(
    clean: Sequence[Float[Tensor, "batch pos d_model"]], ablated: Sequence[Float[Tensor, "batch pos d_model"]]
) -> Float[Tensor, ""]:
    """R above; the streams after each layer and after the final norm, in the same order in both."""
    distances = [
        F.mse_loss(F.normalize(x, dim=-1), F.normalize(y, dim=-1)) for x, y in zip(clean, ablated, strict=True)
    ]
    return torch.stack(distances).mean()


def cross_entropy(logits: Float[Tensor, "batch pos d_vocab"], targets: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean over tokens, nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
