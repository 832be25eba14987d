"""L0 against FVU and CE score along a sweep, of one model or of arms; from the Result alone."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, error_bars, titled
from analyses.result import Result

PANELS = {"fvu": "variance unexplained (FVU)", "ce_score": "CE score"}


def front_figure(result: Result) -> go.Figure:
    """One model: each SAE's L0 against its FVU and its CE score; what is not on the Pareto front is hollow."""
    drawn = _panels(titled(result.meta, f"SAEs of {result.meta['hook']}"))
    _lines(drawn, result.table, "SAEs", COLORS[0], result.meta["target_fvu"], True)
    return drawn


def arms_figure(result: Result) -> go.Figure:
    """Several models, a colour an arm, a line a seed."""
    drawn = _panels(f"SAEs of {result.meta['hook']}, by arm")
    arms: Mapping[str, str] = result.meta["arms"]
    names = list(dict.fromkeys(arms.values()))
    seen: set[str] = set()
    for checkpoint, rows in result.meta["sweeps"].items():
        arm = arms[checkpoint]
        color = COLORS[names.index(arm) % len(COLORS)]
        _lines(drawn, pd.DataFrame(rows), arm, color, result.meta["target_fvu"], arm not in seen)
        seen.add(arm)
    return drawn


def _panels(title: str) -> go.Figure:
    drawn = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    drawn.update_layout(template=TEMPLATE, title_text=title, height=460)
    for col, name in enumerate(PANELS.values(), 1):
        drawn.update_xaxes(type="log", title_text="L0 (latents a token)", row=1, col=col)
        drawn.update_yaxes(title_text=name, row=1, col=col)
    return drawn


def _lines(drawn: go.Figure, table: pd.DataFrame, name: str, color: str, target: float, legend: bool) -> None:
    swept = table[table.coefficient.notna()]
    wide = {metric: rows.sort_values("coefficient") for metric, rows in swept.groupby("metric")}
    l0, bars = wide["l0"], {"thickness": 1, "width": 0}
    of_l0 = error_bars(*(_numbers(l0[end]) for end in ("value", "ci_low", "ci_high")), **bars)
    for col, metric in enumerate(PANELS, 1):
        rows = wide[metric]
        drawn.add_scatter(
            x=_numbers(l0.value), y=_numbers(rows.value), mode="lines+markers", name=name, legendgroup=name,
            showlegend=legend and col == 1, line={"color": color},
            marker={"symbol": ["circle" if there else "circle-open" for there in rows.pareto], "size": 8},
            error_y=error_bars(*(_numbers(rows[end]) for end in ("value", "ci_low", "ci_high")), **bars), error_x=of_l0,
            customdata=_numbers(rows.coefficient), row=1, col=col,
            hovertemplate=f"{name}, coefficient %{{customdata}}: L0 %{{x:.2f}}, %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    if legend:
        drawn.add_hline(y=target, line={"color": "#BBBBBB", "dash": "dot"}, row=1, col=1)
        nulls = [null for null in _numbers(wide["ce_score"].null) if not math.isnan(null)]
        if nulls:
            drawn.add_hline(y=nulls[0], line={"color": color, "dash": "dot", "width": 1}, row=1, col=2)


def _numbers(values: Iterable[Any]) -> list[float]:
    """What is missing as NaN; JSON has None there."""
    return [math.nan if value is None else float(value) for value in values]
