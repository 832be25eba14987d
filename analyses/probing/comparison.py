"""Probes of several models compared: how models were trained is the arm, a seed is one observation of it."""

from collections.abc import Sequence
from typing import Any

from analyses.arms import arms_table, differences
from analyses.result import Result

MEASURES: dict[str, str] = {
    "accuracy": "share",
    "selectivity": "share",
    "compression": "uniform bits / bits",
    "k_90": "units",
    "rise_beyond_random": "nats a token",
}
BETWEEN = " | "


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model: each measure of the linear probe, by target and site."""
    rows = []
    for row in result.table[result.table.probe == "linear"].to_dict(orient="records"):
        for measure in MEASURES:
            if row.get(measure) is not None:
                rows.append(
                    {
                        "metric": BETWEEN.join((row["target"], measure, row["site"])),
                        "value": row[measure],
                        "ci_low": row.get(f"{measure}_low"),
                        "ci_high": row.get(f"{measure}_high"),
                        "n": int(row["n_stories"]),
                    }
                )
    return rows


def probing_compared(results: Sequence[Result], baseline: str | None = None) -> Result:
    """One row a model, target, measure and site; the meta has the differences between arms.

    Args:
        results: of `probing`, one a model.
        baseline: the arm that others are compared with; None: that of the first.
    """
    table = arms_table(results, {result.meta["checkpoint"]: measured(result) for result in results})
    baseline = str(table.arm.iloc[0]) if baseline is None else baseline
    found = differences(table, baseline)
    for column, place in (("target", 0), ("measure", 1), ("site", 2)):
        table[column] = [metric.split(BETWEEN)[place] for metric in table.metric]
    n_claims = int(found.claim.sum()) if len(found) else 0
    meta = {
        "knobs": results[0].meta["knobs"],
        "baseline": baseline,
        "differences": found.to_dict(orient="records"),
        "summary": f"{n_claims} of {len(found)} differences from {baseline} hold after correction (3 seeds or more)",
    }
    return Result("probing", table, {"n": "stories"}, meta)
