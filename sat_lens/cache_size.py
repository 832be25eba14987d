"""How large an activation cache is, before it is made."""

from collections.abc import Collection
from typing import Any


def cache_bytes(cfg: Any, names: Collection[str] | None = None, *, batch: int, pos: int, stream: str = "clean") -> int:
    """Bytes of an activation cache, as `run_with_cache` returns it.

    Args:
        names: hook points; None: all of them.
        batch: sequences.
        pos: tokens a sequence.
        stream: `clean`, or `ablated` or `both`, which cache both streams and the masks.

    Raises:
        ValueError: a name that the model has no hook point of.
    """
    sizes = cache_sizes(cfg, pos, stream)
    if unknown := sorted(set(names or ()) - set(sizes)):
        raise ValueError(f"names must be hook points of the {stream} stream; got {unknown[0]!r}; see model.hook_dict")
    return cfg.dtype.itemsize * batch * pos * sum(sizes[name] for name in (sizes if names is None else names))


def cache_sizes(cfg: Any, pos: int, stream: str = "clean") -> dict[str, int]:
    """Numbers a token at each hook point that fires; units are channels."""
    d = cfg.d_model
    norm = {"hook_scale": 1, "hook_normalized": d} if cfg.normalization_type is not None else {}
    sizes = {"hook_embed": d} | ({"hook_pos_embed": d} if cfg.positional_embedding_type == "standard" else {})
    for layer in range(cfg.n_layers):
        block = _clean_sizes(cfg, pos, norm) | (_ablated_sizes(cfg, pos) if stream != "clean" else {})
        sizes |= {f"blocks.{layer}.{name}": size for name, size in block.items()}
    sizes |= {f"ln_final.{name}": size for name, size in norm.items()}
    if stream != "clean":
        sizes |= {f"ablated_ln_final.{name}": size for name, size in norm.items()}
    return sizes | {"unembed.hook_in": d, "unembed.hook_out": cfg.d_vocab_out}


def _attention_sizes(cfg: Any) -> dict[str, int]:
    width, kv = cfg.n_heads * cfg.d_head, (cfg.n_key_value_heads or cfg.n_heads) * cfg.d_head
    return {"hook_q": width, "hook_k": kv, "hook_v": kv, "hook_z": width}


def _clean_sizes(cfg: Any, pos: int, norm: dict[str, int]) -> dict[str, int]:
    sizes = {f"attn.{name}": size for name, size in _attention_sizes(cfg).items()}
    if cfg.positional_embedding_type == "rotary":
        sizes |= {"attn.hook_rot_q": sizes["attn.hook_q"], "attn.hook_rot_k": sizes["attn.hook_k"]}
    sizes |= dict.fromkeys(("attn.hook_attn_scores", "attn.hook_pattern"), cfg.n_heads * pos)
    streams = ["hook_resid_pre", "hook_attn_out", "hook_resid_post"]
    norms = ["ln1"]
    if not cfg.attn_only:
        sizes |= {"mlp.hook_pre": cfg.d_mlp, "mlp.hook_post": cfg.d_mlp}
        sizes |= {"mlp.hook_pre_linear": cfg.d_mlp} if cfg.gated_mlp else {}
        streams += ["hook_mlp_out"] + ([] if cfg.parallel_attn_mlp else ["hook_resid_mid"])
        norms += ["ln2"]
    sizes |= dict.fromkeys(streams, cfg.d_model)
    return sizes | {f"{ln}.{name}": size for ln in norms for name, size in norm.items()}


def _ablated_sizes(cfg: Any, pos: int) -> dict[str, int]:
    width = cfg.n_heads * cfg.d_head
    sizes = {f"ablated.{name}": size for name, size in _attention_sizes(cfg).items()}
    sizes |= {"ablated.hook_pattern": cfg.n_heads * pos}
    sizes |= {f"attn.{name}": width for name in ("hook_relevance", "hook_mask", "hook_gated_z")}
    streams = ["hook_resid_pre", "hook_attn_out", "hook_resid_post"]
    if not cfg.attn_only:
        sizes |= {f"ablated.{name}": cfg.d_mlp for name in ("hook_pre", "hook_post")}
        sizes |= {f"mlp.{name}": cfg.d_mlp for name in ("hook_relevance", "hook_mask", "hook_gated_post")}
        streams += ["hook_mlp_out"] + ([] if cfg.parallel_attn_mlp else ["hook_resid_mid"])
    return sizes | {f"ablated.{name}": cfg.d_model for name in streams}
