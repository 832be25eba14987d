"""Self-repair by arm: a panel a measure, a marker a model."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, error_bars
from analyses.result import Result
from analyses.self_repair.comparison import PRIMARY

PANELS = (
    PRIMARY,
    "share of heads, second half",
    "share of MLPs, second half",
    "share of norm, second half",
    "share of masks, second half",
    "clean loss (bits)",
)


def arms_figure(result: Result) -> go.Figure:
    """Every model with its interval over stories, by arm.

    Args:
        result: of `comparison.self_repair_compared`.
    """
    arms = list(dict.fromkeys(result.table.arm))
    titles = [panel.replace(", second half", "") for panel in PANELS]
    drawn = make_subplots(rows=2, cols=3, subplot_titles=titles, vertical_spacing=0.16)
    knobs = result.meta["knobs"]
    title = f"Self-repair by arm, second half of the layers ({knobs['selection']}, {knobs['ablation']})"
    drawn.update_layout(template=TEMPLATE, title_text=title, height=640, showlegend=False)
    for i, metric in enumerate(PANELS):
        rows = result.table[result.table.metric == metric].astype({"value": float, "ci_low": float, "ci_high": float})
        within = rows.groupby("arm").cumcount() - (rows.groupby("arm").arm.transform("size") - 1) / 2
        place = {"row": i // 3 + 1, "col": i % 3 + 1}
        drawn.add_scatter(
            x=np.array([arms.index(arm) for arm in rows.arm], dtype=float) + 0.12 * within,
            y=rows.value,
            error_y=error_bars(rows.value, rows.ci_low, rows.ci_high, thickness=1, width=0),
            mode="markers",
            marker={"color": [COLORS[arms.index(arm) % len(COLORS)] for arm in rows.arm]},
            customdata=rows[["arm", "seed"]],
            hovertemplate="%{customdata[0]}, seed %{customdata[1]}: %{y:.3f}<extra></extra>",
            **place,
        )
        drawn.update_xaxes(
            tickmode="array", tickvals=list(range(len(arms))), ticktext=arms, range=[-0.5, len(arms) - 0.5],
            showgrid=False, **place,
        )  # fmt: skip
        if "loss" not in metric:
            drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"}, **place)
    drawn.update_yaxes(title_text="of the removed effect", row=1, col=1)
    return drawn
