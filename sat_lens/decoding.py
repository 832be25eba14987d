"""Next-token logits of sequences that grow: one position a step, the clean stream's keys and values kept.

The clean stream uses TransformerLens' own cache. The ablated stream has no memory: at position t it
attends to the clean keys and values before t and to its own key and value. So its step is a cached
step of the clean stream, and then one position of the ablated one: ordinary attention of one query.

Where the context is full, the window moves on by half a context. Nothing in the cache holds then:
positions are counted from the new start, and the keys of the deeper layers had read what is now gone.
So the window is read anew, once in n_ctx / 2 tokens; moving by one token would cost that at every token.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sat_lens._tl import TransformerBlock, TransformerLensKeyValueCache
from sat_lens.gates import LayerUnits
from sat_lens.model import CleanStream, _by_head, _mlp, passing_through
from sat_lens.norms import apply_norm


def window_start(length: int, n_ctx: int) -> int:
    """Where the window of a sequence begins: at a multiple of half a context, the first that is late enough.

    A function of the length alone, so that a window does not depend on how the sequence came about.
    """
    half = max(1, n_ctx // 2)
    return half * max(0, -((n_ctx - length) // half))


class Decoder:
    """The logits that follow a batch of sequences, asked for again as they grow.

    A model with hooks is run over the whole window at each step, so that hooks see whole sequences.

    Args:
        model: a HookedTransformer, or one with two streams.
        stream: `clean` or `ablated`.

    Raises:
        ValueError: `ablated`, of a model without a mask.
    """

    def __init__(self, model: Any, stream: str = "clean") -> None:
        if stream not in ("clean", "ablated"):
            raise ValueError(f"stream must be clean or ablated; got {stream!r}")
        if stream == "ablated" and getattr(getattr(model, "ablation", None), "mask", "none") == "none":
            raise ValueError("stream='ablated' needs a model with a mask; this one has none")
        self.model, self.stream = model, stream
        self.start = 0
        self.cache: Any = None

    def following(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch d_vocab"]:
        """The logits behind the last of `tokens`, which are those of the last call and new ones behind them.

        Cost: a forward pass over the new tokens, or over the window where that has moved.
        """
        start = window_start(tokens.shape[1], self.model.cfg.n_ctx)
        if has_hooks(self.model):
            window, self.cache = tokens[:, start:], None
            return (self.model(window) if self.stream == "clean" else self.model(window, stream="ablated"))[:, -1]
        if self.cache is None or start != self.start:
            cfg = self.model.cfg
            self.cache = TransformerLensKeyValueCache.init_cache(cfg, cfg.device, len(tokens))
            self.start = start
        new = tokens[:, self.start + self.cache[0].past_keys.shape[1] :]
        return self._clean(new)[:, -1] if self.stream == "clean" else self._ablated(new)

    def _clean(self, new: Int[Tensor, "batch new"], return_type: str | None = "logits") -> Any:
        return self.model(new, return_type=return_type, past_kv_cache=self.cache, attention_mask=torch.ones_like(new))

    def _ablated(self, new: Int[Tensor, "batch new"]) -> Float[Tensor, "batch d_vocab"]:
        model = self.model
        clean = self._last_position(new)
        y = clean.resid_pre[0]
        for block, k, v, mask in zip(model.blocks, clean.k, clean.v, model.masks_of(clean), strict=True):
            y = ablated_step(block, y, k, v, mask)
        if model.cfg.normalization_type is not None:
            y = apply_norm(model.ln_final, y)
        return F.linear(y[:, 0], model.unembed.W_U.T, model.unembed.b_U)

    def _last_position(self, new: Int[Tensor, "batch new"]) -> CleanStream:
        """The clean stream at the last position, with the keys and values before it."""
        model, rotary = self.model, self.model.cfg.positional_embedding_type == "rotary"
        points: dict[Any, Any] = {layer: block.hook_resid_pre for layer, block in enumerate(model.blocks)}
        points["final"] = model.blocks[-1].hook_resid_post if model.cfg.normalization_type is None else model.ln_final
        if rotary:
            points |= {("k", layer): block.attn.hook_rot_k for layer, block in enumerate(model.blocks)}
        with passing_through(points) as seen:
            self._clean(new, return_type=None)
        layers = range(model.cfg.n_layers)
        return CleanStream(
            resid_pre=[seen[layer][:, -1:] for layer in layers],
            resid_post=[],
            k=[(seen["k", layer] if rotary else self.cache[layer].past_keys)[:, :-1] for layer in layers],
            v=[self.cache[layer].past_values[:, :-1] for layer in layers],
            final=seen["final"][:, -1:],
            output=None,
        )


def has_hooks(model: Any) -> bool:
    """Whether a forward hook sits anywhere on the model."""
    return any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def ablated_step(
    block: TransformerBlock,
    y: Float[Tensor, "batch 1 d_model"],
    k_past: Float[Tensor, "batch past n_kv_heads d_head"],
    v_past: Float[Tensor, "batch past n_kv_heads d_head"],
    mask: LayerUnits,
) -> Float[Tensor, "batch 1 d_model"]:
    """`sat_lens.model.ablated_block` at one position, whose past is that many clean keys; fires no hooks."""
    attn_out = _attention_step(block, apply_norm(block.ln1, y), k_past, v_past, mask.attn)
    if block.cfg.attn_only:
        return y + attn_out
    mid = y + attn_out
    read = y if block.cfg.parallel_attn_mlp else mid
    return mid + _mlp(block, apply_norm(block.ln2, read), mask.mlp)


def _attention_step(block: TransformerBlock, x: Tensor, k_past: Tensor, v_past: Tensor, mask: Tensor) -> Tensor:
    attn, past = block.attn, k_past.shape[1]
    grouped = k_past.shape[2] < attn.cfg.n_heads
    own = (attn._W_K, attn._b_K, attn._W_V, attn._b_V) if grouped else (attn.W_K, attn.b_K, attn.W_V, attn.b_V)
    q, k, v = _by_head(x, attn.W_Q, attn.b_Q), _by_head(x, *own[:2]), _by_head(x, *own[2:])
    if attn.cfg.positional_embedding_type == "rotary":
        q, k = attn.apply_rotary(q, past), attn.apply_rotary(k, past)
    first = max(0, past + 1 - attn.cfg.window_size) if attn.attn_type == "local" else 0
    k, v = torch.cat([k_past[:, first:], k], 1), torch.cat([v_past[:, first:], v], 1)
    if grouped:
        k, v = (t.repeat_interleave(attn.repeat_kv_heads, 2) for t in (k, v))
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    z = F.scaled_dot_product_attention(q, k, v, scale=1 / attn.attn_scale).transpose(1, 2)
    return F.linear((z * mask).flatten(-2), attn.W_O.flatten(0, 1).T, attn.b_O)
