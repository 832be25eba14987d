"""The loss, with what else is known of a run: everything that figures and comparisons read."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from analyses.result import Result

HISTOGRAMS = {"r": (-0.2, 1.0), "average_precision": (0.0, 1.0), "detection": (0.0, 1.0), "fuzzing": (0.0, 1.0)}
"""Scores that are shown as histograms, and from where to where."""
BARS = 24


def summed_up(loss: Result, scores: Mapping[str, Result], about: Mapping[str, Any]) -> Result:
    """One Result a run.

    Args:
        loss: of `loss.rewriting_loss`.
        scores: of `scoring.scores_result`, by explanations.
        about: run.json.
    """
    meta = dict(loss.meta)
    meta["coder_quality"] = about["steps"].get("coder quality", {})
    meta["texts"] = about["texts"]
    meta["scores"] = {
        name: {key: one.meta[key] for key in ("explainer", "bits", "means", "coverage", "n_stories")}
        | {"histograms": histograms(one)}
        for name, one in scores.items()
    }
    meta["summary"] = f"{loss.meta['summary']}\n{scores_line(meta)}"
    return dataclasses.replace(loss, meta=meta)


def histograms(scores: Result) -> dict[str, dict[str, Any]]:
    """By score: `edges`, and latents in each part by source; values outside are in the first or the last."""
    found = {}
    for score, (low, high) in HISTOGRAMS.items():
        edges = np.linspace(low, high, BARS + 1)
        by_source = {
            str(source): np.histogram(rows[score].dropna().clip(low, high), edges)[0].tolist()
            for source, rows in scores.table.groupby("source", sort=False)
        }
        found[score] = {"edges": edges.tolist(), "counts": by_source}
    return found


def mean_of(meta: Mapping[str, Any], name: str, score: str, source: str = "own") -> dict[str, Any]:
    """The row of means; empty where there is none."""
    rows = meta["scores"].get(name, {}).get("means", [])
    return next((row for row in rows if (row["source"], row["score"]) == (source, score)), {})


def scores_line(meta: Mapping[str, Any]) -> str:
    """One line: score, floors, coverage of the first set of explanations."""
    name, one = next(iter(meta["scores"].items()))
    r, shuffled, random = (
        mean_of(meta, name, "r", source).get("value") for source in ("own", "shuffled", "random coder")
    )
    floors = ", ".join(
        f"{word} {value:.3f}" for word, value in (("shuffled", shuffled), ("random coder", random)) if value is not None
    )
    told = "no latent has a score" if r is None else f"mean r {r:.3f}" + (f" (floors: {floors})" if floors else "")
    cover = one["coverage"]
    return (
        f"{one['explainer']}: {told}; {cover['by_count']:.0%} of latents and {cover['by_mass']:.0%} of activation "
        f"explained, {cover['n_dead']} dead"
    )
