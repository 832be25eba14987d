"""What training refuses: other settings, damaged checkpoints, settings out of range; and a process that is killed."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sat_lens import load
from sat_lens.checkpoint import CheckpointError, read_config
from sat_lens.presets import PRESETS, TrainingSettings
from tests.cases.training import assert_same_run, log_lines, trainers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def trainer(tiny_model, tmp_path):
    """`trainer(name="run", ablation=None, batches=text, **settings)`: a Trainer with a model of fixed weights."""
    return trainers(tiny_model, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 1e-3}, "was trained with lr=0.005; got 0.001"),
        ({"seed": 1}, "was trained with seed=0; got 1"),
        ({"steps": 25}, "was trained with steps=24; got 25"),
        ({"ablation": {"k_attn": 2}}, "was trained with another self-ablation"),
        ({"ablation": {"mask": "none"}}, "was trained with another self-ablation"),
        ({"described": {"training": {"preset": "paper"}}}, "was trained with preset='cpu'; got 'paper'"),
        ({"described": {"training": {"preset": "cpu"}, "data": {"sha256": "b"}}}, "was trained on other data"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings_or_data(trainer, change, words):
    described = {"training": {"preset": "cpu"}, "data": {"sha256": "a"}}
    trainer(described=described).train(progress=False)
    other = trainer(**{"described": described} | change)
    with pytest.raises(ValueError, match=words):
        other.resume()


def test_a_folder_without_a_checkpoint_is_not_resumed(trainer):
    with pytest.raises(ValueError, match="has no checkpoint to resume from; start it without --resume"):
        trainer().resume()


def test_a_damaged_checkpoint_is_not_resumed(trainer):
    t = trainer()
    t.train(progress=False)
    path = t.folder / "last" / "state" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="optimizer.safetensors: its sha256 is not the manifest's"):
        trainer().resume()


def test_a_run_that_is_older_than_a_setting_goes_on(trainer):
    t = trainer(steps=8)
    t.train(progress=False)
    config = read_config(t.folder / "last")
    for young in ("precision", "compile", "processes", "tf32"):
        del config["training"][young]
    path = t.folder / "last" / "config.json"
    path.write_text(json.dumps(config))
    manifest = json.loads((t.folder / "last" / "MANIFEST.json").read_text())
    manifest["sha256"]["config.json"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (t.folder / "last" / "MANIFEST.json").write_text(json.dumps(manifest))
    again = trainer(steps=8)
    again.resume()
    assert again.step == 8
    with pytest.raises(ValueError, match="was trained with precision='fp32'; got 'bf16'"):
        trainer(steps=8, precision="bf16").resume()


def test_bf16_trains_near_fp32_and_says_so(trainer):
    full, half = trainer("full"), trainer("half", precision="bf16")
    full.train(progress=False)
    half.train(progress=False)
    last = [log_lines(t.folder / "log.jsonl")[-1]["held_out_total"] for t in (full, half)]
    assert last[0] != last[1] and last[0] == pytest.approx(last[1], abs=0.1)
    said = read_config(half.folder / "last")["training"]
    assert (said["precision"], said["tf32"], said["processes"]) == ("bf16", False, 1)
    assert load(half.folder / "last").cfg.dtype == torch.float32


def test_compiling_on_a_cpu_is_refused_with_the_reason(trainer):
    with pytest.raises(
        ValueError, match="on a CPU, where compiled losses are slower than the fused ones: leave it out"
    ):
        trainer(compile=True)


def test_progress_is_silent_when_it_should_be(trainer, capfd):
    trainer(steps=2).train(progress=False)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("batch_size", 0), ("lr", 0.0), ("lr", math.nan), ("grad_clip", math.inf), ("warmup_steps", -1),
     ("weight_decay", -0.1), ("eval_every", 0), ("threads", 0), ("precision", "fp8")],
)  # fmt: skip
def test_a_setting_out_of_range_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*; got '?{value}"):
        TrainingSettings(**{field: value})


def test_presets_are_the_published_size_and_one_for_a_laptop():
    paper = PRESETS["paper"]
    assert paper["training"] == {"steps": 400_000, "batch_size": 24, "lr": 1.4e-3, "warmup_steps": 0}
    for preset in PRESETS.values():
        TrainingSettings(**preset["training"])


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from sat_lens import SelfAblatingTransformer, SelfAblation
from sat_lens._tl import HookedTransformerConfig
from sat_lens.presets import TrainingSettings
from sat_lens.training import Trainer

def batches(step):
    start = torch.randint(29, (4, 1), generator=torch.Generator().manual_seed(step))
    return (start + 3 * torch.arange(17)) % 29

def trainer(folder):
    torch.manual_seed(0)
    cfg = HookedTransformerConfig(n_layers=2, d_model=16, n_heads=4, d_head=4, d_mlp=24, d_vocab=29, n_ctx=16,
                                  act_fn="gelu_new", tie_word_embeddings=True, device="cpu")
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(k_attn=3, k_mlp=5))
    settings = TrainingSettings(steps=120, batch_size=4, eval_every=7, log_every=5)
    return Trainer(model, settings, batches, (batches(10_000), torch.ones(4, 16)), Path(folder))

if __name__ == "__main__":
    trainer(sys.argv[1]).train(progress=False)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_bit_for_bit(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    code: dict = {}
    exec(compile(SCRIPT, "script", "exec"), code)
    undisturbed = code["trainer"](tmp_path / "undisturbed")
    undisturbed.train(progress=False)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "killed")], env=environment)
    log, deadline = tmp_path / "killed" / "log.jsonl", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if log.is_file() and log.read_text().count("\n") > 12:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.002)
    assert process.wait(timeout=60) == -signal.SIGKILL
    resumed = code["trainer"](tmp_path / "killed")
    resumed.resume()
    assert 0 < resumed.step < 120
    resumed.train(progress=False)
    assert_same_run(undisturbed.folder, resumed.folder)
