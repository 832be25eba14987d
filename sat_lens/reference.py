"""Checkpoints of the paper's own implementation (keenanpepper/self-ablating-transformers).

Its state dict maps onto TransformerLens' names by transposition and splitting into heads; it has no
bias on queries, keys, values and the unembedding. Its configuration dict says the mask ("layer by
layer" is `local`, "overall" is `global`), k, temperatures and loss weights.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_lens._tl import HookedTransformerConfig
from sat_lens.config import SelfAblation
from sat_lens.model import SelfAblatingTransformer

PROCESSING = {"soft-top-K-version-1": "soft", "hard-top-K-with-soft-gradient": "hard", None: "hard"}
DEFAULTS = {
    "max_position_embeddings": 2048,
    "window_size": 256,
    "attention_layers": None,
    "k_attention": 32,
    "k_neurons": 32,
    "temperature_attention": 0.1,
    "temperature_neurons": 0.1,
    "loss_coeff_base": 1.0,
    "loss_coeff_ablated": 0.1,
    "reconstruction_coeff": 0.1,
    "reconstruction_loss_type": "MSE",
    "has_layer_by_layer_ablation_mask": True,
    "has_overall_ablation_mask": False,
    "ablation_processing": "soft-top-K-version-1",
}


def from_reference(state_dict: dict[str, Tensor], config: dict[str, Any]) -> SelfAblatingTransformer:
    """The model that the reference implementation would build from the two.

    Args:
        state_dict: its names (`transformer.h.0.attn.attention.q_proj.weight`, ...).
        config: its names (`vocab_size` or `d_vocab`, `k_attention`, ...); what is absent takes the
            reference's defaults. `ablation_processing` None, its baseline, means no mask.

    Raises:
        ValueError: a key that is missing, unknown, or of the wrong shape, by name.
    """
    fields = DEFAULTS | config
    sizes = {"vocab_size": "d_vocab", "hidden_size": "d_model", "num_layers": "n_layers", "num_heads": "n_heads"}
    given = {name: fields.get(theirs, fields.get(name)) for theirs, name in sizes.items()}
    for theirs, name in sizes.items():
        value = given[name]
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"the reference configuration must give {theirs}, at least 1; got {value!r}")
    d_vocab, d_model, n_layers, n_heads = (int(value) for value in given.values())
    if d_model % n_heads:
        raise ValueError(f"hidden_size must be a multiple of num_heads; got {d_model} and {n_heads}")
    types = fields["attention_layers"] or ["global"] * n_layers
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    dtype = next((v.dtype for v in state.values() if v.is_floating_point()), torch.float32)
    cfg = HookedTransformerConfig(
        n_layers=n_layers,
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        d_mlp=fields.get("mlp_hidden_size") or fields.get("d_mlp") or 4 * d_model,
        d_vocab=d_vocab,
        n_ctx=fields["max_position_embeddings"],
        act_fn="gelu_new",
        normalization_type="LN",
        eps=fields.get("eps", 1e-5),
        use_attn_scale=False,
        use_local_attn="local" in types,
        attn_types=types if "local" in types else None,
        window_size=fields["window_size"] if "local" in types else None,
        tie_word_embeddings=True,
        original_architecture="GPTNeoForCausalLM",
        init_weights=False,
        dtype=dtype,
        device="cpu",
    )
    model = SelfAblatingTransformer(cfg, ablation=_ablation(fields))
    converted = host_weights(state, cfg) | _gate_weights(state, model.ablation.mask, n_layers)
    used = {"lm_head.weight", "transformer.wte.weight"} | set(_source_names(model.ablation.mask, n_layers))
    ignorable = {key for key in state if key.endswith((".attn.attention.bias", ".attn.attention.masked_bias"))}
    if unknown := sorted(set(state) - used - ignorable):
        raise ValueError(f"unknown key {unknown[0]!r} in the reference state dict ({len(unknown)} in all)")
    with torch.no_grad():
        own = model.state_dict()
        for key, value in converted.items():
            if own[key].shape != value.shape:
                raise ValueError(f"{key} must have shape {tuple(own[key].shape)}; got {tuple(value.shape)}")
        model.load_state_dict(own | converted, strict=True)
    return model.eval()


def host_weights(state: dict[str, Tensor], cfg: HookedTransformerConfig) -> dict[str, Tensor]:
    """A GPT-Neo state dict under TransformerLens' names; biases that it lacks are zeros."""
    embedding = _taken(state, "transformer.wte.weight" if "transformer.wte.weight" in state else "lm_head.weight")
    if "lm_head.weight" in state and not torch.equal(state["lm_head.weight"], embedding):
        raise ValueError("lm_head.weight and transformer.wte.weight must be equal (tied); they differ")
    weights = {
        "embed.W_E": embedding,
        "unembed.W_U": embedding.T,
        "unembed.b_U": embedding.new_zeros(len(embedding)),
        "pos_embed.W_pos": _taken(state, "transformer.wpe.weight"),
        "ln_final.w": _taken(state, "transformer.ln_f.weight"),
        "ln_final.b": _taken(state, "transformer.ln_f.bias"),
    }
    heads = (cfg.n_heads, cfg.d_head)
    for layer in range(cfg.n_layers):
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        attention = theirs + "attn.attention."
        for letter in "qkv":
            weight = _taken(state, f"{attention}{letter}_proj.weight")
            weights[f"{ours}attn.W_{letter.upper()}"] = weight.unflatten(0, heads).transpose(1, 2)
            weights[f"{ours}attn.b_{letter.upper()}"] = weight.new_zeros(heads)
        weights[ours + "attn.W_O"] = _taken(state, attention + "out_proj.weight").T.unflatten(0, heads)
        weights[ours + "attn.b_O"] = _taken(state, attention + "out_proj.bias")
        for ln, norm in (("ln_1", "ln1"), ("ln_2", "ln2")):
            weights[f"{ours}{norm}.w"] = _taken(state, f"{theirs}{ln}.weight")
            weights[f"{ours}{norm}.b"] = _taken(state, f"{theirs}{ln}.bias")
        for layer_in, name in (("c_fc", "in"), ("c_proj", "out")):
            weights[f"{ours}mlp.W_{name}"] = _taken(state, f"{theirs}mlp.{layer_in}.weight").T
            weights[f"{ours}mlp.b_{name}"] = _taken(state, f"{theirs}mlp.{layer_in}.bias")
    return {key: value.contiguous() for key, value in weights.items()}


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pt` (or `.safetensors`) file, and nothing else that may hide in it.

    Raises:
        ValueError: not such a file, or one that holds other objects than tensors.
    """
    import pickle
    import warnings

    if path.suffix == ".safetensors":
        from sat_lens.checkpoint import read_weights

        tensors = read_weights(path)
        inside = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
        return inside or tensors
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        # Not torch's own message: it recommends to unpickle the file after all.
        raise ValueError(f"{path}: damaged, or not a file of tensors alone ({type(error).__name__})") from None
    if isinstance(content, dict):
        for wrapper in ("model_state_dict", "state_dict", "model"):
            content = content[wrapper] if isinstance(content.get(wrapper), dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: must hold a state dict (names to tensors)")
    return dict(content)


def read_config(source: Path, given: Path | None) -> dict[str, Any]:
    """The reference's configuration: YAML or JSON, given or beside the weights."""
    import yaml

    if given and not given.is_file():
        raise FileNotFoundError(f"--config: there is no file {given}")
    places = [given] if given else [source.with_suffix(end) for end in (".yaml", ".yml", ".json")]
    places += [] if given else [source.parent / name for name in ("config.yaml", "config.json")]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no configuration for {source.name}: pass --config FILE (YAML or JSON)")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError, RecursionError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: not readable ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must map names to values; got {type(content).__name__}")
    for wrapper in ("model_config", "model", "config"):
        content = content[wrapper] if isinstance(content.get(wrapper), dict) else content
    return content


def _ablation(fields: dict[str, Any]) -> SelfAblation:
    if fields["ablation_processing"] not in PROCESSING:
        known = ", ".join(str(name) for name in PROCESSING)
        raise ValueError(f"ablation_processing must be one of {known}; got {fields['ablation_processing']!r}")
    local, overall = fields["has_layer_by_layer_ablation_mask"], fields["has_overall_ablation_mask"]
    mask = {(1, 1): "both", (1, 0): "local", (0, 1): "global", (0, 0): "none"}[bool(local), bool(overall)]
    return SelfAblation(
        mask="none" if fields["ablation_processing"] is None else mask,
        k_attn=fields["k_attention"],
        k_mlp=fields["k_neurons"],
        temperature=float(fields["temperature_attention"]),
        temperature_mlp=float(fields["temperature_neurons"]),
        forward=PROCESSING[fields["ablation_processing"]],
        w_clean=float(fields["loss_coeff_base"]),
        w_ablated=float(fields["loss_coeff_ablated"]),
        w_reconstruction=float(fields["reconstruction_coeff"] or 0) if fields["reconstruction_loss_type"] else 0.0,
    )


def _gates(mask: str, n_layers: int) -> dict[str, str]:
    """Our relevance heads' names to theirs."""
    names = {}
    for kind, unit in (("attn", "attention"), ("mlp", "neuron")):
        if mask in ("global", "both"):
            names[f"gates.global.{kind}"] = f"{unit}_ablations_head"
        if mask in ("local", "both"):
            for layer in range(n_layers):
                names[f"gates.local.{layer}.{kind}"] = f"transformer.h.{layer}.{unit}_ablation_head"
    return names


def _gate_weights(state: dict[str, Tensor], mask: str, n_layers: int) -> dict[str, Tensor]:
    return {
        f"{ours}.{part}": _taken(state, f"{theirs}.{part}")
        for ours, theirs in _gates(mask, n_layers).items()
        for part in ("weight", "bias")
    }


def _source_names(mask: str, n_layers: int) -> list[str]:
    """Every key that a conversion reads."""
    names = [f"transformer.{name}" for name in ("wpe.weight", "ln_f.weight", "ln_f.bias")]
    for layer in range(n_layers):
        prefix = f"transformer.h.{layer}."
        names += [f"{prefix}attn.attention.{letter}_proj.weight" for letter in ("q", "k", "v", "out")]
        names += [f"{prefix}attn.attention.out_proj.bias"]
        names += [
            f"{prefix}{module}.{part}"
            for module in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
            for part in ("weight", "bias")
        ]
    gates = _gates(mask, n_layers).values()
    return names + [f"{gate}.{part}" for gate in gates for part in ("weight", "bias")]


def _taken(state: dict[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise ValueError(f"missing key {key!r} in the reference state dict")
    return state[key]
