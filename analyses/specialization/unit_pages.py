"""What a page of each unit shows, as a Result: the page itself is a function of this alone.

One row a unit, so that the table stays what a person can read and sort without this project; what is a list (examples,
measures, explanations) is a cell of JSON. It is a Result of its own, and not a part of those that it is made from,
since examples are texts, and large.

An example is [place of its token in the window, [ids], [levels]]; a level is the activation in hundredths of the
unit's maximum. Ids are named by meta["vocabulary"].
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.explain import Example, Record, Vocabulary
from analyses.result import Result
from analyses.specialization.explained import Explained
from analyses.specialization.explained_means import SELECTED
from analyses.specialization.logit_weights import LogitWeights
from analyses.specialization.measures import NONE

LISTS = {"top": ("top",), "spread": ("spread",), "near": ("near_same", "near_other")}
"""Lists of the page, and those of a record that they are made of."""
SHOWN = 8
"""Examples of a list, half as many of each where it is made of two."""
MEASURES = (
    "mutual information", "information share", "variance explained", "usage", "live stories", "effective contexts",
    "kurtosis", "hoyer", "gini", "negative share", "logit kurtosis",
)  # fmt: skip
EXPLANATION = (
    "explainer", "text", "bits", "r", "r_low", "r_high", "floor_shuffled", "floor_random", "precision", "recall",
    "false_positives",
)  # fmt: skip
MEASURE = ("metric", "target", "against", "value", "ci_low", "ci_high", "null", "excess", "q", "label")
COLUMN_UNITS = {
    "layer": "index", "usage": "share of tokens", "live": "share of stories", "excess": "bits", "r": "correlation",
    "floor_shuffled": "correlation", "maximum": "activation",
}  # fmt: skip


def unit_pages(
    selectivity: Result, explainability: Result, explained: Explained, weights: LogitWeights | None = None
) -> Result:
    """The data of the pages of all units.

    Args:
        selectivity: of `selectivity.unit_selectivity`, of this kind.
        explainability: of `explainability.explainability`.
        explained: what that was made from; its records are of the stories explained from.
        weights: tokens that units promote; None: not known (entries of masks).

    Returns:
        `unit`, `layer`, `usage`, `live` share of stories, `target` that its activity tells most of and the `excess`
        in bits over its null with the `label` it speaks for, `explanation` kept with `explainer`, `r` and
        `floor_shuffled`, `maximum`, and cells of JSON: `promoted`, `suppressed` (ids), `top`, `spread`, `near`
        (examples), `measures` (columns: `MEASURE`), `explanations` (columns: `EXPLANATION`).
    """
    vocabulary, used = explained.material.vocabulary, set[int]()
    kept = explainability.table[explainability.table.selected].set_index("unit")
    told = _told(selectivity)
    measures = _cells(selectivity.table[selectivity.table.metric.isin(MEASURES)], MEASURE, by="unit")
    said = _cells(explainability.table, EXPLANATION, by="unit")
    simple = selectivity.table[selectivity.table.metric.isin(["usage", "live stories"])]
    simple = simple.drop_duplicates(["unit", "metric"]).pivot(index="unit", columns="metric", values="value")
    rows = []
    for place, record in zip(explained.chosen.tolist(), explained.material.records, strict=True):
        unit = str(explained.units.table.unit.iloc[place])
        promoted, suppressed = ([], []) if weights is None else (
            weights.promoted[place].tolist(), weights.suppressed[place].tolist()
        )  # fmt: skip
        used.update(promoted, suppressed)
        examples = {name: _examples(record, lists, used) for name, lists in LISTS.items()}
        rows.append({
            "unit": unit, "layer": int(explained.units.table.layer.iloc[place]), "usage": simple["usage"].get(unit),
            "live": simple["live stories"].get(unit), **told.get(unit, {}), "explanation": kept.text.get(unit, ""),
            "explainer": kept.explainer.get(unit), "r": kept.r.get(unit),
            "floor_shuffled": kept.floor_shuffled.get(unit), "maximum": _rounded(record.maximum),
            "promoted": _json(promoted), "suppressed": _json(suppressed),
            **{name: _json(found) for name, found in examples.items()}, "measures": measures.get(unit, "[]"),
            "explanations": said.get(unit, "[]"),
        })  # fmt: skip
    meta = {
        "knobs": {"selectivity": selectivity.meta["knobs"], "explainability": explainability.meta["knobs"]},
        "kind": explained.units.kind, "stream": explained.units.stream,
        "n_stories": {"examples": len(explained.parts.explain), "scores": len(explained.parts.evaluate)},
        "n_dead": explainability.meta["coverage"][SELECTED]["n_dead"],
        "summary": explainability.meta["summary"], "vocabulary": _texts(vocabulary, used),
    }  # fmt: skip
    return Result("unit pages", pd.DataFrame(rows), COLUMN_UNITS, meta)


def _told(selectivity: Result) -> dict[str, dict[str, Any]]:
    """Of each unit the target that its activity tells most of, in bits beyond the first null."""
    rows = selectivity.table[selectivity.table.metric == "mutual information"]
    rows = rows[rows.against == rows.against.iloc[0]].dropna(subset=["excess"]) if len(rows) else rows
    best = rows.sort_values("excess", ascending=False, kind="stable").drop_duplicates("unit")
    return {row.unit: {"target": row.target, "label": row.label, "excess": row.excess} for row in best.itertuples()}


def _examples(record: Record, lists: Sequence[str], used: set[int]) -> list[list[Any]]:
    """Windows of equal tokens (stories that begin alike) are shown once."""
    found = []
    for name in lists:
        distinct = list({(example.at, example.tokens): example for example in reversed(record.examples[name])}.values())
        for example in distinct[::-1][: SHOWN // len(lists)]:
            used.update(example.tokens)
            found.append([example.at, list(example.tokens), _levels(example, record.maximum)])
    return found


def _levels(example: Example, maximum: float) -> list[int]:
    if not 0 < maximum < math.inf:
        return [0] * len(example.values)
    return [max(-100, min(100, round(100 * v / maximum))) if math.isfinite(v) else 0 for v in example.values]


def _texts(vocabulary: Vocabulary, used: set[int]) -> dict[str, str]:
    return {str(i): vocabulary.texts[i] if 0 <= i < vocabulary.n else f"id {i}" for i in sorted(used)}


def _cells(table: pd.DataFrame, columns: Sequence[str], by: str) -> dict[str, str]:
    """Rows of each unit as JSON lists, NaN as null, `-` (no target, no null) as an empty text."""
    plain = table[[by, *columns]].astype(object).where(table[[by, *columns]].notna(), None)
    found: dict[str, list[list[Any]]] = {}
    for unit, *values in plain.itertuples(index=False, name=None):
        found.setdefault(unit, []).append(["" if value == NONE else _rounded(value) for value in values])
    return {unit: _json(rows) for unit, rows in found.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(f"{value:.3g}") if math.isfinite(value) else None
    return value


def _json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
