"""Leakage of several models compared: how models were trained is the arm, a seed is one observation of it."""

from collections.abc import Sequence
from typing import Any

from analyses.arms import arms_table, differences
from analyses.result import Result


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model: the excess of every test over its null, and the losses."""
    rows = [
        {
            "metric": f"{row.test} ({row.unit})",
            "value": row.excess,
            "ci_low": row.ci_low,
            "ci_high": row.ci_high,
            "n": row.n_stories,
        }
        for row in result.table[result.table.ci_low.notna()].sort_values("test").itertuples()
    ]
    losses = result.meta["details"].get("loss inversion", {})
    rows += [
        {"metric": f"{stream} loss (bits)", "value": losses[stream], "n": result.meta["knobs"]["n_stories"]}
        for stream in ("clean", "ablated")
        if stream in losses
    ]
    return rows


def leakage_compared(results: Sequence[Result], baseline: str | None = None) -> Result:
    """One row a model and test; the meta has the differences between arms, and each model's verdict and summary.

    Args:
        results: of `leakage`, one a model.
        baseline: the arm that others are compared with; None: that of the first.
    """
    table = arms_table(results, {result.meta["checkpoint"]: measured(result) for result in results})
    baseline = str(table.arm.iloc[0]) if baseline is None else baseline
    meta = {
        "knobs": results[0].meta["knobs"],
        "baseline": baseline,
        "models": {
            result.meta["checkpoint"]: {key: result.meta[key] for key in ("verdict", "summary")} for result in results
        },
        "differences": differences(table, baseline).to_dict(orient="records"),
    }
    return Result("leakage", table, {"n": "stories"}, meta)
