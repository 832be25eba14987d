"""GPT-Neo folders (config.json and weights), such as the TinyStories models."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_lens._tl import HookedTransformerConfig
from sat_lens.model import SelfAblatingTransformer
from sat_lens.reference import host_weights, read_state


def from_gpt_neo(folder: Path | str) -> SelfAblatingTransformer:
    """The model of a Hugging Face GPT-Neo folder, as a SelfAblatingTransformer without a mask.

    Raises:
        ValueError: not a GPT-Neo configuration, or weights that do not fit it.
        FileNotFoundError: no config.json or no weights in the folder.
    """
    folder = Path(folder)
    config = _read_config(folder / "config.json")
    weights = _read_weights(folder)
    cfg = _host(config)
    model = SelfAblatingTransformer(cfg)
    converted = host_weights(weights, cfg)
    own = model.state_dict()
    for key, value in converted.items():
        if own[key].shape != value.shape:
            raise ValueError(f"{folder}: {key} must have shape {tuple(own[key].shape)}; got {tuple(value.shape)}")
    model.load_state_dict(own | converted, strict=True)
    return model.eval()


def _host(config: dict[str, Any]) -> HookedTransformerConfig:
    try:
        types = [kind for kinds, times in config["attention_types"] for kind in kinds * times]
        for name in ("num_layers", "hidden_size", "num_heads", "vocab_size", "max_position_embeddings"):
            if not isinstance(config[name], int) or config[name] < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {config[name]!r}")
        d_model, n_heads = config["hidden_size"], config["num_heads"]
        return HookedTransformerConfig(
            n_layers=config["num_layers"],
            d_model=d_model,
            n_heads=n_heads,
            d_head=d_model // n_heads,
            d_mlp=config.get("intermediate_size") or 4 * d_model,
            d_vocab=config["vocab_size"],
            n_ctx=config["max_position_embeddings"],
            act_fn=config.get("activation_function", "gelu_new"),
            normalization_type="LN",
            eps=config.get("layer_norm_epsilon", 1e-5),
            use_attn_scale=False,
            use_local_attn="local" in types,
            attn_types=types if "local" in types else None,
            window_size=config.get("window_size", 256),
            tie_word_embeddings=True,
            original_architecture="GPTNeoForCausalLM",
            init_weights=False,
            dtype=torch.float32,
            device="cpu",
        )
    except (KeyError, TypeError, AssertionError) as error:
        raise ValueError(f"not a GPT-Neo configuration: {error!r}") from None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} is no model folder: it has no config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict) or config.get("model_type") != "gpt_neo":
        kind = config.get("model_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{path}: model_type must be 'gpt_neo'; got {kind!r}")
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            state = read_state(folder / name)
            state = {
                key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}": value
                for key, value in state.items()
            }
            return {key: value.float() for key, value in state.items() if value.is_floating_point()}
    raise FileNotFoundError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")
