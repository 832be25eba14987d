"""A short training run of a small model, and what makes two runs the same."""

import json
from pathlib import Path

import torch
from torch import Tensor

from sat_lens import load
from sat_lens.checkpoint import read_config, read_state, verify_files
from sat_lens.presets import TrainingSettings
from sat_lens.training import Trainer

SETTINGS = {"steps": 24, "batch_size": 4, "lr": 5e-3, "warmup_steps": 4, "eval_every": 8, "log_every": 3}


def text(step: int, rows: int = 4) -> Tensor:
    """Rows [rows 17] that count upwards in threes from a random start: easy to learn, different at each step."""
    start = torch.randint(29, (rows, 1), generator=torch.Generator().manual_seed(step))
    return (start + 3 * torch.arange(17)) % 29


def trainers(tiny_model, tmp_path):
    """`build(name="run", ablation=None, batches=text, **settings)`: a Trainer with a model of fixed weights."""

    def build(name="run", ablation=None, batches=text, described=None, probes=None, **settings):
        model = tiny_model(ablation, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.3)
        held_out = (text(10_000, 8), torch.ones(8, 16))
        chosen = TrainingSettings(**SETTINGS | settings)
        torch.manual_seed(0)
        return Trainer(model, chosen, batches, held_out, tmp_path / name, described, probes)

    return build


def log_lines(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, optimizer, random state, position and log of both checkpoints are equal bit for bit."""
    for name in ("last", "best"):
        verify_files(one / name)
        verify_files(other / name)
        ours, theirs = load(one / name).state_dict(), load(other / name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
        assert log_lines(one / name / "log.jsonl") == log_lines(other / name / "log.jsonl")
        assert read_config(one / name)["training"] == read_config(other / name)["training"]
    ours, theirs = read_state(one / "last"), read_state(other / "last")
    assert ours[1] == theirs[1] and set(ours[0]) == set(theirs[0])
    assert all(torch.equal(ours[0][key], theirs[0][key]) for key in ours[0])
    assert log_lines(one / "log.jsonl") == log_lines(other / "log.jsonl")
