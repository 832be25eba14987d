"""A transformer taken apart: each head and MLP as a function of its own input from the residual stream.

A HookedTransformer gives all heads of a layer one input. Here every query, key, value and MLP input
is a tensor of its own, so that an edge of the graph can carry something else than its neighbours do.
All functions take any number of rows, so that many variants of a circuit run as one batch.

Heads give what they add to the residual stream; the attention's output bias is no head's and counts
as a constant (`attn_bias`). The MLP's output has its bias. Exact: on one common input the parts add
up to TransformerLens' block.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses import needs
from analyses.localization.graph import Graph, graph_of
from sat_lens.fast import ACTIVATIONS
from sat_lens.norms import apply_norm


class Parts:
    """The parts of one model, by layer.

    Args:
        model: a HookedTransformer; its weights are read, not copied.

    Raises:
        ValueError: an architecture whose parts do not simply add up, or whose attention is unknown here.
    """

    def __init__(self, model: Any) -> None:
        needs.require(model, "localization")
        cfg = model.cfg
        self.graph: Graph = graph_of(cfg)
        unknown = {
            f"positional_embedding_type={cfg.positional_embedding_type!r}": cfg.positional_embedding_type
            not in ("standard", "rotary"),
            "soft-capped scores": cfg.attn_scores_soft_cap > 0,
            "attention sinks": cfg.use_attention_sinks,
            "log-n scaled queries": cfg.use_logn_attn,
            "norms of queries and keys": cfg.use_qk_norm or (cfg.original_architecture or "").startswith("Olm"),
            "bidirectional attention": cfg.attention_dir != "causal",
        }
        for feature, present in unknown.items():
            if present:
                raise ValueError(f"circuits are for causal attention without extras; this model has {feature}")
        self.model, self.cfg = model, cfg
        self._final_norm = torch.nn.Identity() if cfg.normalization_type is None else model.ln_final

    def embedding(self, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "n pos d_model"]:
        """What the node `input` writes: token and position embeddings."""
        return self.model(tokens, stop_at_layer=0, padding_side="right")

    def attn_bias(self, layer: int) -> Float[Tensor, " d_model"]:
        return self.model.blocks[layer].attn.b_O

    def heads(
        self,
        layer: int,
        q_input: Float[Tensor, "one_or_head row q_pos d_model"],
        k_input: Float[Tensor, "_ row pos d_model"],
        v_input: Float[Tensor, "_ row pos d_model"],
        which: Int[Tensor, " head"] | None = None,
    ) -> Float[Tensor, "head row q_pos d_model"]:
        """What heads add to the residual stream, each from inputs of its own.

        Args:
            q_input, k_input, v_input: one entry a computed head, or a single one that all share. Heads
                that share keys and values read equal entries of `k_input` and `v_input`. Where `q_input`
                has one position of several, it is the last.
            which: indices of the heads that are computed; default: all of the layer.
        """
        block = self.model.blocks[layer]
        attn = block.attn
        which = torch.arange(self.graph.n_heads, device=q_input.device) if which is None else which
        kv = which // (self.graph.n_heads // self.graph.n_kv_heads)
        grouped = self.graph.n_kv_heads < self.graph.n_heads
        W_K, b_K, W_V, b_V = (
            (attn._W_K, attn._b_K, attn._W_V, attn._b_V) if grouped else (attn.W_K, attn.b_K, attn.W_V, attn.b_V)
        )
        q = _projected(apply_norm(block.ln1, q_input), attn.W_Q[which], attn.b_Q[which])
        k = _projected(apply_norm(block.ln1, k_input), W_K[kv], b_K[kv])
        v = _projected(apply_norm(block.ln1, v_input), W_V[kv], b_V[kv])
        if self.cfg.positional_embedding_type == "rotary":
            past = k.shape[-2] - q.shape[-2]
            q = attn.apply_rotary(q.permute(1, 2, 0, 3), past).permute(2, 0, 1, 3)
            k = attn.apply_rotary(k.permute(1, 2, 0, 3)).permute(2, 0, 1, 3)
        seen = self.seen(layer, k.shape[-2])
        plain = q.shape[-2] == len(seen) <= self.window(layer, len(seen))
        seen = seen[-q.shape[-2] :]
        z = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if plain else seen, is_causal=plain, scale=1 / attn.attn_scale
        )
        return z @ attn.W_O[which].unsqueeze(1)

    def window(self, layer: int, n_pos: int) -> int:
        """How many positions a query sees at most, its own included."""
        attn = self.model.blocks[layer].attn
        return int(self.cfg.window_size) if attn.attn_type == "local" else n_pos

    def seen(self, layer: int, n_pos: int) -> Bool[Tensor, "query key"]:
        """Which keys each query sees."""
        device = self.model.blocks[layer].attn.W_Q.device
        return torch.ones(n_pos, n_pos, dtype=torch.bool, device=device).tril().triu(1 - self.window(layer, n_pos))

    def mlp(self, layer: int, x: Float[Tensor, "*row pos d_model"]) -> Float[Tensor, "*row pos d_model"]:
        """What the MLP adds to the residual stream."""
        block = self.model.blocks[layer]
        mlp: Any = block.mlp
        act = ACTIVATIONS.get(self.cfg.act_fn) or mlp.act_fn
        x = apply_norm(block.ln2, x)
        if self.cfg.gated_mlp:
            return (act(x @ mlp.W_gate) * (x @ mlp.W_in) + mlp.b_in) @ mlp.W_out + mlp.b_out
        return act(x @ mlp.W_in + mlp.b_in) @ mlp.W_out + mlp.b_out

    def logits(
        self, x: Float[Tensor, "*row d_model"], scale: Float[Tensor, "*#row 1"] | None = None
    ) -> Float[Tensor, "*row d_vocab"]:
        """Logits of the final residual stream; with `scale` the final norm is frozen to it."""
        norm = self._final_norm
        x = apply_norm(norm, x) if scale is None else apply_norm(norm, x, hook_scale=lambda _: scale)
        return F.linear(x, self.model.unembed.W_U.T, self.model.unembed.b_U)

    def final_scale(self, x: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row 1"]:
        """What the final norm divides by."""
        kept: list[Tensor] = []
        apply_norm(self._final_norm, x, hook_scale=lambda scale: kept.append(scale) or scale)
        return kept[0] if kept else torch.ones_like(x[..., :1])


def _projected(
    x: Float[Tensor, "one_or_head row pos d_model"], weight: Float[Tensor, "head d_model d_head"], bias: Tensor
) -> Float[Tensor, "head row pos d_head"]:
    """One product for an input that all heads share, else one a head."""
    if len(x) < len(weight):
        flat = x[0].flatten(0, 1) @ weight.transpose(0, 1).flatten(1)
        y = flat.view(*x.shape[1:3], *weight.shape[::2]).permute(2, 0, 1, 3)
    else:
        y = (x.flatten(1, 2) @ weight).unflatten(1, x.shape[1:3])
    return y + bias[:, None, None]
