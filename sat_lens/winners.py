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

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

EPSILON = 1e-12
COLUMNS = 32
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
        return _hard(scores, ranked(scores, k)[0])
    return _KWinners.apply(scores, SoftMask(k, temperature, estimator, gap_floor), forward)


def _hard(scores: Tensor, winners: Tensor) -> Tensor:
    return torch.zeros_like(scores).scatter_(-1, winners, 1.0)


class Border(NamedTuple):
    """x_k and x_{k+1} of each row, and where they stand."""

    values: Float[Tensor, "*row 2"]
    places: Int[Tensor, "*row 2"]


def ranked(scores: Float[Tensor, "*row unit"], k: int) -> tuple[Int[Tensor, "*row {k}"], Border]:
    """The places of the k largest scores of each row, and the border between them and the others."""
    values, places = _largest(scores, k + 1)
    return places[..., :k].contiguous(), Border(values[..., k - 1 :].clone(), places[..., k - 1 :].clone())


def _largest(scores: Float[Tensor, "*row unit"], n: int) -> tuple[Float[Tensor, "*row {n}"], Int[Tensor, "*row {n}"]]:
    """The n largest of each row, in order, and their places: `torch.topk`, sooner where rows are short.

    On a CPU torch.topk is quick with rows of 64 n and more. In a shorter one that is folded into COLUMNS
    columns, the n largest stand in the n columns with the largest maxima.
    """
    width = scores.shape[-1]
    if scores.device.type != "cpu" or not 4 * COLUMNS <= width < 64 * n or width % COLUMNS or 4 * n > COLUMNS:
        return scores.topk(n)
    columns = scores.unflatten(-1, (-1, COLUMNS)).amax(-2).topk(n).indices
    places = (columns.unsqueeze(-2) + torch.arange(0, width, COLUMNS)[:, None]).flatten(-2)
    values, among = scores.gather(-1, places).topk(n)
    return values, places.gather(-1, among)


class SoftMask(NamedTuple):
    """The soft mask, which is what the hard one has its gradient of; arguments as of `k_winners`."""

    k: int
    temperature: float
    estimator: str
    gap_floor: float

    def value(self, scores: Float[Tensor, "*row unit"], border: Border) -> Float[Tensor, "*row unit"]:
        scaled, _ = self._scaled(scores, border)
        if self.estimator == "softmax":
            return scaled.softmax(-1)
        gate = scaled.sigmoid_()
        return gate * (self.k / gate.sum(-1, keepdim=True))

    def gradient(
        self,
        grad: Float[Tensor, "*row unit"],
        scores: Float[Tensor, "*row unit"],
        border: Border,
        out: Float[Tensor, "*row unit"],
    ) -> None:
        """Write dL/ds into `out` for g = dL/dsoft in `grad`, which is used up. With h = dL/da:

        sigmoid:  h = k/U (g - <g, u>/U) u (1 - u),  U = sum u        softmax:  h = p (g - <g, p>)
        dL/ds     = h / tau'
        dL/dgamma = -sum h / tau'                  shared equally by x_k and x_{k+1}
        dL/dtau   = -sum h a / tau'                times +T for x_k and -T for x_{k+1}
        """
        scaled, width = self._scaled(scores, border)
        if self.estimator == "sigmoid":
            gate = scaled.sigmoid()
            total = gate.sum(-1, keepdim=True)
            grad.sub_(torch.mul(grad, gate, out=out).sum(-1, keepdim=True) / total)
            torch.ops.aten.sigmoid_backward.grad_input(grad.mul_(self.k / (total * width)), gate, grad_input=out)
        else:
            gate = scaled.softmax(-1)
            grad.sub_(torch.mul(grad, gate, out=out).sum(-1, keepdim=True))
            torch.mul(gate.div_(width), grad, out=out)
        threshold = -out.sum(-1, keepdim=True) / 2
        gap_counts = border.values[..., :1] - border.values[..., 1:] >= self.gap_floor
        spread = -scaled.mul_(out).sum(-1, keepdim=True) * self.temperature * gap_counts
        out.scatter_add_(-1, border.places, torch.cat([threshold + spread, threshold - spread], -1))

    def _scaled(self, scores: Tensor, border: Border) -> tuple[Tensor, Tensor]:
        """a and tau of every row."""
        last, first_out = border.values.split(1, -1)
        width = (last - first_out).clamp(min=self.gap_floor) * self.temperature + EPSILON
        return (scores - (last + first_out) / 2).div_(width).clamp_(min=FAR_BELOW), width


class _KWinners(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, soft: SoftMask, forward: str) -> Tensor:
        winners, border = ranked(scores, soft.k)
        ctx.save_for_backward(scores, *border)
        ctx.soft = soft
        return _hard(scores, winners) if forward == "hard" else soft.value(scores, border)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        scores, *border = ctx.saved_tensors
        of_scores = torch.empty_like(scores)
        ctx.soft.gradient(grad.clone(), scores, Border(*border), out=of_scores)
        return of_scores, None, None
