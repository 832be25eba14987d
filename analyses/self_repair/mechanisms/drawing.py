"""What the figures of several studies share: captions, rows of a table, bars with intervals and nulls."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from analyses import figures
from analyses.figures import COLORS, error_bars, figure
from analyses.result import Result

GREY = COLORS[6]


def caption(result: Result) -> str:
    """What was taken out, how, and at which tokens: belongs to every title."""
    meta = result.meta
    component = meta.get("component", "")
    if not isinstance(component, str):
        component = component[0] if len(component) == 1 else f"{len(component)} components"
    parts = [component, meta.get("ablation", ""), meta.get("selection", ""), f"{meta['n_sequences']} stories"]
    return ", ".join(part for part in parts if part)


def titled(result: Result, text: str) -> str:
    """With the model, and the caption as a second line."""
    return f"{figures.titled(result.meta, text)}<br><sup>{caption(result)}</sup>"


def of(result: Result, measure: str, **index: Any) -> pd.DataFrame:
    """Rows of a measure at this index."""
    table = result.table[result.table.measure == measure]
    for name, value in index.items():
        table = table[table[name] == value]
    return pd.DataFrame(table)


def bars(result: Result, table: pd.DataFrame, labels: Any, *, title: str, x_title: str, y_title: str) -> go.Figure:
    """Values with their intervals as bars, the null as grey points with its interval beside them."""
    drawn = figure(title=titled(result, title), x_title=x_title, y_title=y_title)
    labels = list(map(str, labels))
    drawn.add_bar(
        x=labels,
        y=table.value,
        name="measured",
        marker_color=COLORS[0],
        error_y=error_bars(table.value, table.ci_low, table.ci_high, thickness=1.2, width=3),
    )
    if table.null.notna().any():
        drawn.add_scatter(
            x=labels,
            y=table.null,
            name="null",
            mode="markers",
            marker={"color": GREY, "symbol": "diamond", "size": 8},
            error_y=error_bars(table.null, table.null_low, table.null_high, thickness=1.2, width=3, color=GREY),
        )
    return drawn
