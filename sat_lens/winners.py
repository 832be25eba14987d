"""k winners take all: a hard mask forward, a soft mask backward.

For scores s sorted in descending order, with x_k and x_{k+1} the k-th and the next:

    gamma = (x_k + x_{k+1}) / 2          the threshold, half way
    tau   = (x_k - x_{k+1}) * T          the width, in gaps
    a_i   = (s_i - gamma) / (tau + 1e-12)
    soft  = k sigmoid(a) / sum sigmoid(a)          estimator "sigmoid", the paper's code
    soft  = softmax(a)                             estimator "softmax", the paper's text
    hard  = 1 on the k largest, 0 elsewhere

The forward value is `hard` (or `soft`), the gradient always that of `soft`, through gamma, tau and
the normaliser. It grows as 1/(x_k - x_{k+1}), so float32 gradients of two correct programs can
differ by percents; `gap_floor` bounds it.

Source: arXiv 2505.00509, section 3, and its code; the closed-form backward pass is ours.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-12


def k_winners(
    scores: Float[Tensor, "... unit"],
    k: int,
    *,
    temperature: float = 1.0,
    estimator: str = "sigmoid",
    forward: str = "hard",
    gap_floor: float = 0.0,
) -> Float[Tensor, "... unit"]:
    """The mask of the k largest scores in each row.

    A hard row has exactly k ones, ties included (torch.topk decides between equals); a soft row
    sums to k ("sigmoid"; single weights can exceed 1) or to 1 ("softmax"). k = unit gives ones.

    Args:
        k: winners a row, 1..unit.
        gap_floor: smallest gap x_k - x_{k+1} used in tau; the gradient through the gap is 0 below it.

    Raises:
        ValueError: k outside 1..unit.
    """
    width = scores.shape[-1]
    if not 1 <= k <= width:
        raise ValueError(f"k must be between 1 and the {width} units of a row; got {k}")
    if k == width:
        return torch.ones_like(scores)
    if forward == "hard" and not (torch.is_grad_enabled() and scores.requires_grad):
        return _hard(scores, scores.topk(k, sorted=False).indices)
    return _KWinners.apply(scores, k, temperature, estimator, forward, gap_floor)


def _hard(scores: Tensor, winners: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter_(-1, winners, 1.0)


class _KWinners(torch.autograd.Function):
    """Forward as above. Backward, for g = dL/dsoft, with h = dL/da:

    sigmoid:  h = k/U (g - <g, u>/U) u (1 - u),  U = sum u        softmax:  h = p (g - <g, p>)
    dL/ds     = h / tau'
    dL/dgamma = -sum h / tau'                  shared equally by x_k and x_{k+1}
    dL/dtau   = -sum h a / tau'                times +T for x_k and -T for x_{k+1}
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, k: int, temperature: float, estimator: str, forward: str, gap_floor: float
    ) -> Tensor:
        values, indices = scores.topk(k + 1)
        last, first_out = values[..., k - 1 : k], values[..., k : k + 1]
        gap = last - first_out
        width = gap.clamp(min=gap_floor) * temperature + EPSILON
        scaled = (scores - (last + first_out) / 2) / width
        if estimator == "sigmoid":
            soft = scaled.sigmoid()
            soft = soft * (k / soft.sum(-1, keepdim=True))
        else:
            soft = scaled.softmax(-1)
        ctx.save_for_backward(scaled, width, gap >= gap_floor, indices[..., k - 1 : k + 1])
        ctx.k, ctx.temperature, ctx.estimator = k, temperature, estimator
        return _hard(scores, indices[..., :k]) if forward == "hard" else soft

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        scaled, width, gap_counts, border = ctx.saved_tensors
        if ctx.estimator == "sigmoid":
            gate = scaled.sigmoid()
            total = gate.sum(-1, keepdim=True)
            centred = grad - (grad * gate).sum(-1, keepdim=True) / total
            inner = centred * gate * (1 - gate) * (ctx.k / total)
        else:
            gate = scaled.softmax(-1)
            inner = gate * (grad - (grad * gate).sum(-1, keepdim=True))
        inner = inner / width
        threshold = -inner.sum(-1, keepdim=True) / 2
        spread = -(inner * scaled).sum(-1, keepdim=True) * ctx.temperature * gap_counts
        inner.scatter_add_(-1, border, torch.cat([threshold + spread, threshold - spread], -1))
        return inner, None, None, None, None, None
