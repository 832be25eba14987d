"""Attention of a layer, and gradients with respect to what its queries, keys and values read, kept as factors.

They all read one normalized stream y = centred x / scale, through weights W of a few channels each. So the
gradient with respect to a head's input x is known from the one with respect to its projection q = y W + b:

    g = (dq / scale) W' - y (q . dq) / (scale d_model)        q without its bias

with the norm's gain, and its centring, folded into W once. The first term is linear in what differs
between runs, dq / scale, so it is summed over runs first; the second has one number a run, head and
token. So products with what sources write need no tensor of [head run n pos d_model], and the gradient
of the stream, the sum of all g, is that of an ordinary backward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.localization.parts import Parts
from sat_lens.norms import apply_norm

Products = Callable[[Tensor], Tensor]
"""From [source n pos d_model] to [source destination]: products with gradients, summed over runs and all axes."""


class Read(NamedTuple):
    """What the queries, keys and values of a layer (`head`: all of them, in this order) read, and how.

    Args:
        y: the stream after the norm, without its gain and bias.
        scale: what the norm divides by; None without a norm.
        weight, bias: with the gain and bias of the norm, and its centring, folded in.
    """

    y: Float[Tensor, "row pos d_model"]
    scale: Float[Tensor, "row pos 1"] | None
    weight: Float[Tensor, "d_model head d_head"]
    bias: Float[Tensor, "head d_head"]


def read(parts: Parts, layer: int, stream: Float[Tensor, "row pos d_model"]) -> Read:
    """What a layer's queries, keys and values read."""
    block = parts.model.blocks[layer]
    weight, bias = _projections(block.attn, parts.graph.n_kv_heads < parts.graph.n_heads)
    kept: list[Tensor] = []
    apply_norm(block.ln1, stream, lambda scale: kept.append(scale) or scale, lambda y: kept.append(y) or y)
    if (offset := getattr(block.ln1, "b", None)) is not None:
        bias = bias + torch.einsum("m,mhd->hd", offset, weight)
    if (gain := getattr(block.ln1, "w", None)) is not None:
        weight = gain[:, None, None] * weight
    if "LayerNorm" in type(block.ln1).__name__:
        weight = weight - weight.mean(0)
    scale, y = kept or (None, stream)
    return Read(y.to(stream.dtype), scale, weight, bias)


def _projections(attn: Any, grouped: bool) -> tuple[Float[Tensor, "d_model head d_head"], Float[Tensor, "head d_head"]]:
    k, v = ("_W_K", "_W_V") if grouped else ("W_K", "W_V")
    b_k, b_v = ("_b_K", "_b_V") if grouped else ("b_K", "b_V")
    weight = torch.cat([attn.W_Q, getattr(attn, k), getattr(attn, v)])
    return weight.transpose(0, 1), torch.cat([attn.b_Q, getattr(attn, b_k), getattr(attn, b_v)])


def heads_with_pull(
    parts: Parts, layer: int, stream: Float[Tensor, "row pos d_model"]
) -> tuple[Float[Tensor, "row pos d_model"], Callable[[Tensor], tuple[Tensor, Products]]]:
    """What a layer's heads write together, without the output's bias, and its pull-back.

    The pull-back gives the gradient of the stream, and the products with the gradients with respect to the
    inputs of its queries, keys and values, in this order.
    """
    from_stream = read(parts, layer, stream)
    bare = torch.einsum("rpm,mhd->rphd", from_stream.y, from_stream.weight)
    written, pull = torch.func.vjp(partial(_written, parts, layer), bare + from_stream.bias)[:2]

    def pulled(gradient: Float[Tensor, "row pos d_model"]) -> tuple[Tensor, Products]:
        (factors,) = pull(gradient)
        return _through_norm(from_stream, bare, factors)

    return written, pulled


def _through_norm(
    from_stream: Read, bare: Float[Tensor, "row pos head d_head"], factors: Float[Tensor, "row pos head d_head"]
) -> tuple[Float[Tensor, "row pos d_model"], Products]:
    y, scale, weight, _ = from_stream
    if scale is None:
        return torch.einsum("rphd,mhd->rpm", factors, weight), partial(_products, weight, factors, None)
    factors = (factors / scale[..., None]).to(y.dtype)
    along = (bare * factors).sum(-1) / y.shape[-1]
    stream = torch.einsum("rphd,mhd->rpm", factors, weight) - y * along.sum(-1, keepdim=True)
    return stream, partial(_products, weight, factors, (y, along))


def _products(
    weight: Float[Tensor, "d_model head d_head"],
    factors: Float[Tensor, "row pos head d_head"],
    norm: tuple[Float[Tensor, "row pos d_model"], Float[Tensor, "row pos head"]] | None,
    moved: Float[Tensor, "source n pos d_model"],
) -> Float[Tensor, "source head"]:
    _, n, pos, _ = moved.shape
    summed = factors.unflatten(0, (-1, n)).sum(0)
    gradients = summed.permute(2, 0, 1, 3).flatten(1, 2) @ weight.permute(1, 2, 0)
    found = moved.flatten(1) @ gradients.flatten(1).T
    if norm is None:
        return found
    y, along = (x.reshape(-1, n * pos, x.shape[-1]).transpose(0, 1) for x in norm)  # [n*pos run d_model or head]
    inner = moved.flatten(1, 2).transpose(0, 1) @ y.mT
    return found - inner.permute(1, 0, 2).flatten(1) @ along.flatten(0, 1)


def _written(parts: Parts, layer: int, qkv: Float[Tensor, "row pos head d_head"]) -> Float[Tensor, "row pos d_model"]:
    """By all heads. Scores are written out: for short prompts faster than a fused kernel and its backward."""
    attn, graph, n = parts.model.blocks[layer].attn, parts.graph, qkv.shape[1]
    q, k, v = qkv.split((graph.n_heads, graph.n_kv_heads, graph.n_kv_heads), -2)
    if parts.cfg.positional_embedding_type == "rotary":
        q, k = attn.apply_rotary(q), attn.apply_rotary(k)
    k, v = (x.repeat_interleave(graph.n_heads // graph.n_kv_heads, -2) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q / attn.attn_scale, k, v))
    unseen = q.new_zeros(n, n).masked_fill(~parts.seen(layer, n), -torch.inf)
    z = (q @ k.mT + unseen).softmax(-1) @ v
    return z.transpose(1, 2).flatten(-2) @ attn.W_O.flatten(0, 1)
