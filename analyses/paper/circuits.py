"""Circuits of several models side by side, in one layout, for print: what each has beyond the baseline's."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE
from analyses.localization.stored_circuit import circuit_of
from analyses.page import escaped
from analyses.result import Result

SHARED, FAINT = "#333333", "#CFCFCF"
BEND = 0.16
"""How far to the side an edge bends, as a share of its length, so that it does not lie on the nodes between."""
Place = tuple[float, float]


def stored_circuit(result: Result | None) -> dict[str, Any] | None:
    """The circuit of a Result of localization in plain JSON values, without edges on no path; None where there is none.

    Returns:
        `n_layers`, `n_heads`, `has_mlp`; `edges`: source, reader and `q`, `k`, `v` or an empty text; `n_edges` (with
        dead ends too), `n_possible`; `method` and `faithfulness`, as far as they are known.
    """
    if result is None:
        return None
    try:
        circuit = circuit_of(result)
    except ValueError:
        return None
    graph = circuit.graph
    edges = []
    for i, j in np.argwhere(circuit.pruned().members).tolist():
        readers = graph.sources_of_destination[j].tolist()
        for reader in [graph.sources[r].name for r in readers] or ["logits"]:
            edges.append([graph.sources[i].name, reader, graph.destinations[j].qkv])
    return {
        "n_layers": graph.n_layers, "n_heads": graph.n_heads, "has_mlp": graph.has_mlp, "edges": edges,
        "n_edges": circuit.n_edges, "n_possible": graph.n_edges, "method": result.meta.get("method"),
        "faithfulness": (result.meta.get("circuit") or {}).get("faithfulness"),
    }  # fmt: skip


def circuits_figure(circuits: Sequence[Mapping[str, Any]]) -> go.Figure:
    """One circuit an arm (its first model), the edges that the first one has too in dark, the others in colour.

    Args:
        circuits: of `stored_circuit`, each with `checkpoint` and `arm`.
    """
    first = {circuit["arm"]: circuit for circuit in reversed(circuits)}
    shown = [first[arm] for arm in dict.fromkeys(circuit["arm"] for circuit in circuits)]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    drawn = make_subplots(rows=rows, cols=columns, subplot_titles=[_told(circuit) for circuit in shown],
                          horizontal_spacing=0.03, vertical_spacing=0.1)  # fmt: skip
    reference = {tuple(edge) for edge in shown[0]["edges"]}
    for i, circuit in enumerate(shown):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        places = _places(circuit)
        own = [edge for edge in circuit["edges"] if i and tuple(edge) not in reference]
        both = [edge for edge in circuit["edges"] if not (i and tuple(edge) not in reference)]
        names = (f"in {shown[0]['arm']}", f"only in {circuit['arm']}")
        for name, edges, color in zip(names, (both, own), (SHARED, COLORS[i % len(COLORS)]), strict=True):
            if edges:
                _edges(drawn, edges, places, color, escaped(name), i == 0 or name != names[0], place)
        _nodes(drawn, circuit, places, place)
    wide, high = (max(circuit[name] for circuit in shown) for name in ("n_heads", "n_layers"))
    drawn.update_xaxes(visible=False, range=[-wide / 2 - 0.6, wide / 2 + 0.9])
    drawn.update_yaxes(visible=False, range=[-2.2, 2 * high + 1.2])
    method = next((c["method"] for c in shown if c.get("method")), None)
    title = "Circuits, one model an arm" + (f" ({escaped(method)})" if method else "")
    tall = 160 + rows * (150 + 75 * max(c["n_layers"] for c in shown))
    legend = {"orientation": "h", "y": -0.03, "x": 0}
    return drawn.update_layout(template=TEMPLATE, title_text=title, height=tall, width=1100, legend=legend,
                               margin={"t": 110, "l": 20, "r": 20, "b": 50})  # fmt: skip


def _told(circuit: Mapping[str, Any]) -> str:
    known = circuit.get("faithfulness")
    faithful = "" if known is None else f", faithfulness {known:.2f}"
    return (
        f"{escaped(circuit['arm'])} ({escaped(circuit['checkpoint'])})<br>"
        f"{circuit['n_edges']:,} of {circuit['n_possible']:,} edges{faithful}"
    )


def _places(circuit: Mapping[str, Any]) -> dict[str, Place]:
    """Layers above one another: heads in a row, odd layers set off by a quarter, the MLP above them."""
    n_heads = circuit["n_heads"]
    found: dict[str, Place] = {"input": (0.0, -1.2)}
    for layer in range(circuit["n_layers"]):
        shift = 0.25 if layer % 2 else -0.25
        found |= {f"a{layer}.h{head}": (head - (n_heads - 1) / 2 + shift, 2.0 * layer) for head in range(n_heads)}
        if circuit["has_mlp"]:
            found[f"m{layer}"] = (n_heads / 2 + 0.2, 2.0 * layer + 1)
    found["logits"] = (0.0, 2.0 * circuit["n_layers"] + 0.2)
    return found


def _edges(
    drawn: go.Figure, edges: Sequence[Sequence[str]], places: Mapping[str, Place], color: str, name: str, legend: bool,
    where: Mapping[str, int],
) -> None:  # fmt: skip
    xs: list[float | None] = []
    ys: list[float | None] = []
    told: list[str | None] = []
    t = np.linspace(0, 1, 15)
    for source, reader, qkv in edges:
        (x0, y0), (x1, y1) = places[source], places[reader]
        x1 += {"q": -0.16, "v": 0.16}.get(qkv, 0.0)
        bend = BEND * (y1 - y0) * (1 if (x0 + x1) >= 0 else -1) * (0 if y1 - y0 < 1.5 else 1)
        xs += [*(x0 + (x1 - x0) * t + 4 * bend * t * (1 - t) * 0.5), None]
        ys += [*(y0 + (y1 - y0) * t), None]
        told += [f"{source} to {reader}{f' ({qkv})' if qkv else ''}"] * 15 + [None]
    drawn.add_scatter(
        x=xs, y=ys, mode="lines", line={"color": color, "width": 1.5}, opacity=0.75, name=name, legendgroup=name,
        showlegend=legend, text=told, hovertemplate="%{text}<extra></extra>", **where,
    )  # fmt: skip


def _nodes(drawn: go.Figure, circuit: Mapping[str, Any], places: Mapping[str, Place], where: Mapping[str, int]) -> None:
    used = {node for source, reader, _ in circuit["edges"] for node in (source, reader)}
    for color, text in ((FAINT, False), ("#FFFFFF", True)):
        names = [name for name in places if (name in used) == text]
        drawn.add_scatter(
            x=[places[name][0] for name in names], y=[places[name][1] for name in names], text=names, showlegend=False,
            mode="markers+text" if text else "markers", textfont={"size": 10.5},
            marker={"size": 36 if text else 6, "opacity": 1, "color": color, "symbol": "circle",
                    "line": {"color": "#888888", "width": 1 if text else 0}},
            hovertemplate="%{text}<extra></extra>", **where,
        )  # fmt: skip
