"""Sparsity of several models compared: does self-ablation make activations or weights less sparse?

Six measures that no rescaling moves are the claim, corrected (Holm) together; all others are corrected together as
`other`, the published number among them.

Source of the claim: arXiv 2505.00509, abstract (self-ablation reduces overall sparsity; it means `mean_abs_weight`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.arms import arms_table, differences, few_seeds
from analyses.result import Result
from analyses.sparsity.weights import WITHOUT

CLAIM = (
    "neuron clean: hoyer",
    "neuron clean: l0",
    "neuron clean: effective_rank",
    "channel clean: hoyer",
    f"weights {WITHOUT}: hoyer",
    f"weights {WITHOUT}: near_zero",
)
SPARSER = {"hoyer": 1, "gini": 1, "kurtosis": 1, "near_zero": 1, "effective_rank": -1, "l0": -1, "live_units": -1}
"""Sign of "sparser"; what is not here has none."""


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model: means over layers."""
    found = result.table[result.table.layer < 0]
    rows = []
    for row in found.to_dict(orient="records"):
        of = f"weights {row['of']}" if row["part"] == "weights" else f"{row['of']} {row['stream']}"
        rows.append({"metric": f"{of}: {row['metric']}", **{k: row[k] for k in ("value", "ci_low", "ci_high", "n")}})
    return rows


def sparsity_compared(results: Sequence[Result], baseline: str | None = None) -> Result:
    """One row a model and metric; the meta has the differences between arms.

    Args:
        results: of `sparsity`, one a model, on the same stories.
        baseline: the arm that others are compared with; None: that of the first.

    Returns:
        The table of `analyses.arms`. meta["differences"] has the columns of `analyses.arms.differences`, `family`
        (`claim` or `other`) and `sparser` (whether the difference points there; None where no way does).

    Raises:
        ValueError: models that were not asked alike.
    """
    knobs = results[0].meta["knobs"]
    if any(result.meta["knobs"] != knobs for result in results):
        raise ValueError("models are compared when they were asked alike: stories, seed or null differ")
    table = arms_table(results, {result.meta["checkpoint"]: measured(result) for result in results})
    baseline = str(table.arm.iloc[0]) if baseline is None else baseline
    is_claim = table.metric.isin(CLAIM)
    parts = [differences(table[rows], baseline).assign(family=name)
             for name, rows in (("claim", is_claim), ("other", ~is_claim))]  # fmt: skip
    found = pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)
    if len(found):
        sign = found.metric.map(lambda metric: SPARSER.get(metric.rpartition(": ")[2], 0)) * np.sign(found.difference)
        found["sparser"] = [None if s == 0 else bool(s > 0) for s in sign]
    meta = {
        "knobs": knobs,
        "baseline": baseline,
        "differences": found.to_dict(orient="records"),
        "summary": _summary(found, baseline),
    }
    return Result("sparsity", table, {"n": "entries or tokens"}, meta)


def _summary(found: pd.DataFrame, baseline: str) -> str:
    lines = []
    for arm, rows in found[found.family == "claim"].groupby("arm", sort=False) if len(found) else ():
        seeds = f"{int(rows.n_seeds.min())} against {int(rows.n_baseline.min())} seeds"
        ways = {way: int((rows.claim & (rows.sparser == way)).sum()) for way in (True, False)}
        lines.append(
            f"{arm}: sparser than {baseline} by {ways[True]} of {len(rows)} measures that no rescaling moves, less by "
            f"{ways[False]} (Welch over {seeds}, corrected){few_seeds(rows)}"
        )
    return "\n".join(lines)
