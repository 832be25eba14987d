"""Attention by PyTorch's fused kernel, where nobody looks inside it.

Under `torch.inference_mode()` an attention layer whose scores and pattern carry no hook computes z
with `scaled_dot_product_attention`: the same numbers up to rounding, without the [pos, pos] matrices
that make up most of the cost of a HookedTransformer's forward pass. Everywhere else (gradients,
`torch.no_grad()`, a hook on scores or pattern, padding, a key-value cache, windows, soft caps, ...)
the layer is TransformerLens' own, bit for bit. All other hook points fire as ever.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformer_lens.components.abstract_attention import AbstractAttention
from transformer_lens.components.attention import Attention
from transformer_lens.components.grouped_query_attention import GroupedQueryAttention


def _forward(
    self: AbstractAttention,
    query_input: Tensor,
    key_input: Tensor,
    value_input: Tensor,
    past_kv_cache_entry: Any = None,
    additive_attention_mask: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
) -> Tensor:
    """`AbstractAttention.forward`, fused where nobody looks."""
    extras = (past_kv_cache_entry, additive_attention_mask, attention_mask, position_bias)
    if not _fusable(self) or any(extra is not None for extra in extras):
        return AbstractAttention.forward(self, query_input, key_input, value_input, *extras)
    q, k, v = self.calculate_qkv_matrices(query_input, key_input, value_input)
    if self.cfg.positional_embedding_type == "rotary":
        q, k = self.hook_rot_q(self.apply_rotary(q)), self.hook_rot_k(self.apply_rotary(k))
    if k.shape[2] < q.shape[2]:
        k, v = (t.repeat_interleave(self.repeat_kv_heads, 2) for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / self.attn_scale)
    z = self.hook_z(z.transpose(1, 2))
    return F.linear(z.flatten(-2), self.W_O.flatten(0, 1).T, self.b_O)


def unobserved(*points: nn.Module) -> bool:
    """Whether this is inference, and no hook sits on these hook points."""
    return torch.is_inference_mode_enabled() and not any(p._forward_hooks or p._forward_pre_hooks for p in points)


def _fusable(attn: AbstractAttention) -> bool:
    cfg = attn.cfg
    return (
        unobserved(attn.hook_attn_scores, attn.hook_pattern)
        and (attn._attention_dir_override or cfg.attention_dir) == "causal"
        and attn.attn_type == "global"
        and cfg.positional_embedding_type in ("standard", "rotary")
        and not (cfg.use_attn_result or cfg.use_attention_sinks or cfg.use_logn_attn or cfg.load_in_4bit)
        and not (cfg.original_architecture or "").startswith("Olm")
        and cfg.attn_scores_soft_cap <= 0
        and cfg.clip_qkv is None
    )


class FusedAttention(Attention):
    """`Attention`, by the fused kernel where it applies."""

    forward = _forward


class FusedGroupedQueryAttention(GroupedQueryAttention):
    """`GroupedQueryAttention`, by the fused kernel where it applies."""

    forward = _forward


def fuse_attention(blocks: nn.ModuleList) -> None:
    """Make the attention layers of these blocks fused ones, in place; unknown classes stay."""
    fused = {Attention: FusedAttention, GroupedQueryAttention: FusedGroupedQueryAttention}
    for block in blocks:
        block.attn.__class__ = fused.get(type(block.attn), type(block.attn))
