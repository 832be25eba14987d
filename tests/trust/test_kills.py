"""kill -9 at any moment: nothing reported as written is lost, and going on gives, bit for bit, an undisturbed run."""

import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.trust.processes import done, left_behind, seconds, stopped
from tests.trust.work import Explaining, Packing, ReportCommand, Reporting, Sweep, Training

KILLS = {"training": 60, "packing": 50, "sweep": 20, "explaining": 30, "reporting": 40, "report command": 5}
SLOW = ("report command",)


@pytest.fixture
def work(small_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def begin(kind: str) -> Any:
        match kind:
            case "training":
                return Training(small_model)
            case "packing":
                return Packing(tmp_path / "text.txt")
            case "sweep":
                return Sweep(tmp_path, monkeypatch)
            case "explaining":
                return Explaining()
            case "report command":
                return ReportCommand()
        return Reporting()

    return begin


@pytest.mark.parametrize("share", [pytest.param(0.05, id="few"), pytest.param(1.0, id="all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in SLOW)) for kind in KILLS])
def test_nothing_is_lost_by_a_kill_at_any_moment(kind, share, work, tmp_path, tried):
    one, choice = work(kind), random.Random(kind)
    one.run(tmp_path / "warm", lambda line: None)  # what is imported late is there for the children
    takes = seconds(partial(one.run, tmp_path / "undisturbed"))
    wanted, n_killed, at = max(1, int(KILLS[kind] * share)), 0, 0
    while n_killed < wanted:
        assert at < 4 * wanted + 8, "too many ended before they were killed"
        folder = tmp_path / f"killed-{at}"
        at += 1
        for _ in range(choice.choice((1, 1, 2))):
            after = choice.uniform(0, 1.1 * takes)
            code, said = stopped(partial(one.run, folder), after)
            assert code in (0, -signal.SIGKILL), f"{kind} after {after:.4f} s: {said[-3:]}"
            n_killed += code != 0
            one.kept(folder, said)
        done(partial(one.run, folder))
        one.same(tmp_path / "undisturbed", folder)
        assert not left_behind(folder), f"{left_behind(folder)} was left behind"
    tried(f"kill -9, {kind}", n_killed)
