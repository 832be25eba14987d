"""A disk that is full or read-only, a clock that goes backwards, being asked to stop: one line, and nothing lost."""

import argparse
import datetime
import os
import random
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sat_lens.commands import run
from tests.trust.processes import (
    Child,
    done,
    file_limit,
    left_behind,
    remounted,
    seconds,
    small_disk,
    stopped,
)
from tests.trust.work import Explaining, Packing, Reporting, Training

ROOT = Path(__file__).parents[2]
KINDS = ("training", "packing", "explaining", "reporting")


@pytest.fixture
def work(small_model: Any, tmp_path: Path) -> Any:
    def begin(kind: str) -> Any:
        text = tmp_path / "text.txt"
        made = {"training": partial(Training, small_model), "packing": partial(Packing, text)}
        return {**made, "explaining": Explaining, "reporting": Reporting}[kind]()

    return begin


def limited(one: Any, folder: Path, limit: int, say: Any) -> None:
    file_limit(limit)
    one.run(folder, say)


def ended(act: Any) -> tuple[int, list[str]]:
    child = Child(act)
    try:
        return child.ended(), child.said()
    finally:
        child.close()


def assert_one_line(code: int, said: list[str], case: str) -> None:
    assert code in (0, 2), f"{case}: exit {code}, {said[-2:]}"
    if code == 2:
        assert said[-1].startswith("refused: ") and len(said[-1]) > 20, f"{case}: {said[-2:]}"


@pytest.mark.parametrize("n", [pytest.param(2, id="few"), pytest.param(12, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_cannot_grow_ends_in_one_line_and_loses_nothing(kind, n, work, tmp_path, tried):
    one, choice = work(kind), random.Random(kind)
    done(partial(one.run, tmp_path / "undisturbed"))
    largest, n_refused = max(p.stat().st_size for p in (tmp_path / "undisturbed").rglob("*") if p.is_file()), 0
    for i in range(n):
        folder, limit = tmp_path / f"full-{i}", choice.randrange(largest)
        code, said = ended(partial(limited, one, folder, limit))
        assert_one_line(code, said, f"{kind}, {limit} bytes a file")
        n_refused += code == 2
        one.kept(folder, [line for line in said if not line.startswith("refused: ")])
        done(partial(one.run, folder))
        one.same(tmp_path / "undisturbed", folder)
        assert not left_behind(folder)
    assert n_refused > n / 2
    tried(f"full disk, {kind}", n)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_ends_in_one_line_and_going_on_with_more_room_loses_nothing(kind, work, tmp_path, tried):
    one = work(kind)
    done(partial(one.run, tmp_path / "undisturbed"))
    size = sum(-(-p.stat().st_size // 4096) * 4 for p in (tmp_path / "undisturbed").rglob("*") if p.is_file())
    for share in (0.3, 0.9):
        with small_disk(max(8, int(size * share))) as disk:
            code, said = ended(partial(one.run, disk / "run"))
            assert_one_line(code, said, f"{kind}, {share} of {size} kB")
            assert code == 2, "the disk was too large"
            assert "No space left" in said[-1], said[-1]
            remounted(disk, f"size={4 * size + 4096}k")
            one.kept(disk / "run", said[:-1])
            done(partial(one.run, disk / "run"))
            one.same(tmp_path / "undisturbed", disk / "run")
        tried(f"full disk, {kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_read_only_is_said_to_be(kind, work, tried):
    one = work(kind)
    with small_disk(8192) as disk:
        remounted(disk, "ro")
        code, said = ended(partial(one.run, disk / "run"))
        assert code == 2 and "Read-only file system" in said[-1], said
        assert not list(disk.iterdir())
    tried(f"read-only disk, {kind}")


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_older_than_what_they_were_made_of_are_gone_on_with(kind, work, tmp_path, tried):
    """As a clock that was set back leaves them: all times of change are 1970, and it goes on as it would have."""
    one = work(kind)
    done(partial(one.run, tmp_path / "undisturbed"))
    done(partial(one.run, tmp_path / "backwards"))
    for path in (tmp_path / "backwards").rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    one.kept(tmp_path / "backwards", [])
    done(partial(one.run, tmp_path / "backwards"))
    one.same(tmp_path / "undisturbed", tmp_path / "backwards")
    tried(f"times of change lost, {kind}")


class SetBack(datetime.datetime):
    """A clock that is set back by a day at each look."""

    looks = 0

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        cls.looks += 1
        return datetime.datetime(2001, 1, 20, tzinfo=tz) - datetime.timedelta(days=cls.looks)


def dated(model: Any) -> list[dict[str, Any]]:
    """What is written of a result by the two places that write a date."""
    from analyses.provenance import provenance
    from analyses.result import Result
    from analyses.untangling.record import recorded

    toys = recorded(Result("q", pd.DataFrame({"x": [1]}), {}, {}), [], argparse.Namespace()).meta
    return [provenance(model, "nowhere", seed=0), toys]


def test_a_clock_that_goes_backwards_changes_dates_alone(small_model, monkeypatch, tried):
    """Every place that asks for the time of day: the date in a result's meta, and that of Retry-After.

    What measures how long something takes (`perf_counter`, `monotonic`) never goes backwards, whatever the clock does.
    """
    from analyses.explain import chat_http

    model = small_model()
    with monkeypatch.context() as patch:
        patch.setattr(datetime, "datetime", SetBack)
        first, second = dated(model), dated(model)
    for one, other in zip(first, second, strict=True):
        assert "2001-01-20" > one.pop("date") > other.pop("date") > "2000"
        assert one == other
        tried("clock, dates")
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    for now, waits in ((1445412480.0 - 30, 30.0), (1445412480.0, 0.0), (1445412480.0 + 9e8, 0.0)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        assert chat_http._seconds(date) == waits
        tried("clock, Retry-After")


def test_nothing_else_asks_for_the_time_of_day():
    """Else the tests above say less than they seem to."""
    asks = re.compile(r"\btime\.time(_ns)?\(|\b(now|today|utcnow)\(|\b(gmtime|localtime|strftime)\(")
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("sat_lens", "analyses")
        for path in (ROOT / package).rglob("*.py")
        if asks.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"analyses/provenance.py", "analyses/untangling/record.py", "analyses/explain/chat_http.py"}


def as_command(one: Any, folder: Path, say: Any) -> None:
    run(lambda argv: one.run(folder, say))


@pytest.mark.parametrize("n", [pytest.param(1, id="few"), pytest.param(6, id="many", marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_asked_to_stop_leaves_in_order(kind, number, n, work, tmp_path, tried):
    one, choice = work(kind), random.Random(f"{kind} {number}")
    one.run(tmp_path / "warm", lambda line: None)
    takes, n_stopped = seconds(partial(one.run, tmp_path / "undisturbed")), 0
    for i in range(8 * n):
        folder = tmp_path / f"stopped-{i}"
        code, said = stopped(partial(as_command, one, folder), choice.uniform(0.15, 0.9) * takes, number)
        word, expected = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("terminated", 143)}[number]
        if code == -number and not said:
            continue  # it came before the command had begun
        assert code in (0, expected), f"exit {code}: {said[-3:]}"
        if code:
            n_stopped += 1
            assert said.pop() == word
            assert not folder.exists() or not left_behind(folder), left_behind(folder)
        one.kept(folder, said)
        done(partial(one.run, folder))
        one.same(tmp_path / "undisturbed", folder)
        if n_stopped == n:
            break
    assert n_stopped == n
    tried(f"{number.name}, {kind}", n)
