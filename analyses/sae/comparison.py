"""SAEs of several models compared: at matched FVU (the claim), and coefficient by coefficient."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses.arms import arm_of, arms_table, differences
from analyses.result import Result


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model."""
    target = result.meta["target_fvu"]
    rows = []
    for row in result.table.to_dict(orient="records"):
        at = f"FVU {target:g}" if pd.isna(row["coefficient"]) else f"coefficient {row['coefficient']:g}"
        name = row["metric"].removesuffix("_matched")
        rows.append({"metric": f"{name} at {at}", **{key: row[key] for key in ("value", "ci_low", "ci_high", "n")}})
    return rows


def saes_compared(results: Sequence[Result], baseline: str | None = None) -> Result:
    """One row a model and metric; the meta has the differences between arms, and each model's sweep.

    The two matched numbers are corrected (Holm) together as `claim`, all others as `other`.

    Args:
        results: of `sae_sweep`, one a model, with one set of settings.
        baseline: the arm that others are compared with; None: that of the first.

    Raises:
        ValueError: models that were not asked alike.
    """
    asked = ("settings", "knobs", "target_fvu", "layer")
    if any(result.meta[key] != results[0].meta[key] for result in results for key in asked):
        raise ValueError("models are compared when they were asked alike: settings, text, layer or FVU differ")
    table = arms_table(results, {result.meta["checkpoint"]: measured(result) for result in results})
    baseline = str(table.arm.iloc[0]) if baseline is None else baseline
    is_claim = table.metric.str.endswith(f"at FVU {results[0].meta['target_fvu']:g}")
    parts = [differences(table[rows], baseline).assign(family=name)
             for name, rows in (("claim", is_claim), ("other", ~is_claim))]  # fmt: skip
    found = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    claims = found[found.family == "claim"] if len(found) else found
    meta = {
        **{key: results[0].meta[key] for key in (*asked, "hook")},
        "baseline": baseline,
        "sweeps": {r.meta["checkpoint"]: r.table.to_dict(orient="records") for r in results},
        "arms": {r.meta["checkpoint"]: arm for r, arm in zip(results, _arms(results), strict=True)},
        "differences": found.to_dict(orient="records"),
        "summary": "\n".join(
            f"{row.arm}: {row.metric} {row.difference:+.3g} [{row.ci_low:.3g}, {row.ci_high:.3g}] against {baseline}, "
            f"{'holds' if row.claim else 'does not hold'} after correction"
            for row in claims.itertuples()
        ),
    }
    return Result("sae", table, {"n": "stories"}, meta)


def _arms(results: Sequence[Result]) -> list[str]:
    return [arm_of(result.meta)["arm"] for result in results]
