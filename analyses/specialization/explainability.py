"""How well can each unit be explained? An explanation a unit and explainer, and its score on stories it never saw.

The score is the correlation of simulated and real activation. Beside it stand two floors: the score of explanations
dealt to other units of the layer, and to other units at random; and what share of the units has an explanation at all.

Source of the score: Bills et al. 2023, "Language models can explain neurons in language models".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from analyses.explain import coverage, selected
from analyses.result import Result
from analyses.specialization.explained import FLOORS, Explained, Scored
from analyses.specialization.explained_means import PUBLISHED, SELECTED, cut_rates, mean_of, score_means

COLUMNS = (
    "kind", "stream", "layer", "unit", "explainer", "selected", "text", "bits", "r", "r_low", "r_high",
    "floor_shuffled", "floor_random", "precision", "recall", "false_positives", "n", "n_active", "missing",
)  # fmt: skip
COLUMN_UNITS = {
    **dict.fromkeys(("r", "r_low", "r_high", "floor_shuffled", "floor_random"), "correlation"),
    "layer": "index",
    "bits": "bits",
    "precision": "share",
    "recall": "share",
    "false_positives": "a token",
    "n": "tokens",
    "n_active": "tokens",
}
MOST_NAMED = 4096
"""Units without explanation that the meta names."""


def explainability(explained: Explained, *, n_resamples: int = 500, seed: int = 0) -> Result:
    """Explanations and scores as a Result.

    Args:
        explained: of `explained.explained_units`, or `explained_by_model.explained_by_model`.
        n_resamples: of the bootstrap over stories that gives each unit's interval.
        seed: of the resampling.

    Returns:
        One row a unit and explainer: `text`, description length in `bits`, `r` with a 95 % interval over held-out
        stories (NaN for a unit that does not vary there), the floors (NaN where no other unit could give its
        explanation), and at a cut chosen on other stories `precision`, `recall` and `false_positives` a token; `n`
        tokens that have a predicted activation, `n_active` of them active. `selected` marks the explanation that a
        unit keeps: greatest r less 1e-5 a bit on the stories to choose on. `missing`: why an explainer gave none.
        meta["means"]: see `explained_means.score_means`. meta["coverage"]: by explainer, the share of units and of
        activation that is explained, and the units that are `dead` (never active in the stories explained from)
        and `silent` (active, and nothing but a constant is said of them). meta["published"]: the number to compare
        with, and what keeps the two from being alike.
    """
    kept = kept_explainers(explained)
    means, found = score_means(explained, kept, seed)
    frames = [
        _rows(explained, name, one, found[name], [k == name for k in kept], n_resamples, seed)
        for name, one in explained.scored.items()
    ]
    table = pd.concat(frames, ignore_index=True)
    table["rank"] = table.unit.map({unit: i for i, unit in enumerate(_names(explained))})
    table = table.sort_values(["rank", "selected"], ascending=[True, False], kind="stable", ignore_index=True)
    floats = table.select_dtypes("float").columns
    table[floats] = table[floats].map(lambda x: float(f"{x:.6g}"))
    units = explained.units
    meta = {
        "knobs": {
            "kind": units.kind, "stream": units.stream, "explainers": list(explained.scored), "seed": seed,
            "n_units": len(explained.chosen), "n_stories": {k: len(v) for k, v in explained.parts._asdict().items()},
        },
        "activity": {"rule": explained.activity.rule, "by_quantile": explained.activity.by_quantile},
        "train_rows": explained.material.train_rows,
        "means": means,
        "coverage": coverages(explained, kept),
        "published": PUBLISHED,
    }  # fmt: skip
    meta["summary"] = summary_line(meta)
    return Result("explainability", table[list(COLUMNS)], COLUMN_UNITS, meta)


def kept_explainers(explained: Explained) -> list[str]:
    """Of each unit, the explainer whose explanation it keeps; the only one where there is but one."""
    names = list(explained.scored)
    calibrate = {name: one.calibrate for name, one in explained.scored.items() if one.calibrate is not None}
    if len(names) == 1 or len(calibrate) < len(names):
        return [names[0]] * len(explained.chosen)
    chosen = selected({name: one.explanations for name, one in explained.scored.items()}, calibrate)
    return [explanation.explainer for explanation in chosen]


def _names(explained: Explained) -> list[str]:
    return explained.units.table.unit.iloc[explained.chosen.numpy()].tolist()


def _rows(
    explained: Explained, name: str, one: Scored, found: dict[str, np.ndarray], keeps: Sequence[bool], n: int, seed: int
) -> pd.DataFrame:
    units, table = explained.units, explained.units.table.iloc[explained.chosen.numpy()]
    ends = [part.pearson_interval(n, seed=seed) for part in one.own]
    low, high = (np.concatenate([end[i] for end in ends]) for i in range(2))
    columns: dict[str, Any] = {
        "kind": units.kind, "stream": units.stream, "layer": table.layer.to_numpy(), "unit": table.unit.to_numpy(),
        "explainer": name, "selected": list(keeps), "text": [e.text for e in one.explanations],
        "bits": np.array([e.bits for e in one.explanations], dtype=float), "r": found["own"][0], "r_low": low,
        "r_high": high, **{f"floor_{floor}": found[floor][0] for floor in FLOORS}, **cut_rates(one),
        "n": torch.cat([part.n_tokens for part in one.own]).numpy(),
        "n_active": torch.cat([part.n_active for part in one.own]).numpy(),
    }  # fmt: skip
    missing = np.array([one.missing.get(i, np.nan) for i in range(len(table))], dtype=object)
    return pd.DataFrame({**columns, "missing": missing})


def coverages(explained: Explained, kept: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By explainer, and of the selected explanations, how much is explained at all; the others by name."""
    of = {name: one.explanations for name, one in explained.scored.items()}
    of[SELECTED] = [explained.scored[name].explanations[i] for i, name in enumerate(kept)]
    names, found = _names(explained), {}
    for name, explanations in of.items():
        one = coverage(explanations, explained.material.records)
        found[name] = {
            "n_units": one.n_units, "by_count": one.by_count, "by_mass": one.by_mass, "n_dead": len(one.dead),
            "n_silent": len(one.silent), "dead": [names[i] for i in one.dead[:MOST_NAMED]],
            "silent": [names[i] for i in one.silent[:MOST_NAMED]],
        }  # fmt: skip
    return found


def summary_line(meta: dict[str, Any]) -> str:
    """One line: the score, its floors, what is explained, the published number."""
    row, cover = mean_of(meta["means"]), meta["coverage"][SELECTED]
    knobs = meta["knobs"]
    kind = f"{knobs['kind']} ({knobs['stream']} stream)"
    if not row.get("n_units"):
        return f"{kind}: no unit varies in the held-out stories, so that none has a score"
    floor = f"{row['floor_shuffled']:.3f}" if "floor_shuffled" in row else "not known"
    return (
        f"{kind}: mean score {row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}] of {row['n_units']:,} "
        f"units, by {' and '.join(knobs['explainers'])} (floor of shuffled explanations {floor}); "
        f"{cover['by_count']:.0%} of units and {cover['by_mass']:.0%} of activation explained, {cover['n_dead']} dead; "
        f"published, by a language model, of another model: {PUBLISHED['mean']}"
    )
