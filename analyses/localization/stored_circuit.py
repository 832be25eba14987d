"""The circuit that a Result holds, and what its figures are called: read from the table and meta alone."""

from typing import Any

import numpy as np

from analyses.localization.circuit import Circuit
from analyses.localization.graph import Graph
from analyses.page import escaped
from analyses.result import Result

MOST_SOURCES = 4096
"""A Result from a file may claim any architecture; a graph has source x 3 source cells."""


def circuit_of(result: Result) -> Circuit:
    """Scores and members from a table of edges; NaN where an edge has no row.

    Args:
        result: columns `edge`, `score`, `in_circuit` (as `Circuit.table` gives them), meta `graph`.

    Raises:
        ValueError: no such columns or meta, or an edge that the architecture does not have.
    """
    if missing := {"edge", "score", "in_circuit"} - set(result.table.columns):
        raise ValueError(f"a circuit needs a table with edge, score and in_circuit; {sorted(missing)[0]} is missing")
    graph = graph_of_meta(result)
    scores, members = np.full(graph.possible.shape, np.nan), np.zeros_like(graph.possible)
    columns = (result.table[name].tolist() for name in ("edge", "score", "in_circuit"))
    for name, score, member in zip(*columns, strict=True):
        at = graph.edge(str(name))
        scores[at], members[at] = float(score), bool(member)
    return Circuit(graph, scores, members)


def graph_of_meta(result: Result) -> Graph:
    """The graph that meta `graph` describes: `n_layers`, `n_heads`, and what is not as in most models.

    Raises:
        ValueError: no such meta, or counts that are none.
    """
    stored = result.meta.get("graph")
    stored = stored if isinstance(stored, dict) else {}
    n_layers, n_heads = (_count(stored.get(name)) for name in ("n_layers", "n_heads"))
    n_kv_heads = _count(stored.get("n_kv_heads", n_heads))
    if not n_layers or not n_heads or not n_kv_heads or n_heads % n_kv_heads or n_layers * (n_heads + 1) > MOST_SOURCES:
        raise ValueError(
            "meta must hold `graph` with n_layers, n_heads and n_kv_heads, as Graph has them, of at most "
            f"{MOST_SOURCES:,} parts; got {str(stored)[:80]}"
        )
    return Graph(n_layers, n_heads, n_kv_heads, bool(stored.get("has_mlp", True)), bool(stored.get("parallel", False)))


def _count(value: Any) -> int:
    """0 for what is no count."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def unit_of(result: Result) -> str:
    """Of the scores."""
    return result.units.get("score", "")


def description(result: Result) -> str:
    """`acdc, ioi, resample, checkpoint none-s0`: method, task, ablation and model, as far as the meta says."""
    meta: dict[str, Any] = result.meta
    task, knobs = meta.get("task", {}), meta.get("knobs", {})
    task = task.get("name") if isinstance(task, dict) else task
    ablation = knobs.get("ablation") if isinstance(knobs, dict) else None
    found = (meta.get("method"), task, f"{ablation} ablation" if ablation else None, meta.get("checkpoint"))
    return ", ".join(str(x) for x in found if x)


def titled(what: str, result: Result) -> str:
    """`what (method, task, ...)` for a Plotly title, which reads tags: escaped."""
    details = description(result)
    return f"{what} ({escaped(details)})" if details else what
