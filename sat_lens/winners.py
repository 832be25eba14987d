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
FAR_BELOW = -60.0  # sigmoid there is 1e-26: nothing changes, and no denormal numbers slow the backward pass


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
        ctx.save_for_backward(scores, values[..., k - 1 :].clone(), indices[..., k - 1 :].clone())
        ctx.k, ctx.temperature, ctx.estimator, ctx.gap_floor = k, temperature, estimator, gap_floor
        if forward == "hard":
            return _hard(scores, indices[..., :k])
        scaled, _ = _scaled(scores, values[..., k - 1 :], temperature, gap_floor)
        if estimator == "softmax":
            return scaled.softmax(-1)
        gate = scaled.sigmoid_()
        return gate * (k / gate.sum(-1, keepdim=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        scores, values, border = ctx.saved_tensors
        scaled, width = _scaled(scores, values, ctx.temperature, ctx.gap_floor)
        if ctx.estimator == "sigmoid":
            gate = scaled.sigmoid()
            total = gate.sum(-1, keepdim=True)
            centred = grad - (grad * gate).sum(-1, keepdim=True) / total
            inner = torch.ops.aten.sigmoid_backward(centred.mul_(ctx.k / (total * width)), gate)
        else:
            gate = scaled.softmax(-1)
            inner = gate * (grad - (grad * gate).sum(-1, keepdim=True)) / width
        threshold = -inner.sum(-1, keepdim=True) / 2
        gap_counts = values[..., :1] - values[..., 1:] >= ctx.gap_floor
        spread = -scaled.mul_(inner).sum(-1, keepdim=True) * ctx.temperature * gap_counts
        inner.scatter_add_(-1, border, torch.cat([threshold + spread, threshold - spread], -1))
        return inner, None, None, None, None, None


def _scaled(scores: Tensor, values: Tensor, temperature: float, gap_floor: float) -> tuple[Tensor, Tensor]:
    """a and tau of every row; `values` are x_k and x_{k+1}."""
    last, first_out = values.split(1, -1)
    width = (last - first_out).clamp(min=gap_floor) * temperature + EPSILON
    return (scores - (last + first_out) / 2).div_(width).clamp_(min=FAR_BELOW), width
