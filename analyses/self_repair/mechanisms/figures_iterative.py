"""Figures of the studies on iterative inference: layer shift, self-repression, cosines, signal."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, error_bars, figure
from analyses.result import Result
from analyses.self_repair.mechanisms.drawing import GREY, bars, of, titled

SHOWN = 24
"""Receivers that a figure has room for."""
ASIDE = 0.22
"""How far from the middle of a bar nulls and controls stand."""


def shift_figures(result: Result) -> dict[str, go.Figure]:
    """Change under a skipped layer against change under a lost head, a point a head."""
    drawn = figure(
        title=titled(result, "A lost layer and a lost head"),
        x_title="main head before is out (change, logits)", y_title="layer before is skipped (change, logits)",
    )  # fmt: skip
    x, y = (of(result, measure).reset_index(drop=True) for measure in ("ablation", "shift"))
    for layer in sorted(x.layer.unique()):
        mine = x.layer == layer
        drawn.add_scatter(
            x=x[mine].value, y=y[mine].value, mode="markers", name=f"layer {int(layer)}",
            text=[f"L{int(layer)}H{int(h)}" for h in x[mine]["head"]], marker={"size": 8},
            error_x=error_bars(x[mine].value, x[mine].ci_low, x[mine].ci_high, thickness=0.8),
            error_y=error_bars(y[mine].value, y[mine].ci_low, y[mine].ci_high, thickness=0.8),
        )  # fmt: skip
    return {"layer_shift": drawn}


def repression_figures(result: Result) -> dict[str, go.Figure]:
    """Slopes by what was added and how often."""
    table = of(result, "slope").sort_values(["times", "added"])
    labels = [f"{added} x{times:g}" for added, times in zip(table.added, table.times, strict=True)]
    title = "Slope of a head's direct effect after on before"
    return {"self_repression": bars(result, table, labels, title=title, x_title="added", y_title="slope")}


def cosine_figures(result: Result) -> dict[str, go.Figure]:
    """How much each receiver turns towards the head, with the answer direction and without."""
    panels = {"kept": "whole outputs", "projected out": "answer direction projected out"}
    title = "How later components turn towards what a head wrote, once it is out"
    drawn = _panels(result, title, list(panels.values()), rows=2, height=640)
    change = of(result, "change")
    size = (
        change[(change.reference == "own") & (change.layer >= 0)]
        .groupby("receiver")
        .value.agg(lambda values: values.abs().max())
    )
    shown = {"behind", *size.sort_values(ascending=False).index[:SHOWN]}
    for number, answer in enumerate(panels):
        table = change[(change.answer == answer) & change.receiver.isin(shown)]
        own, place = pd.DataFrame(table[table.reference == "own"]), {"row": number + 1, "col": 1}
        _bars(drawn, own, own.receiver.replace({"behind": "all behind"}).tolist(), place)
        controls = (("other heads", "other heads", "circle-open"), ("random", "a random direction", "x-thin-open"))
        for reference, name, symbol in controls:
            other = table[table.reference == reference]
            drawn.add_scatter(
                x=np.arange(len(other)) - ASIDE, y=other.value, mode="markers", name=f"towards {name}",
                marker={"color": COLORS[1], "symbol": symbol, "size": 8}, showlegend=number == 0,
                legendgroup=reference, **place,
            )  # fmt: skip
        drawn.update_yaxes(title_text="change of the cosine", **place)
    drawn.update_xaxes(title_text="component behind the head", row=2, col=1)
    return {"cosine": drawn}


def signal_figures(result: Result) -> dict[str, go.Figure]:
    """What is removed and repaired when all of a head, its answer or the rest of it goes."""
    panels = {"whole": "all of it goes", "answer": "only its answer goes", "rest": "all but its answer goes"}
    lengths = of(result, "length").set_index("part").value
    titles = [f"{text}<br>(length {lengths[part]:.2f} of the whole)" for part, text in panels.items()]
    drawn = _panels(result, "What of a head is repaired", titles, rows=1, height=480)
    measures = {
        "removed": "removed", "self_repair": "self-repair", "heads": "by heads", "mlps": "by MLPs",
        "anti_erasure": "erasing less", "ln": "by the norm",
    }  # fmt: skip
    for number, part in enumerate(panels):
        table = pd.concat([of(result, measure, part=part) for measure in measures])
        _bars(drawn, table, list(measures.values()), {"row": 1, "col": number + 1})
    drawn.update_yaxes(title_text="logits a token", row=1, col=1)
    return {"signal": drawn}


def _panels(result: Result, title: str, names: list[str], *, rows: int, height: int) -> go.Figure:
    """Empty panels one below another, or (one row) side by side with one y axis."""
    columns = 1 if rows > 1 else len(names)
    drawn = make_subplots(rows=rows, cols=columns, shared_yaxes=columns > 1, shared_xaxes=rows > 1,
                          vertical_spacing=0.1, horizontal_spacing=0.03, subplot_titles=names)  # fmt: skip
    drawn.update_layout(template=TEMPLATE, title_text=titled(result, title), height=height, margin={"t": 120},
                        legend={"orientation": "h", "y": -0.2 if rows > 1 else -0.3})  # fmt: skip
    drawn.update_annotations(font_size=12)
    return drawn


def _bars(drawn: go.Figure, table: pd.DataFrame, labels: Sequence[str], place: dict[str, int]) -> None:
    """Values with intervals as bars, the null as grey diamonds beside their middle."""
    at, first = np.arange(len(table)), place == {"row": 1, "col": 1}
    measured = error_bars(table.value, table.ci_low, table.ci_high, thickness=1.2, width=3)
    null = error_bars(table.null, table.null_low, table.null_high, thickness=1.2, width=3, color=GREY)
    drawn.add_bar(x=at, y=table.value, name="measured", marker_color=COLORS[0], error_y=measured, showlegend=first,
                  legendgroup="measured", **place)  # fmt: skip
    drawn.add_scatter(
        x=at + ASIDE, y=table.null, name="null: a random direction is taken out", mode="markers", error_y=null,
        marker={"color": GREY, "symbol": "diamond", "size": 8}, showlegend=first, legendgroup="null", **place,
    )  # fmt: skip
    drawn.update_xaxes(tickvals=at, ticktext=list(labels), tickangle=45 if len(labels) > 12 else None, **place)
