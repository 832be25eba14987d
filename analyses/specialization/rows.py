"""Rows of the table: a frame for each measure, one row a unit."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analyses.specialization import nulls
from analyses.specialization.intervals import (
    false_discovery,
    jackknife_interval,
    p_against_draws,
    p_against_number,
    wilson,
)
from analyses.specialization.measured import Measured
from analyses.specialization.measures import BY_LABEL, NONE, UNITS, Key, best_labels
from analyses.specialization.observation import Observation, Target
from analyses.specialization.tables import Sums
from analyses.unit_streams import Units

ORDER = (*BY_LABEL, *(name for name in UNITS if name not in BY_LABEL))
COLUMNS = (
    "kind", "stream", "layer", "unit", "metric", "target", "against", "value", "ci_low", "ci_high", "null", "null_sd",
    "excess", "p", "q", "label", "lift", "n",
)  # fmt: skip


def spoken(total: Sums, target: Target) -> dict[str, np.ndarray]:
    """`label`, the name of each unit's best class, and its `lift`."""
    best, lift = best_labels(total[f"active/{target.name}"][:-1], total[f"labelled/{target.name}"][:-1])
    names = np.array([*target.classes, None], dtype=object)  # -1, of dead units, is the last
    return {"label": names[best.numpy(force=True)], "lift": lift.numpy(force=True)}


def rows(units: Units, key: Key, one: Measured, against: str, labels: Mapping[str, np.ndarray], n: int) -> pd.DataFrame:
    low, high = jackknife_interval(one.value, one.left_out)
    columns: dict[str, Any] = {"metric": key[0], "target": key[1], "against": against, "value": one.value,
                               "ci_low": low, "ci_high": high, "n": n}  # fmt: skip
    if against != NONE:
        columns |= _against(one, one.null[against])
    return _named(units, columns | dict(labels))


def _against(one: Measured, draws: Float[np.ndarray, "draw unit"]) -> dict[str, np.ndarray]:
    null = draws.mean(0)
    if len(draws) == 1:
        spread, p = np.full_like(null, np.nan), p_against_number(one.value, null, one.left_out)
    else:
        spread, p = draws.std(0, ddof=1), p_against_draws(one.value, draws)
    return {"null": null, "null_sd": spread, "excess": one.value - null, "p": p, "q": false_discovery(p)}


def live_rows(units: Units, seen: Observation, n_stories: int, n: int) -> pd.DataFrame:
    share = seen.live.numpy(force=True) / n_stories
    low, high = wilson(share, n_stories)
    return _named(units, {"metric": "live stories", "target": NONE, "against": NONE, "value": share, "ci_low": low,
                          "ci_high": high, "n": n})  # fmt: skip


def layer_rows(units: Units, one: Measured, n: int) -> pd.DataFrame:
    low, high = jackknife_interval(one.value, one.left_out)
    return pd.DataFrame({
        "kind": units.kind, "stream": units.stream, "layer": list(units.layers),
        "unit": [f"L{layer}" for layer in units.layers], "metric": "modularity", "target": NONE,
        "against": nulls.SHUFFLED, "value": one.value, "ci_low": low, "ci_high": high, "n": n,
        **_against(one, one.null[nulls.SHUFFLED]),
    })  # fmt: skip


def _named(units: Units, columns: Mapping[str, Any]) -> pd.DataFrame:
    names = {"kind": units.kind, "stream": units.stream, "layer": units.table.layer, "unit": units.table.unit}
    return pd.DataFrame({**names, **columns})
