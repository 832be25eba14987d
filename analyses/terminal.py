"""A result as a terminal shows it: the first rows, cut to its width, each unit once, and where the rest is."""

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

HEAD = 10
"""Rows that are shown."""
NARROWEST, WIDEST_CELL = 40, 80
FILES = ("figures/*.html", "table.csv", "meta.json")
"""What a reader opens."""


def width_of_stdout() -> int | None:
    """Columns of the terminal that the process writes to, None where that is a file or a pipe."""
    is_terminal = sys.__stdout__ is not None and sys.__stdout__.isatty()  # as it was before any redirection
    return max(NARROWEST, shutil.get_terminal_size().columns) if is_terminal else None


def shown(result: Any, folder: Path, width: int | None) -> str:
    """The first rows of the table, the units, the meta's `summary` where it has one, and the folder with its files.

    Args:
        result: a Result.
        folder: that it was written to.
        width: of the terminal, columns: what does not fit is left out and named; None: every column, no line broken.
    """
    head = result.table.head(HEAD).dropna(axis=1, how="all")
    cells = as_text(head, WIDEST_CELL if width is None else min(WIDEST_CELL, width // 2))
    same = {} if width is None or len(cells) < 2 or fits(cells, width) else constant(cells)
    kept = cells.drop(columns=list(same))
    left_out = [] if width is None else overflow(kept, width)
    table = kept.drop(columns=left_out).to_string(index=False)
    notes = [f"{len(head)} of {len(result.table):,} rows", units_text(result.units)]
    notes += [f"in all of these {', '.join(f'{name} {value}' for name, value in same.items())}"] if same else []
    notes += [f"not shown for want of width: {', '.join(left_out)}"] if left_out else []
    lines = [table, f"({'; '.join(filter(None, notes))})", *str(result.meta.get("summary", "")).splitlines()]
    if width is not None:
        lines = [lines[0], *(wrapped(line, width) for line in lines[1:])]
    found = (path for pattern in FILES for path in sorted(folder.glob(pattern)))
    files = ", ".join(str(path.relative_to(folder)) for path in found)
    lines += [wrapped(f"{files} in", width)] if files else []
    return "\n".join([*lines, f"{folder}\n"])


def as_text(table: pd.DataFrame, widest: int) -> pd.DataFrame:
    """Cells as they are printed: four digits, nothing for what is missing, no text longer than `widest`."""

    def cell(value: Any) -> str:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        return text if len(text) <= widest else f"{text[: widest - 3]}..."

    return table.map(cell).mask(table.isna(), "")


def fits(cells: pd.DataFrame, width: int) -> bool:
    """Whether the table can be printed without breaking a line."""
    return columns_of(cells) <= width


def columns_of(cells: pd.DataFrame) -> int:
    """Columns of a terminal that the table takes."""
    return sum(1 + max([len(str(name)), *cells[name].map(len)]) for name in cells)


def constant(cells: pd.DataFrame) -> dict[str, str]:
    """What is the same in all rows, by column; the first column and the ends of intervals stay in the table."""
    names = [name for name in list(cells)[1:] if not name.endswith(("_low", "_high"))]
    return {name: str(cells[name].iloc[0]) for name in names if len(set(cells[name])) == 1}


def overflow(cells: pd.DataFrame, width: int) -> list[str]:
    """Columns to leave out, the last first; never the first, and of an interval both ends."""
    names, out = list(cells), []
    while len(names) > 1 and not fits(cells[names], width):
        last = names.pop()
        out.append(last)
        other = f"{last.removesuffix('_high')}_low"
        if last.endswith("_high") and other in names[1:]:
            names.remove(other)
            out.append(other)
    return [name for name in cells if name in out]


def units_text(units: dict[str, str]) -> str:
    """Each unit with its columns."""
    columns: dict[str, list[str]] = {}
    for column, unit in units.items():
        columns.setdefault(unit, []).append(column)
    return "; ".join(f"{', '.join(names)}: {unit}" for unit, names in columns.items())


def wrapped(text: str, width: int | None) -> str:
    """A paragraph as lines of at most `width`, no word or name broken."""
    if width is None:
        return text
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
