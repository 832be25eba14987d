"""The plane of direct effect and change of the logit: components, and tokens of the strongest ones.

On the line y = -x nothing is repaired. Between it and y = 0 part is made up for, beyond y = 0 more than all; on the
other side of the line more is lost than the direct effect.
"""

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
    drawn.update_xaxes(range=[min(0.0, float(table.de.min()) * 1.1), float(table.de.max()) * 1.1 or 1.0])
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
        reach = max([abs(value) for value in (*one["de"], *one["dlogit"])], default=1.0)
        drawn.add_scatter(x=[-reach, reach], y=[reach, -reach], mode="lines", hoverinfo="skip",
                          line={"color": "#888888", "dash": "dash"}, **place)  # fmt: skip
        drawn.add_scattergl(
            x=one["de"], y=one["dlogit"], mode="markers", marker={"color": COLORS[0], "size": 4, "opacity": 0.5},
            hovertemplate="direct effect %{x:.2f}, logit %{y:+.2f}<extra></extra>", **place,
        )  # fmt: skip
        drawn.update_xaxes(title_text="direct effect (logits)" if i > 1 else "", **place)
        drawn.update_yaxes(title_text="change of the logit" if i % 2 == 0 else "", **place)
    return drawn


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
