"""What every command shares: one line for bad input (exit 2), exit 130 for an interrupt, the list of commands."""

import argparse
import ast
import contextlib
import difflib
import os
import re
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

BAD_INPUT = 2
INTERRUPTED = 130
TERMINATED = 143
WIDEST = 100
"""Columns that help takes of a wider terminal."""


class Layout(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal: paragraphs are filled, indented lines stand as they are."""

    def __init__(self, prog: str, **knobs: Any) -> None:
        width = min(shutil.get_terminal_size().columns, WIDEST) - 1
        super().__init__(prog, **{"width": width, "max_help_position": 22, **knobs})

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(filled(line, width) for line in paragraphs(text))

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        names = {"int": "N", "positive": "N", "seed": "N", "float": "X", "above_zero": "X", "tolerance": "X"}
        return {"Path": "PATH", **names}.get(kind, action.dest.upper())

    def _metavar_formatter(self, action: argparse.Action, default_metavar: Any) -> Any:
        if action.metavar is None and many_choices(action):
            return lambda size: (default_metavar,) * size
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        choices = ", ".join(map(str, action.choices or ())) if many_choices(action) else ""
        return f"{action.help}; one of {choices}" if choices and action.metavar is None else action.help

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def many_choices(action: argparse.Action) -> bool:
    """Whether the choices of a flag are too long to stand in its place."""
    room = 40 if action.nargs is None else 16
    return action.choices is not None and len(",".join(map(str, action.choices))) > room


def paragraphs(text: str) -> list[str]:
    """The lines of a text, those of a paragraph joined; an indented line is one by itself."""
    found: list[str] = []
    for line in text.strip().splitlines():
        flows = line.strip() and not line.startswith(" ") and found and found[-1].strip()
        if flows and not found[-1].startswith(" "):
            found[-1] = f"{found[-1]} {line}"
        else:
            found.append(line)
    return found


def filled(line: str, width: int) -> str:
    """A line broken at `width`; what follows a gap of two spaces goes on below itself."""
    if len(line) <= width:
        return line
    gap = re.match(r" *\S.*?  +(?=\S)", line)
    left = min(gap.end() if gap else len(line) - len(line.lstrip()), width // 2)
    return textwrap.fill(line, width, subsequent_indent=" " * left, break_on_hyphens=False, break_long_words=False)


class Parser(argparse.ArgumentParser):
    """argparse, with its usage message reduced to the one line that says what was wrong."""

    def __init__(self, *args: Any, **knobs: Any) -> None:
        super().__init__(*args, **{"formatter_class": Layout, **knobs})

    def _nearest(self, message: str) -> str:
        """What was probably meant, where a choice or a flag is not known."""
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            given, known = found[1], re.findall(r"[^\s',]+", found[2])
        elif found := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            given, known = found[1], list(self._option_string_actions)
        else:
            return ""
        near = difflib.get_close_matches(given, known, 1, 0.75)
        return f"; did you mean {near[0]}?" if near else ""

    def reword(self, **words: str) -> None:
        """Say of flags that are there, by destination, what they are to this command."""
        for action in self._actions:
            action.help = words.get(action.dest, action.help)

    def error(self, message: str) -> NoReturn:
        line = one_line(ValueError(f"{self.prog}: {message}{self._nearest(message)}"))
        self.exit(BAD_INPUT, f"{line} (see --help)\n" if _rank() == 0 else None)


def command_parser(module: str, docstring: str | None, **knobs: Any) -> Parser:
    """The parser of `python -m MODULE`, whose help is the module's docstring as it stands."""
    return Parser(prog=f"python -m {module}", description=docstring, **knobs)


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


def refuse_several(what: str) -> None:
    """Raise a ValueError, before anything is written, where torchrun started more than one process."""
    if (n := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise ValueError(f"{what} runs in one process, and torchrun started {n}: start it without torchrun")


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
    columns = min(shutil.get_terminal_size().columns, WIDEST) - 1
    return "\n".join(filled(f"  python -m {package}.{name:<{width}}  {line}", columns) for name, line in sorted(rows))
