"""A circuit: which edges of a graph are in it, and how much each matters; read and written as MIB does.

The JSON has `cfg`, `nodes` (name to `in_graph`) and `edges` (name to `score`, `in_graph`), with the
names of `graph`. A file is not believed: unknown names, missing edges, scores that are no numbers and
another architecture are refused.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from analyses.localization.graph import Graph
from sat_lens.files import write_whole

LARGEST_FILE = 2**28  # bytes


@dataclasses.dataclass(frozen=True)
class Circuit:
    """Edges with scores, some of which are members.

    Args:
        graph: of the model.
        scores: one a possible edge, in the unit of the method; NaN where there is no edge.
        members: which edges are in the circuit.

    Raises:
        ValueError: arrays of another shape than the graph's, or members that are no edges.
    """

    graph: Graph
    scores: Float[np.ndarray, "source destination"]
    members: Bool[np.ndarray, "source destination"]

    def __post_init__(self) -> None:
        shape = self.graph.possible.shape
        if self.scores.shape != shape or self.members.shape != shape:
            raise ValueError(f"scores and members must be {shape}; got {self.scores.shape} and {self.members.shape}")
        if (self.members & ~self.graph.possible).any():
            raise ValueError("members must be edges of the graph; some are none")

    @property
    def n_edges(self) -> int:
        """Members."""
        return int(self.members.sum())

    def pruned(self) -> "Circuit":
        """Without the edges that no path of the circuit leads through, from the input to the logits."""
        alive = self.graph.live_sources(self.members)
        reached = self.graph.reached_sources(self.members)
        kept = self.members & reached[:, None] & self.graph.live_destinations(alive)[None]
        return dataclasses.replace(self, members=kept)

    def nodes(self) -> list[str]:
        """Names of the sources that a member leaves, and `logits`, in the order of the graph."""
        used = self.members.any(1)
        return [source.name for source, here in zip(self.graph.sources, used, strict=True) if here] + ["logits"]

    def table(self) -> pd.DataFrame:
        """One row an edge, largest |score| first: edge, source, destination, layers, score, in_circuit."""
        rows, columns = np.nonzero(self.graph.possible)
        sources, destinations = self.graph.sources, self.graph.destinations
        frame = pd.DataFrame(
            {
                "edge": [self.graph.edge_name(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)],
                "source": [sources[i].name for i in rows],
                "destination": [destinations[j].name for j in columns],
                "source_layer": [sources[i].layer for i in rows],
                "destination_layer": [destinations[j].layer for j in columns],
                "score": self.scores[rows, columns],
                "in_circuit": self.members[rows, columns],
            }
        )
        order = np.argsort(-np.abs(frame["score"].to_numpy()), kind="stable")
        return frame.iloc[order].reset_index(drop=True)


def largest(graph: Graph, scores: Float[np.ndarray, "source destination"], n: int, absolute: bool = True) -> Circuit:
    """The circuit of the n edges with the largest scores, by size or, not `absolute`, by value; ties by order.

    Raises:
        ValueError: n outside 0..n_edges, or an edge whose score is no number.
    """
    if not 0 <= n <= graph.n_edges:
        raise ValueError(f"a circuit of this graph has 0 to {graph.n_edges:,} edges; got {n}")
    rows, columns = np.nonzero(graph.possible)
    values = scores[rows, columns]
    if np.isnan(values).any():
        raise ValueError("every edge needs a score to be ranked; some are NaN")
    chosen = np.argsort(-np.abs(values) if absolute else -values, kind="stable")[:n]
    members = np.zeros_like(graph.possible)
    members[rows[chosen], columns[chosen]] = True
    return Circuit(graph, scores, members)


def write_mib(circuit: Circuit, path: Path) -> None:
    """Write the circuit as MIB's JSON, whole or not at all."""
    graph, used = circuit.graph, set(circuit.nodes())
    names = [source.name for source in graph.sources] + ["logits"]
    edges = {
        graph.edge_name(i, j): {"score": float(circuit.scores[i, j]), "in_graph": bool(circuit.members[i, j])}
        for i, j in np.argwhere(graph.possible).tolist()
    }
    content = {
        "cfg": _mib_cfg(graph),
        "nodes": {name: {"in_graph": name in used} for name in names},
        "edges": edges,
    }
    write_whole(path, json.dumps(content) + "\n")


def read_mib(path: Path, graph: Graph) -> Circuit:
    """Read MIB's JSON for a model of this graph.

    Raises:
        ValueError: not such a file, or one for another architecture; the message says what is wrong.
    """
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"{path}: larger than {LARGEST_FILE:,} bytes; not a circuit")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cfg, edges = content["cfg"], content["edges"].items()
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: must be JSON with `cfg` and `edges`, as MIB writes it") from None
    for key, ours in _mib_cfg(graph).items():
        if key != "d_model" and isinstance(cfg, dict) and cfg.get(key, ours) != ours:
            raise ValueError(f"{path}: is for a model with {key}={cfg[key]!r}; this one has {ours!r}")
    scores, members = np.full(graph.possible.shape, np.nan), np.zeros_like(graph.possible)
    for name, edge in edges:
        i, j = graph.edge(name)
        scores[i, j], members[i, j] = _score(path, name, edge), edge.get("in_graph") is True
    if (missing := np.argwhere(graph.possible & np.isnan(scores))).size:
        raise ValueError(f"{path}: {len(missing):,} edges are missing, {graph.edge_name(*missing[0].tolist())} first")
    return Circuit(graph, scores, members)


def _score(path: Path, name: str, edge: Any) -> float:
    score = edge.get("score", 0.0) if isinstance(edge, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"{path}: edge {name} needs a score that is a finite number; got {str(edge)[:80]}")
    return float(score)


def _mib_cfg(graph: Graph) -> dict[str, Any]:
    return {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": graph.d_model,
    }
