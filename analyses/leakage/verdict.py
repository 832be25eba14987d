"""What findings come to: one table, one verdict, one line with the strongest evidence first.

Only findings of what a message alone explains (`message`) and of the architecture (`structure`) decide the verdict.
That a mask is worth a lot (`worth`) or holds bits (`held`) goes with a mask that names what is relevant, too.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from analyses.leakage.finding import LEAKS, NOTHING, OPEN, Finding, findings_table

DECIDE: tuple[str, ...] = ("structure", "message")
"""Kinds of tests that the verdict rests on."""
COLUMNS: tuple[str, ...] = (
    "kind", "test", "verdict", "excess", "ci_low", "ci_high", "unit", "p_holm",
    "value", "null", "smallest", "margin", "relevant", "p", "n", "n_stories", "measure",
)  # fmt: skip


def verdict_table(findings: Mapping[str, Sequence[Finding]]) -> pd.DataFrame:
    """`findings_table` of all of them, corrected together, with the kind of test (the keys) and the excess."""
    table = findings_table([one for part in findings.values() for one in part])
    kind = {one.test: kind for kind, part in findings.items() for one in part}
    table = table.assign(kind=[kind[test] for test in table.test], excess=table.value - table["null"])
    return pd.DataFrame(table, columns=list(COLUMNS))


def verdict(table: pd.DataFrame) -> str:
    """Of the model: `leaks` if a deciding test says so, else `inconclusive` if one does, else `no evidence`."""
    calls = set(table.verdict[table.kind.isin(DECIDE)])
    return LEAKS if LEAKS in calls else OPEN if OPEN in calls or not calls else NOTHING


def summary(table: pd.DataFrame) -> str:
    """One line: the verdict, the leaks that decide it (strongest first), what else was found, and what could be seen.

    Args:
        table: of `verdict_table`, which is in order of strength.
    """
    deciding = table[table.kind.isin(DECIDE)]
    found, other = deciding[deciding.verdict == LEAKS], table[~table.kind.isin(DECIDE) & (table.verdict == LEAKS)]
    parts = [verdict(table) + (": " + "; ".join(map(_told, found.itertuples())) if len(found) else "")]
    if len(other):
        parts.append("Masks are worth or hold more than their nulls: " + "; ".join(map(_told, other.itertuples())))
    for call in (OPEN, NOTHING):
        rows = table[(table.verdict == call) & table.p.notna()]
        if len(rows):
            seen = ", ".join(f"{row.test} ({row.smallest:.2g} {row.unit})" for row in rows.itertuples())
            parts.append(f"{call.capitalize()}, with the least leak that would have been seen 4 times in 5: {seen}")
    return ". ".join(parts)


def _told(row: object) -> str:
    """`swap 1.06 bits [0.94, 1.18] above its null of 0.00`."""
    low, high = (f"{end:.2f}" if np.isfinite(end) else "?" for end in (row.ci_low, row.ci_high))
    return f"{row.test} {row.excess:.2f} {row.unit} [{low}, {high}] above its null of {round(row.null, 2) + 0.0:.2f}"
