"""A kind of units as a whole: each measure's mean over live units, by layer and over all layers.

The units are all there are, so that a mean's interval is over stories: a jackknife of the mean itself. Units that
never are active are counted (`dead units`) and left out of the means, and so are those that have no value under some
group or draw (a share of nothing); `n_units` says how many are in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from analyses.specialization.intervals import jackknife_interval
from analyses.specialization.measured import Measured
from analyses.specialization.measures import NONE, Key
from analyses.unit_streams import Units

ALL_LAYERS = -1


def layer_means(
    units: Units, measured: Mapping[Key, Measured], live: Bool[np.ndarray, " unit"], modularity: Measured | None
) -> list[dict[str, Any]]:
    """Rows with `kind, stream, metric, target, against, layer, value, ci_low, ci_high, null, null_sd, excess, n_units`.

    Args:
        units: whose means.
        measured: by metric and target.
        live: units that are active somewhere.
        modularity: the same of layers; None where it was not measured.
    """
    rows = []
    layer_of = units.table.layer.to_numpy()
    for layer in (ALL_LAYERS, *units.layers):
        here = np.ones(units.n, dtype=bool) if layer == ALL_LAYERS else layer_of == layer
        dead = float(1 - live[here].mean())
        found = [{"metric": "dead units", "target": NONE, "against": NONE, "value": dead, "n_units": int(here.sum())}]
        for (metric, target), one in measured.items():
            found += [
                {"metric": metric, "target": target, "against": against, **_mean(one, against, here & live)}
                for against in (one.null or (NONE,))
            ]
        if modularity is not None:
            of = np.array([layer in (ALL_LAYERS, other) for other in units.layers])
            against = next(iter(modularity.null))
            found.append({"metric": "modularity", "target": NONE, "against": against, **_mean(modularity, against, of)})
        rows += [{"kind": units.kind, "stream": units.stream, "layer": layer, **row} for row in found]
    return rows


def _mean(one: Measured, against: str, chosen: Bool[np.ndarray, " unit"]) -> dict[str, Any]:
    """Of the chosen units that have a value throughout."""
    draws = one.null[against] if against != NONE else np.zeros((1, len(one.value)))
    columns = np.concatenate([one.value[None], one.left_out, draws])
    chosen = chosen & np.isfinite(columns).all(0)
    if not chosen.any():
        return {"value": float("nan"), "n_units": 0}
    value, left_out, null = one.value[chosen].mean(), one.left_out[:, chosen].mean(1), draws[:, chosen].mean(1)
    low, high = jackknife_interval(np.atleast_1d(value), left_out[:, None])
    found = {"value": float(value), "ci_low": float(low[0]), "ci_high": float(high[0]), "n_units": int(chosen.sum())}
    if against != NONE:
        found |= {"null": float(null.mean()), "excess": float(value - null.mean())}
        found |= {"null_sd": float(null.std(ddof=1))} if len(null) > 1 else {}
    return found


def mean_row(
    means: Sequence[Mapping[str, Any]], kind: str, metric: str, target: str = NONE, against: str | None = None
) -> Mapping[str, Any]:
    """The row over all layers; empty where there is none. `against` None: the first null."""
    for row in means:
        if (row["kind"], row["layer"], row["metric"], row["target"]) == (kind, ALL_LAYERS, metric, target):
            if against in (None, row["against"]):
                return row
    return {}


def summary_line(about: Mapping[str, Any], means: Sequence[Mapping[str, Any]]) -> str:
    """One line on a kind of units."""
    kind, n = about["kind"], about["n_units"]
    parts = [f"{kind} ({about['stream']} stream): {n - about['n_dead']:,} of {n:,} live"]
    for target, words in (("current_token", "the current token"), ("role", "the role"), ("position", "the position")):
        row = mean_row(means, kind, "mutual information", target)
        if row.get("n_units"):
            parts.append(f"{words} tells {row['excess']:.3f} bits of a unit's activity beyond {row['against']}")
    return "; ".join(parts)
