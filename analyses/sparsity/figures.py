"""Sparsity by layer, beside the model of dealt weights, and arms side by side; from the Result alone."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, by_arm, error_bars, titled
from analyses.result import Result
from analyses.sparsity.comparison import CLAIM

SHOWN = {
    "l0": "units that are on",
    "hoyer": "Hoyer",
    "gini": "Gini",
    "near_zero": "share near zero",
    "effective_rank": "effective rank of what is written",
    "live_units": "live units",
}


def layers_figure(result: Result) -> go.Figure:
    """Activations by layer: a panel a measure, a line a kind of unit and stream; dotted: dealt weights."""
    table = result.table[(result.table.part == "activations") & (result.table.layer >= 0)]
    lines = list(dict.fromkeys(zip(table.of, table.stream, strict=True)))
    drawn = make_subplots(rows=2, cols=3, subplot_titles=list(SHOWN.values()), vertical_spacing=0.16)
    for i, metric in enumerate(SHOWN):
        place = {"row": i // 3 + 1, "col": i % 3 + 1}
        for (of, stream), color in zip(lines, COLORS, strict=False):
            rows = table[(table.of == of) & (table.stream == stream) & (table.metric == metric)]
            if not len(rows):
                continue
            name = f"{of.replace('_', ' of ')}, {stream}"
            drawn.add_scatter(
                x=rows.layer, y=rows.value, name=name, legendgroup=name, mode="lines+markers",
                showlegend=metric == "live_units", line={"color": color},
                error_y=error_bars(rows.value, rows.ci_low, rows.ci_high, thickness=1, width=0), **place,
            )  # fmt: skip
            if rows.null.notna().any():
                drawn.add_scatter(
                    x=rows.layer, y=rows.null, name=f"{name}, dealt", legendgroup=name, showlegend=False,
                    mode="lines", line={"color": color, "dash": "dot", "width": 1}, **place,
                )  # fmt: skip
        drawn.update_xaxes(dtick=1, title_text="layer", **place)
        drawn.update_yaxes(rangemode="tozero", **place)
    title = titled(result.meta, "Sparsity of activations (dotted: weights dealt anew)")
    return drawn.update_layout(template=TEMPLATE, title_text=title, height=680)


def arms_figure(result: Result) -> go.Figure:
    """The claim's measures by arm: a panel a measure, a marker a model with its interval over stories."""
    known = set(result.table.metric)
    shown = [metric for metric in CLAIM if metric in known]
    return by_arm(result.table, shown, "Sparsity by arm", horizontal_spacing=0.09)
