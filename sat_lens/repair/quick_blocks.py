"""A TransformerBlock's forward pass where nobody looks inside it: the same numbers up to rounding, in fewer steps.

TransformerLens normalises three times before attention (for queries, keys and values), in several steps each, and
spells `gelu_new` out. Here a norm is one call of PyTorch and is made once, `gelu_new` is PyTorch's own, and attention
the fused kernel. Hooks on z, attn_out, mlp_out and within attention and MLP fire; those on streams and norms do not,
so that a model which carries hooks already, or is to be hooked there, is run by its own blocks.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.components.layer_norm import LayerNorm
from transformer_lens.components.layer_norm_pre import LayerNormPre
from transformer_lens.components.rms_norm import RMSNorm
from transformer_lens.components.rms_norm_pre import RMSNormPre

from sat_lens._tl import TransformerBlock
from sat_lens.inference import fuse_attention


def bare(model: Any) -> bool:
    """Whether every block is TransformerLens' own, without hooks and without inputs split by head."""
    cfg = model.cfg
    split = cfg.use_attn_in or cfg.use_split_qkv_input or cfg.use_hook_mlp_in
    hooked = any(point._forward_hooks or point._forward_pre_hooks for point in model.hook_dict.values())
    return not split and not hooked and all(type(block) is TransformerBlock for block in model.blocks)


def fires(name: str) -> bool:
    """Whether a hook point fires in `plain_block`."""
    return re.fullmatch(r"blocks\.\d+\.(attn\..+|mlp\..+|hook_attn_out|hook_mlp_out)", name) is not None


def plain_block(block: Any, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """The stream after a block, from that before it."""
    read = normed(block.ln1, x)
    attn_out = block.hook_attn_out(block.attn(query_input=read, key_input=read, value_input=read))
    if block.cfg.attn_only:
        return x + attn_out
    if block.cfg.parallel_attn_mlp:
        return x + attn_out + block.apply_mlp(normed(block.ln2, x))
    x = x + attn_out
    return x + block.apply_mlp(normed(block.ln2, x))


def normed(norm: nn.Module, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
    """What the norm gives, by PyTorch's kernel where it is one of TransformerLens' four."""
    shape, weight, bias = x.shape[-1:], getattr(norm, "w", None), getattr(norm, "b", None)
    if isinstance(norm, LayerNorm | LayerNormPre):
        return F.layer_norm(x, shape, weight, bias, norm.eps)
    if isinstance(norm, RMSNorm | RMSNormPre):
        return F.rms_norm(x, shape, weight, norm.eps)
    return norm(x)


@contextlib.contextmanager
def quick(blocks: nn.ModuleList) -> Iterator[None]:
    """Attention by the fused kernel and `gelu_new` by PyTorch's own, for a while."""
    attentions = [(block.attn, block.attn.__class__) for block in blocks]
    mlps = [block.mlp for block in blocks if hasattr(block, "mlp")]
    slow = [(mlp, mlp.act_fn) for mlp in mlps if getattr(getattr(mlp, "act_fn", None), "__name__", "") == "gelu_new"]
    fuse_attention(blocks)
    for mlp, _ in slow:
        mlp.act_fn = _gelu_new
    try:
        yield
    finally:
        for attention, kind in attentions:
            attention.__class__ = kind
        for mlp, act in slow:
            mlp.act_fn = act


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")
