"""Table 1 as LaTeX, CSV and HTML, the published rows beside ours; the claims one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analyses.figures import Page
from analyses.page import MISSING, document, number, table_html
from analyses.paper.published import FAITHFUL, ROWS
from analyses.paper.rows import SOUND
from analyses.result import Result
from sat_lens.files import write_whole

OURS, PUBLISHED = "ours", "published"
TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}",
    MISSING: "--", **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}  # fmt: skip
"""What LaTeX reads otherwise."""
CLAIMS_HOW = (
    "Arm minus baseline, Welch's interval over seeds; p by Welch's t. That nothing changes is claimed only where the "
    "ratio to the baseline is shown to be within the margin (two one-sided tests over seeds on logarithms: p of no "
    "more); a difference that was not found is no such evidence. All p after Holm's correction over this table."
)


def arm_rows(table: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """A row an arm and metric: mean over seeds, and its 95 % interval (t over seeds; of the one model where one is).

    Args:
        table: of `analyses.arms`.
        metrics: which; where all of the published ones are among them, the published rows follow ours.

    Returns:
        `source` (ours or published), `arm`, `metric`, `value`, `low`, `high`, `n_seeds`.
    """
    rows = []
    shown = table[table.metric.isin(metrics)]
    for arm, metric in dict.fromkeys(zip(shown.arm, shown.metric, strict=True)):
        part = shown[(shown.arm == arm) & (shown.metric == metric)]
        values = pd.to_numeric(part.value).dropna().to_numpy(float)
        if not len(values):
            continue
        if len(values) > 1:
            half = stats.t.isf(0.025, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
            low, high = values.mean() - half, values.mean() + half
        else:
            low, high = (float(pd.to_numeric(part[end]).iloc[0]) for end in ("ci_low", "ci_high"))
        rows.append((OURS, arm, metric, values.mean(), low, high, len(values)))
    for arm, values in ROWS.items() if set(FAITHFUL) <= set(metrics) else ():
        rows += [(PUBLISHED, arm, metric, values[metric], np.nan, np.nan, 1) for metric in metrics if metric in values]
    return pd.DataFrame(rows, columns=["source", "arm", "metric", "value", "low", "high", "n_seeds"])


def cells(table: pd.DataFrame, metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Header and rows as text: our arms, then the published ones."""
    found = arm_rows(table, metrics)
    shown = [metric for metric in metrics if metric in set(found.metric)]
    rows = []
    for source, arm in dict.fromkeys(zip(found.source, found.arm, strict=True)):
        part = found[(found.source == source) & (found.arm == arm)].set_index("metric")
        n = int(part.n_seeds.max())
        seeds = f", {n} seed{'s' if n > 1 else ''}" if source == OURS else ""
        rows.append([f"{arm} ({source}{seeds})", *(_cell(part.loc[m]) if m in part.index else MISSING for m in shown)])
    return ["arm", *shown], rows


def _cell(row: Any) -> str:
    whole = float(row.value).is_integer() and pd.isna(row.low)
    digits = 0 if whole or abs(row.value) >= 100 else 1 if abs(row.value) >= 20 else 2 if abs(row.value) >= 1 else 3
    value = number(float(row.value), digits)
    return value if pd.isna(row.low) else f"{value} [{number(row.low, digits)}, {number(row.high, digits)}]"


def claim_cells(claims: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The claims one by one: published, ours, interval, holds or not."""
    header = [
        "claim", "our measure", "arm", "verdict", "difference [95 %]", "p", "margin", "p of no more", "seeds",
        "published",
    ]  # fmt: skip
    rows = [
        [c["claim"], c["metric"], c["arm"], c["verdict"],
         f"{number(c['difference'])} [{number(c['ci_low'])}, {number(c['ci_high'])}]", number(c["p"]),
         MISSING if c["margin"] is None else f"{100 * (c['margin'] - 1):.0f} %", number(c["p_equivalent"]),
         str(c["n_seeds"]), c["published"]]
        for c in claims
    ]  # fmt: skip
    return header, rows


def latex(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table of the `booktabs` package."""
    lines = [" & ".join(map(_tex, row)) + r" \\" for row in (header, *rows)]
    return "\n".join([
        r"\begin{table}", rf"\caption{{{_tex(caption)}}}", rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


def _tex(text: str) -> str:
    return "".join(TEX.get(mark, mark) for mark in str(text))


def captions(result: Result) -> dict[str, tuple[tuple[str, ...], str]]:
    """The two tables: their columns and captions."""
    how = "the published procedure" if result.meta["reproduce"] else "the published measures, where they were taken so"
    how += f" (but: {'; '.join(short)})" if result.meta["reproduce"] and (short := result.meta.get("short")) else ""
    return {
        "table1": (FAITHFUL, f"Table 1 by {how}. Rows marked published are of one run each. Intervals: 95 %, over "
                   "seeds (of one model: over stories or prompts)."),
        "sound": (SOUND, "The same claims by measures that can be trusted: circuits at matched faithfulness, SAEs at "
                  "matched FVU, sparsity that no rescaling moves. Intervals as above."),
    }  # fmt: skip


def paper_page(result: Result) -> Page:
    """Both tables and the claims as one HTML page.

    Args:
        result: of `comparison.paper_compared`, or of one model with a table of `analyses.arms`.
    """
    parts = [table_html(*cells(result.table, metrics), caption) for metrics, caption in captions(result).values()]
    if claims := result.meta.get("claims"):
        how = CLAIMS_HOW
        parts.append(table_html(*claim_cells(claims), how))
    return Page(document("The paper's table and claims", "".join(parts)))


def write_tables(result: Result, folder: Path) -> None:
    """`NAME.tex` and `NAME.csv` of both tables and the claims."""
    for name, (metrics, caption) in captions(result).items():
        write_whole(folder / f"{name}.tex", latex(*cells(result.table, metrics), caption))
        write_whole(folder / f"{name}.csv", arm_rows(result.table, metrics).to_csv(index=False, lineterminator="\n"))
    if claims := result.meta.get("claims"):
        write_whole(folder / "claims.tex", latex(*claim_cells(claims), f"Claim by claim. {CLAIMS_HOW}"))
        write_whole(folder / "claims.csv", pd.DataFrame(claims).to_csv(index=False, lineterminator="\n"))
