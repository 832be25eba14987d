"""A sweep's command killed while its run trains on: given again, it is refused what is held, and then completed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trust.work import STORY, step_of, without_names

ROOT = Path(__file__).parents[2]
LIMIT_S = 300
RUNS = ("mask-none", "mask-local")


def started(file: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sat_lens.sweep", str(file), "--out", str(out), "--quiet"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        said = process.communicate(timeout=LIMIT_S)[1]
    finally:
        process.kill()
    return process.returncode, said


def children(process: int) -> list[int]:
    found = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="no /proc that tells children")
def test_a_sweep_that_is_killed_while_its_run_trains_on_is_refused_that_run_and_then_completed(tmp_path, tried):
    (tmp_path / "text.txt").write_text(STORY * 60)
    sizes = "preset: cpu, steps: 300, eval_every: 2, eval_rows: 2, batch_size: 2, max_tokens: 4000, log_every: 1"
    corpus = f"corpus: {tmp_path / 'text.txt'}, held_out: {tmp_path / 'text.txt'}, cache: {tmp_path / 'packed'}"
    file = tmp_path / "sweep.yaml"
    file.write_text(f"base: {{{sizes}, {corpus}}}\ngrid: {{mask: [none, local]}}\n")
    assert ended(started(file, tmp_path / "undisturbed")) == (0, "")

    out = tmp_path / "killed"
    sweep, left = started(file, out), 0
    try:
        wait_until(lambda: (out / RUNS[0] / "last").exists() or sweep.poll() is not None, "no run begins")
        (left,) = children(sweep.pid)
        os.kill(left, signal.SIGSTOP)
        assert step_of(out / RUNS[0] / "last") < 300, "the run was over before it could be stopped"
        sweep.kill()
        sweep.communicate()
        assert runs(left), "the run went with the sweep"
        code, said = ended(started(file, out))
        assert code == 2 and said.count("\n") == 1, said
        assert f"1 of 2 runs failed; {RUNS[0]}: " in said and "another process writes to" in said, said
        assert step_of(out / RUNS[1] / "last") == 300, "the other run was held up"
        os.kill(left, signal.SIGCONT)
        wait_until(lambda: not runs(left), "the run that was left alone does not end")
        assert step_of(out / RUNS[0] / "last") == 300, "the run that was left alone was not finished"
    finally:
        sweep.kill()
        with contextlib.suppress(ProcessLookupError):
            if left and runs(left):
                os.kill(left, signal.SIGKILL)
    assert ended(started(file, out)) == (0, "")
    assert (out / "summary.csv").read_text().count("finished") == 2
    assert without_names(out / "summary.csv") == without_names(tmp_path / "undisturbed" / "summary.csv")
    for run in RUNS:
        for name in ("last", "best"):
            ours, theirs = (folder / run / name / "model.safetensors" for folder in (tmp_path / "undisturbed", out))
            assert ours.read_bytes() == theirs.read_bytes()
    tried("kill -9, a sweep's command whose run trains on")
