"""The training losses by fused kernels: the same numbers as the hooked path, several times faster.

The clean stream uses PyTorch's scaled dot-product attention. The ablated stream's attention is
written with the same kernel (`OwnKeyAttention`):

    strict past   queries 1..T-1 over clean keys 0..T-2, causal: o_t and its log-sum-exp lse_t
    own key       w_t = sigmoid(q_t . k'_t / scale - lse_t);  z_t = o_t + w_t (v'_t - o_t);  z_0 = v'_0

Backward, PyTorch's kernel gives dS = P (dP - delta) with delta = <dO, O>, and forgets the gradient g
that reaches lse, which adds P g, that is delta' = delta - g. Handing the kernel
O' = O - g dO / <dO, dO> in the place of O makes its own delta the right one; where dO is 0, so is g.

The unembedding is never whole: `linear_cross_entropy` works on a few hundred tokens at a time and
has the gradient ready when the forward pass ends.

It steps aside (`applies`) for any hook anywhere on the model and for architectures outside the
published family (LayerNorm, learned positions, sequential blocks, full attention).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sat_lens.gates import masks
from sat_lens.losses import Losses, weighted
from sat_lens.products import linear, product

ACTIVATIONS = {
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}
CHUNK = 256  # tokens whose logits exist at a time


def applies(model: Any) -> bool:
    """Whether the fused path computes what the hooked path would."""
    cfg = model.cfg
    known = (
        cfg.normalization_type == "LN"
        and not cfg.final_rms
        and cfg.positional_embedding_type == "standard"
        and cfg.act_fn in ACTIVATIONS
        and cfg.n_key_value_heads is None
        and cfg.attention_dir == "causal"
        and not (cfg.attn_only or cfg.parallel_attn_mlp or cfg.gated_mlp or cfg.use_local_attn)
        and not (cfg.use_qk_norm or cfg.use_attention_sinks or cfg.use_normalization_before_and_after)
        and not (cfg.attn_scores_soft_cap > 0 or cfg.output_logits_soft_cap > 0)
        and not (cfg.post_embedding_ln or cfg.use_logn_attn or (cfg.original_architecture or "").startswith("Olm"))
        and cfg.clip_qkv is None
        and cfg.num_experts is None
        and model.ablation.score_input == "raw"
        and cfg.dtype in (torch.float32, torch.float64)
        and has_kernel(model.unembed.W_U)
    )
    return known and not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in model.modules()
    )


def has_kernel(x: Tensor) -> bool:
    """Whether the attention kernel that `OwnKeyAttention` calls runs where `x` is."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def losses(model: Any, tokens: Int[Tensor, "batch pos"], targets: Int[Tensor, "batch pos"]) -> Losses:
    """`SelfAblatingTransformer.losses`, fused."""
    x0 = model.embed.W_E[tokens] + model.pos_embed.W_pos[: tokens.shape[1]]
    resid, keys, values = [x0], [], []
    for block in model.blocks:
        q, k, v = _qkv(block, _norm(block.ln1, resid[-1]))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / block.attn.attn_scale)
        mid = resid[-1] + _out(block, z.transpose(1, 2))
        resid.append(mid + _mlp(block, _norm(block.ln2, mid)))
        keys.append(k)
        values.append(v)
    final = _norm(model.ln_final, resid[-1])
    clean_loss = _loss(model, final, targets)
    ablation = model.ablation
    if ablation.mask == "none":
        return Losses(clean_loss, clean_loss)

    inputs, read = resid[:-1], final
    if ablation.detach == "trunk":
        inputs, read = [x.detach() for x in inputs], read.detach()
    chosen = masks(model.gates(inputs, read), ablation, model.cfg.d_head)

    ablated = [x0]
    for block, k, v, mask in zip(model.blocks, keys, values, chosen, strict=True):
        q, own_k, own_v = _qkv(block, _norm(block.ln1, ablated[-1]))
        z = OwnKeyAttention.apply(q, k, v, own_k, own_v, 1 / block.attn.attn_scale)
        mid = ablated[-1] + _out(block, z.transpose(1, 2) * mask.attn)
        ablated.append(mid + _mlp(block, _norm(block.ln2, mid), mask.mlp))
    ablated_final = _norm(model.ln_final, ablated[-1])
    ablated_loss = _loss(model, ablated_final, targets)
    return weighted(ablation, clean_loss, ablated_loss, ([*resid[1:], final], [*ablated[1:], ablated_final]))


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), norm.w, norm.b, norm.eps)


def _qkv(block: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, each [batch n_heads pos d_head]."""
    attn = block.attn
    weight = torch.cat([attn.W_Q, attn.W_K, attn.W_V]).transpose(1, 2).flatten(0, 1)
    bias = torch.cat([attn.b_Q, attn.b_K, attn.b_V]).flatten()
    qkv = linear(x, weight, bias).unflatten(-1, (3, attn.cfg.n_heads, attn.cfg.d_head))
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def _out(block: nn.Module, z: Float[Tensor, "batch pos n_heads d_head"]) -> Tensor:
    return linear(z.flatten(-2), block.attn.W_O.flatten(0, 1).T, block.attn.b_O)


def _mlp(block: nn.Module, x: Tensor, mask: Tensor | None = None) -> Tensor:
    mlp = block.mlp
    post = ACTIVATIONS[block.cfg.act_fn](linear(x, mlp.W_in.T, mlp.b_in))
    return linear(post if mask is None else post * mask, mlp.W_out.T, mlp.b_out)


def _loss(model: nn.Module, x: Float[Tensor, "batch pos d_model"], targets: Tensor) -> Tensor:
    return linear_cross_entropy(x.flatten(0, 1), model.unembed.W_U, model.unembed.b_U, targets.flatten())


class OwnKeyAttention(torch.autograd.Function):
    """z of the ablated stream, [batch n_heads pos d_head] throughout; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_own: Tensor, v_own: Tensor, scale: float) -> Tensor:
        if q.shape[2] == 1:
            ctx.save_for_backward()
            return v_own.clone()
        past, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], 0.0, True, scale=scale
        )
        own = (q[:, :, 1:] * k_own[:, :, 1:]).sum(-1) * scale
        weight = (own - lse).sigmoid().unsqueeze(-1)
        z = v_own.clone()
        z[:, :, 1:] = torch.lerp(past, v_own[:, :, 1:], weight)
        ctx.save_for_backward(q, k, v, k_own, v_own, past, lse, weight)
        ctx.scale = scale
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.saved_tensors:
            return None, None, None, None, grad, None
        q, k, v, k_own, v_own, past, lse, weight = ctx.saved_tensors
        later = grad[:, :, 1:]
        grad_past = later * (1 - weight)
        grad_own = (later * (v_own[:, :, 1:] - past)).sum(-1, keepdim=True) * weight * (1 - weight)
        norm = (grad_past * grad_past).sum(-1, keepdim=True).clamp_(min=torch.finfo(grad.dtype).tiny)
        shifted = past + grad_past * (grad_own / norm)  # g, the gradient of lse, is -grad_own
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad_past, q[:, :, 1:], k[:, :, :-1], v[:, :, :-1], shifted, lse, 0.0, True, scale=ctx.scale
        )
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


def linear_cross_entropy(
    x: Float[Tensor, "token d_model"],
    weight: Float[Tensor, "d_model d_vocab"],
    bias: Float[Tensor, " d_vocab"],
    targets: Int[Tensor, " token"],
) -> Float[Tensor, ""]:
    """Mean cross entropy of `x @ weight + bias`, nats a token, never holding all logits.

    Memory: CHUNK x d_vocab numbers and one gradient of `weight`.
    """
    return _LinearCrossEntropy.apply(x, weight, bias, targets)


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of a softmax is known as soon as its logits are: forward computes both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad[:3])
        total = x.new_zeros((), dtype=torch.float64)
        minus_one = x.new_full((1, 1), -1.0)
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
        for rows, target, grad_rows in zip(x.split(CHUNK), targets.split(CHUNK), grad_x.split(CHUNK), strict=True):
            logits = product(rows, weight.T, bias)
            target = target[:, None]
            top, of_target = logits.amax(-1), logits.gather(1, target).squeeze(1)
            probs = torch.softmax(logits, -1, out=logits)
            lse = top - probs.amax(-1).log()  # the largest logit has the largest probability
            total += (lse - of_target).sum()
            if wanted:
                error = probs.scatter_add_(1, target, minus_one.expand(len(target), 1))
                grad_rows.copy_(product(error, weight))
                grad_weight += product(rows.T, error.T)
                if ctx.needs_input_grad[2]:
                    grad_bias += error.sum(0)
        if wanted:
            ctx.save_for_backward(grad_x, grad_weight, grad_bias)
            ctx.n = len(targets)
        return (total / len(targets)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / ctx.n
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
        return *(g * scale if wanted else None for g, wanted in needed), None
