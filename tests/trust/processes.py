"""Processes that are killed, run out of disk or are asked to stop; forked from a warm parent, and so cheap."""

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sat_lens.commands import one_line

LIMIT_S = 120


class Child:
    """A forked process of its own group that does one thing and says how it went.

    Args:
        act: gets a function that reports a line to the parent at once.
    """

    def __init__(self, act: Callable[[Callable[[str], None]], Any]) -> None:
        self.reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, 0)
            os.close(self.reading)
            code = 1
            with contextlib.suppress(BaseException):
                code = _acted(act, writing)
            os._exit(code)
        os.close(writing)
        self._said, self.status = b"", None

    def said(self) -> list[str]:
        """The whole lines that came until now."""
        while select.select([self.reading], [], [], 0)[0] and (piece := os.read(self.reading, 1 << 16)):
            self._said += piece
        return self._said.decode().split("\n")[:-1]

    def ended(self, timeout: float = LIMIT_S) -> int:
        """Wait for its end: the exit code, or minus the signal. A process that never ends fails the test."""
        deadline = time.monotonic() + timeout
        while self.status is None:
            self.said()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"a process still runs after {timeout} s; it said {self.said()[-3:]}")
            else:
                time.sleep(0.001)
        return self.status

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        if self.status is None:
            self.signal(signal.SIGKILL)
            with contextlib.suppress(AssertionError):
                self.ended()
        os.close(self.reading)


def _acted(act: Callable[[Callable[[str], None]], Any], writing: int) -> int:
    def say(line: str) -> None:
        os.write(writing, f"{line}\n".encode())

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(writing, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    try:
        act(say)
        return 0
    except (ValueError, OSError, MemoryError) as error:
        say(f"refused: {one_line(error)}")
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        say("fault: " + traceback.format_exc().replace("\n", " | "))
        return 1
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()


def done(act: Callable[[Callable[[str], None]], Any]) -> list[str]:
    """Let a child do it to its end; what it said. Fails if it was refused."""
    child = Child(act)
    try:
        code = child.ended()
        assert code == 0, f"exit {code}: {child.said()}"
        return child.said()
    finally:
        child.close()


def stopped(
    act: Callable[[Callable[[str], None]], Any], after: float, number: int = signal.SIGKILL
) -> tuple[int, list[str]]:
    """Send a signal to a child (and all that it started) after so many seconds: its exit code, and what it said."""
    child = Child(act)
    try:
        time.sleep(after)
        child.signal(number)
        return child.ended(), child.said()
    finally:
        child.close()


def seconds(act: Callable[[Callable[[str], None]], Any]) -> float:
    began = time.monotonic()
    done(act)
    return time.monotonic() - began


def file_limit(size: int) -> None:
    """From here on this process can write no file beyond so many bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@contextlib.contextmanager
def small_disk(kilobytes: int) -> Iterator[Path]:
    """A file system of that size; skips the test where none can be mounted."""
    folder = Path(tempfile.mkdtemp())
    options = f"size={kilobytes}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def remounted(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def left_behind(folder: Path) -> list[str]:
    """Hidden or temporary names anywhere in a folder, but for the file by which it is held."""
    return sorted(p.name for p in folder.rglob("*") if p.name.startswith(".") and not p.name.endswith(".lock"))
