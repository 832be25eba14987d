"""Figures of circuits from Results alone: faithfulness by size, sizes by arm, overlaps; and the maps of scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.figures import COLORS, error_bars, figure
from analyses.localization.score_maps import edge_heat_map as edge_heat_map
from analyses.localization.score_maps import node_heat_map as node_heat_map
from analyses.localization.similarity import expected_jaccard, jaccard
from analyses.localization.stored_circuit import circuit_of, titled
from analyses.page import escaped
from analyses.result import Result

EDGE_COUNTS = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
EDGE_TICKS = {"type": "log", "tickmode": "array", "tickvals": EDGE_COUNTS, "ticktext": [f"{n:,}" for n in EDGE_COUNTS]}
"""Of a logarithmic axis of edges: Plotly's own labels between the powers of ten are bare digits."""
NULL_COLOR = "#6E6E6E"
SIZES = "edges at faithfulness"
"""How the metrics begin that `sizes_figure` draws."""


def faithfulness_figure(results: Result | Mapping[str, Result]) -> go.Figure:
    """Faithfulness by number of edges: a line a Result with its 95 % interval, the random circuits in grey.

    Args:
        results: one, or several by name; meta `curve`, and where there are random circuits `null_curve`.

    Raises:
        ValueError: no curve in the meta.
    """
    named = {"the circuit": results} if isinstance(results, Result) else results
    what = titled("Faithfulness by size", results) if isinstance(results, Result) else "Faithfulness by size"
    drawn = figure(title=what, x_title="edges in the circuit", y_title="faithfulness")
    line, font = {"color": "#BBBBBB", "width": 1, "dash": "dot"}, {"size": 11, "color": "#555555"}
    for y, said, at in ((0, "all edges cut", "bottom right"), (1, "intact model", "top left")):
        place = {"annotation_text": said, "annotation_position": at, "annotation_font": font}
        drawn.add_hline(y, line=line, **place)
    for i, (name, result) in enumerate(named.items()):
        if null := result.meta.get("null_curve"):
            rows = _rows(null, ("n_edges", "mean", "low", "high"), "null_curve")
            color = NULL_COLOR if len(named) == 1 else COLORS[i % len(COLORS)]
            label = "random circuits" + ("" if len(named) == 1 else f", {name}")
            _banded(drawn, rows, ("mean", "low", "high"), label, color, dash="dot")
    for i, (name, result) in enumerate(named.items()):
        rows = _rows(result.meta.get("curve"), ("n_edges", "faithfulness", "ci_low", "ci_high"), "curve")
        _banded(drawn, rows, ("faithfulness", "ci_low", "ci_high"), name, COLORS[i % len(COLORS)])
    drawn.update_xaxes(**EDGE_TICKS)
    drawn.update_layout(showlegend=True)
    return drawn


def _rows(stored: Any, columns: tuple[str, ...], what: str) -> pd.DataFrame:
    """Rows of a curve by growing size; one without edges has no place on a logarithmic axis."""
    frame = pd.DataFrame(stored or [])
    if missing := [column for column in columns if column not in frame]:
        raise ValueError(f"meta must hold {what!r} with {', '.join(columns)}; {missing[0]} is missing")
    return frame[frame.n_edges > 0].sort_values("n_edges")


def _banded(
    drawn: go.Figure, rows: pd.DataFrame, columns: tuple[str, str, str], name: str, color: str, dash: str = "solid"
) -> None:
    """A line and, from its lower to its upper end, a band of the same colour."""
    y, low, high = (rows[column].astype(float) for column in columns)
    band, name = (low + high).notna(), escaped(name)
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    drawn.add_scatter(
        x=[*rows.n_edges[band], *rows.n_edges[band][::-1]],
        y=[*high[band], *low[band][::-1]],
        mode="lines",
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.16)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
    )
    drawn.add_scatter(
        x=rows.n_edges,
        y=y,
        mode="lines+markers",
        name=name,
        legendgroup=name,
        line={"color": color, "dash": dash},
        marker={"size": 5},
        customdata=np.array([*zip(low, high, _counts(rows), strict=True)], dtype=object),
        hovertemplate="%{x} edges: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}] %{customdata[2]}",
    )


def _counts(rows: pd.DataFrame) -> list[str]:
    """What each point is a mean of."""
    for column, said in (("n_circuits", "{:.0f} circuits"), ("n", "n = {:.0f}")):
        if column in rows:
            return [said.format(n) for n in rows[column]]
    return [""] * len(rows)


def sizes_figure(result: Result) -> go.Figure:
    """Edges needed at matched faithfulness: a marker a model with its interval, a bar at each arm's geometric mean.

    Args:
        result: of `comparison.circuits_compared`: `arm`, `seed`, `metric`, `value`, `ci_low`, `ci_high`. The metrics
            that begin with `edges at faithfulness` are drawn, a colour each.

    Raises:
        ValueError: a table without these columns, or without such a metric.
    """
    if missing := {"arm", "seed", "metric", "value", "ci_low", "ci_high"} - set(result.table.columns):
        raise ValueError(f"sizes need a table of arms, seeds and metrics; {sorted(missing)[0]} is missing")
    table = result.table[result.table.metric.astype(str).str.startswith(SIZES)]
    table = table.assign(**{name: pd.to_numeric(table[name]) for name in ("value", "ci_low", "ci_high")})
    if table.empty:
        raise ValueError(f"sizes need a metric that begins with {SIZES!r}; there is none")
    arms, parts = list(dict.fromkeys(table.arm)), list(table.groupby("metric", sort=False))
    drawn = figure(title=titled("Edges needed", result), x_title="arm (a marker a seed)", y_title="edges")
    for k, (metric, part) in enumerate(parts):
        color, offset = COLORS[k % len(COLORS)], 0.8 * ((k + 0.5) / len(parts) - 0.5)
        name = escaped(metric)
        for i, arm in enumerate(arms):
            rows = part[(part.arm == arm) & (part.value > 0)].sort_values("seed")
            if rows.empty:
                continue
            width = 0.8 / len(parts)
            x = i + offset + width * 0.5 * (np.linspace(-0.5, 0.5, len(rows)) if len(rows) > 1 else np.zeros(1))
            _seeds(drawn, x, rows, name, color, first=arm == part.arm.iloc[0])
            mean = float(np.exp(np.log(rows.value).mean()))
            drawn.add_scatter(
                x=[i + offset - width * 0.36, i + offset + width * 0.36],
                y=[mean, mean],
                mode="lines",
                line={"color": color, "width": 3},
                showlegend=False,
                legendgroup=name,
                hovertemplate=f"{escaped(arm)}: geometric mean of {len(rows)} seeds %{{y:.0f}} edges<extra></extra>",
            )
    drawn.update_xaxes(
        tickmode="array", tickvals=list(range(len(arms))), ticktext=[escaped(arm) for arm in arms],
        range=[-0.5, len(arms) - 0.5], showgrid=False,
    )  # fmt: skip
    drawn.update_yaxes(**EDGE_TICKS)
    return drawn


def _seeds(drawn: go.Figure, x: np.ndarray, rows: pd.DataFrame, name: str, color: str, first: bool) -> None:
    y = rows.value
    drawn.add_scatter(
        x=x, y=y, mode="markers", name=name, legendgroup=name, showlegend=first,
        marker={"color": color, "size": 8}, text=[escaped(f"seed {seed}") for seed in rows.seed],
        hovertemplate="%{text}: %{y} edges<extra></extra>",
        error_y=error_bars(y, rows.ci_low, rows.ci_high, thickness=1.2, width=3),
    )  # fmt: skip


def overlap_figure(results: Mapping[str, Result]) -> go.Figure:
    """Jaccard index of every two circuits: |both| / |either|, 1 for the same edges.

    Raises:
        ValueError: fewer than two Results, or circuits of different architectures.
    """
    if len(results) < 2:
        raise ValueError(f"an overlap needs two circuits or more; got {len(results)}")
    circuits = [circuit_of(result) for result in results.values()]
    if len({circuit.graph for circuit in circuits}) > 1:
        raise ValueError("an overlap needs circuits of one architecture; these have different edges")
    members, sizes = [circuit.members for circuit in circuits], [circuit.n_edges for circuit in circuits]
    index = np.array([[jaccard(a, b) for a in members] for b in members])
    both = np.array([[int((a & b).sum()) for a in members] for b in members])
    by_chance = np.array([[expected_jaccard(n, m, circuits[0].graph.n_edges) for n in sizes] for m in sizes])
    names = [escaped(f"{name} ({size:,})") for name, size in zip(results, sizes, strict=True)]
    drawn = figure(title="Overlap of circuits (edges)", x_title="", y_title="")
    drawn.add_heatmap(
        z=index,
        x=list(range(len(names))),
        y=list(range(len(names))),
        colorscale=[(0, "#FFFFFF"), (1, COLORS[0])],
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": "Jaccard index"}},
        customdata=np.stack([both, by_chance], -1),
        hovertemplate=(
            "%{customdata[0]:.0f} edges in both: %{z:.3f}<br>random circuits of these sizes: "
            "%{customdata[1]:.3f}<extra></extra>"
        ),
    )
    for i, j in np.ndindex(*index.shape):
        color = "#FFFFFF" if index[i, j] > 0.6 else "#222222"
        drawn.add_annotation(x=j, y=i, text=f"{index[i, j]:.2f}", showarrow=False, font={"color": color})
    ticks = {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": names,
        "ticks": "",
        "showgrid": False,
    }
    drawn.update_xaxes(**ticks)
    drawn.update_yaxes(**ticks, autorange="reversed", automargin=True)
    return drawn
