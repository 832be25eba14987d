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

import difflib
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sat_lens import files
from sat_lens._tl import HookedTransformer
from sat_lens.described import check_keys, config_dict, empty_model, is_tied, refuse_not_finite, versions
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

SCHEMA_VERSION = 1
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "checkpoints"
UNPROCESSED = {"fold_ln": False, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
ENTRIES = {"schema_version", "kind", "model", "ablation", "tokenizer", "training", "data", "processing", "versions"}
READ_AGAIN = 20  # times at most
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
    weights = {key: value.contiguous() for key, value in model.state_dict().items() if not is_tied(model, key)}
    refuse_not_finite(weights)
    config = {
        "schema_version": SCHEMA_VERSION,
        "kind": type(model).__name__,
        "model": config_dict(model.cfg),
        "ablation": model.ablation.to_dict() if isinstance(model, SelfAblatingTransformer) else None,
        "tokenizer": _special_tokens(model.tokenizer),
        "training": training or {},
        "data": data or {},
        "processing": UNPROCESSED | (processing or {}),
        "versions": versions(),
    }
    temporary = files.part_of(final)
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
    model = empty_model(config, weights, device)
    if config["tokenizer"] is not None:
        model.tokenizer = _tokenizer(folder, config["tokenizer"], model.cfg.d_vocab)
        model.cfg.tokenizer_prepends_bos = False
    check_keys(model, weights, folder)
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
        refuse_not_finite(weights)
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
