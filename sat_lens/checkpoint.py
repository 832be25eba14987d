"""Checkpoint folders: everything that a model needs to be trusted later, and nothing that can run.

    config.json         schema_version, kind, model, ablation, tokenizer, training, data, processing, versions
    model.safetensors   weights under plain TransformerLens keys, relevance heads under `gates.`
    tokenizer.json      absent for a model without a tokenizer
    log.jsonl           one line a log step
    state/              optimizer, random generators, data position; absent where training has ended
    MANIFEST.json       sha256 of each file

A folder is written whole or not at all, and refused when anything in it is not what it says: an
unknown schema, a missing or extra key, a wrong hash, a NaN. Nothing is ever unpickled.
"""

import dataclasses
import difflib
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sat_lens import __version__, files
from sat_lens._tl import HookedTransformer, HookedTransformerConfig, hooked_transformer
from sat_lens.config import SelfAblation
from sat_lens.manifest import (
    CONFIG,
    LOG,
    MANIFEST,
    STATE,
    TOKENIZER,
    WEIGHTS,
    CheckpointError,
    read_json,
    verify_files,
    write_json,
    write_manifest,
)
from sat_lens.model import SelfAblatingTransformer
from sat_lens.tying import TIED_KEY, TiedUnembed

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "checkpoints"
UNPROCESSED = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
NOT_KEPT = ("device", "n_devices", "seed", "n_params", "init_weights", "tokenizer_name", "trust_remote_code")
ENTRIES = {"schema_version", "kind", "model", "ablation", "tokenizer", "training", "data", "processing", "versions"}
READ_AGAIN = 20  # times at most
YOUNGER = {"score_noise"}  # settings of an ablation that the first folders do not have
DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)}
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def save(
    model: HookedTransformer,
    folder: Path | str,
    *,
    training: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    processing: dict[str, bool] | None = None,
    log: str = "",
    state: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
) -> Path:
    """Write a model (self-ablating or plain) as a checkpoint folder, replacing an older one.

    Args:
        training: how it was trained, `data`: on what; kept as they are (JSON).
        processing: which of TransformerLens' weight processings were applied; default none.
        log: content of log.jsonl.
        state: tensors and JSON that let training go on.

    Raises:
        CheckpointError: a weight that is not finite, or a folder there that is no checkpoint.
    """
    final = files.recovered(folder)
    if final.exists() and not (final / MANIFEST).is_file() and (final.is_file() or any(final.iterdir())):
        raise CheckpointError(f"{final} exists and is no checkpoint folder; choose another name")
    weights = {key: value.contiguous() for key, value in model.state_dict().items() if not _is_tied(model, key)}
    _refuse_not_finite(weights)
    config = {
        "schema_version": SCHEMA_VERSION,
        "kind": type(model).__name__,
        "model": _config_dict(model.cfg),
        "ablation": model.ablation.to_dict() if isinstance(model, SelfAblatingTransformer) else None,
        "tokenizer": _special_tokens(model.tokenizer),
        "training": training or {},
        "data": data or {},
        "processing": UNPROCESSED | (processing or {}),
        "versions": versions(),
    }
    temporary = final.with_name(f".{final.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write_tensors(weights, temporary / WEIGHTS)
        write_json(temporary / CONFIG, config)
        if model.tokenizer is not None:
            (temporary / TOKENIZER).write_text(model.tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
        (temporary / LOG).write_text(log, encoding="utf-8")
        if state is not None:
            (temporary / "state").mkdir()
            write_tensors(state[0], temporary / STATE[0])
            write_json(temporary / STATE[1], state[1])
        write_manifest(temporary)
        files.replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def load(folder: Path | str, device: str = "cpu") -> HookedTransformer:
    """The model of a checkpoint folder or of a shipped checkpoint's name, verified, in eval mode.

    A run folder of `sat_lens.train` stands for its `best` checkpoint, or `last` where there is none. A folder that
    is replaced while it is read, as that of a run under way may be, is read again.

    Raises:
        CheckpointError: anything in the folder that is not what it says.
        FileNotFoundError: no such folder.
    """
    folder = resolve(folder)
    for _ in range(READ_AGAIN):
        before = _identity(folder)
        try:
            model = _load(folder, device)
        except (ValueError, OSError):  # a tokenizer has an error of its own
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return model
    raise CheckpointError(f"{folder} is replaced again and again while it is read; try later")


def _identity(folder: Path) -> tuple[int, int] | None:
    """Of the folder that has this name at the moment; the next one of the same content has another."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _load(folder: Path, device: str) -> HookedTransformer:
    verify_files(folder)
    config = read_config(folder)
    weights = read_weights(folder / WEIGHTS, device)
    model = _empty_model(config, weights, device)
    if config["tokenizer"] is not None:
        model.tokenizer = _tokenizer(folder, config["tokenizer"], model.cfg.d_vocab)
        model.cfg.tokenizer_prepends_bos = False
    _check_keys(model, weights, folder)
    model.load_state_dict(weights, strict=True)
    return model.eval()


def resolve(name: Path | str) -> Path:
    """The folder that a path, a run folder or a shipped checkpoint's name stands for."""
    given = Path(name)
    candidates = [given, given / "best", given / "last"]
    if given.name == str(name):
        candidates.append(SHIPPED / given.name)
    for folder in candidates:
        files.recovered(folder)
        if (folder / CONFIG).is_file() or (folder / MANIFEST).is_file():
            return folder
    if given.is_dir():
        inside = sorted(str(given / path.parent.name) for path in given.glob(f"*/{CONFIG}"))
        hint = f"; it holds some: give one of them, such as {inside[0]}" if inside else ""
        raise CheckpointError(f"{name} is no checkpoint folder: it has no {CONFIG}{hint}")
    if given.is_file():
        hint = "; python -m sat_lens.convert makes a folder of it" if given.suffix in (".pt", ".safetensors") else ""
        raise CheckpointError(f"{name} is a file; a checkpoint must be a folder, or a llama2.c .bin file{hint}")
    shipped = sorted(path.name for path in SHIPPED.glob("*") if path.is_dir()) if SHIPPED.is_dir() else []
    near = difflib.get_close_matches(str(name), shipped, 3, 0.5)
    meant = f"; nearest: {', '.join(sorted(near))}" if near else ""
    raise FileNotFoundError(
        f"no checkpoint {str(name)!r}: not a folder, and not one of the shipped ones "
        f"({', '.join(shipped) or 'none'}{meant})"
    )


def load_any(name: Path | str, device: str = "cpu") -> HookedTransformer:
    """`load`, or a llama2.c `.bin`, or any model that TransformerLens knows by name.

    Raises:
        FileNotFoundError: none of these; the message lists what was tried.
    """
    if str(name).endswith(".bin"):
        from sat_lens.convert import from_llama2c

        return from_llama2c(name).to(device, print_details=False)
    try:
        return load(name, device)
    except FileNotFoundError as missing:
        from transformer_lens.loading_from_pretrained import get_official_model_name

        try:
            get_official_model_name(str(name))
        except ValueError:
            raise FileNotFoundError(f"{missing}, and not a model that TransformerLens knows") from None
        return _pretrained(str(name), device)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with its schema checked."""
    config = read_json(folder / CONFIG)
    if config.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG}: schema_version must be {SCHEMA_VERSION}; got {config.get('schema_version')!r}"
        )
    if difference := sorted(ENTRIES ^ set(config)):
        word = "missing" if difference[0] in ENTRIES else "unknown"
        raise CheckpointError(f"{folder / CONFIG}: {word} entry {difference[0]!r}")
    for name in ("model", "training", "data", "processing", "versions"):
        if not isinstance(config[name], dict):
            raise CheckpointError(f"{folder / CONFIG}: {name} must be a JSON object; got {config[name]!r}")
    special = config["tokenizer"]
    if special is not None and not (isinstance(special, dict) and set(special) == set(SPECIAL_TOKENS)):
        raise CheckpointError(f"{folder / CONFIG}: tokenizer must give {', '.join(SPECIAL_TOKENS)}")
    done = config["processing"]
    if set(done) != set(UNPROCESSED) or not all(isinstance(value, bool) for value in done.values()):
        raise CheckpointError(f"{folder / CONFIG}: processing must say true or false of {', '.join(UNPROCESSED)}")
    return config


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `save` was given as `state`."""
    for name in STATE:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} holds no training state ({name} is missing): it cannot be resumed")
    return read_weights(folder / STATE[0], finite=False), read_json(folder / STATE[1])


def read_weights(path: Path, device: str = "cpu", finite: bool = True) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises: CheckpointError for a damaged file or a NaN."""
    try:
        with safe_open(path, "pt", device=device) as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    if finite:
        _refuse_not_finite(weights)
    return weights


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises: OSError where it cannot be written (a full disk)."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from None


def checkpoint_hash(folder: Path | str) -> str:
    """sha256 of the weights file: the identity of a checkpoint in results."""
    return files.sha256_file(resolve(folder) / WEIGHTS)


def versions() -> dict[str, str]:
    """Versions of what computed something."""
    from importlib.metadata import version

    return {
        "python": platform.python_version(),
        "sat_lens": __version__,
        "torch": torch.__version__,
        "transformer_lens": version("transformer-lens"),
    }


def _empty_model(config: dict[str, Any], weights: dict[str, Tensor], device: str) -> HookedTransformer:
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
    taken, written = json.loads(json.dumps(_config_dict(cfg))), config["model"]
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


def _check_keys(model: HookedTransformer, weights: dict[str, Tensor], folder: Path) -> None:
    expected = {key: value for key, value in model.state_dict().items() if not _is_tied(model, key)}
    for word, keys in (("missing", expected.keys() - weights.keys()), ("unknown", weights.keys() - expected.keys())):
        if keys:
            raise CheckpointError(f"{folder / WEIGHTS}: {word} key {sorted(keys)[0]!r} ({len(keys)} in all)")
    for key, value in expected.items():
        if weights[key].shape != value.shape or weights[key].dtype != value.dtype:
            got = f"{weights[key].dtype} {tuple(weights[key].shape)}"
            raise CheckpointError(f"{folder / WEIGHTS}: {key} must be {value.dtype} {tuple(value.shape)}; got {got}")


def _is_tied(model: HookedTransformer, key: str) -> bool:
    return key == TIED_KEY and isinstance(model.unembed, TiedUnembed)


def _refuse_not_finite(weights: dict[str, Tensor | Float[Tensor, "..."]]) -> None:
    for key, value in weights.items():
        if value.is_floating_point() and value.element_size() == 1:
            raise CheckpointError(f"{WEIGHTS}: {key} has dtype {value.dtype}, which is not supported")
        if not key.endswith(".IGNORE") and value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{WEIGHTS}: {key} has {int((~value.isfinite()).sum())} values that are not finite")


def _config_dict(cfg: HookedTransformerConfig) -> dict[str, Any]:
    """The configuration's fields that differ from the defaults or decide a shape, JSON-able."""
    fields = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name not in NOT_KEPT}
    fields["dtype"] = str(cfg.dtype).removeprefix("torch.")
    return {key: float(value) if isinstance(value, float) else value for key, value in fields.items()}


def _special_tokens(tokenizer: Any) -> dict[str, str | None] | None:
    return None if tokenizer is None else {name: getattr(tokenizer, name) for name in SPECIAL_TOKENS}


def _tokenizer(folder: Path, special: dict[str, str | None], d_vocab: int) -> Any:
    from sat_lens.tokenizers import load_tokenizer

    if not (folder / TOKENIZER).is_file():
        raise CheckpointError(f"{folder}: {TOKENIZER} is missing, and {CONFIG} speaks of a tokenizer")
    tokenizer = load_tokenizer(folder / TOKENIZER)
    for name, token in special.items():
        if token is not None:
            if not isinstance(token, str) or tokenizer.backend_tokenizer.token_to_id(token) is None:
                raise CheckpointError(f"{folder / CONFIG}: {name} {token!r} is not in the tokenizer")
            setattr(tokenizer, name, token)
    if (highest := max(tokenizer.get_vocab().values())) >= d_vocab:
        raise CheckpointError(f"{folder}: ids of {TOKENIZER} must be below the model's {d_vocab}; got {highest}")
    return tokenizer


def _pretrained(name: str, device: str) -> HookedTransformer:
    from sat_lens._tl import quiet_construction

    try:
        with quiet_construction():
            return HookedTransformer.from_pretrained_no_processing(name, device=device)
    except OSError as error:
        raise FileNotFoundError(f"{name} is neither in the local cache nor could it be fetched: {error}") from None
