"""Circuits of several models compared: does one way of training give smaller circuits?

Sizes are compared at matched faithfulness: the fewest of a method's best edges that keep 0.9 of the logit
difference. A bare count of kept edges is shown too, since the paper counts so, but a model whose logit difference
is small keeps few edges of a fixed threshold, faithful or not.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from analyses.arms import arms_table, differences
from analyses.localization.similarity import expected_jaccard, jaccard
from analyses.localization.stored_circuit import circuit_of
from analyses.result import Result


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one circuit: metric, value, ci_low, ci_high, n."""
    meta = result.meta
    task, circuit, matched = meta["task"], meta["circuit"], meta["matched"]
    n = task["n"]
    rows = [
        ("edges at faithfulness 0.9", matched["n_edges"], matched["low"], matched["high"]),
        ("log2 of edges at faithfulness 0.9", *(_log2(matched[key]) for key in ("n_edges", "low", "high"))),
        ("edges at faithfulness 0.9, without dead ends", matched["n_edges_pruned"], None, None),
        ("edges of the circuit", circuit["n_edges"], None, None),
        ("faithfulness of the circuit", circuit["faithfulness"], circuit["ci_low"], circuit["ci_high"]),
        ("nodes of the circuit", circuit["n_nodes"], None, None),
        ("logit difference", task["logit_diff"], None, None),
        ("accuracy", task["accuracy"], task["accuracy_low"], task["accuracy_high"]),
    ]
    rows += [
        (f"{area['area']}, log sizes, by |score|", area["value"], area["low"], area["high"])
        for area in meta["areas"]
        if (area["sign"], area["axis"]) == ("absolute", "log")
    ]
    return [{"metric": m, "value": v, "ci_low": low, "ci_high": high, "n": n} for m, v, low, high in rows]


def _log2(size: Any) -> float | None:
    """Of a number of edges, so that arms are compared by ratios; none is taken for one."""
    return None if size is None else float(np.log2(max(float(size), 1.0)))


def circuits_compared(results: Sequence[Result], baseline: str = "none") -> Result:
    """One row a model and metric; meta has the differences between arms, and how alike the circuits are.

    Args:
        results: of `circuit_result`, one a model, by one method on one task.
        baseline: the arm that others are compared with.
    """
    table = arms_table(results, {result.meta["checkpoint"]: measured(result) for result in results})
    meta = {
        "method": results[0].meta["method"],
        "task": {"name": results[0].meta["task"]["name"], "n": results[0].meta["task"]["n"]},
        "knobs": results[0].meta["knobs"],
        "checkpoints": [result.meta["checkpoint"] for result in results],
        "differences": differences(table, baseline).to_dict(orient="records"),
        "jaccard": _alike(results),
    }
    return Result("localization", table, {"n": "prompts"}, meta)


def _alike(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Jaccard index of each two circuits of one architecture, and that of random circuits of their sizes."""
    circuits = [(result.meta["checkpoint"], circuit_of(result)) for result in results]
    rows = []
    for (name, one), (other_name, other) in combinations(circuits, 2):
        if np.array_equal(one.graph.possible, other.graph.possible):
            by_chance = expected_jaccard(one.n_edges, other.n_edges, one.graph.n_edges)
            found = jaccard(one.members, other.members)
            rows.append({"a": name, "b": other_name, "jaccard": found, "random": by_chance})
    return rows
