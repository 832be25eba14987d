"""What every case is judged by: it succeeds, or is refused in one clear line; it neither hangs nor takes gigabytes."""

import contextlib
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings

from sat_lens.commands import one_line

SECONDS = 20
MEMORY = 1 << 30


class Hang(BaseException):
    """A case that took too long; no `except Exception` can hide it."""


class Outcome(NamedTuple):
    """What came of a case: a value, or the line of the refusal."""

    value: Any
    refusal: str | None


def sizes(quick: int, many: int) -> list[Any]:
    """Cases to try in `make test`, and in `make test-all`."""
    return [pytest.param(quick, id=str(quick)), pytest.param(many, id=str(many), marks=pytest.mark.slow)]


def drawn(n: int) -> settings:
    """Hypothesis' settings for `n` cases; the first that fails is shown as it is."""
    phases = (Phase.explicit, Phase.generate)
    return settings(
        max_examples=n, deadline=None, database=None, phases=phases, suppress_health_check=list(HealthCheck)
    )


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """A limit of time, and of what may be allocated beyond what there is."""

    def hang(*_: Any) -> None:
        raise Hang(f"still at it after {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, hang)
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def outcome(
    act: Callable[[], Any], refusals: type[Exception] | tuple[type[Exception], ...] = ValueError, *,
    case: str = "", seconds: float = SECONDS,
) -> Outcome:  # fmt: skip
    """Do it, and fail the test unless it succeeds or raises one of `refusals` with a message for a person."""
    try:
        with bounded(seconds):
            return Outcome(act(), None)
    except refusals as error:
        line = one_line(error)
        assert len(line) > 8 and line.isprintable(), f"{case}: refused, but the line says nothing: {line!r}"
        return Outcome(None, line)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise AssertionError(f"{case}: {type(error).__name__}: {one_line(error)[:300]}") from error


def mutated(content: bytes, position: int, kind: str, choice: random.Random) -> bytes:
    """`content` with one thing wrong at `position`."""
    before, byte, after = content[:position], content[position : position + 1], content[position + 1 :]
    match kind:
        case "flip":
            return before + bytes([byte[0] ^ 1 << choice.randrange(8)]) + after
        case "truncate":
            return before
        case "replace":
            return before + choice.choice(b'0123456789-+.eE"[]{},: \\ntfNaI\x00\xff').to_bytes(1, "big") + after
        case "delete":
            return before + after
        case "insert":
            return before + choice.choice(b'0123456789-+.eE"[]{},: \\ntfNaI\x00\xff').to_bytes(1, "big") + byte + after
        case "repeat":
            return before + content[position : position + 40] * choice.randint(2, 50) + after
    raise ValueError(kind)


KINDS = ("flip", "truncate", "replace", "delete", "insert", "repeat")
Mutation = tuple[str, int, str, random.Random]


def systematic(sizes_of: dict[str, int], seed: int) -> Iterator[Mutation]:
    """Every byte of files flipped (in one bit, drawn), and every file cut off at each byte: twice their size.

    Args:
        sizes_of: bytes of each file that may be damaged.
    """
    choice = random.Random(f"systematic {seed}")
    for name, size in sizes_of.items():
        for at in range(size):
            for kind in KINDS[:2]:
                yield name, at, kind, choice


def drawn_mutations(sizes_of: dict[str, int], n: int, seed: int) -> Iterator[Mutation]:
    """`n` mutations at places drawn anywhere, each kind in turn."""
    choice, names = random.Random(seed), list(sizes_of)
    for i in range(n):
        name = choice.choice(names)
        yield name, choice.randrange(sizes_of[name]), KINDS[i % len(KINDS)], choice
