"""Are units of self-ablating models easier to explain? Mean scores of models compared, by arm and seed."""

from collections.abc import Sequence
from typing import Any

from analyses.arms import arms_table
from analyses.result import Result
from analyses.specialization.comparison import compared
from analyses.specialization.explained_means import SELECTED
from analyses.specialization.means import ALL_LAYERS


def explained_measures(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model: mean score by explainer, raw and above each floor, and what is explained."""
    rows: list[dict[str, Any]] = []
    for mean in result.meta["means"]:
        if mean["layer"] != ALL_LAYERS or mean.get("value") is None:
            continue
        name, n = mean["explainer"], mean["n_units"]
        ends = {"ci_low": mean["ci_low"], "ci_high": mean["ci_high"]}
        rows.append({"metric": f"score, {name}", "value": mean["value"], **ends, "n": n})
        rows += [
            {
                "metric": f"score above {key.removeprefix('excess_')} explanations, {name}", "value": mean[key],
                "ci_low": mean[f"{key}_low"], "ci_high": mean[f"{key}_high"], "n": n,
            }
            for key in ("excess_shuffled", "excess_random")
            if mean.get(key) is not None
        ]  # fmt: skip
    cover = result.meta["coverage"][SELECTED]
    rows.append({"metric": "units explained (share)", "value": cover["by_count"], "n": cover["n_units"]})
    rows.append({"metric": "activation explained (share)", "value": cover["by_mass"], "n": cover["n_units"]})
    bits = result.table[result.table.selected].bits
    rows.append({"metric": "bits of an explanation (mean)", "value": float(bits.mean()), "n": len(bits)})
    return rows


def explainability_compared(results: Sequence[Result], baseline: str | None = None) -> Result:
    """One row a model and metric; the meta has the differences between arms over seeds.

    Args:
        results: of `explainability.explainability`, one a model, asked alike.
        baseline: the arm that others are compared with; None: that of the first.

    Returns:
        As `comparison.specialization_compared`; nothing of it belongs to that one's claim.
    """
    knobs = results[0].meta["knobs"]
    asked = ("kind", "stream", "explainers", "seed", "n_stories")
    if any(result.meta["knobs"][key] != knobs[key] for result in results for key in asked):
        raise ValueError(
            "models are compared when they were asked alike: kind, stream, stories, explainers, seed differ"
        )
    table = arms_table(results, {result.meta["checkpoint"]: explained_measures(result) for result in results})
    baseline = str(table.arm.iloc[0]) if baseline is None else baseline
    found = compared(table, baseline)
    if len(found):
        found = found.drop(columns="more_specialised")
    meta = {
        "knobs": {key: knobs[key] for key in asked},
        "baseline": baseline,
        "models": {result.meta["checkpoint"]: {"summary": result.meta["summary"]} for result in results},
        "differences": found.to_dict(orient="records"),
        "published": results[0].meta["published"],
    }
    rows = found[found.metric == f"score, {SELECTED}"].to_dict(orient="records") if len(found) else []
    meta["summary"] = "\n".join(
        f"{row['arm']}: mean score {row['difference']:+.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}] against "
        f"{baseline} ({row['n_seeds']} against {row['n_baseline']} seeds)"
        for row in rows
    )
    return Result("explainability", table, {"n": "units"}, meta)
