"""Sweeps: every combination once, finished runs skipped, a summary of what came out."""

import csv
import json
import os
import sys
import time
from pathlib import Path

import pytest

from sat_lens.commands import run as as_command
from sat_lens.manifest import write_manifest
from sat_lens.sweep import combinations, main, read_sweep, run_here, run_name, run_on_cluster

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """
base: {preset: cpu, steps: 4, corpus: text.txt}
grid: {mask: [local, global], k-attn: [2, 4]}
seeds: [0, 1]
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """`sweep(text)`: a sweep file, in a folder that commands run in."""
    monkeypatch.chdir(tmp_path)

    def write(text=SWEEP):
        (tmp_path / "sweep.yaml").write_text(text)
        return Path("sweep.yaml")

    return write


def finish(folder: Path, command: str, step: int = 4) -> None:
    """What a run leaves that the sweep looks at."""
    (folder / "last").mkdir(parents=True)
    training = {"command": command, "step": step, "steps": 4}
    (folder / "last" / "config.json").write_text(json.dumps({"training": training}))
    (folder / "last" / "model.safetensors").write_bytes(b"weights")
    write_manifest(folder / "last")
    evaluations = [{"step": 0, "held_out_total": 8.5}, {"step": step, "held_out_total": 3.25}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations) + '{"step": 4, "to')


@pytest.fixture
def trained(monkeypatch):
    """Runs that "train" at once: the commands that were given are kept."""
    given = []

    def run_at_once(commands, jobs):
        from sat_lens.train import command_line, options

        for command in commands:
            given.append(command)
            chosen = options(command[command.index("sat_lens.train") + 1 :])
            finish(chosen["out"], command_line(chosen))
            yield None

    monkeypatch.setattr("sat_lens.sweep.run_here", run_at_once)
    return given


def test_combinations_are_all_pairs_the_last_list_fastest():
    assert combinations({"a": [1, 2], "b": ["x"], "c": [3, 4]}) == [
        {"a": 1, "b": "x", "c": 3}, {"a": 1, "b": "x", "c": 4}, {"a": 2, "b": "x", "c": 3}, {"a": 2, "b": "x", "c": 4},
    ]  # fmt: skip
    assert combinations({}) == [{}]


def test_grids_in_a_list_are_run_one_after_the_other(sweep):
    grids = "grid: [{mask: [none]}, {mask: [local], k-attn: [1, 2]}]"
    runs, _ = read_sweep(sweep(SWEEP.replace("grid: {mask: [local, global], k-attn: [2, 4]}", grids)), Path("out"))
    assert [run.varied for run in runs] == [
        {"mask": "none", "seed": 0},
        {"mask": "none", "seed": 1},
        {"mask": "local", "k_attn": 1, "seed": 0},
        {"mask": "local", "k_attn": 1, "seed": 1},
        {"mask": "local", "k_attn": 2, "seed": 0},
        {"mask": "local", "k_attn": 2, "seed": 1},
    ]


def test_runs_are_named_by_what_varies_and_trained_by_the_train_command(sweep):
    runs, _ = read_sweep(sweep(), Path("out"))
    assert len(runs) == 8
    assert runs[0].folder == Path("out/mask-local_k-attn-2_seed-0")
    assert runs[-1].command == [
        sys.executable, "-m", "sat_lens.train", "--preset=cpu", "--steps=4", "--corpus=text.txt", "--mask=global",
        "--k_attn=4".replace("_", "-"), "--seed=1", "--out=out/mask-global_k-attn-4_seed-1", "--resume", "--quiet",
    ]  # fmt: skip
    assert run_name({"corpus": "../folder/a b.txt", "lr": 1e-3}) == "corpus-a-b.txt_lr-0.001"


def test_processes_start_each_run_by_torchrun(sweep):
    (one,), _ = read_sweep(sweep("base: {steps: 4}\nprocesses: 2\n"), Path("out"))
    assert one.command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    assert one.folder == Path("out/run")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bases: {}", "unknown entry 'bases'; known are base, grid, seeds, processes, slurm"),
        ("grid: [1]", "grid must be a dict"),
        ("grid: {mask: local}", "grid: mask must be a list of values; got 'local'"),
        ("grid: {seed: []}", "grid: seed must be a list of values"),
        ("seeds: [0, 0]", "two runs of the grid have the same settings"),
        ("base: {out: x}", "a sweep sets out itself"),
        ("base: {steps: 0}", "steps must be at least 1; got 0"),
        ("grid: {k_attn: [0]}", "k_attn must be"),
        ("grid: {a: [1, 2, 3, 4, 5, 6, 7, 8, 9, 0], b: [" + "1," * 1001 + "]}", "at most 10,000 runs"),
        ("- a", "must map settings to values"),
    ],
)
def test_a_bad_sweep_is_refused_before_anything_runs(sweep, text, words):
    with pytest.raises(ValueError, match=words):
        main([str(sweep(text)), "--out", "out"])
    assert not Path("out").exists()


@pytest.mark.parametrize("text", ["base: {learning_rate: 3}", "grid: {mask: [sideways]}"])
def test_a_setting_that_train_does_not_know_ends_in_one_line(sweep, text, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([str(sweep(text)), "--out", "out"])
    assert exit_.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_finished_runs_are_skipped_and_the_summary_has_a_row_a_run(sweep, trained, capsys):
    from sat_lens.train import command_line

    file = sweep()
    runs, _ = read_sweep(file, Path("out"))
    finish(runs[3].folder, command_line(runs[3].chosen))
    main([str(file), "--out", "out"])
    assert len(trained) == 7 and runs[3].command not in trained
    out, err = capsys.readouterr()
    assert out == "out/summary.csv\n" and err.count("finished\n") == 7
    rows = list(csv.DictReader(open("out/summary.csv")))
    assert [row["run"] for row in rows] == [one.folder.name for one in runs]
    assert rows[0] == {
        "run": "mask-local_k-attn-2_seed-0", "status": "finished", "mask": "local", "k_attn": "2", "seed": "0",
        "step": "4", "held_out_total": "3.25",
    }  # fmt: skip
    main([str(file), "--out", "out", "--quiet"])
    assert len(trained) == 7, "all were finished"


def test_a_run_that_was_stopped_half_way_is_taken_up_again(sweep, trained):
    from sat_lens.train import command_line

    file = sweep("base: {steps: 4}")
    (one,), _ = read_sweep(file, Path("out"))
    finish(one.folder, command_line(one.chosen), step=2)
    assert not one.is_finished() and "--resume" in one.command


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_finished_run_that_was_damaged_is_not_skipped(sweep, trained, name):
    from sat_lens.train import command_line

    (one,), _ = read_sweep(sweep("base: {steps: 4}"), Path("out"))
    finish(one.folder, command_line(one.chosen))
    assert one.is_finished()
    with open(one.folder / "last" / name, "ab") as file:
        file.write(b" ")
    assert not one.is_finished()


def test_a_folder_with_another_run_is_not_taken_for_this_one(sweep, trained):
    file = sweep("base: {steps: 4}")
    main([str(file), "--out", "out", "--quiet"])
    with pytest.raises(ValueError, match="out/run holds another run .*--steps 4.*; choose another --out"):
        main([str(sweep("base: {steps: 5}")), "--out", "out"])


def test_commands_run_side_by_side_and_failures_give_their_last_line(tmp_path):
    """Two that wait for each other can only both end when they run at the same time."""
    meet = (
        "import sys, time, pathlib\n"
        "own, other = map(pathlib.Path, sys.argv[1:])\n"
        "own.touch()\n"
        "end = time.monotonic() + 30\n"
        "while not other.exists() and time.monotonic() < end: time.sleep(0.01)\n"
        "sys.exit(not other.exists())\n"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    fail = [sys.executable, "-c", "import sys; sys.exit('first\\nerror: no such corpus')"]
    commands = [[sys.executable, "-c", meet, a, b], [sys.executable, "-c", meet, b, a], fail]
    assert list(run_here(commands, 2)) == [None, None, "error: no such corpus"]


def test_an_interrupt_ends_the_runs_that_are_under_way(tmp_path):
    wait = f"import pathlib, time; pathlib.Path({str(tmp_path / 'started')!r}).touch(); time.sleep(60)"
    ended = run_here([[sys.executable, "-c", "pass"], [sys.executable, "-c", wait]], 2)
    next(ended)
    end = time.monotonic() + 30
    while not (tmp_path / "started").exists() and time.monotonic() < end:
        time.sleep(0.01)
    started = time.monotonic()
    ended.close()
    assert time.monotonic() - started < 50, "the run was waited for"


def test_failures_end_in_one_line_and_the_summary_says_which(sweep, monkeypatch, capsys):
    monkeypatch.setattr("sat_lens.sweep.run_here", lambda commands, jobs: (word for word in (None, "error: no text")))
    with pytest.raises(SystemExit) as exit_:
        as_command(main, [str(sweep("seeds: [0, 1]")), "--out", "out", "--quiet"])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: 1 of 2 runs failed; seed-1: error: no text\n"
    assert "seed-1,failed" in Path("out/summary.csv").read_text()


def test_submitit_runs_the_commands_and_reports_failures(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    touch = f"import pathlib; pathlib.Path({str(tmp_path / 'done')!r}).touch()"
    commands = [[sys.executable, "-c", touch], [sys.executable, "-c", "import sys; sys.exit('error: no text')"]]
    found = list(run_on_cluster(commands, 2, tmp_path / "jobs", {"timeout_min": 1}, cluster="local"))
    assert (tmp_path / "done").exists()
    assert found[0] is None and found[1]


def test_slurm_without_submitit_or_without_slurm_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ValueError, match=r"--slurm needs submitit: pip install 'sat-lens\[slurm\]'"):
        list(run_on_cluster([["true"]], 1, tmp_path, {}))
    monkeypatch.undo()
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", os.defpath)
    with pytest.raises(ValueError, match="submitit: "):
        list(run_on_cluster([["true"]], 1, tmp_path, {}))
    with pytest.raises(ValueError, match="submitit: "):
        list(run_on_cluster([["true"]], 1, tmp_path, {"no_such_parameter": 1}, cluster="local"))


@pytest.mark.slow
def test_a_small_sweep_really_trains(sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "text.txt").write_text("Tom ran to the park and saw a big dog. It was his.\n<|endoftext|>\n" * 60)
    sizes = "steps: 2, eval_every: 2, eval_rows: 2, batch_size: 2, max_tokens: 4000, cache: packed"
    file = sweep(f"base: {{corpus: text.txt, held_out: text.txt, {sizes}}}\ngrid: {{mask: [none, local]}}\n")
    main([str(file), "--out", "out", "--quiet"])
    rows = list(csv.DictReader(open("out/summary.csv")))
    assert [(row["run"], row["status"], row["step"]) for row in rows] == [
        ("mask-none", "finished", "2"), ("mask-local", "finished", "2"),
    ]  # fmt: skip
    assert float(rows[1]["held_out_ablated"]) > 0 and rows[0]["held_out_ablated"] == ""
