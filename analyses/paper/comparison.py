"""Arms side by side, and what our numbers say of each claim."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses.arms import FEWEST_SEEDS, LEVEL, arms_table, differences
from analyses.paper.equivalence import ratio_p_value
from analyses.paper.published import CLAIMS
from analyses.result import Result
from analyses.statistics import holm

HOLDS, REVERSED, OPEN = "holds", "the opposite holds", "not shown"


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model."""
    return result.table.drop(columns="unit").to_dict(orient="records")


def arms_of(results: Sequence[Result]) -> pd.DataFrame:
    """One row a model and metric."""
    return arms_table(results, {result.meta["checkpoint"]: measured(result) for result in results})


def paper_compared(results: Sequence[Result]) -> Result:
    """One row a model and metric; the meta has the differences to the baseline and the verdict on each claim.

    The metrics that claims name are corrected (Holm) together, all others together.

    Args:
        results: one a model.

    Returns:
        The table of `analyses.arms`; meta: `baseline` (`none` where there is such an arm, else the first),
        `differences`, `claims` (of `verdicts`), `curves` (held-out losses while training, by model),
        `circuits` (by model), `mechanisms` (by mask), `reproduce`, `short` (what was done otherwise than published).
    """
    table = arms_of(results)
    baseline = "none" if "none" in set(table.arm) else str(table.arm.iloc[0])
    is_claim = table.metric.isin({claim.metric for claim in CLAIMS})
    parts = [differences(table[rows], baseline).assign(family=name)
             for name, rows in (("claim", is_claim), ("other", ~is_claim))]  # fmt: skip
    found = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    claims = verdicts(table, found, baseline)
    meta = {
        "baseline": baseline,
        "reproduce": results[0].meta["reproduce"],
        "short": results[0].meta.get("short", []),
        "differences": found.to_dict(orient="records"),
        "claims": claims,
        "curves": [curve for result in results for curve in result.meta["curves"]],
        "summary": "\n".join(f"{row['claim']} ({row['metric']}), {row['arm']}: {row['verdict']}" for row in claims),
        "circuits": [result.meta["circuit"] for result in results if result.meta.get("circuit")],
        "mechanisms": _first_of_arms(results),
    }
    return Result("paper", table, {"n": "stories or prompts"}, meta)


def _first_of_arms(results: Sequence[Result]) -> dict[str, Any]:
    """The mechanism of the first model of each kind of mask."""
    found: dict[str, Any] = {}
    for result in results:
        if mechanism := result.meta.get("mechanism"):
            found.setdefault(mechanism["mask"], mechanism)
    return found


def verdicts(table: pd.DataFrame, found: pd.DataFrame, baseline: str) -> list[dict[str, Any]]:
    """A row a claim and arm.

    A claim of a direction holds, or its opposite does, where the difference is one after correction over three seeds
    a side; else it is not shown. That nothing is lost holds where the ratio is shown to be within the margin, or the
    number to be less than the baseline's; its opposite where it is shown to be more, and not shown to be within the
    margin; else neither is shown. All tests are corrected together (Holm).

    Args:
        table: of `analyses.arms`.
        found: differences.
        baseline: the arm that all are compared with.

    Returns:
        `claim, published, metric, arm, difference, ci_low, ci_high, p` (corrected, of the difference), `n_seeds`,
        `margin` (ratio; None where a direction is claimed), `p_equivalent` (corrected), `verdict`.
    """
    rows: list[dict[str, Any]] = []
    for claim in CLAIMS:
        part = found[found.metric == claim.metric] if len(found) else found
        for row in part.to_dict(orient="records"):
            same = float("nan")
            if claim.margin is not None:
                values, base = (_seeds(table, claim.metric, arm) for arm in (row["arm"], baseline))
                same = ratio_p_value(values, base, claim.margin)
            rows.append({
                "claim": claim.text, "published": claim.published, "metric": claim.metric, "arm": row["arm"],
                "difference": row["difference"], "ci_low": row["ci_low"], "ci_high": row["ci_high"],
                "p": row["p_welch"], "n_seeds": row["n_seeds"], "margin": claim.margin, "p_equivalent": same,
                "sign": claim.sign, "enough": min(row["n_seeds"], row["n_baseline"]) >= FEWEST_SEEDS,
            })  # fmt: skip
    corrected = holm([row["p"] for row in rows] + [row["p_equivalent"] for row in rows]).tolist()
    for row, p, same in zip(rows, corrected[: len(rows)], corrected[len(rows) :], strict=True):
        row |= {"p": p, "p_equivalent": same}
        row["verdict"] = _verdict(row)
    return [{key: value for key, value in row.items() if key not in ("sign", "enough")} for row in rows]


def _verdict(row: dict[str, Any]) -> str:
    if not row["enough"]:
        return OPEN
    if row["margin"] is not None:
        shown = row["p"] < LEVEL
        no_more = row["p_equivalent"] < LEVEL or (shown and row["difference"] < 0)
        return HOLDS if no_more else REVERSED if shown else OPEN
    sign = (row["difference"] > 0) - (row["difference"] < 0)
    return OPEN if not row["p"] < LEVEL else HOLDS if sign == row["sign"] else REVERSED


def _seeds(table: pd.DataFrame, metric: str, arm: Any) -> list[float]:
    return pd.to_numeric(table[(table.metric == metric) & (table.arm == arm)].value).dropna().tolist()
