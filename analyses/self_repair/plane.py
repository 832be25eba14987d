"""The plane of direct effect and change of the logit: components, and tokens of the strongest ones.

On the line y = -x nothing is repaired. Between it and y = 0 part is made up for, beyond y = 0 more than all; on the
other side of the line more is lost than the direct effect.
"""

import html
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, figure
from analyses.result import Result
from analyses.self_repair.captions import titled

ZONES = {"repaired": COLORS[2], "over-repaired": COLORS[3], "breakage": COLORS[1], "none": COLORS[6]}


def de_vs_dlogit(result: Result) -> go.Figure:
    """A dot a component, coloured by zone."""
    table = result.table[result.table.n_tokens > 0]
    drawn = figure(
        title=titled(result, "Direct effect and change of the logit"),
        x_title="direct effect (logits)", y_title="change of the logit (logits)",
    )  # fmt: skip
    reach = float(table[["de", "dlogit"]].abs().max().max()) * 1.1 or 1.0
    _zones(drawn, reach)
    for zone, color in ZONES.items():
        part = table[table.zone == zone]
        if len(part):
            drawn.add_scatter(
                x=part.de, y=part.dlogit, mode="markers", name=zone, marker={"color": color, "size": 9},
                customdata=part[["component", "n_tokens", "self_repair"]],
                hovertemplate="%{customdata[0]}: direct effect %{x:.3f}, logit %{y:+.3f}, self-repair "
                "%{customdata[2]:+.3f} over %{customdata[1]:,} tokens<extra></extra>",
            )  # fmt: skip
    drawn.update_xaxes(range=_around(table.de))
    drawn.update_yaxes(range=[-reach, max(reach / 4, float(table.dlogit.max()) * 1.1)])
    return drawn


def token_grid(result: Result) -> go.Figure:
    """The same of single tokens of the four components with the largest direct effects: how noisy it is."""
    grid = result.meta["grid"]
    titles = [f"{one['component']}, {len(one['de']):,} of {one['n']:,} tokens" for one in grid]
    drawn = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.14)
    drawn.update_layout(
        template=TEMPLATE, title_text=titled(result, "Token by token"), height=740, showlegend=False, margin={"t": 100}
    )  # fmt: skip
    for i, one in enumerate(grid):
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        ends = _around(one["de"])
        drawn.add_scatter(x=ends, y=[-end for end in ends], mode="lines", hoverinfo="skip",
                          line={"color": "#888888", "dash": "dash"}, **place)  # fmt: skip
        drawn.add_scattergl(
            x=one["de"], y=one["dlogit"], mode="markers", marker={"color": COLORS[0], "size": 4, "opacity": 0.5},
            text=[html.escape(text) for text in one.get("texts", ())],
            hovertemplate="%{text}<br>direct effect %{x:.2f}, logit %{y:+.2f}<extra></extra>", **place,
        )  # fmt: skip
        drawn.update_xaxes(title_text="direct effect (logits)" if i > 1 else "", range=ends, **place)
        drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"}, **place)
        drawn.update_yaxes(title_text="change of the logit" if i % 2 == 0 else "", **place)
    return drawn


def token_noise(result: Result) -> go.Figure:
    """How uneven self-repair is: its means by story, and at single tokens against the direct effect."""
    drawn = make_subplots(rows=1, cols=2, horizontal_spacing=0.12,
                          subplot_titles=["mean of each story", "single tokens"])  # fmt: skip
    drawn.update_layout(template=TEMPLATE, title_text=titled(result, "Self-repair, uneven"), barmode="overlay",
                        height=480, margin={"t": 100}, legend={"orientation": "h", "y": -0.25})  # fmt: skip
    grid = [one for one in result.meta["grid"] if one["stories"]]
    means = np.concatenate([one["stories"] for one in grid]) if grid else np.zeros(1)
    width = float(np.ptp(means)) / 24 or 1.0
    for number, one in enumerate(grid):
        look = {"name": f"{one['component']} ({len(one['stories'])} stories)", "legendgroup": one["component"]}
        drawn.add_histogram(
            x=one["stories"], xbins={"start": float(means.min()), "size": width}, opacity=0.55,
            marker_color=COLORS[number], row=1, col=1, hovertemplate="%{x} logits: %{y} stories<extra></extra>", **look,
        )  # fmt: skip
        de, removed, dlogit = (np.array(one[name]) for name in ("de", "removed", "dlogit"))
        drawn.add_scattergl(
            x=de, y=dlogit + removed, mode="markers", showlegend=False, row=1, col=2,
            marker={"color": COLORS[number], "size": 4, "opacity": 0.5}, text=[html.escape(t) for t in one["texts"]],
            hovertemplate="%{text}<br>direct effect %{x:.2f}, self-repair %{y:+.2f}<extra></extra>", **look,
        )  # fmt: skip
    drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"}, row=1, col=2)
    drawn.add_vline(x=0, line={"color": "#BBBBBB", "dash": "dot"}, row=1, col=1)
    for column, (x_title, y_title) in enumerate(
        (("self-repair (logits)", "stories"), ("direct effect (logits)", "self-repair (logits)")), start=1
    ):
        drawn.update_xaxes(title_text=x_title, row=1, col=column)
        drawn.update_yaxes(title_text=y_title, row=1, col=column)
    return drawn


def _around(values: Any) -> list[float]:
    """Ends of an axis that shows these values and 0."""
    low, high = min(0.0, *values), max(0.0, *values)
    room = 0.06 * (high - low) or 1.0
    return [low - room, high + room]


def _zones(drawn: go.Figure, reach: float) -> None:
    """The line y = -x, and the plane beside it, shaded."""
    for sign in (1, -1):
        x = np.array([0.0, sign * reach])
        for y, color in (((-x, 0 * x), ZONES["repaired"]), ((-x, x * 0 - sign * reach), ZONES["breakage"])):
            drawn.add_scatter(
                x=[*x, *x[::-1]], y=[*y[0], *y[1][::-1]], fill="toself", mode="none", showlegend=False,
                fillcolor=color, opacity=0.12, hoverinfo="skip",
            )  # fmt: skip
    drawn.add_scatter(x=[-reach, reach], y=[reach, -reach], mode="lines", name="no self-repair (y = -x)",
                      line={"color": "#888888", "dash": "dash"}, hoverinfo="skip")  # fmt: skip
