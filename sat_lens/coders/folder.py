"""Coders on disk: a folder of a configuration, weights and a manifest, as checkpoints are, and never a pickle.

    config.json         schema_version, coder (a CoderConfig), training, versions
    model.safetensors   W_enc, b_enc, W_dec, b_dec, and W_skip of a skip transcoder
    log.jsonl           one line a log step
    state/              optimizer and counters; absent where training has ended
    MANIFEST.json       sha256 of each file

Written whole or not at all; refused when anything in it is not what it says.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_lens import checkpoint, files
from sat_lens.checkpoint import CONFIG, LOG, MANIFEST, STATE, WEIGHTS, CheckpointError
from sat_lens.coders.coder import KINDS, Coder, CoderConfig, weight_shapes
from sat_lens.coders.neurons import NeuronCoder

SCHEMA_VERSION = 1
ENTRIES = {"schema_version", "coder", "training", "versions"}


def save_coder(
    coder: Coder | NeuronCoder,
    folder: Path | str,
    *,
    training: dict[str, Any] | None = None,
    log: str = "",
    state: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
) -> Path:
    """Write a coder as a folder, replacing an older one.

    Args:
        training: how it was trained, and on what (JSON).
        log: content of log.jsonl.
        state: tensors and JSON that let training go on.

    Raises:
        ValueError: neurons, which have no weights of their own; a weight that is not finite; a folder there that is
            no such folder.
    """
    if not isinstance(coder, Coder):
        raise ValueError("neurons have no weights of their own to save; make their coder from the model")
    final = files.recovered(folder)
    if final.exists() and not (final / MANIFEST).is_file() and (final.is_file() or any(final.iterdir())):
        raise CheckpointError(f"{final} exists and is no coder's folder; choose another name")
    weights = {name: value.detach().contiguous() for name, value in coder.state_dict().items()}
    if wrong := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{wrong[0]} of the coder has values that are not finite; it is not written")
    config = {
        "schema_version": SCHEMA_VERSION,
        "coder": dataclasses.asdict(coder.cfg),
        "training": training or {},
        "versions": checkpoint.versions(),
    }
    temporary = files.part_of(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        checkpoint.write_tensors(weights, temporary / WEIGHTS)
        checkpoint.write_json(temporary / CONFIG, config)
        (temporary / LOG).write_text(log, encoding="utf-8")
        if state is not None:
            (temporary / "state").mkdir()
            checkpoint.write_tensors(state[0], temporary / STATE[0])
            checkpoint.write_json(temporary / STATE[1], state[1])
        checkpoint.write_manifest(temporary)
        files.replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def load_coder(
    folder: Path | str, *, hook_in: str | None = None, hook_out: str | None = None, device: str = "cpu"
) -> Coder:
    """The coder of a folder, ours or one written by sae-lens or sparsify, with gradients off.

    Args:
        hook_in, hook_out: where a foreign coder sits, where its folder does not say so in names of this model's hook
            points. A folder of ours says it.

    Raises:
        ValueError: anything in the folder that is not what it says, or that these coders cannot do.
        FileNotFoundError: no such folder.
    """
    from sat_lens.coders import foreign

    found = files.recovered(folder)
    if not found.is_dir():
        raise FileNotFoundError(f"no coder at {str(folder)!r}: not a folder")
    if (found / foreign.SAE_LENS).is_file():
        return foreign.from_sae_lens(found, hook_in, hook_out, device)
    if (found / foreign.SPARSIFY).is_file():
        return foreign.from_sparsify(found, hook_in, hook_out, device)
    if not (found / MANIFEST).is_file():
        expected = f"{MANIFEST} (ours), {foreign.SAE_LENS} (sae-lens) or {foreign.SPARSIFY} (sparsify)"
        raise CheckpointError(f"{found} is no coder's folder: it has no {expected}")
    cfg = read_config(found)
    if (hook_in or cfg.hook_in, hook_out or cfg.hook_out) != (cfg.hook_in, cfg.hook_out):
        raise CheckpointError(f"{found} is a coder of {cfg.hook_in} and {cfg.hook_out}; got {hook_in} and {hook_out}")
    return coder_of(cfg, checkpoint.read_weights(found / WEIGHTS, device), found / WEIGHTS)


def read_config(folder: Path) -> CoderConfig:
    """The verified configuration of a folder of ours."""
    entries = read_entries(folder)
    try:
        cfg = CoderConfig.from_dict(entries["coder"])
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    if cfg.kind not in KINDS:
        raise CheckpointError(f"{folder / CONFIG}: a coder of kind {cfg.kind} is made from its model, not read")
    return cfg


def read_entries(folder: Path) -> dict[str, Any]:
    """All of a folder's config.json, after every file was checked against the manifest."""
    checkpoint.verify_files(folder)
    config = checkpoint.read_json(folder / CONFIG)
    if config.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG}: schema_version must be {SCHEMA_VERSION}; got {config.get('schema_version')!r}"
        )
    if wrong := sorted(ENTRIES ^ config.keys()):
        raise CheckpointError(
            f"{folder / CONFIG}: {'missing' if wrong[0] in ENTRIES else 'unknown'} entry {wrong[0]!r}"
        )
    for name in ("coder", "training"):
        if not isinstance(config[name], dict):
            raise CheckpointError(f"{folder / CONFIG}: {name} must be a JSON object")
    return config


def coder_of(cfg: CoderConfig, weights: dict[str, Tensor], where: Path) -> Coder:
    """A coder of these weights, whose keys and shapes are checked before anything is made of them.

    Raises:
        CheckpointError: a missing or unknown key, a wrong shape or type.
    """
    expected = weight_shapes(cfg)
    for word, keys in (("missing", expected.keys() - weights.keys()), ("unknown", weights.keys() - expected.keys())):
        if keys:
            raise CheckpointError(f"{where}: {word} key {min(keys)!r}")
    for name, shape in expected.items():
        if (got := tuple(weights[name].shape)) != shape:
            raise CheckpointError(f"{where}: {name} must have shape {shape} by its configuration; got {got}")
    dtypes = {value.dtype for value in weights.values()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise CheckpointError(f"{where}: weights must all be float32 or all float64; got {sorted(map(str, dtypes))}")
    coder = Coder(cfg, device="meta")
    coder.load_state_dict(weights, assign=True)
    return coder.requires_grad_(False).eval()
