"""The numbers of one model: its losses, and what the questions have left in the folder of results."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analyses.paper.published import FAITHFUL
from analyses.result import Result

SOUND = (
    "perplexity", "perplexity, ablated", "edges at faithfulness 0.9", "SAE L0 at FVU", "SAE CE score at FVU",
    "SAE dead latents", "neuron L0", "neuron Hoyer", "neuron effective rank", "weight Hoyer",
    "weight Hoyer, with embeddings", "live neurons", "live channels",
)  # fmt: skip
"""Columns of the sound table."""
UNITS = {
    "perplexity": "exp(nats a token)",
    "perplexity, ablated": "exp(nats a token)",
    "IOI edges": "edges",
    "edges at faithfulness 0.9": "edges",
    "SAE L0": "latents a token",
    "SAE CE score": "share",
    "SAE L0 at FVU": "latents a token",
    "SAE CE score at FVU": "share",
    "SAE dead latents": "share of latents",
    "mean_abs_weight": "mean |entry|",
    "neuron L0": "units a layer and token",
    "neuron Hoyer": "0..1",
    "neuron effective rank": "directions",
    "weight Hoyer": "0..1",
    "weight Hoyer, with embeddings": "0..1",
    "live neurons": "share of units",
    "live channels": "share of units",
}
METRICS = tuple(dict.fromkeys((*FAITHFUL, *SOUND)))
_SPARSITY = {
    "mean_abs_weight": ("with embeddings", "-", "mean_abs_weight"),
    "neuron L0": ("neuron", "clean", "l0"),
    "neuron Hoyer": ("neuron", "clean", "hoyer"),
    "neuron effective rank": ("neuron", "clean", "effective_rank"),
    "weight Hoyer": ("without embeddings", "-", "hoyer"),
    "weight Hoyer, with embeddings": ("with embeddings", "-", "hoyer"),
    "live neurons": ("mask_neuron", "ablated", "live_units"),
    "live channels": ("mask_channel", "ablated", "live_units"),
}


def stored(folder: Path, sha256: str) -> Result | None:
    """The result in a folder, if there is one of these weights."""
    try:
        result = Result.load(folder)
    except (OSError, ValueError):
        return None
    return result if result.meta.get("checkpoint_sha256") == sha256 else None


def model_rows(losses: Mapping[str, Any], found: Mapping[str, Result | None]) -> pd.DataFrame:
    """Every metric that is known of one model.

    Args:
        losses: of `sat_lens.evaluate.corpus_losses`.
        found: by question (`sparsity`, `sae`, `localization`), its stored result.

    Returns:
        `metric`, `value`, `ci_low`, `ci_high` (95 %, over stories or prompts), `n`, `unit`.
    """
    rows = [_perplexity(losses, stream) for stream in ("clean", "ablated") if f"{stream}_nats_a_token" in losses]
    for question, read in (("localization", _edges), ("sae", _saes), ("sparsity", _sparsity)):
        result = found.get(question)
        rows += [] if result is None else read(result)
    table = pd.DataFrame(rows, columns=["metric", "value", "ci_low", "ci_high", "n"])
    order = table.metric.map(list(METRICS).index) if len(table) else []
    table = table.iloc[pd.Series(order, dtype=int).argsort(kind="stable")].reset_index(drop=True)
    return table.assign(unit=table.metric.map(UNITS))


def _perplexity(losses: Mapping[str, Any], stream: str) -> dict[str, Any]:
    nats = [losses[f"{stream}_nats_a_token"], *losses[f"{stream}_ci"]]
    return _row("perplexity" if stream == "clean" else "perplexity, ablated", *map(math.exp, nats), losses["n_stories"])


def _edges(result: Result) -> list[dict[str, Any]]:
    circuit, matched, n = result.meta["circuit"], result.meta["matched"], result.meta["task"]["n"]
    return [
        _row("IOI edges", circuit["n_edges"], None, None, n),
        _row("edges at faithfulness 0.9", matched["n_edges"], matched["low"], matched["high"], n),
    ]


def _saes(result: Result) -> list[dict[str, Any]]:
    table, rows = result.table, []
    swept = table[table.coefficient.notna()]
    if swept.coefficient.nunique() == 1:  # as published: one SAE
        names = {"l0": "SAE L0", "ce_score": "SAE CE score"}
        rows += [_of(row, names[row["metric"]]) for row in swept.to_dict(orient="records") if row["metric"] in names]
    names = {"l0_matched": "SAE L0 at FVU", "ce_score_matched": "SAE CE score at FVU"}
    rows += [_of(row, names[row["metric"]]) for row in table.to_dict(orient="records") if row["metric"] in names]
    dead = swept[swept.metric == "dead"].value
    return [*rows, _row("SAE dead latents", dead.mean(), None, None, result.meta["knobs"]["n_stories"])]


def _sparsity(result: Result) -> list[dict[str, Any]]:
    table = result.table[result.table.layer < 0].set_index(["of", "stream", "metric"])
    known = {name: key for name, key in _SPARSITY.items() if key in table.index}
    return [_of(table.loc[key].to_dict(), name) for name, key in known.items()]


def _of(row: Mapping[str, Any], metric: str) -> dict[str, Any]:
    return _row(metric, row["value"], row["ci_low"], row["ci_high"], row["n"])


def _row(metric: str, value: Any, low: Any, high: Any, n: Any) -> dict[str, Any]:
    return {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "n": n}
