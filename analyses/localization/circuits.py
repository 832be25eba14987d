"""A circuit of a task together with what shows how far it can be trusted.

    result = circuit_result(model, load_task("ioi", model.tokenizer, n=64), method="acdc")

The table is the circuit's: an edge a row. The meta has how well the model does the task, the faithfulness
curve with random circuits of the same sizes, its areas by both rules of sign, the size needed at matched
faithfulness, and the checks of the circuit itself: random circuits, completeness, idle edges, sameness under
knock-outs, restoration of the rest, other ablations and norms, other prompts.
"""

import dataclasses
from typing import Any

import numpy as np

from analyses import needs
from analyses.localization.attention_view import attention_data, strongest_heads
from analyses.localization.circuit import Circuit, largest
from analyses.localization.faithfulness import MIB_SIZES, SIGNS, TAILS, Gap, cmd, cpr, curve, gap_of
from analyses.localization.knockouts import same_under_knockouts
from analyses.localization.matched_size import circuit_at_faithfulness
from analyses.localization.methods import VALUE_OF, Knobs, chosen, found_by
from analyses.localization.nulls import against_random, random_circuits
from analyses.localization.restoration import stochastic_restoration
from analyses.localization.setting import Setting, setting_of
from analyses.localization.similarity import jaccard
from analyses.localization.soundness import completeness, minimality
from analyses.localization.stability import bootstrap_inclusion, sensitivity
from analyses.random_weights import random_weights
from analyses.result import Result
from sat_lens.tasks import Task
from sat_lens.tasks.performance import performance, require_solved

N_NULL = 12
"""Random circuits a size of the curve."""
SETS = {"shares": (0.05, 0.2, 0.5), "n_sets": 8, "n_random": 4}
"""Of knock-outs and restorations."""
QUICK = ("eap", "eap-ig", "attribution", "patching", "magnitude", "random")
"""Methods that are run again on resampled prompts and on random weights; the others take too long."""


def circuit_result(
    model: Any,
    task: Task,
    *,
    method: str = "eap-ig",
    ablation: str = "resample",
    value: str | None = None,
    size: float | int | None = None,
    knobs: Knobs | None = None,
    frozen_norm: bool = False,
    checks: bool = True,
    forced: bool = False,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Find a circuit, and measure it.

    Args:
        model: a HookedTransformer, or one with masks, whose clean stream counts.
        task: prompts with counterfactuals.
        method: see `methods`.
        ablation: what a cut edge carries, see `setting_of`.
        value: what the method works on, `logit_diff` or `kl`; None: kl for acdc and mask, logit_diff for the
            others. Faithfulness is always that of the logit difference.
        size: edges of the circuit, a share or a number; None: the method's own choice, or the fewest edges with
            faithfulness of at least 0.9.
        knobs: of the method; `size` and `seed` are added to them.
        frozen_norm: see `setting_of`.
        checks: measure the circuit; without, the curve and areas are all there is.
        forced: go on with a model that is at chance.
        n_bootstrap, seed: of intervals and nulls.
        progress: show bars on stderr, when that is a terminal.

    Raises:
        ValueError: a model at chance, an unknown method, knobs that do not fit.

    Cost: the method's, about 180 forward passes for curve and null, and about 700 for the checks.
    """
    needs.require(model, "localization")
    solved = performance(model, task)
    require_solved(solved, forced=forced)
    knobs = dataclasses.replace(knobs or Knobs(), seed=seed, size=size)
    searched = setting_of(
        model, task, ablation=ablation, value=value or VALUE_OF.get(method, "logit_diff"), frozen_norm=frozen_norm
    )
    setting = dataclasses.replace(searched, value="logit_diff")
    found = found_by(method, searched, knobs, progress=progress)
    members, rule = chosen(found, setting, size)
    circuit = Circuit(setting.graph, found.scores, members)
    gap = gap_of(setting, n_bootstrap=n_bootstrap, seed=seed)
    ranking = found.scores if found.ranking is None else found.ranking
    meta: dict[str, Any] = {
        "task": solved.summary(),
        "method": method,
        "knobs": {
            **dataclasses.asdict(knobs), "ablation": ablation, "value": searched.value, "frozen_norm": frozen_norm,
            "n_bootstrap": n_bootstrap, "seed": seed,
        },
        "graph": _graph_meta(setting),
        "rule": rule,
        **_curves(setting, ranking, gap, seed),
        "circuit": _summary(setting, circuit, gap),
    }  # fmt: skip
    if found.nodes is not None:
        meta["nodes"] = [
            {"node": source.name, "layer": source.layer, "score": float(score)}
            for source, score in zip(setting.graph.sources, found.nodes, strict=True)
        ]
    if checks and members.any():
        meta["checks"] = _checks(setting, circuit, gap, seed) | {
            "sensitivity": _rows(sensitivity(model, task, members, n_bootstrap=n_bootstrap, seed=seed))
        }
        if method in QUICK:
            meta["checks"] |= _again(model, task, searched, method, knobs, circuit, seed)
    result = Result("localization", circuit.table(), {}, meta)
    if heads := strongest_heads(result):
        meta["attention"] = attention_data(model, task, heads)
    units = {"score": searched.unit, "source_layer": "index", "destination_layer": "index"}
    return Result("localization", circuit.table(), units, meta)


def _graph_meta(setting: Setting) -> dict[str, Any]:
    graph = setting.graph
    return {
        "n_layers": graph.n_layers, "n_heads": graph.n_heads, "n_kv_heads": graph.n_kv_heads,
        "has_mlp": graph.has_mlp, "parallel": graph.parallel, "n_edges": graph.n_edges,
    }  # fmt: skip


def _curves(setting: Setting, ranking: np.ndarray, gap: Gap, seed: int) -> dict[str, Any]:
    """Curve, areas by both rules of sign, the size at matched faithfulness, and the same of random circuits."""
    by_sign = {sign: curve(setting, ranking, sign=sign, n_bootstrap=gap.n_bootstrap, seed=seed) for sign in SIGNS}
    matched = circuit_at_faithfulness(setting, ranking, n_bootstrap=gap.n_bootstrap, seed=seed)
    names = {"share": "size", "low": "ci_low", "high": "ci_high"}
    return {
        "curve": _rows(by_sign["absolute"].table.rename(columns=names)),
        "curve_signed": _rows(by_sign["signed"].table.rename(columns=names)),
        "null_curve": _null_curve(setting, by_sign["absolute"].n_edges, gap, seed),
        "areas": [
            {"area": name, "sign": sign, "axis": axis, **measure(found, axis)._asdict()}
            for sign, found in by_sign.items()
            for axis in ("share", "log")
            for name, measure in (("CPR", cpr), ("CMD", cmd))
        ],
        "matched": {
            "threshold": matched.threshold, "n_edges": matched.n_edges, "low": matched.low, "high": matched.high,
            "n_edges_pruned": matched.n_edges_pruned, "faithfulness": matched.faithfulness, "note": matched.note,
        },
    }  # fmt: skip


def _null_curve(setting: Setting, n_edges: np.ndarray, gap: Gap, seed: int) -> list[dict[str, Any]]:
    rows = []
    for size, n in zip(MIB_SIZES, n_edges.tolist(), strict=True):
        few = 1 if n in (0, setting.graph.n_edges) else N_NULL
        f = gap.faithfulness(setting.values(random_circuits(setting.graph, n, few, seed, keep="size")))
        low, high = np.quantile(f, TAILS)
        rows.append({"size": size, "n_edges": n, "mean": f.mean(), "low": low, "high": high, "n_circuits": few})
    return rows


def _summary(setting: Setting, circuit: Circuit, gap: Gap) -> dict[str, Any]:
    pruned = circuit.pruned()
    values = setting.values(pruned.members[None])
    (low, high), f = gap.interval(values)[:, 0], gap.faithfulness(values)[0]
    return {
        "n_edges": circuit.n_edges, "n_edges_pruned": pruned.n_edges, "share": circuit.n_edges / setting.graph.n_edges,
        "n_nodes": len(pruned.nodes()), "faithfulness": f, "ci_low": low, "ci_high": high, "n": setting.n,
        "note": gap.note,
    }  # fmt: skip


def _checks(setting: Setting, circuit: Circuit, gap: Gap, seed: int) -> dict[str, Any]:
    """What can be measured of a circuit without running the method again."""
    members = circuit.pruned().members
    members = members if members.any() else circuit.members
    idle = minimality(setting, members, gap, seed=seed)
    return {
        "against_random": {
            keep: against_random(setting, members, gap, keep=keep, seed=seed)._asdict() for keep in ("layers", "shape")
        },
        "completeness": completeness(setting, members, gap, n_sets=12, n_random=4, seed=seed)._asdict(),
        "idle_share": float(idle.idle.mean()) if len(idle) else float("nan"),
        "minimality": _rows(idle.head(50)),
        "knockouts": _rows(same_under_knockouts(setting, members, **SETS, seed=seed)),
        "restoration": _rows(stochastic_restoration(setting, members, gap, **SETS, seed=seed)),
    }


def _again(
    model: Any, task: Task, searched: Setting, method: str, knobs: Knobs, circuit: Circuit, seed: int
) -> dict[str, Any]:
    """The method on resampled prompts, and on a model that has learned nothing."""

    def scores(setting: Setting) -> np.ndarray:
        return found_by(method, setting, knobs).scores

    inclusion = bootstrap_inclusion(searched, scores, n_edges=circuit.n_edges, n_bootstrap=10, seed=seed)
    untrained = setting_of(random_weights(model, seed), task, ablation=searched.ablation, value=searched.value)
    blind = largest(circuit.graph, scores(untrained), circuit.n_edges).members
    return {
        "inclusion": _rows(inclusion.table().head(100)),
        "inclusion_jaccard": inclusion.jaccard,
        "inclusion_jaccard_random": inclusion.expected_jaccard,
        "random_weights_jaccard": jaccard(circuit.members, blind),
    }


def _rows(table: Any) -> list[dict[str, Any]]:
    return table.to_dict(orient="records")
