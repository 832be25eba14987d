"""What is measured: each number with its unit, range and sign."""

from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def logit_difference(
    logits: Float[Tensor, "*batch d_vocab"], answers: Int[Tensor, "*batch"], wrong_answers: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Logit of the answer minus logit of the wrong answer. Logits (nats), any real; positive is right."""
    right, wrong = (logits.gather(-1, ids[..., None])[..., 0] for ids in (answers, wrong_answers))
    return right - wrong


def accuracy(logit_differences: Float[Tensor, " n"]) -> float:
    """Share of prompts whose answer beats the wrong answer (logit difference > 0). 0..1, chance 0.5."""
    return (logit_differences > 0).double().mean().item()


def top_1_accuracy(logits: Float[Tensor, "*batch d_vocab"], answers: Int[Tensor, "*batch"]) -> float:
    """Share of prompts whose answer has the largest logit of the whole vocabulary. 0..1."""
    return (logits.argmax(-1) == answers).double().mean().item()


def cross_entropy(logits: Float[Tensor, "*batch d_vocab"], targets: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Minus the log-probability of the target. Nats a token, from 0 up; lower is better."""
    return logits.logsumexp(-1) - logits.gather(-1, targets[..., None])[..., 0]


def kl_divergence(
    logits: Float[Tensor, "*batch d_vocab"], other: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(p of `logits` || p of `other`): what predicting with `other` costs when `logits` is the truth.

    Nats a token, from 0 up; 0 where both predict the same. Not symmetric.
    """
    p, q = F.log_softmax(logits, -1), F.log_softmax(other, -1)
    return (p.exp() * (p - q)).nan_to_num(nan=0.0).sum(-1)


def loss_recovered(loss: float, intact: float, ablated: float) -> float:
    """Share of the damage that is undone: (ablated - loss) / (ablated - intact).

    1 at the intact model's loss, 0 at the ablated model's; below 0 when worse than ablated, above 1
    when better than intact. NaN when the ablation does no damage.
    """
    return (ablated - loss) / (ablated - intact) if ablated != intact else float("nan")


def gini(values: Any, axis: int = -1) -> Any:
    """Gini coefficient of the absolute values: sum_i (2i - n - 1) x_(i) / (n sum_i x_i), ascending x_(i).

    0 (all equal) .. 1 - 1/n (one unit has it all); n = number of values. All zero counts as equal.
    """
    x = np.sort(np.abs(np.asarray(values, dtype=np.float64)), axis=axis)
    x = np.moveaxis(x, axis, -1)
    n = x.shape[-1]
    if n == 0:
        raise ValueError("a Gini coefficient needs at least 1 value; got none")
    total = x.sum(-1)
    weighted = (x * (2 * np.arange(1, n + 1) - n - 1)).sum(-1)
    return np.divide(weighted, n * total, out=np.zeros_like(total), where=total > 0)


def concentration_curve(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Share of units (x) against the share of the total |value| that the largest of them hold (y).

    Both 0..1 and start at (0, 0); the diagonal is "all equal". All zero counts as equal.
    """
    x = np.sort(np.abs(np.asarray(values, dtype=np.float64)))[::-1]
    x = x if x.sum() > 0 else np.ones_like(x)
    return np.arange(len(x) + 1) / len(x), np.concatenate([[0.0], np.cumsum(x) / x.sum()])


def top_share(values: Any, share: float, axis: int = -1) -> Any:
    """Share of the total |value| in the largest `share` of the units (at least one unit). 0..1."""
    x = np.moveaxis(np.sort(np.abs(np.asarray(values, dtype=np.float64)), axis=axis), axis, -1)[..., ::-1]
    top = max(1, round(share * x.shape[-1]))
    total = x.sum(-1)
    return np.divide(x[..., :top].sum(-1), total, out=np.full_like(total, top / x.shape[-1]), where=total > 0)
