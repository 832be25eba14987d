"""Toy runs on disk: what a model, its autoencoder and their history are, and nothing that can run.

    toy.json            schema, configuration, step, the best step, versions
    model/              a checkpoint folder of sat_lens, so that every other question can be asked (decoder)
    model.safetensors   the weights (seq2seq)
    sae.safetensors     where there is an autoencoder
    log.jsonl           the history, one line an evaluation
    state.safetensors   optimizer; in `last` while the run is not finished
    MANIFEST.json       sha256 of each file

A folder is written whole or not at all, and verified when it is read. Nothing is ever unpickled.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_lens import checkpoint, files
from sat_lens.checkpoint import CheckpointError
from sat_lens.toy.arithmetic import TaskData, task_data
from sat_lens.toy.config import ToyConfig
from sat_lens.toy.model import DecoderToy, ToyModel, build_toy
from sat_lens.toy.side_sae import SideSAE

SCHEMA = 1
TOY, WEIGHTS, SAE, LOG, STATE, MANIFEST = (
    "toy.json", "model.safetensors", "sae.safetensors", "log.jsonl", "state.safetensors", "MANIFEST.json",
)  # fmt: skip
SHIPPED = Path(__file__).resolve().parents[2] / "data" / "untangling"
DATA_FIELDS = ("tokenizer", "split", "train_share", "val_share", "source_length", "answer_length")


@dataclasses.dataclass
class ToyRun:
    """A trained toy model.

    Args:
        config: how it was made.
        data: what it was trained on.
        toy: the model.
        sae: its autoencoder, if any.
        history: one entry an evaluation.
        step: optimizer steps that these weights have had.
        folder: where it was read from or written to.
    """

    config: ToyConfig
    data: TaskData
    toy: ToyModel
    sae: SideSAE | None
    history: list[dict[str, Any]]
    step: int
    folder: Path | None = None

    @property
    def name(self) -> str:
        return self.config.name

    def stream(self, name: str) -> DecoderToy:
        """The same model, answered by another stream."""
        if not isinstance(self.toy, DecoderToy):
            raise ValueError("an encoder-decoder has one stream")
        return DecoderToy(self.toy.net, self.toy.n_source, name)


def data_of(config: ToyConfig) -> TaskData:
    """The data that a configuration names."""
    fields = {name: getattr(config, name) for name in DATA_FIELDS}
    return task_data(config.operands, **fields, seed=config.data_seed)


def fresh(config: ToyConfig) -> ToyRun:
    """A run before its first step."""
    data = data_of(config)
    sae = None if config.sae == "none" else SideSAE(config.d_model, config.n_latents, config.seed)
    return ToyRun(config, data, build_toy(config, data), sae, [], 0)


def save_toy(run: ToyRun, folder: Path | str, state: dict[str, Tensor] | None = None, **entries: Any) -> Path:
    """Write a run, replacing an older one.

    Args:
        state: tensors that let training go on.
        entries: kept in toy.json beside the configuration.

    Raises:
        CheckpointError: a folder there that is no toy run.
    """
    final = files.recovered(folder)
    if final.exists() and not (final / MANIFEST).is_file() and (final.is_file() or any(final.iterdir())):
        raise CheckpointError(f"{final} exists and is no toy run; choose another name")
    temporary = files.part_of(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if isinstance(run.toy, DecoderToy):
            checkpoint.save(run.toy.net, temporary / "model", training={"seed": run.config.seed, "step": run.step})
        else:
            weights = {key: value.contiguous() for key, value in run.toy.net.state_dict().items()}
            checkpoint.write_tensors(weights, temporary / WEIGHTS)
        if run.sae is not None:
            checkpoint.write_tensors(run.sae.state_dict(), temporary / SAE)
        if state is not None:
            checkpoint.write_tensors(state, temporary / STATE)
        config = run.config.to_dict()
        written = {"schema": SCHEMA, "config": config, "step": run.step, "versions": checkpoint.versions(), **entries}
        (temporary / TOY).write_text(json.dumps(written, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        lines = "".join(json.dumps(line, allow_nan=False) + "\n" for line in run.history)
        (temporary / LOG).write_text(lines, encoding="utf-8")
        names = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
        hashes = {name: files.sha256_file(temporary / name) for name in names}
        (temporary / MANIFEST).write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
        files.replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def load_toy(name: Path | str) -> ToyRun:
    """The run of a folder, or of a shipped one's name, verified; a run folder stands for its `best`, or `last`.

    Raises:
        CheckpointError: anything in the folder that is not what it says.
        FileNotFoundError: no such folder.
    """
    folder = resolve_toy(name)
    stored = read_entries(folder)
    config = config_of(stored, folder)
    run = dataclasses.replace(fresh(config), folder=folder, step=stored["step"])
    net = run.toy.net
    if isinstance(run.toy, DecoderToy):
        loaded = checkpoint.load(folder / "model")
        if shapes(loaded.state_dict()) != shapes(net.state_dict()):
            raise CheckpointError(f"{folder / 'model'} is not the model that {TOY} describes")
        net.load_state_dict(loaded.state_dict())
    else:
        take(net, checkpoint.read_weights(folder / WEIGHTS), folder / WEIGHTS)
    if run.sae is not None:
        take(run.sae, checkpoint.read_weights(folder / SAE), folder / SAE)
    net.eval()
    try:
        run.history = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(line, dict) for line in run.history):
            raise ValueError("every line must be a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / LOG}: not a history ({error})") from None
    return run


def resolve_toy(name: Path | str) -> Path:
    """The folder that a path, a run folder or a shipped run's name stands for."""
    given = Path(name)
    candidates = [given, given / "best", given / "last", *([SHIPPED / given.name] if given.name == str(name) else [])]
    for folder in candidates:
        if (files.recovered(folder) / TOY).is_file():
            return folder
    shipped = sorted(path.parent.name for path in SHIPPED.glob(f"*/{TOY}"))
    raise FileNotFoundError(
        f"no toy run {str(name)!r}: not a folder with a {TOY}, and not a shipped one ({', '.join(shipped) or 'none'})"
    )


def read_entries(folder: Path) -> dict[str, Any]:
    """toy.json, after checking every file of the folder against the manifest."""
    hashes, stored = checkpoint.read_json(folder / MANIFEST), checkpoint.read_json(folder / TOY)
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink()}
    if different := sorted((present - {MANIFEST}) ^ set(hashes)):
        raise CheckpointError(f"{folder}: {different[0]} is in one of folder and manifest alone")
    for file, expected in hashes.items():
        if (folder / file).is_symlink() or files.sha256_file(folder / file) != expected:
            raise CheckpointError(f"{folder / file}: its sha256 is not the manifest's: it was changed or damaged")
    if stored.get("schema") != SCHEMA:
        raise CheckpointError(f"{folder / TOY}: schema must be {SCHEMA}; got {stored.get('schema')!r}")
    if type(stored.get("step")) is not int or stored["step"] < 0:
        raise CheckpointError(f"{folder / TOY}: step must be a whole number of at least 0; got {stored.get('step')!r}")
    return stored


def config_of(stored: dict[str, Any], folder: Path) -> ToyConfig:
    try:
        return ToyConfig.from_dict(stored["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / TOY}: not a valid configuration: {error}") from None


def take(module: torch.nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Load weights of the same names and shapes."""
    if shapes(weights) != shapes(module.state_dict()):
        raise CheckpointError(f"{path}: names or shapes of weights are not those that {TOY} describes")
    module.load_state_dict(weights)


def shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in weights.items()}
