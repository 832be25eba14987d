"""Sparsity of one model: the published number, weights, activations of both streams, live units."""

from typing import Any

import numpy as np
import pandas as pd

from analyses import needs
from analyses.random_weights import random_weights
from analyses.result import Result
from analyses.sparsity.activity import activity_sums, kinds_of, measured, with_intervals
from analyses.sparsity.measures import UNITS
from analyses.sparsity.published import PUBLISHED_ENTRIES, mean_abs_weight
from analyses.sparsity.weights import WITH, WITHOUT, weight_sparsity
from analyses.texts import Stories

COLUMNS = ("part", "of", "stream", "layer", "metric", "value", "ci_low", "ci_high", "null", "n", "unit")
ALL_LAYERS = -1
NO_STREAM = "-"
FEWEST = 2
"""Stories, for an interval over groups of them."""


def sparsity(
    model: Any, stories: Stories, *, null: bool = True, batch: int = 16, seed: int = 0, progress: bool = False
) -> Result:
    """Every measure, with its interval over stories and its null.

    Args:
        model: a HookedTransformer, or one with two streams.
        stories: that activations are read on.
        null: measure the model of dealt weights too.
        batch: stories a pass.
        seed: of the deal.

    Returns:
        `part` (weights or activations), `of` (map of `weights`, kind of unit of `activity`), `stream` (`-` for
        weights), `layer` (-1: mean over layers), `metric`, `value`, `ci_low`, `ci_high` (95 %, over stories; NaN for
        weights, of which there is no sample), `null` (the same of a model whose entries are dealt anew within each
        parameter), `n` (entries, tokens), `unit`. meta["published"]: what `mean_abs_weight` counts.

    Raises:
        ValueError: fewer than two stories.

    Cost: a forward pass a kind of unit and stream, at most 6, twice with the null.
    """
    needs.require(model, "sparsity")
    if stories.n < FEWEST:
        raise ValueError(f"an interval over stories needs at least {FEWEST}; got {stories.n}")
    other = random_weights(model, seed).eval() if null else None
    published = mean_abs_weight(model)
    rows = [
        {"part": "weights", "of": of, "metric": "mean_abs_weight", "value": value, "null": value, "n": n}
        for of, value, n in (
            (WITH, published.value, published.n),
            (WITHOUT, published.without_embeddings, published.n - published.n_embeddings),
        )
    ]
    rows += _weight_rows(model, other)
    for units in kinds_of(model):
        sums, n = activity_sums(model, stories, units, batch=batch, progress=progress)
        found = with_intervals(sums, len(units.layers))
        nulls: dict[str, np.ndarray] = {}
        if other is not None:
            nulls = measured(activity_sums(other, stories, units, batch=batch)[0], len(units.layers))
        for metric, (values, low, high) in found.items():
            for i, layer in enumerate([*units.layers, ALL_LAYERS]):
                rows.append({
                    "part": "activations", "of": units.kind, "stream": units.stream, "layer": layer, "metric": metric,
                    "value": values[i], "ci_low": low[i], "ci_high": high[i],
                    "null": nulls[metric][i] if metric in nulls else np.nan, "n": n,
                })  # fmt: skip
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["unit"] = table.metric.map(UNITS)
    table = table.fillna({"stream": NO_STREAM, "layer": ALL_LAYERS}).astype({"layer": int, "n": int})
    return Result(
        "sparsity", table, {"n": "entries or tokens", "layer": "index"}, _meta(published, stories, seed, null)
    )


def _weight_rows(model: Any, other: Any) -> list[dict[str, Any]]:
    found = weight_sparsity(model)
    if other is not None:
        found = found.assign(null=weight_sparsity(other).value)
    return [{"part": "weights", **row} for row in found.to_dict(orient="records")]


def _meta(published: Any, stories: Stories, seed: int, null: bool) -> dict[str, Any]:
    return {
        "knobs": {"n_stories": stories.n, "seed": seed, "null": null},
        "published": {
            "mean_abs_weight": published.value,
            "without_embeddings": published.without_embeddings,
            "n_entries": published.n,
            "embedding_share": published.embedding_share,
            "n_entries_published": PUBLISHED_ENTRIES,
        },
        "summary": f"mean_abs_weight {published.value:.4f} over {published.n:,} entries, "
        f"{published.embedding_share:.1%} of embeddings; {published.without_embeddings:.4f} without them",
    }
