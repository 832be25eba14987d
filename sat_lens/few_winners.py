"""Masked units through their output weights, where the k winners are few: only their rows are touched.

A hard mask leaves k of the units u of a token, so that with winners i_1 .. i_k

    out = sum_j u_j W_out[i_j] + b_out        neurons: u_j = act(x . W_in[:, i_j] + b_in[i_j])

and all gradients but the scores' concern those k alone. The scores' is that of the soft mask, which
every unit has a part in: dL/dmask_i = u_i <dout, W_out[i]>. It is made in the backward pass, for a few
hundred tokens at a time, and becomes dL/dscores before the next are begun: no tensor of all units is
kept but the scores.

On a CPU sums of k rows cost a tenth of the dense product or less; accelerators multiply dense
matrices faster.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sat_lens.config import SelfAblation
from sat_lens.products import Activation, activated, product
from sat_lens.winners import Border, SoftMask, ranked

FEW = 16  # times as many units as winners, at least: there both ways cost about the same
BLOCK = 2**18  # units of all tokens of a block: they stay in a core's cache


def are_few(ablation: SelfAblation, device: str | torch.device, attn_units: int, neurons: int) -> bool:
    """Whether each layer has its own few winners among channels and neurons, on a device where that pays."""
    return (
        torch.device(device).type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and (ablation.forward, ablation.unit, ablation.scope) == ("hard", "channel", "layer")
        and FEW * ablation.k_attn <= attn_units
        and FEW * ablation.k_mlp <= neurons
    )


def channels_out(
    z: Float[Tensor, "batch pos unit"],
    scores: Float[Tensor, "batch pos unit"],
    weight: Float[Tensor, "unit d_model"],
    bias: Float[Tensor, " d_model"],
    soft: SoftMask,
) -> Float[Tensor, "batch pos d_model"]:
    """(z * mask) @ weight + bias."""
    return _Channels.apply(z.flatten(0, 1), scores.flatten(0, 1), weight, bias, soft).view(*z.shape[:2], -1)


def neurons_out(
    x: Float[Tensor, "batch pos d_model"],
    scores: Float[Tensor, "batch pos unit"],
    w_in: Float[Tensor, "d_model unit"],
    b_in: Float[Tensor, " unit"],
    w_out: Float[Tensor, "unit d_model"],
    b_out: Float[Tensor, " d_model"],
    act: Activation,
    soft: SoftMask,
) -> Float[Tensor, "batch pos d_model"]:
    """(act(x @ w_in + b_in) * mask) @ w_out + b_out."""
    out = _Neurons.apply(x.flatten(0, 1), scores.flatten(0, 1), w_in.T.contiguous(), b_in, w_out, b_out, act, soft)
    return out.view(x.shape)


class _Channels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, scores: Tensor, weight: Tensor, bias: Tensor, soft: SoftMask) -> Tensor:
        winners, border = ranked(scores, soft.k)
        ctx.save_for_backward(z, scores, weight, winners, *border)
        ctx.soft = soft
        return _sums(weight, winners, z.gather(1, winners)).add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, scores, weight, winners, *border = ctx.saved_tensors
        of_scores, of_chosen = _back(
            grad, weight, lambda part: z[part], scores, winners, Border(*border), ctx.soft, ctx.needs_input_grad[1]
        )
        of_z = torch.zeros_like(z).scatter_(1, winners, of_chosen)
        return of_z, of_scores, _spread(z.gather(1, winners), grad, winners, len(weight)), grad.sum(0), None


class _Neurons(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scores: Tensor,
        w_in: Float[Tensor, "unit d_model"],
        b_in: Tensor,
        w_out: Tensor,
        b_out: Tensor,
        act: Activation,
        soft: SoftMask,
    ) -> Tensor:
        winners, border = ranked(scores, soft.k)
        pre = _dots(x, w_in, winners) + b_in[winners]
        ctx.save_for_backward(x, scores, w_in, b_in, w_out, pre, winners, *border)
        ctx.act, ctx.soft = act, soft
        return _sums(w_out, winners, act(pre)).add_(b_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scores, w_in, b_in, w_out, pre, winners, *border = ctx.saved_tensors

        def neurons(part: slice) -> Tensor:
            return activated(x[part], w_in, b_in, ctx.act)

        of_scores, of_chosen = _back(
            grad, w_out, neurons, scores, winners, Border(*border), ctx.soft, ctx.needs_input_grad[1]
        )
        activation, of_pre = with_gradient(ctx.act, pre, of_chosen)
        return (
            _sums(w_in, winners, of_pre),
            of_scores,
            _spread(of_pre, x, winners, len(w_in)),
            torch.zeros_like(b_in).index_add_(0, winners.flatten(), of_pre.flatten()),
            _spread(activation, grad, winners, len(w_out)),
            grad.sum(0),
            None,
            None,
        )


def with_gradient(act: Activation, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """act(x), and the gradient of x where that of act(x) is `grad`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        activation = act(x)
    return activation.detach(), torch.autograd.grad(activation, x, grad)[0]


def _sums(
    weight: Float[Tensor, "unit d_model"], winners: Int[Tensor, "row k"], factors: Float[Tensor, "row k"]
) -> Float[Tensor, "row d_model"]:
    """The sum of the winners' rows of `weight`, each times its factor."""
    return F.embedding_bag(winners, weight, per_sample_weights=factors, mode="sum")


def _dots(
    rows: Float[Tensor, "row d_model"], weight: Float[Tensor, "unit d_model"], winners: Int[Tensor, "row k"]
) -> Float[Tensor, "row k"]:
    """<row, weight[winner]>, which is the gradient of the factors in `_sums`."""
    with torch.enable_grad():
        factors = rows.new_zeros(winners.shape).requires_grad_()
        sums = _sums(weight.detach(), winners, factors)
    return torch.autograd.grad(sums, factors, rows)[0]


def _spread(
    factors: Float[Tensor, "row k"], rows: Float[Tensor, "row d_model"], winners: Int[Tensor, "row k"], n_units: int
) -> Float[Tensor, "unit d_model"]:
    """What the rows, times their factors, add up to at each unit: the gradient of the weight in `_sums`."""
    tokens = torch.arange(len(rows), device=rows.device).repeat_interleave(winners.shape[1])
    places, shape = torch.stack([winners.flatten(), tokens]), (n_units, len(rows))
    return torch.sparse_coo_tensor(places, factors.flatten(), shape, check_invariants=False) @ rows


def _back(
    grad: Float[Tensor, "row d_model"],
    weight: Float[Tensor, "unit d_model"],
    units: Callable[[slice], Tensor],
    scores: Float[Tensor, "row unit"],
    winners: Int[Tensor, "row k"],
    border: Border,
    soft: SoftMask,
    wanted: bool,
) -> tuple[Float[Tensor, "row unit"] | None, Float[Tensor, "row k"]]:
    """dL/dscores, where it is wanted, and dL/du of the winners.

    Args:
        units: the units before the mask, of some rows.
    """
    of_scores = torch.empty_like(scores) if wanted else None
    of_chosen, size = grad.new_empty(winners.shape), max(1, BLOCK // scores.shape[1])
    for start in range(0, len(scores), size):
        part = slice(start, start + size)
        of_masked = product(grad[part], weight)
        of_chosen[part] = of_masked.gather(1, winners[part])
        if of_scores is not None:
            of_mask = of_masked.mul_(units(part))
            soft.gradient(of_mask, scores[part], Border(*(of[part] for of in border)), out=of_scores[part])
    return of_scores, of_chosen
