"""Arms side by side, and what our numbers say of each claim."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses.arms import arms_table, differences
from analyses.paper.published import CLAIMS
from analyses.result import Result

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
        `differences`, `claims` (of `verdicts`), `curves` (held-out losses while training, by model), `reproduce`.
    """
    table = arms_of(results)
    baseline = "none" if "none" in set(table.arm) else str(table.arm.iloc[0])
    is_claim = table.metric.isin({claim.metric for claim in CLAIMS})
    parts = [differences(table[rows], baseline).assign(family=name)
             for name, rows in (("claim", is_claim), ("other", ~is_claim))]  # fmt: skip
    found = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    claims = verdicts(found)
    meta = {
        "baseline": baseline,
        "reproduce": results[0].meta["reproduce"],
        "differences": found.to_dict(orient="records"),
        "claims": claims,
        "curves": [curve for result in results for curve in result.meta["curves"]],
        "summary": "\n".join(f"{row['claim']} ({row['metric']}), {row['arm']}: {row['verdict']}" for row in claims),
    }
    return Result("paper", table, {"n": "stories or prompts"}, meta)


def verdicts(found: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a claim and arm: `claim, published, metric, arm, difference, ci_low, ci_high, p, n_seeds, verdict`.

    A claim of a direction holds, or its opposite does, where the difference is one after correction over three seeds
    a side; else it is not shown. "Nothing changes" can be refuted so, and is else not shown.
    """
    rows = []
    for claim in CLAIMS:
        part = found[found.metric == claim.metric] if len(found) else found
        for row in part.to_dict(orient="records"):
            sign = (row["difference"] > 0) - (row["difference"] < 0)
            verdict = OPEN if not row["claim"] else HOLDS if sign == claim.sign else REVERSED
            rows.append({
                "claim": claim.text, "published": claim.published, "metric": claim.metric, "arm": row["arm"],
                "difference": row["difference"], "ci_low": row["ci_low"], "ci_high": row["ci_high"],
                "p": row["p_welch_holm"], "n_seeds": row["n_seeds"], "verdict": verdict,
            })  # fmt: skip
    return rows
