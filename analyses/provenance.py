"""Where a result comes from: what must be known to get it again."""

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sat_lens.checkpoint import WEIGHTS, checkpoint_hash, read_config, resolve
from sat_lens.distributed import world_size
from sat_lens.files import sha256_file
from sat_lens.precision import uses_tf32
from sat_lens.repair.origin import weights_sha256

PACKAGES = ("torch", "transformer-lens", "numpy", "pandas", "scipy", "plotly")


def provenance(model: Any, checkpoint: str, *, seed: int, command: Sequence[str] = ()) -> dict[str, Any]:
    """`meta` of a result: checkpoint and weights, configuration, seed, versions, commit, command, date."""
    cfg = model.cfg
    of, sha256 = checkpoint_sha256(model, checkpoint)
    ablation = getattr(model, "ablation", None)
    return {
        "checkpoint": checkpoint,
        "checkpoint_sha256": sha256,
        "checkpoint_sha256_of": of,
        "model": {
            name: getattr(cfg, name)
            for name in ("n_layers", "d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "act_fn")
        },
        "ablation": None if ablation is None else ablation.to_dict(),
        "training": training(checkpoint),
        "seed": seed,
        "device": str(cfg.device),
        "dtype": str(cfg.dtype).removeprefix("torch."),
        "n_threads": torch.get_num_threads(),
        "processes": world_size(),
        "tf32": uses_tf32(),
        "versions": versions(),
        "commit": commit(),
        "command": shlex.join(command),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def training(checkpoint: str) -> dict[str, Any]:
    """Seed and tokens of the training that made a checkpoint folder; empty for other kinds of checkpoint."""
    try:
        recorded = read_config(resolve(checkpoint)).get("training")
    except (OSError, ValueError):  # a .bin, or a model that TransformerLens knows
        return {}
    known = recorded if isinstance(recorded, dict) else {}
    return {key: known[key] for key in ("seed", "step", "tokens_seen", "tokens_seen_before") if key in known}


def checkpoint_sha256(model: torch.nn.Module, checkpoint: str) -> tuple[str, str]:
    """What was hashed, and its sha256: the weights' file where there is one, else the `weights` themselves."""
    if Path(checkpoint).is_file():
        return Path(checkpoint).name, sha256_file(checkpoint)
    try:
        return WEIGHTS, checkpoint_hash(checkpoint)
    except FileNotFoundError:
        return "weights", weights_sha256(model)


def versions() -> dict[str, str]:
    """Version of Python and of each package that can move a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found


def commit() -> str | None:
    """The git commit of this source, `-dirty` with changes; None outside of its repository."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--match=")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
