"""The files of a checkpoint folder and their hashes, without PyTorch: whether they still are what was written."""

import json
from pathlib import Path
from typing import Any

from sat_lens import files

WEIGHTS, CONFIG, TOKENIZER, LOG, MANIFEST = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
    "log.jsonl",
    "MANIFEST.json",
)
STATE = ("state/optimizer.safetensors", "state/state.json")
LIMIT_BYTES = 64 << 20  # of any JSON file


class CheckpointError(ValueError):
    """A checkpoint folder that is not what it should be; the message says which file and why."""


def verify_files(folder: Path) -> None:
    """Check every file of a folder against its manifest.

    Raises:
        CheckpointError: a file that is missing, not listed, a link, or has another sha256.
    """
    manifest = read_json(folder / MANIFEST).get("sha256")
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{folder / MANIFEST}: must map file names to sha256 under 'sha256'")
    known = {WEIGHTS, CONFIG, TOKENIZER, LOG, *STATE}
    if foreign := sorted(set(manifest) - known):
        raise CheckpointError(f"{folder / MANIFEST}: unknown file name {foreign[0]!r}")
    for name in sorted(known):
        path = folder / name
        if path.is_symlink() or (folder / "state").is_symlink():
            raise CheckpointError(f"{path}: links are not followed")
        if path.is_file() != (name in manifest):
            where = "listed in the manifest but missing" if name in manifest else "not listed in the manifest"
            raise CheckpointError(f"{path}: {where}")
        if name in manifest and files.sha256_file(path) != manifest[name]:
            raise CheckpointError(f"{path}: its sha256 is not the manifest's: the file was changed or damaged")
    for name in (WEIGHTS, CONFIG):
        if name not in manifest:
            raise CheckpointError(f"{folder}: {name} is missing")


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.is_symlink():
        raise CheckpointError(f"{path}: no such file")
    if path.stat().st_size > LIMIT_BYTES:
        raise CheckpointError(f"{path}: larger than {LIMIT_BYTES >> 20} MiB")
    try:
        content = files.strict_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must be a JSON object; got {type(content).__name__}")
    return content


def write_manifest(folder: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    write_json(folder / MANIFEST, {"sha256": {name: files.sha256_file(folder / name) for name in names}})
