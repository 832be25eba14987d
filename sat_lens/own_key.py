"""The ablated stream's attention by a fused kernel, with its exact gradient.

The query at t attends to clean keys and values of j < t, and to its own key k'_t and value v'_t:

    strict past   queries 1..T-1 over clean keys 0..T-2, causal: o_t and its log-sum-exp lse_t
    own key       w_t = sigmoid(q_t . k'_t / scale - lse_t);  z_t = o_t + w_t (v'_t - o_t);  z_0 = v'_0

Backward, PyTorch's kernel gives dS = P (dP - delta) with delta = <dO, O>, and forgets the gradient g
that reaches lse, which adds P g, that is delta' = delta - g. Handing the kernel
O' = O - g dO / <dO, dO> in the place of O makes its own delta the right one; where dO is 0, so is g.

Both kernels (`_scaled_dot_product_flash_attention_for_cpu`, `_scaled_dot_product_efficient_attention`
on CUDA) are internals of PyTorch. So `kernel_is_right` tries them once in a process against
`sat_lens.attention`, gradients included; where they are missing or differ, callers write it out.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sat_lens.attention import mixed_values, own_key_pattern

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}


class OwnKeyAttention(torch.autograd.Function):
    """z of the ablated stream, [batch n_heads pos d_head] throughout; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_own: Tensor, v_own: Tensor, scale: float) -> Tensor:
        if q.shape[2] == 1:
            ctx.save_for_backward()
            return v_own.clone()
        past, lse, *rest = _causal(q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], scale)
        own = (q[:, :, 1:] * k_own[:, :, 1:]).sum(-1, dtype=lse.dtype) * scale
        weight = (own - lse[..., : own.shape[-1]]).sigmoid().to(q.dtype).unsqueeze(-1)
        z = v_own.clone()
        z[:, :, 1:] = torch.lerp(past, v_own[:, :, 1:], weight)
        ctx.save_for_backward(q, k, v, k_own, v_own, past, weight, lse, *rest)
        ctx.scale = scale
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.saved_tensors:
            return None, None, None, None, grad, None
        q, k, v, k_own, v_own, past, weight, *saved = ctx.saved_tensors
        later = grad[:, :, 1:]
        grad_past = later * (1 - weight)
        grad_own = (later * (v_own[:, :, 1:] - past)).sum(-1, keepdim=True) * weight * (1 - weight)
        norm = (grad_past * grad_past).sum(-1, keepdim=True).clamp_(min=torch.finfo(grad.dtype).tiny)
        shifted = past + grad_past * (grad_own / norm)  # g, the gradient of lse, is -grad_own
        inputs = (q[:, :, 1:], k[:, :, :-1], v[:, :, :-1])
        dq, dk, dv = _causal_backward(grad_past, *inputs, shifted, *saved, scale=ctx.scale)
        grad_own = grad_own * ctx.scale
        first = (0, 0, 1, 0)
        last = (0, 0, 0, 1)
        grad_v_own = grad.clone()
        grad_v_own[:, :, 1:] *= weight
        return (
            F.pad(dq + grad_own * k_own[:, :, 1:], first),
            F.pad(dk, last),
            F.pad(dv, last),
            F.pad(grad_own * q[:, :, 1:], first),
            grad_v_own,
            None,
        )


def _causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, ...]:
    """Causal attention, its log-sum-exp [batch n_heads pos or more], and what its backward pass wants besides."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, True, scale=scale)


def _causal_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *rest: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """Gradients of q, k and v."""
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse, 0.0, True, scale=scale
        )
    wanted = [True, True, True, False]
    return torch.ops.aten._scaled_dot_product_efficient_attention_backward(
        grad, q, k, v, None, out, lse, *rest, 0.0, wanted, True, scale=scale
    )[:3]


def kernel_is_right(device: str | torch.device, dtype: torch.dtype) -> bool:
    """Whether `OwnKeyAttention` works, and gives what it should, on that device for that type."""
    return _kernel_is_right(torch.device(device).type, dtype)


@functools.cache
def _kernel_is_right(device: str, dtype: torch.dtype) -> bool:
    if device not in ("cpu", "cuda") or dtype not in TOLERANCES:
        return False
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        try:
            fused, written_out = (_sample(form, device, dtype) for form in (_fused, _written_out))
        except (RuntimeError, AttributeError):  # not in this build, or called in another way there
            return False
    close = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    return all(torch.allclose(ours, theirs, **close) for ours, theirs in zip(fused, written_out, strict=True))


def _sample(form: Any, device: str, dtype: torch.dtype) -> list[Float[Tensor, "1 2 37 8"]]:
    """z of fixed inputs, and five gradients."""
    wave = torch.arange(6 * 2 * 37 * 8, dtype=torch.float64).mul(0.7).sin().view(6, 1, 2, 37, 8)
    *inputs, upstream = wave.to(device, dtype)
    inputs = [x.clone().requires_grad_() for x in inputs]
    z = form(*inputs)
    return [z.detach(), *torch.autograd.grad(z, inputs, upstream)]


def _fused(*inputs: Tensor) -> Tensor:
    return OwnKeyAttention.apply(*inputs, 0.5)


def _written_out(*inputs: Tensor) -> Tensor:
    q, k, v, k_own, v_own = (x.transpose(1, 2) for x in inputs)
    return mixed_values(own_key_pattern(q, k, k_own, 2.0), v, v_own).transpose(1, 2)
