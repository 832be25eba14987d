"""Two processes and one folder: the second writer is refused, a reader meets a whole folder, the dead let go."""

import argparse
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sat_lens import files, load, save
from tests.trust.processes import Child
from tests.trust.work import STORY, TINY


@pytest.fixture
def holding() -> Any:
    """`holding(folder, beside=False)`: a process that holds the folder, until the end of the test."""
    children = []

    def hold(folder: Path, beside: bool = False) -> Child:
        def act(say: Any) -> None:
            with files.locked(folder, beside):
                say("held")
                time.sleep(60)

        children.append(child := Child(act))
        deadline = time.monotonic() + 30
        while not child.said():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return child

    yield hold
    for child in children:
        child.close()


def trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from sat_lens.presets import PRESETS
    from sat_lens.train import main

    monkeypatch.setitem(PRESETS["cpu"], "model", TINY)
    (text := folder / "text.txt").write_text(STORY * 60)
    sizes = ["--steps", "2", "--eval-every", "1", "--eval-rows", "2", "--batch-size", "2", "--max-tokens", "4000"]
    corpus = ["--corpus", str(text), "--held-out", str(text), "--cache", str(folder / "packed"), "--quiet"]
    return lambda: main([*corpus, *sizes, "--out", str(folder / "run")])


def toys(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from sat_lens.toy.config import ToyConfig
    from sat_lens.toy.training import train_toy

    config = ToyConfig(operands=4, d_model=8, n_heads=2, d_mlp=8, n_latents=8, steps=2, k_attn=2, k_mlp=2)
    return lambda: train_toy(config, folder / "run", progress=False)


def sweeps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from sat_lens.sweep import main

    monkeypatch.setattr("sat_lens.sweep.run_here", lambda commands, jobs: (None for _ in commands))
    (folder / "sweep.yaml").write_text("base: {steps: 2}\n")
    return lambda: main([str(folder / "sweep.yaml"), "--out", str(folder / "run"), "--quiet"])


def rewrites(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from analyses.rewriting import pipeline
    from analyses.rewriting.run_folder import started

    def begun(target: str, path: Path, *_: Any) -> tuple[str, None]:
        run = started(path, target, "0" * 64, {}, {})
        return str(run.path), None

    monkeypatch.setattr(pipeline, "_steps", begun)
    return lambda: pipeline.pipeline(argparse.Namespace(checkpoints=["none-s0"]), [folder / "run"], [])


@pytest.mark.parametrize("begin", [trains, toys, sweeps, rewrites])
def test_a_second_writer_is_refused_until_the_first_has_died(begin, holding, tmp_path, monkeypatch, tried):
    act, first = begin(tmp_path, monkeypatch), holding(tmp_path / "run")
    with pytest.raises(ValueError, match=r"another process writes to .*run; wait for its end, or choose another"):
        act()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [files.LOCK]
    first.signal(signal.SIGKILL)
    first.ended()
    act()
    assert [path.name for path in (tmp_path / "run").iterdir()] not in ([], [files.LOCK])
    tried("two writers")


def test_a_coder_is_trained_by_one_process_at_a_time_under_any_name_of_its_folder(holding, tmp_path, tiny_model, tried):
    from sat_lens.coders import CoderConfig, CoderTraining, train_coder

    cfg = CoderConfig("sae", "hook_embed", "hook_embed", 16, 16, 8, 2)
    trained = partial(
        train_coder, tiny_model({"mask": "none"}), torch.ones(2, 9, dtype=torch.long), cfg, CoderTraining(n_tokens=18)
    )
    (tmp_path / "link").symlink_to(tmp_path / "run")
    first = holding(tmp_path / "run", beside=True)
    for name in ("run", "link"):
        with pytest.raises(ValueError, match=r"another process writes to .*; wait for its end, or choose another"):
            trained(out=tmp_path / name)
    assert not (tmp_path / "run").exists()
    first.signal(signal.SIGKILL)
    first.ended()
    trained(out=tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"link", "run"}
    tried("two writers")


def test_many_who_ask_for_one_folder_again_and_again_never_have_it_together(tmp_path, tried):
    """What a holder removes at its end, another may be about to lock, or to open, or just have made."""
    folder, inside, turns = tmp_path / "runs" / "run", tmp_path / "inside", 150

    def act(say: Any) -> None:
        held = 0
        for _ in range(turns):
            try:
                with files.locked(folder):
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                    os.unlink(inside)
                    held += 1
            except ValueError as refused:
                assert "another process writes" in str(refused)
        say(str(held))

    children = [Child(act) for _ in range(4)]
    try:
        assert [child.ended() for child in children] == [0] * 4, [child.said() for child in children]
        assert sum(int(child.said()[-1]) for child in children) >= turns // 2
    finally:
        for child in children:
            child.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    tried("two writers", 4 * turns)


def saving(models: list[Any], folder: Path, say: Any) -> None:
    for i in range(10_000):
        save(models[i % 2], folder, training={"step": i % 2})
        if i == 1:
            say("begun")
        time.sleep(0.08)  # far less than between two checkpoints of a run, and about as long as a reader takes


def test_a_reader_meets_one_of_the_two_models_that_are_written_in_turn(small_model, tmp_path, tried):
    models, n = [small_model(seed=seed) for seed in (0, 1)], 25
    known = [{key: value.tolist() for key, value in model.state_dict().items()} for model in models]
    writer = Child(partial(saving, models, tmp_path / "checkpoint"))
    try:
        while not writer.said():
            time.sleep(0.005)
        seen = []
        for _ in range(n):
            found = {key: value.tolist() for key, value in load(tmp_path / "checkpoint").state_dict().items()}
            seen.append(known.index(found))
        assert set(seen) == {0, 1}, "the folder was replaced while it was read"
        assert writer.said() == ["begun"], "a reader disturbed the writer"
    finally:
        writer.close()
    tried("reads while a folder is replaced", n)


def test_a_folder_that_is_replaced_is_there_at_every_moment(tmp_path, monkeypatch):
    for name in ("one", "other", "new"):
        (tmp_path / name).mkdir()
    if not files.exchanged(tmp_path / "one", tmp_path / "other"):
        pytest.skip("two folders cannot be exchanged here")
    (tmp_path / "new" / "is").write_text("new")

    def moved(*_: Any) -> None:
        raise AssertionError("one name was moved away before the other came")

    monkeypatch.setattr("os.replace", moved)
    files.replace_folder(tmp_path / "new", tmp_path / "one")
    assert (tmp_path / "one" / "is").read_text() == "new" and not (tmp_path / "new").exists()


def test_an_exchange_is_done_at_once_or_by_two_renames_and_the_dead_leave_nothing(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    done = files.exchanged(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "is").read_text() == ("other" if done else "one")
    assert not files.exchanged(tmp_path / "one", tmp_path / "missing")
    dead = Child(lambda say: files.temporary_beside(tmp_path / "file").write_text("half"))
    dead.ended()
    dead.close()
    (tmp_path / ".file.elsewhere-1-2.part").write_text("of a living process on another machine")
    assert [path.name.endswith(".part") for path in tmp_path.glob(".file*")] == [True, True]
    files.write_whole(tmp_path / "file", "whole")
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".file.elsewhere-1-2.part"]
