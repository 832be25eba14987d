"""Figures of thresholds: the plane with a slider over the selection, and the answer along all selections."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, error_bars, figure, titled
from analyses.result import Result

GREY = COLORS[6]
DEFAULT = {"top": 0.02, "beyond": 0.1}
"""Where the slider stands at first: the published filter, and the command's threshold."""


def threshold_figures(result: Result) -> dict[str, go.Figure]:
    """All of them."""
    return {
        "threshold_slider": threshold_slider(result),
        "threshold_slider_beyond": threshold_slider(result, "beyond"),
        "threshold_curves": threshold_curves(result),
    }


def threshold_slider(result: Result, by: str = "top") -> go.Figure:
    """Direct effect and change of the logit of every component, with a slider over the tokens that are selected.

    Args:
        by: `top` share of a component's tokens by direct effect, or `beyond` a direct effect in logits.
    """
    drawn = figure(title="", x_title="direct effect (logits)", y_title="change of the logit (logits)")
    table = result.table[(result.table.by == by) & (result.table.layer >= 0)]
    wide = table.pivot(index=["threshold", "component", "layer"], columns="measure", values=["value", "n_tokens"])
    of = pd.DataFrame(wide["value"]).assign(n=wide["n_tokens"]["de"]).reset_index()
    steps = sorted(of.threshold.unique(), reverse=by == "top")
    x, y = of.de, of.dlogit
    pad_x, pad_y = 0.06 * (max(x.max(), 0) - min(x.min(), 0) or 1), 0.06 * (max(y.max(), 0) - min(y.min(), 0) or 1)
    x_range = [min(x.min(), 0) - pad_x, max(x.max(), 0) + pad_x]
    drawn.add_scatter(x=x_range, y=[-end for end in x_range], mode="lines", name="no self-repair (y = -x)",
                      line={"color": GREY, "dash": "dash"}, hoverinfo="skip")  # fmt: skip
    first = steps.index(DEFAULT[by]) if DEFAULT[by] in steps else 0
    for number, step in enumerate(steps):
        part = of[of.threshold == step]
        drawn.add_scatter(
            x=part.de, y=part.dlogit, mode="markers", showlegend=False, visible=number == first,
            marker={"size": 9, "color": part.layer, "colorscale": "Viridis", "cmin": 0, "cmax": max(1, of.layer.max()),
                    "colorbar": {"title": {"text": "layer"}, "dtick": max(1, -(-int(of.layer.max()) // 12))}},
            customdata=part[["component", "n", "self_repair"]],
            hovertemplate="%{customdata[0]}: direct effect %{x:.3f}, logit %{y:+.3f}, self-repair "
            "%{customdata[2]:+.3f} over %{customdata[1]:,} tokens<extra></extra>",
        )  # fmt: skip
    slider = {
        "active": first, "pad": {"t": 50}, "currentvalue": {"prefix": "selected: ", "font": {"size": 13}},
        "steps": [_step(result, by, step, number, len(steps)) for number, step in enumerate(steps)],
    }  # fmt: skip
    drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"})
    drawn.update_layout(title_text=slider["steps"][first]["args"][1]["title.text"])
    drawn.update_layout(sliders=[slider], legend={"x": 0.99, "y": 0.99, "xanchor": "right"}, height=600)
    drawn.update_xaxes(range=x_range)
    drawn.update_yaxes(range=[min(y.min(), 0) - pad_y, max(y.max(), 0) + pad_y])
    return drawn


def threshold_curves(result: Result) -> go.Figure:
    """Self-repair over removed direct effect, a row a half of the layers, along both kinds of selection."""
    drawn = make_subplots(
        rows=2, cols=2, shared_yaxes=True, shared_xaxes=True, horizontal_spacing=0.05, vertical_spacing=0.08
    )
    title = _title(result, "Self-repair / removed direct effect, along the selection")
    drawn.update_layout(template=TEMPLATE, title_text=title, height=620, legend={"orientation": "h", "y": -0.18})
    for row, half in enumerate(("second", "first"), start=1):
        rows = result.table[(result.table.half == half)].dropna(subset=["value"])
        for column, by in enumerate(("top", "beyond"), start=1):
            part = rows[rows.by == by].sort_values("threshold", ascending=by != "top")
            x, place = [f"{step:g}" for step in part.threshold], {"row": row, "col": column}
            drawn.add_scatter(
                x=x, y=part.value, mode="lines+markers", name="measured [95 %]", showlegend=row == column == 1,
                line={"color": COLORS[0]}, customdata=part[["n_tokens", "n_stories"]],
                error_y=error_bars(part.value, part.ci_low, part.ci_high, thickness=1, width=3),
                hovertemplate="%{y:.3f} over %{customdata[0]:,} tokens of components, %{customdata[1]} stories"
                "<extra></extra>", **place,
            )  # fmt: skip
            drawn.add_scatter(x=x, y=part["null"], mode="lines", name="norm, if nothing reacted",
                              showlegend=row == column == 1, line={"color": GREY, "dash": "dot"}, **place)  # fmt: skip
            drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"}, **place)
            drawn.update_xaxes(type="category", **place)
        seen = [float(end) for name in ("value", "null") for end in (rows[name].min(), rows[name].max())]
        low, high = min([0.0, *seen]), max([0.0, *seen])
        drawn.update_yaxes(range=[low - 0.25 * (high - low), high + 0.25 * (high - low)], row=row)
        drawn.update_yaxes(title_text=f"{half} half of the layers", row=row, col=1)
    drawn.update_xaxes(title_text="top share of tokens by direct effect", row=2, col=1)
    drawn.update_xaxes(title_text="|direct effect| beyond (logits)", row=2, col=2)
    return drawn


def _step(result: Result, by: str, step: float, number: int, n: int) -> dict[str, Any]:
    """One place of the slider: which points it shows, and what its label says."""
    rows = result.table[(result.table.by == by) & (result.table.threshold == step) & (result.table.half == "second")]
    share = rows.iloc[0]
    label = f"{100 * step:g} %" if by == "top" else f"{step:g}"
    tokens = f"top {100 * step:g} % of tokens" if by == "top" else f"|direct effect| > {step:g} logits"
    answer = "" if pd.isna(share.value) else (
        f"; second half of the layers: self-repair {100 * share.value:.0f} % "
        f"[{100 * share.ci_low:.0f}, {100 * share.ci_high:.0f}] of what is removed"
    )  # fmt: skip
    text = _title(result, f"Direct effect and change of the logit, {tokens}", f"{int(share.n_tokens):,} tokens{answer}")
    visible = [True, *(i == number for i in range(n))]
    return {"method": "update", "label": label, "args": [{"visible": visible}, {"title.text": text}]}


def _title(result: Result, text: str, more: str = "") -> str:
    meta = result.meta
    what = f"{len(meta['component'])} components; {meta['ablation']}; {meta['n_sequences']} stories"
    return f"{titled(meta, text)}<br><sup>{what}{'; ' if more else ''}{more}</sup>"
