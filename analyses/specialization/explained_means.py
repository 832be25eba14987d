"""Mean explainability scores, by layer and over all, with floors: what arms, and the published number, compare with.

A mean is over the units that vary in the held-out stories; others have no correlation. Its interval is a jackknife
over stories, since the units are all there are; `units_low` to `units_high` is a bootstrap over units: what another
draw of as many of them would give.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from analyses.explain import Tally
from analyses.specialization.explained import FLOORS, Explained, Scored
from analyses.specialization.intervals import jackknife_interval
from analyses.specialization.means import ALL_LAYERS
from analyses.statistics import bootstrap_interval

SELECTED = "selected"
"""The explanation that each unit keeps."""
MOST_GROUPS = 16
PUBLISHED = {
    "mean": 0.405,
    "by_layer": [0.371, 0.453, 0.509, 0.500, 0.443, 0.375, 0.335, 0.257],
    "n_units": 4069,
    "model": "8 layers, 512 neurons of each, without self-ablation",
    "explainer": "OpenAI's automated interpretability: explained and simulated by a language model (gpt-4o)",
    "source": "results that the authors of arXiv 2505.00509 left beside their code",
    "note": (
        "Another model, other texts and another explainer: theirs is text that a language model simulates on excerpts, "
        "ours is named with each score and is simulated on all tokens of held-out stories."
    ),
}
"""Of the paper's baseline; those of its self-ablating models are not known."""


def correlations(tallies: Sequence[Tally], has: Bool[np.ndarray, " unit"] | None = None) -> Float[np.ndarray, "_ unit"]:
    """r of each unit: on all stories, then without each group of them in turn; NaN where `has` is false."""
    n = len(tallies[0].n)
    groups = np.array_split(np.arange(n), min(MOST_GROUPS, n))
    kept = [np.arange(n), *(np.setdiff1d(np.arange(n), group) for group in groups)]
    found = np.array([np.concatenate([_of(one, rows).pearson.numpy() for one in tallies]) for rows in kept])
    return found if has is None else np.where(has, found, np.nan)


def _of(one: Tally, rows: Int[np.ndarray, " story"]) -> Tally:
    """The tally of some stories; its counts of bins stay those of all."""
    at = torch.from_numpy(rows)
    names = ("rows", "n", "mean_x", "mean_y", "xx", "yy", "xy")
    return dataclasses.replace(one, **{name: getattr(one, name)[at] for name in names})


def score_means(
    explained: Explained, kept: Sequence[str], seed: int = 0
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Rows of means, and by explainer the correlations that they are of.

    Args:
        kept: of each unit, the explainer whose explanation it keeps.

    Returns:
        Rows with `explainer` (or `selected`), `layer` (-1: all), `value`, `ci_low`, `ci_high`, `units_low`,
        `units_high`, `n_units`, `n_all`, and for each floor `floor_*` and the paired `excess_*`, `excess_*_low`,
        `excess_*_high`.
    """
    found = {
        name: {"own": correlations(one.own)}
        | {floor: correlations(one.floors[floor], one.has_floor[floor].numpy()) for floor in FLOORS}
        for name, one in explained.scored.items()
    }
    names = list(explained.scored)
    which = np.array([names.index(name) for name in kept])
    chosen = {
        part: np.stack([found[name][part] for name in names])[which, :, np.arange(len(which))].T
        for part in ("own", *FLOORS)
    }
    layer_of = explained.units.table.layer.to_numpy()[explained.chosen.numpy()]
    rows = []
    for name, parts in {**found, SELECTED: chosen}.items():
        for layer in (ALL_LAYERS, *explained.units.layers):
            here = np.ones(len(layer_of), dtype=bool) if layer == ALL_LAYERS else layer_of == layer
            rows.append({"explainer": name, "layer": layer, "n_all": int(here.sum()), **_mean(parts, here, seed)})
    return rows, found


def _mean(
    parts: Mapping[str, Float[np.ndarray, "_ unit"]], here: Bool[np.ndarray, " unit"], seed: int
) -> dict[str, Any]:
    own = parts["own"]
    scored = here & np.isfinite(own).all(0)
    if not scored.any():
        return {"value": float("nan"), "n_units": 0}
    means = own[:, scored].mean(1)
    low, high = _interval(means)
    units_low, units_high = bootstrap_interval(own[0, scored], seed=seed)
    row = {"value": float(means[0]), "ci_low": low, "ci_high": high, "units_low": float(units_low),
           "units_high": float(units_high), "n_units": int(scored.sum())}  # fmt: skip
    for floor in FLOORS:
        both = scored & np.isfinite(parts[floor]).all(0)
        if both.any():
            apart = own[:, both].mean(1) - parts[floor][:, both].mean(1)
            ends = _interval(apart)
            row |= {f"floor_{floor}": float(parts[floor][0, both].mean()), f"excess_{floor}": float(apart[0]),
                    f"excess_{floor}_low": ends[0], f"excess_{floor}_high": ends[1]}  # fmt: skip
    return row


def _interval(means: Float[np.ndarray, " _"]) -> tuple[float, float]:
    low, high = jackknife_interval(means[:1], means[1:, None])
    return float(low[0]), float(high[0])


def mean_of(means: Sequence[Mapping[str, Any]], explainer: str = SELECTED, layer: int = ALL_LAYERS) -> dict[str, Any]:
    """The row of an explainer and layer; empty where there is none."""
    return next((dict(row) for row in means if (row["explainer"], row["layer"]) == (explainer, layer)), {})


def cut_rates(one: Scored) -> dict[str, np.ndarray]:
    """Precision, recall and false positives a token of each unit, at its cut."""
    first, parts = 0, []
    for part in one.own:
        parts.append(part.rates(one.cut[first : first + part.n_units]))
        first += part.n_units
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
