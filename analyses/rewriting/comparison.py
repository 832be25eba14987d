"""Rewriting of several models compared: how models were trained is the arm, a seed is one observation of it.

Models of less loss may have latents that are told less well for that alone. So KLs are given at equal loss, too: over
tokens that all models of the comparison predict equally well (see `equal_loss`); and as a share of what the latents are
worth to the model (`recovered`), which needs no matching.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.arms import arms_table, differences
from analyses.result import Result
from analyses.rewriting.equal_loss import matched
from analyses.rewriting.summed_up import mean_of
from analyses.statistics import bootstrap_weights

REWRITTEN = {
    "kl": "KL, all rewritten (nats)",
    "recovered_kl": "KL recovered, all rewritten (share)",
    "d_loss": "loss, all rewritten, less base (nats)",
}
MATCHED = {
    "rewritten": "KL at equal loss, all rewritten (nats)",
    "reconstruction": "KL at equal loss, coder alone (nats)",
    "zero latents": "KL at equal loss, no latents (nats)",
    "loss": "loss of the tokens at equal loss (nats)",
    "kept": "tokens at equal loss (share)",
}
SCORED = {
    "r": "r (correlation)",
    "detection": "detection (balanced accuracy)",
    "fuzzing": "fuzzing (balanced accuracy)",
}
EXCESS = "r beyond shuffled (correlation)"
CODER_KL, ZERO_KL, LOSS, FVU = (
    "KL, coder alone (nats)",
    "KL, no latents (nats)",
    "loss of the model (nats)",
    "coder FVU (share)",
)
MATCHED_RECOVERED = "KL recovered at equal loss (share)"
SHOWN = (
    REWRITTEN["kl"], ZERO_KL, REWRITTEN["recovered_kl"], MATCHED["rewritten"], MATCHED_RECOVERED, LOSS, SCORED["r"],
    EXCESS, FVU,
)  # fmt: skip
RESAMPLES = 1000


def rewriting_compared(results: Sequence[Result], baseline: str | None = None) -> Result:
    """One row a model and metric; the meta has the differences between arms.

    Args:
        results: of runs with the same stories, explainer and plans.
        baseline: the arm that others are compared with; None: that of the first.

    Raises:
        ValueError: runs that are not of the same kind.
    """
    for key in ("texts", "main"):
        if any(result.meta.get(key) != results[0].meta.get(key) for result in results):
            raise ValueError(
                f"runs are compared that have the same {key}; {results[0].meta['checkpoint']} and another differ"
            )
    sizes = {tuple(result.meta["knobs"]["coder"][key] for key in ("kind", "n_latents", "k")) for result in results}
    if len(sizes) > 1:
        raise ValueError(f"runs are compared whose coders are of one kind and size; got {sorted(map(str, sizes))}")
    names = [result.meta["checkpoint"] for result in results]
    if len(set(names)) < len(names):
        raise ValueError("runs of one checkpoint are not compared as arms; give one run a checkpoint")
    at_equal_loss = _matched(results)
    rows = {name: measured(result) + at_equal_loss[name] for name, result in zip(names, results, strict=True)}
    table = arms_table(results, rows)
    baseline = str(table.arm.iloc[0]) if baseline is None else baseline
    found = differences(table[~table.metric.isin([MATCHED["loss"], MATCHED["kept"]])], baseline)
    meta = {
        "knobs": results[0].meta["knobs"], "main": results[0].meta["main"], "baseline": baseline,
        "models": {name: {"summary": r.meta["summary"]} for name, r in zip(names, results, strict=True)},
        "differences": found.to_dict(orient="records"),
    }  # fmt: skip
    return Result("rewriting", table, {"n": "stories"}, meta | {"summary": _summary(meta["differences"])})


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model alone."""
    table, meta = result.table, result.meta
    n = int(table.n_stories.iloc[0])
    rows = []
    main = _row(table, meta["main"])
    if main is not None:
        for column, metric in REWRITTEN.items():
            rows.append({"metric": metric, "n": n, **_value(main, column)})
    by = table[table.part == "baseline"].set_index("name")
    rows.append({"metric": CODER_KL, "n": n, **_value(by.loc["reconstruction"], "kl")})
    rows.append({"metric": ZERO_KL, "n": n, **_value(by.loc["zero latents"], "kl")})
    rows.append({"metric": LOSS, "value": meta["base_loss"], "n": n})
    if quality := meta.get("coder_quality"):
        rows.append({"metric": FVU, "value": quality["fvu"], "n": quality["n_stories"]})
    name = next(iter(meta["scores"]), "")
    for score, metric in SCORED.items():
        if mean := mean_of(meta, name, score):
            rows.append({"metric": metric, **{key: mean[key] for key in ("value", "ci_low", "ci_high")},
                         "n": meta["scores"][name]["n_stories"]})  # fmt: skip
    own, floor = (mean_of(meta, name, "r", source).get("value") for source in ("own", "shuffled"))
    if own is not None and floor is not None:
        rows.append({"metric": EXCESS, "value": own - floor, "n": meta["scores"][name]["n_stories"]})
    return rows


def _value(row: pd.Series, column: str) -> dict[str, Any]:
    return {"value": row[column], "ci_low": row[f"{column}_low"], "ci_high": row[f"{column}_high"]}


def _row(table: pd.DataFrame, main: dict[str, Any] | None) -> pd.Series | None:
    """The plan by which models are compared."""
    if main is None:
        return None
    plans = table[table.part == "plan"]
    alike = [plans["name"] == main["explanations"]]
    alike += [plans[key] == value for key, value in main.items() if key != "explanations"]
    return plans[np.logical_and.reduce(alike)].iloc[0]


def _matched(results: Sequence[Result]) -> dict[str, list[dict[str, Any]]]:
    n = len(results[0].meta["by_loss"]["n"])
    weights = np.concatenate([np.full((1, n), 1 / n), bootstrap_weights(n, RESAMPLES, seed=0)])
    found = matched(results, weights)
    values = {metric: found[name] for name, metric in MATCHED.items() if name in found}
    if "rewritten" in found:
        with np.errstate(divide="ignore", invalid="ignore"):
            worth = found["zero latents"] - found["reconstruction"]
            values[MATCHED_RECOVERED] = (found["zero latents"] - found["rewritten"]) / worth
    rows: dict[str, list[dict[str, Any]]] = {}
    for i, result in enumerate(results):
        rows[result.meta["checkpoint"]] = [
            {
                "metric": metric, "value": of[0, i], "ci_low": np.nanquantile(of[1:, i], 0.025),
                "ci_high": np.nanquantile(of[1:, i], 0.975), "n": n,
            }
            for metric, of in values.items()
        ]  # fmt: skip
    return rows


def _summary(found: Sequence[dict[str, Any]]) -> str:
    told = [
        row for row in found if row["metric"] in (REWRITTEN["recovered_kl"], MATCHED["rewritten"], MATCHED_RECOVERED)
    ]
    return "\n".join(
        f"{row['metric']}: {row['arm']} less {row['baseline']} {row['difference']:+.4f} "
        f"[{row['ci_low']:.4f}, {row['ci_high']:.4f}], {'a claim' if row['claim'] else 'no claim'} "
        f"({row['n_seeds']} and {row['n_baseline']} seeds)"
        for row in told
    )
