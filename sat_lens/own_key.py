"""The ablated stream's attention by a fused kernel, with its exact gradient.

The query at t attends to clean keys and values of j < t, and to its own key k'_t and value v'_t:

    strict past   queries 1..T-1 over clean keys 0..T-1, causal: o_t and its log-sum-exp lse_t
    own key       s_t = scale q_t . k'_t;  w_t = sigmoid(s_t - lse_t);  z_t = o_t + w_t (v'_t - o_t);  z_0 = v'_0

(the first query, at t = 1, sees key 0, and so on: no query sees the last key). Backward, the softmax over past
and own keys together gives dS = P (dP - <dz, z>). PyTorch's kernel has no notion of the own key, but it makes P
of the log-sum-exp and <dz, z> of the output that it is handed. Handed z and lse' = log(exp lse + exp s), instead
of o and lse, it gives what passes the past, and the own key's part is

    ds_t = w_t <dz_t, v'_t - z_t>;    dq_t += scale ds_t k'_t,  dk'_t = scale ds_t q_t,  dv'_t = w_t dz_t

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
LENGTHS = 37, 129  # of the samples: one that fills no block of a kernel, one whose last key, unseen, is a block's first


class OwnKeyAttention(torch.autograd.Function):
    """z of the ablated stream, [batch n_heads pos d_head] throughout; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_own: Tensor, v_own: Tensor, scale: float) -> Tensor:
        if q.shape[2] == 1:
            ctx.save_for_backward()
            return v_own.clone()
        past, lse, *rest = _causal(q[:, :, 1:], k, v, scale)
        own = _head_sums(q[:, :, 1:] * k_own[:, :, 1:], lse.dtype) * scale
        of_past = lse[:, :, : own.shape[2], None]
        excess = own - of_past
        weight = torch.ones_like(v_own[..., :1])
        weight[:, :, 1:] = excess.sigmoid()
        z = torch.empty_like(v_own)
        z[:, :, 0] = v_own[:, :, 0]
        torch.lerp(past, v_own[:, :, 1:], weight[:, :, 1:], out=z[:, :, 1:])
        of_past.sub_(F.logsigmoid(-excess))  # now of all keys
        ctx.save_for_backward(q, k, v, k_own, v_own, z, weight, lse, *rest)
        ctx.scale = scale
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.saved_tensors:
            return None, None, None, None, grad, None
        q, k, v, k_own, v_own, z, weight, *saved = ctx.saved_tensors
        dq, dk, dv = _causal_backward(grad[:, :, 1:], q[:, :, 1:], k, v, z[:, :, 1:], *saved, scale=ctx.scale)
        of_own = _head_sums((v_own - z).mul_(grad)) * weight * ctx.scale  # 0 at position 0
        grad_q = torch.empty_like(k_own)
        grad_q[:, :, 0] = 0
        torch.addcmul(dq, of_own[:, :, 1:], k_own[:, :, 1:], out=grad_q[:, :, 1:])
        return grad_q, dk, dv, of_own * q, weight * grad, None


def _head_sums(
    x: Float[Tensor, "batch n_heads pos d_head"], dtype: torch.dtype | None = None
) -> Float[Tensor, "batch n_heads pos 1"]:
    """Sums over the channels, a position's heads side by side in memory: as in q, k, v and the log-sum-exp."""
    return x.transpose(1, 2).sum(-1, keepdim=True, dtype=dtype).transpose(1, 2)


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
    close = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype]}
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device, enabled=False):
        for length in LENGTHS:
            try:
                fused, written_out = (_sample(form, length, device, dtype) for form in (_fused, _written_out))
            except (RuntimeError, AttributeError):  # not in this build, or called in another way there
                return False
            if not all(torch.allclose(ours, theirs, **close) for ours, theirs in zip(fused, written_out, strict=True)):
                return False
    return True


def _sample(form: Any, length: int, device: str, dtype: torch.dtype) -> list[Float[Tensor, "1 2 {length} 8"]]:
    """z of fixed inputs, and five gradients."""
    wave = torch.arange(6 * 2 * length * 8, dtype=torch.float64).mul(0.7).sin().view(6, 1, 2, length, 8)
    *inputs, upstream = wave.to(device, dtype)
    inputs = [x.clone().requires_grad_() for x in inputs]
    z = form(*inputs)
    return [z.detach(), *torch.autograd.grad(z, inputs, upstream)]


def _fused(*inputs: Tensor) -> Tensor:
    return OwnKeyAttention.apply(*inputs, 0.5)


def _written_out(*inputs: Tensor) -> Tensor:
    q, k, v, k_own, v_own = (x.transpose(1, 2) for x in inputs)
    return mixed_values(own_key_pattern(q, k, k_own, 2.0), v, v_own).transpose(1, 2)
