"""Which HookedTransformer configurations two streams can be built on."""

from sat_lens._tl import HookedTransformerConfig


def neurons_a_layer(cfg: HookedTransformerConfig) -> int:
    """d_mlp, or 0 where there is no MLP."""
    return 0 if cfg.attn_only or cfg.d_mlp is None else cfg.d_mlp


def refuse_unsupported(cfg: HookedTransformerConfig) -> None:
    """Raise a ValueError that names the first feature that the ablated stream does not have."""
    problems = {
        f"positional_embedding_type={cfg.positional_embedding_type!r}": cfg.positional_embedding_type
        not in ("standard", "rotary"),
        f"attention_dir={cfg.attention_dir!r}": cfg.attention_dir != "causal",
        f"n_devices={cfg.n_devices}": cfg.n_devices > 1,
        f"act_fn={cfg.act_fn!r}": not cfg.attn_only and cfg.is_layer_norm_activation(),
        "experts": cfg.num_experts is not None,
        "norms after attention and MLP": cfg.use_normalization_before_and_after,
        "norms of queries and keys": cfg.use_qk_norm or (cfg.original_architecture or "").startswith("Olm"),
        "clipped queries, keys and values": cfg.clip_qkv is not None,
        "soft-capped scores or logits": cfg.attn_scores_soft_cap > 0 or cfg.output_logits_soft_cap > 0,
        "attention sinks": cfg.use_attention_sinks,
        "log-n scaled queries": cfg.use_logn_attn,
        "quantised weights": cfg.load_in_4bit,
    }
    for problem, present in problems.items():
        if present:
            raise ValueError(f"a self-ablating model supports causal pre-norm blocks only; got {problem}")
