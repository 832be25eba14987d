"""What every command shares: one line for bad input (exit 2), exit 130 for an interrupt, the list of commands."""

import argparse
import ast
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

BAD_INPUT = 2
INTERRUPTED = 130
TERMINATED = 143


class Parser(argparse.ArgumentParser):
    """argparse, with its usage message reduced to the one line that says what was wrong."""

    def error(self, message: str) -> NoReturn:
        line = one_line(ValueError(f"{self.prog}: {message}"))
        self.exit(BAD_INPUT, f"{line} (see --help)\n" if _rank() == 0 else None)


def command_parser(module: str, docstring: str | None, **knobs: Any) -> Parser:
    """The parser of `python -m MODULE`, whose help is the module's docstring as it stands."""
    layout = argparse.RawDescriptionHelpFormatter
    return Parser(prog=f"python -m {module}", description=docstring, formatter_class=layout, **knobs)


def run(main: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command's `main` and leave the process: 0, 2 with one line on stderr, 130, or 143 when it is terminated."""
    try:
        with ending_in_order():
            main(argv)
        sys.stdout.flush()
    except (ValueError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output went away; say nothing
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        who = f"rank {_rank()}: " if _rank() else ""
        sys.stderr.write(f"error: {who}{one_line(error)}\n")
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    sys.exit(0)


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM leaves through every `finally`, so that nothing half written and no other process is left behind."""

    def leave(number: int, frame: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        sys.stderr.write("terminated\n")
        sys.exit(TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not in the main thread, which alone may do this
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _rank() -> int:
    """Which of torchrun's processes this is, before any of them has met the others; 0 without torchrun."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdigit() else 0


def one_line(error: BaseException) -> str:
    """The message of an error on one line of at most 1,000 characters, none of which a terminal would obey."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return shown[:1000]


def list_commands(folder: Path | str, package: str) -> str:
    """The modules of `folder` that run as commands, each with the first line of its docstring.

    A module is a command when it has a `main` and an `if __name__ == "__main__"` line; nothing is
    imported, so that the list costs milliseconds.
    """
    rows = []
    for path in sorted([*Path(folder).glob("*.py"), *Path(folder).glob("*/__main__.py")]):
        source = path.read_text(encoding="utf-8")
        if path == Path(folder) / "__main__.py" or '\nif __name__ == "__main__":' not in source:
            continue
        name = path.parent.name if path.name == "__main__.py" else path.stem
        docstring = ast.get_docstring(ast.parse(source)) or ""
        rows.append((name, docstring.splitlines()[0] if docstring else ""))
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"  python -m {package}.{name:<{width}}  {line}" for name, line in sorted(rows))
