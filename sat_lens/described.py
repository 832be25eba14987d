"""The model that a configuration describes, empty, if it is that of the weights; and the description of a model."""

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sat_lens import __version__
from sat_lens._tl import HookedTransformer, HookedTransformerConfig, hooked_transformer
from sat_lens.config import SelfAblation
from sat_lens.manifest import CONFIG, WEIGHTS, CheckpointError
from sat_lens.model import SelfAblatingTransformer
from sat_lens.tying import TIED_KEY, TiedUnembed

NOT_KEPT = ("device", "n_devices", "seed", "n_params", "init_weights", "tokenizer_name", "trust_remote_code")
YOUNGER = {"score_noise"}  # settings of an ablation that the first folders do not have
DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}


def empty_model(config: dict[str, Any], weights: dict[str, Tensor], device: str) -> HookedTransformer:
    try:
        fields = dict(config["model"])
        # A tokenizer_name would be fetched, and with trust_remote_code its code be run.
        if foreign := sorted(key for key in NOT_KEPT if fields.pop(key, None) not in (None, False)):
            raise CheckpointError(f"{CONFIG}: model must not give {foreign[0]!r}")
        fields["dtype"] = DTYPES[fields["dtype"]]
        eps = fields.get("eps", 1e-5)
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 < eps < 1:
            raise ValueError(f"eps must be a number between 0 and 1; got {eps!r}")
        if fields.get("load_in_4bit"):
            raise ValueError("load_in_4bit is not supported")
        if not isinstance(fields.get("original_architecture"), str | None):
            raise ValueError("original_architecture must be text")
        cfg = HookedTransformerConfig(**fields, init_weights=False, device=device)
        _check_taken(cfg, config)
        _check_sizes(cfg, weights)
        if config["kind"] == "SelfAblatingTransformer":
            return SelfAblatingTransformer(cfg, ablation=SelfAblation.from_dict(config["ablation"]))
        if config["kind"] == "HookedTransformer":
            return hooked_transformer(cfg)
    except CheckpointError:
        raise
    except (
        TypeError,
        ValueError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        ArithmeticError,
        NameError,
    ) as error:
        raise CheckpointError(f"{CONFIG}: not a valid configuration: {error}") from None
    raise CheckpointError(
        f"{CONFIG}: kind must be SelfAblatingTransformer or HookedTransformer; got {config['kind']!r}"
    )


def _check_taken(cfg: HookedTransformerConfig, config: dict[str, Any]) -> None:
    """Refuse an entry that would be taken for another value (`final_rms: {}` for false), and one that was left out.

    Another version of TransformerLens may know other entries; the settings of an ablation may be younger than a folder.
    """
    taken, written = json.loads(json.dumps(config_dict(cfg))), config["model"]
    for key, value in written.items():
        if key not in NOT_KEPT and json.dumps(taken.get(key)) != json.dumps(value):
            raise ValueError(f"{key} {value!r} would be taken for {taken.get(key)!r}")
    if config["versions"].get("transformer_lens") == versions()["transformer_lens"]:
        if missing := sorted(taken.keys() - written.keys()):
            raise ValueError(f"model has no entry {missing[0]!r}")
    if isinstance(config["ablation"], dict):
        known = {field.name for field in dataclasses.fields(SelfAblation)}
        if missing := sorted(known - config["ablation"].keys() - YOUNGER):
            raise ValueError(f"ablation has no entry {missing[0]!r}")


def _check_sizes(cfg: HookedTransformerConfig, weights: dict[str, Tensor]) -> None:
    """Compare the sizes that decide how much memory a model takes with the file's, before building it."""
    expected = {"embed.W_E": (cfg.d_vocab, cfg.d_model)}
    if cfg.positional_embedding_type != "rotary":
        expected["pos_embed.W_pos"] = (cfg.n_ctx, cfg.d_model)
    for layer in {0, cfg.n_layers - 1}:
        expected[f"blocks.{layer}.attn.W_Q"] = (cfg.n_heads, cfg.d_model, cfg.d_head)
        if not cfg.attn_only:
            expected[f"blocks.{layer}.mlp.W_in"] = (cfg.d_model, cfg.d_mlp)
    for key, shape in expected.items():
        if key not in weights:
            raise CheckpointError(f"{WEIGHTS}: missing key {key!r}")
        if tuple(weights[key].shape) != shape:
            raise CheckpointError(
                f"{WEIGHTS}: {key} must have shape {shape} by {CONFIG}; got {tuple(weights[key].shape)}"
            )


def check_keys(model: HookedTransformer, weights: dict[str, Tensor], folder: Path) -> None:
    expected = {key: value for key, value in model.state_dict().items() if not is_tied(model, key)}
    for word, keys in (("missing", expected.keys() - weights.keys()), ("unknown", weights.keys() - expected.keys())):
        if keys:
            raise CheckpointError(f"{folder / WEIGHTS}: {word} key {sorted(keys)[0]!r} ({len(keys)} in all)")
    for key, value in expected.items():
        if weights[key].shape != value.shape or weights[key].dtype != value.dtype:
            got = f"{weights[key].dtype} {tuple(weights[key].shape)}"
            raise CheckpointError(f"{folder / WEIGHTS}: {key} must be {value.dtype} {tuple(value.shape)}; got {got}")


def is_tied(model: HookedTransformer, key: str) -> bool:
    return key == TIED_KEY and isinstance(model.unembed, TiedUnembed)


def refuse_not_finite(weights: dict[str, Tensor | Float[Tensor, "..."]]) -> None:
    for key, value in weights.items():
        if value.is_floating_point() and value.element_size() == 1:
            raise CheckpointError(f"{WEIGHTS}: {key} has dtype {value.dtype}, which is not supported")
        if not key.endswith(".IGNORE") and value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{WEIGHTS}: {key} has {int((~value.isfinite()).sum())} values that are not finite")


def config_dict(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """The configuration's fields that differ from the defaults or decide a shape, JSON-able."""
    fields = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name not in NOT_KEPT}
    fields["dtype"] = str(cfg.dtype).removeprefix("torch.")
    return {key: float(value) if isinstance(value, float) else value for key, value in fields.items()}


def versions() -> dict[str, str]:
    """Versions of what computed something."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "sat_lens": __version__,
        "torch": torch.__version__,
        "transformer_lens": version("transformer-lens"),
    }
