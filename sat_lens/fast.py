"""The training losses by fused kernels: the same numbers as the hooked path, several times faster.

One clean pass serves both streams: keys, values and relevance scores come from it. The clean stream
uses PyTorch's scaled dot-product attention, the ablated one the same kernel with the own key merged
in (`sat_lens.own_key`, with the derivation). The mask is one function with a closed-form backward pass
(`sat_lens.winners`); where winners are few, units are computed for them alone (`sat_lens.few_winners`).
Products go through oneDNN on a CPU (`sat_lens.products`), and the unembedding is never whole:
`linear_cross_entropy` works on a few hundred tokens at a time and has the gradient ready when the
forward pass ends.

It steps aside (`applies`) for any hook anywhere on the model and for architectures outside the
published family (LayerNorm, learned positions, sequential blocks, full attention).
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sat_lens.few_winners import are_few, channels_out, neurons_out, with_gradient
from sat_lens.gates import LayerUnits, SoftMasks, masks, soft_masks
from sat_lens.losses import Losses, weighted
from sat_lens.own_key import OwnKeyAttention, kernel_is_right
from sat_lens.products import ACTIVATIONS, linear, product, product_type, weight_gradient

CHUNK = 256  # tokens whose logits exist at a time on a CPU, where they then stay in its cache
CHUNK_ON_ACCELERATOR = 8192


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
        and kernel_is_right(model.cfg.device, product_type(model.unembed.W_U))
    )
    return known and not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in model.modules()
    )


def losses(model: Any, tokens: Int[Tensor, "batch pos"], targets: Int[Tensor, "batch pos"]) -> Losses:
    """`SelfAblatingTransformer.losses`, fused."""
    x0 = model.embed.W_E[tokens] + model.pos_embed.W_pos[: tokens.shape[1]]
    joined = [_joined(block.attn) for block in model.blocks]
    resid, keys, values = [x0], [], []
    for block, weights in zip(model.blocks, joined, strict=True):
        q, k, v = _qkv(block, _norm(block.ln1, resid[-1]), *weights)
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
    gates, soft = model.gates(inputs, read, ablation.score_noise), None
    if are_few(ablation, x0.device, model.cfg.n_heads * model.cfg.d_head, model.cfg.d_mlp):
        soft = soft_masks(ablation)  # and the gates stay scores
        if ablation.detach == "scores":
            gates = [LayerUnits(*(of.detach() for of in gate)) for gate in gates]
    else:
        gates = masks(gates, ablation, model.cfg.d_head)

    ablated = [x0]
    for block, weights, k, v in zip(model.blocks, joined, keys, values, strict=True):
        gate = gates.pop(0)  # nothing here holds a mask longer than it must
        q, own_k, own_v = _qkv(block, _norm(block.ln1, ablated[-1]), *weights)
        z = OwnKeyAttention.apply(q, k, v, own_k, own_v, 1 / block.attn.attn_scale).transpose(1, 2)
        mid = ablated[-1] + _gated_out(block, z.flatten(-2), gate.attn.flatten(-2), soft)
        ablated.append(mid + _gated_mlp(block, _norm(block.ln2, mid), gate.mlp, soft))
    ablated_final = _norm(model.ln_final, ablated[-1])
    ablated_loss = _loss(model, ablated_final, targets)
    return weighted(ablation, clean_loss, ablated_loss, ([*resid[1:], final], [*ablated[1:], ablated_final]))


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), norm.w, norm.b, norm.eps)


def _joined(attn: nn.Module) -> tuple[Tensor, Tensor]:
    """Weights [output d_model] and biases of queries, keys and values, one after the other."""
    weight = torch.cat([attn.W_Q, attn.W_K, attn.W_V]).transpose(1, 2).flatten(0, 1)
    return weight, torch.cat([attn.b_Q, attn.b_K, attn.b_V]).flatten()


def _qkv(block: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values, each [batch n_heads pos d_head]."""
    qkv = linear(x, weight, bias).unflatten(-1, (3, block.attn.cfg.n_heads, block.attn.cfg.d_head))
    return tuple(of.transpose(1, 2) for of in qkv.unbind(2))


def _out(block: nn.Module, z: Float[Tensor, "batch pos n_heads d_head"]) -> Tensor:
    return linear(z.flatten(-2), block.attn.W_O.flatten(0, 1).T, block.attn.b_O)


def _mlp(block: nn.Module, x: Tensor) -> Tensor:
    return linear(ACTIVATIONS[block.cfg.act_fn](_pre(block, x)), block.mlp.W_out.T, block.mlp.b_out)


def _pre(block: nn.Module, x: Tensor) -> Float[Tensor, "batch pos d_mlp"]:
    return linear(x, block.mlp.W_in.T, block.mlp.b_in)


def _gated_out(block: nn.Module, z: Float[Tensor, "batch pos unit"], gate: Tensor, soft: SoftMasks | None) -> Tensor:
    """`_out` of the ablated stream. The gate is a mask, or the scores that `soft` tells how to make one of."""
    weight, bias = block.attn.W_O.flatten(0, 1), block.attn.b_O
    if soft:
        return channels_out(z, gate, weight, bias, soft.attn)
    return _masked_out(z, gate, weight, bias, _same)


def _gated_mlp(block: nn.Module, x: Float[Tensor, "batch pos d_model"], gate: Tensor, soft: SoftMasks | None) -> Tensor:
    """`_mlp` of the ablated stream; the gate as in `_gated_out`."""
    mlp, act = block.mlp, ACTIVATIONS[block.cfg.act_fn]
    if soft:
        return neurons_out(x, gate, mlp.W_in, mlp.b_in, mlp.W_out, mlp.b_out, act, soft.mlp)
    return _masked_out(_pre(block, x), gate, mlp.W_out, mlp.b_out, act)


def _same(x: Tensor) -> Tensor:
    """The activation function of z: none. A tensor of its own, as the others give."""
    return x * 1


def _masked_out(
    x: Float[Tensor, "batch pos unit"],
    mask: Float[Tensor, "batch pos unit"],
    weight: Float[Tensor, "unit d_model"],
    bias: Float[Tensor, " d_model"],
    act: Any,
) -> Float[Tensor, "batch pos d_model"]:
    """(act(x) * mask) @ weight + bias."""
    if torch.is_autocast_enabled(x.device.type):
        return linear(act(x) * mask, weight.T, bias)
    return _MaskedOut.apply(x, mask, weight, bias, act)


class _MaskedOut(torch.autograd.Function):
    """Keeps `x` and the mask; act(x) is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, act: Any) -> Tensor:
        ctx.save_for_backward(x, mask, weight)
        ctx.act = act
        return product((act(x) * mask).flatten(0, -2), weight.T, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mask, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        of_masked = product(rows, weight).view_as(x)
        activation, of_x = with_gradient(ctx.act, x, of_masked * mask)
        of_weight = weight_gradient((activation * mask).flatten(0, -2), rows).T
        return of_x, of_masked.mul_(activation), of_weight, rows.sum(0), None


def _loss(model: nn.Module, x: Float[Tensor, "batch pos d_model"], targets: Tensor) -> Tensor:
    return linear_cross_entropy(x.flatten(0, 1), model.unembed.W_U, model.unembed.b_U, targets.flatten())


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
        device, low = x.device.type, product_type(x)
        with torch.autocast(device, enabled=False):
            total, grads = _chunked(x.to(low), weight, bias, targets, any(ctx.needs_input_grad[:3]))
        ctx.save_for_backward(*grads)
        ctx.n = len(targets)
        return (total / len(targets)).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad / ctx.n
        needed = zip(ctx.saved_tensors, ctx.needs_input_grad[:3], strict=True)
        return *(g * scale if wanted else None for g, wanted in needed), None


def _chunked(
    x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, wanted: bool
) -> tuple[Float[Tensor, ""], tuple[Tensor, ...]]:
    """Summed cross entropy and its gradients; products in the type of `x`, softmax in that of `weight`."""
    total = x.new_zeros((), dtype=torch.float64)
    factor, minus_one = weight.to(x.dtype), weight.new_full((1, 1), -1.0)
    grads = torch.empty_like(x, dtype=weight.dtype), torch.zeros_like(weight), torch.zeros_like(bias)
    size = CHUNK if x.device.type == "cpu" else CHUNK_ON_ACCELERATOR
    for rows, target, grad_rows in zip(x.split(size), targets.split(size), grads[0].split(size), strict=True):
        logits = product(rows, factor.T, bias.to(x.dtype)).to(weight.dtype)
        target = target[:, None]
        top, of_target = logits.amax(-1), logits.gather(1, target).squeeze(1)
        probs = torch.softmax(logits, -1, out=logits)
        lse = top - probs.amax(-1).log()  # the largest logit has the largest probability
        total += (lse - of_target).sum()
        if wanted:
            error = probs.scatter_add_(1, target, minus_one.expand(len(target), 1))
            if bias.requires_grad:
                grads[2].add_(error.sum(0))
            error = error.to(x.dtype)
            grad_rows.copy_(product(error, factor))
            grads[1].add_(product(rows.T, error.T))
    return total, grads if wanted else ()
