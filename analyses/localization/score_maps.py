"""Scores of edges and nodes as heat maps, layers apart, drawn from a Result alone."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.figures import heat_map
from analyses.localization.stored_circuit import circuit_of, graph_of_meta, titled, unit_of
from analyses.page import escaped
from analyses.result import Result

MOST_MARKED = 600
"""Members that a heat map marks one by one."""


def edge_heat_map(result: Result) -> go.Figure:
    """Scores of all edges, sources by destinations, layers set apart by lines; members of the circuit are dotted.

    Colours go with the signed square root of the score, so that the small ones are seen beside the largest.
    """
    circuit, unit = circuit_of(result), unit_of(result)
    sources, destinations = circuit.graph.sources, circuit.graph.destinations
    roots = np.sign(circuit.scores) * np.sqrt(np.abs(circuit.scores))
    drawn = heat_map(
        roots, title=titled("Scores of the edges", result), x_title="destination", y_title="source", unit=escaped(unit)
    )
    names = [[circuit.graph.edge_name(i, j) for j in range(len(destinations))] for i in range(len(sources))]
    hover = np.where(circuit.graph.possible, np.char.add(np.array(names), ": "), "").astype(object)
    shown = np.vectorize(lambda score: "no score" if np.isnan(score) else f"{score:+.3g} {escaped(unit)}")(
        circuit.scores
    )
    drawn.update_traces(
        text=hover + np.where(circuit.graph.possible, shown, ""), hovertemplate="%{text}<extra></extra>"
    )
    drawn.update_traces(hoverongaps=False, colorbar=_root_ticks(drawn.data[0].zmax, unit))
    rows, columns = np.nonzero(circuit.members)
    if 0 < len(rows) <= MOST_MARKED:
        marker = {"size": 4, "color": "#222222"}
        drawn.add_scatter(x=columns, y=rows, mode="markers", name="in the circuit", marker=marker, hoverinfo="skip")
        drawn.update_layout(showlegend=True, legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"})
    _layer_axis(drawn, "x", [d.layer for d in destinations], circuit.graph.n_layers)
    _layer_axis(drawn, "y", [s.layer for s in sources], circuit.graph.n_layers)
    return drawn


def _root_ticks(largest: float, unit: str) -> dict[str, Any]:
    """A colour bar in roots that is labelled with the scores."""
    roots = np.array([-1, -0.5, 0, 0.5, 1]) * largest
    return {
        "title": {"text": escaped(unit)},
        "tickvals": roots.tolist(),
        "ticktext": [f"{np.sign(root) * root**2:.2g}" for root in roots],
    }


def _layer_axis(drawn: go.Figure, axis: str, layers: list[int], n_layers: int) -> None:
    """A name in the middle of each layer's rows or columns, and a line before the next."""
    names = {-1: "input", n_layers: "logits"}
    at, text = [], []
    for layer in dict.fromkeys(layers):
        inside = [i for i, other in enumerate(layers) if other == layer]
        at.append((inside[0] + inside[-1]) / 2)
        text.append(names.get(layer, f"layer {layer}"))
        line = {"line_color": "#999999", "line_width": 1}
        drawn.add_vline(inside[-1] + 0.5, **line) if axis == "x" else drawn.add_hline(inside[-1] + 0.5, **line)
    ticks = {"tickmode": "array", "tickvals": at, "ticktext": text, "ticks": "", "dtick": None}
    span = [-0.5, len(layers) - 0.5]
    drawn.update_xaxes(**ticks, range=span) if axis == "x" else drawn.update_yaxes(**ticks, range=span)


def node_heat_map(result: Result) -> go.Figure:
    """Scores of nodes: layer by head, with the MLPs in a column of their own.

    Args:
        result: meta `graph`, and meta `nodes` or the table with `node` (`a0.h1`, `m3`; others are not shown)
            and `score`.

    Raises:
        ValueError: a Result without scores of nodes.
    """
    rows = result.meta.get("nodes")
    table = result.table if rows is None else pd.DataFrame(rows)
    if missing := {"node", "score"} - set(table.columns):
        raise ValueError(f"scores of nodes need rows with node and score; {sorted(missing)[0]} is missing")
    graph, scores = graph_of_meta(result), dict(zip(table["node"], table["score"], strict=True))
    grid = np.full((graph.n_layers, graph.n_heads + graph.has_mlp), np.nan)
    for source in graph.sources[1:]:
        grid[source.layer, graph.n_heads if source.kind == "mlp" else source.head] = scores.get(source.name, np.nan)
    drawn = heat_map(
        grid,
        title=titled("Scores of the nodes", result),
        x_title="head",
        y_title="layer",
        unit=escaped(unit_of(result)),
        x=list(range(grid.shape[1])),
        y=list(range(graph.n_layers)),
    )
    labels = [str(head) for head in range(graph.n_heads)] + ["MLP"] * graph.has_mlp
    step = max(1, graph.n_heads // 16)
    shown = [i for i, label in enumerate(labels) if i % step == 0 or label == "MLP"]
    drawn.update_xaxes(tickmode="array", tickvals=shown, ticktext=[labels[i] for i in shown])
    drawn.update_yaxes(tickmode="linear", tick0=0, dtick=max(1, graph.n_layers // 12))
    drawn.update_traces(hoverongaps=False)
    return drawn
