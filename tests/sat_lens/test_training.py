"""The training loop: it learns, it can be stopped at any step, and it goes on as if it had not been."""

import dataclasses
import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sat_lens import SelfAblation, load
from sat_lens.checkpoint import read_config, read_state
from sat_lens.training import TrainingStopped, evaluating, held_out_losses
from tests.cases.training import assert_same_run, log_lines, text, trainers

ROOT = Path(__file__).resolve().parents[2]


class Stopped(Exception):
    """What a test interrupts training with."""


@pytest.fixture
def trainer(tiny_model, tmp_path):
    """`trainer(name="run", ablation=None, batches=text, **settings)`: a Trainer with a model of fixed weights."""
    return trainers(tiny_model, tmp_path)


@pytest.mark.parametrize("mask", ["none", "local", "global", "both"])
def test_both_losses_fall_on_text_that_can_be_learned(trainer, mask):
    t = trainer(ablation={"mask": mask, "k_mlp": 12}, steps=60, eval_every=60)
    t.train(progress=False)
    lines = log_lines(t.folder / "log.jsonl")
    first, last = (next(x for x in order if "held_out_clean" in x) for order in (lines, reversed(lines)))
    assert last["held_out_clean"] < first["held_out_clean"] - 0.7
    if mask != "none":
        assert last["held_out_ablated"] < first["held_out_ablated"] - 0.2


def test_the_log_has_a_line_a_log_step_and_one_an_evaluation(trainer):
    t = trainer()
    t.train(progress=False)
    lines = log_lines(t.folder / "log.jsonl")
    assert [x["step"] for x in lines if "total" in x] == [3, 6, 9, 12, 15, 18, 21, 24]
    assert [x["step"] for x in lines if "held_out_total" in x] == [0, 8, 16, 24]
    training, evaluation = (next(x for x in lines if key in x) for key in ("total", "held_out_total"))
    assert set(training) == {"step", "total", "clean", "ablated", "reconstruction", "grad_norm", "lr"}
    assert set(evaluation) == {"step", "held_out_clean", "held_out_ablated", "held_out_total"}
    assert log_lines(t.folder / "last" / "log.jsonl") == lines


def test_the_logged_rate_is_the_next_step_s_warm_up_or_cosine(trainer):
    t = trainer(steps=10, warmup_steps=4, lr=1e-2)
    rates = []
    for step in range(11):
        t.step = step
        rates.append(t._lr())
    # a straight line to 1e-2 over 4 steps; then half a cosine over the other 6, 0 at the end
    expected = [2.5e-3, 5e-3, 7.5e-3, 1e-2] + [1e-2 * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(7)]
    assert rates == pytest.approx(expected) and rates[-1] == 0


def test_gradients_are_clipped_before_the_step(trainer, monkeypatch):
    t, norms = trainer(steps=1, grad_clip=1e-3), []

    def recording(*args, **kwargs):
        norms.append(math.sqrt(sum(p.grad.pow(2).sum().item() for p in t.model.parameters())))

    monkeypatch.setattr(t.optimizer, "step", recording)
    t.train(progress=False)
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.parametrize("stop_at", [0, 7, 8, 23, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 9))])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(trainer, stop_at):
    undisturbed = trainer("undisturbed")
    undisturbed.train(progress=False)

    def interrupted(step: int) -> Tensor:
        if step == stop_at:
            raise Stopped
        return text(step)

    with pytest.raises(Stopped):
        trainer("stopped", batches=interrupted).train(progress=False)
    resumed = trainer("stopped")
    torch.manual_seed(1234)
    resumed.resume()
    assert resumed.step == stop_at // 8 * 8
    resumed.train(progress=False)
    assert_same_run(undisturbed.folder, resumed.folder)


@pytest.mark.parametrize(
    "ablation",
    [
        {"mask": "none", "w_reconstruction": 0.1},
        {"mask": "global", "w_reconstruction": 0.1},
        {"mask": "local", "score_noise": 0.5},
    ],
)
def test_other_ablations_resume_bit_for_bit_too(trainer, ablation):
    undisturbed = trainer("undisturbed", ablation=ablation)
    undisturbed.train(progress=False)

    def interrupted(step: int) -> Tensor:
        if step == 13:
            raise Stopped
        return text(step)

    stopped = trainer("stopped", ablation=ablation, batches=interrupted)
    with pytest.raises(Stopped):
        stopped.train(progress=False)
    resumed = trainer("stopped", ablation=ablation)
    resumed.resume()
    resumed.train(progress=False)
    assert_same_run(undisturbed.folder, resumed.folder)


def test_a_run_from_before_a_setting_of_the_ablation_resumes_with_its_default(trainer, monkeypatch):
    def older(self: SelfAblation) -> dict:
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "score_noise"}

    with monkeypatch.context() as patch:
        patch.setattr(SelfAblation, "to_dict", older)
        trainer().train(progress=False)
    written = json.loads(((folder := trainer().folder / "last") / "config.json").read_text())["ablation"]
    assert "score_noise" not in written and written["mask"] == "local", folder
    trainer().resume()
    with pytest.raises(ValueError, match="was trained with another self-ablation"):
        trainer(ablation={"score_noise": 0.5}).resume()


@pytest.mark.parametrize("stop_at", range(1, 11))
def test_a_stop_at_any_rename_loses_nothing(trainer, monkeypatch, stop_at):
    """Renames: the log; then, at steps 0, 8, ..., `best` (where it is) and `last`, one or two renames each."""
    undisturbed = trainer("undisturbed")
    undisturbed.train(progress=False)
    calls, replace = [], os.replace

    def crashing(*args):
        calls.append(args)
        if len(calls) == stop_at:
            raise Stopped
        replace(*args)

    first = trainer("stopped")
    with monkeypatch.context() as patch:
        patch.setattr("sat_lens.files.exchanged", lambda one, other: False)
        patch.setattr(os, "replace", crashing)
        try:
            first.train(progress=False)
        except Stopped:
            pass
    assert len(calls) == stop_at, "the run has that many renames"
    resumed = trainer("stopped")
    if any((resumed.folder / name).exists() for name in ("last", ".last.old")):
        resumed.resume()
    resumed.train(progress=False)
    assert_same_run(undisturbed.folder, resumed.folder)


def test_a_run_that_has_ended_resumes_to_nothing(trainer):
    t = trainer()
    t.train(progress=False)
    before = (t.folder / "last" / "MANIFEST.json").read_bytes()
    again = trainer(batches=lambda step: 1 / 0)
    again.resume()
    again.train(progress=False)
    assert (t.folder / "last" / "MANIFEST.json").read_bytes() == before


def test_best_is_the_evaluation_with_the_lowest_held_out_loss(trainer):
    def harmful(step: int) -> Tensor:
        return text(step) if step < 8 else torch.zeros(4, 17, dtype=torch.long)

    t = trainer(batches=harmful, lr=2e-2)
    t.train(progress=False)
    evaluations = [x for x in log_lines(t.folder / "log.jsonl") if "held_out_total" in x]
    best = min(evaluations, key=lambda x: x["held_out_total"])
    assert best["step"] < 24
    assert read_config(t.folder / "best")["training"]["step"] == best["step"]
    assert read_config(t.folder / "last")["training"]["step"] == 24
    with evaluating(model := load(t.folder / "best")):
        assert held_out_losses(model, *t.held_out)["total"] == pytest.approx(best["held_out_total"], abs=1e-5)


def test_probes_are_logged_with_each_evaluation(trainer):
    t = trainer(probes={"answer": lambda model: 42.0 if not model.training else 0.0})
    t.train(progress=False)
    found = [x["held_out_answer"] for x in log_lines(t.folder / "log.jsonl") if "held_out_answer" in x]
    assert found == [42.0] * 4


def test_held_out_losses_count_what_is_to_be_counted(tiny_model):
    model = tiny_model({"w_clean": 0.25, "w_ablated": 2.0})
    rows = text(3, 7)
    counts = (torch.rand(7, 16, generator=torch.Generator().manual_seed(0)) < 0.6).float()
    both = model(rows[:, :-1], stream="both")
    expected = []
    for logits in both:
        nats = -logits.log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1)
        expected.append(((nats * counts).sum() / counts.sum()).item())
    found = held_out_losses(model, rows, counts, batch_size=3)
    assert [found["clean"], found["ablated"]] == pytest.approx(expected)
    assert found["total"] == pytest.approx(0.25 * expected[0] + 2.0 * expected[1])


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(trainer):
    def poisoned(step: int) -> Tensor:
        if step == 11:
            t.model.blocks[0].mlp.W_in.data[0, 0] = float("nan")
        return text(step)

    t = trainer(batches=poisoned)
    with pytest.raises(TrainingStopped, match="step 12: .*nan.* is not finite; the last good checkpoint is .*last"):
        t.train(progress=False)
    model = load(t.folder / "last")
    assert read_state(t.folder / "last")[1]["step"] == 8
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_divergence_stops_training_and_says_what_to_do(trainer):
    def shaken(step: int) -> Tensor:
        if step == 5:
            t.model.ln_final.w.data *= 1e3
        return text(step)

    t = trainer(batches=shaken)
    with pytest.raises(TrainingStopped, match="step 6: diverged, .* after a best of .*; lower the learning rate"):
        t.train(progress=False)
    assert read_state(t.folder / "last")[1]["step"] == 0


def test_what_a_kill_at_the_very_end_left_is_removed(trainer):
    """Between the exchange of two folders and the removal of the old content; the run is whole and writes no more."""
    trainer("run").train(progress=False)
    left = trainer("run").folder / ".last.part"
    left.mkdir()
    (left / "config.json").write_text("{}")
    again = trainer("run")
    again.resume()
    again.train(progress=False)
    assert sorted(path.name for path in again.folder.iterdir()) == ["best", "last", "log.jsonl"]
