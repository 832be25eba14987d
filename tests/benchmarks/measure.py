"""Time, in turns so that a noisy machine hurts all alike; peak memory, each arm in a process of its own."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOADED = ["sat_lens.model", "torch._dynamo", "analyses.localization"]
Work = Callable[[], object]


def interleaved_seconds(arms: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Wall times of each arm: A B C, A B C, ...; a first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for counted in (False, *[True] * rounds):
        for name, work in arms.items():
            start = time.perf_counter()
            work()
            if counted:
                times[name].append(time.perf_counter() - start)
    return times


def spread(times: list[float]) -> float:
    """Half the distance between the quartiles, as a share of the median."""
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / middle


def peak_bytes(make: Callable[..., Work], *arguments: Any, warm_up: Callable[[], object], repeat: int = 2) -> int:
    """What `make(*arguments)` and its work, done `repeat` times, add to a process's peak memory.

    The process is forked from one that has imported the libraries (they are not counted), and does
    `warm_up` first, after which PyTorch has loaded what it loads late. All must be module-level functions.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(theirs, make, arguments, warm_up, repeat))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"the process that measured {make.__name__}{arguments} ended without an answer") from None
    finally:
        process.join()


def _measure(
    answer: Connection,
    make: Callable[..., Work],
    arguments: tuple[Any, ...],
    warm_up: Callable[[], object],
    repeat: int,
) -> None:
    warm_up()
    before = status_bytes("VmRSS")
    work = make(*arguments)
    for _ in range(repeat):
        work()
    answer.send(status_bytes("VmHWM") - before)


def status_bytes(field: str) -> int:
    """VmRSS (held now) or VmHWM (held at most) of this process; Linux."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status must have {field}")
