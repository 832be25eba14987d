"""Figures of explainability, drawn from its Result alone."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.figures import COLORS, error_bars, figure, titled
from analyses.result import Result
from analyses.specialization.explained_means import SELECTED
from analyses.specialization.means import ALL_LAYERS

FLOOR, PAPER = COLORS[6], "#222222"


def explained_figures(result: Result) -> dict[str, go.Figure]:
    """Both, by file name."""
    return {"scores_by_layer": layers_figure(result), "scores": scores_figure(result)}


def layers_figure(result: Result) -> go.Figure:
    """Mean score of each layer, a line an explainer, its floor, and the published numbers of another model."""
    means = pd.DataFrame(result.meta["means"])
    means = means[means.layer != ALL_LAYERS].dropna(subset=["value"])
    drawn = figure(
        title=titled(result.meta, "Explainability by layer"), x_title="layer", y_title="mean correlation score"
    )
    for i, (name, rows) in enumerate(means.groupby("explainer", sort=False)):
        drawn.add_scatter(
            x=rows.layer, y=rows.value, error_y=error_bars(rows.value, rows.ci_low, rows.ci_high, thickness=1, width=0),
            mode="lines+markers", name=str(name), line={"color": COLORS[i % 6]},
        )  # fmt: skip
    kept = means[means.explainer == SELECTED]
    if "floor_shuffled" in kept:
        drawn.add_scatter(x=kept.layer, y=kept.floor_shuffled, mode="lines", name="floor: shuffled within the layer",
                          line={"color": FLOOR, "dash": "dash"})  # fmt: skip
    published = result.meta["published"]["by_layer"]
    drawn.add_scatter(x=list(range(len(published))), y=published, mode="lines+markers", name="published, by a language "
                      "model, of 8 layers", line={"color": PAPER, "dash": "dot"})  # fmt: skip
    return drawn.update_xaxes(dtick=1)


def scores_figure(result: Result) -> go.Figure:
    """How units' scores are distributed: own explanation, another's of the layer."""
    rows = result.table[result.table.selected]
    drawn = figure(title=titled(result.meta, "Scores of single units"), x_title="correlation score", y_title="units")
    for name, column, color in (("own explanation", "r", COLORS[0]), ("another unit's", "floor_shuffled", FLOOR)):
        drawn.add_histogram(
            x=rows[column].dropna(), name=name, marker={"color": color}, opacity=0.65,
            xbins={"start": -0.5, "end": 1.0, "size": 0.05},
        )  # fmt: skip
    return drawn.update_layout(barmode="overlay")


def arms_figure(result: Result) -> go.Figure:
    """Mean score by arm: a marker a model with its interval over stories, the published number as a line.

    Args:
        result: of `explained_comparison.explainability_compared`.
    """
    rows = result.table[result.table.metric == f"score, {SELECTED}"].astype({"value": float})
    arms = list(dict.fromkeys(rows.arm))
    within = rows.groupby("arm").cumcount() - (rows.groupby("arm").arm.transform("size") - 1) / 2
    drawn = figure(title="Explainability by arm", x_title="", y_title="mean correlation score")
    drawn.add_scatter(
        x=np.array([arms.index(arm) for arm in rows.arm], dtype=float) + 0.12 * within, y=rows.value,
        error_y=error_bars(rows.value, rows.ci_low, rows.ci_high, thickness=1, width=0), mode="markers",
        marker={"color": [COLORS[arms.index(arm) % 6] for arm in rows.arm]}, customdata=rows[["arm", "seed", "n"]],
        hovertemplate="%{customdata[0]}, seed %{customdata[1]}: %{y:.4f}, %{customdata[2]} units<extra></extra>",
    )  # fmt: skip
    mean = result.meta["published"]["mean"]
    drawn.add_hline(y=mean, line={"color": PAPER, "dash": "dot"}, annotation_text=f"published, another model: {mean}")
    drawn.update_xaxes(tickmode="array", tickvals=list(range(len(arms))), ticktext=arms, showgrid=False,
                       range=[-0.5, len(arms) - 0.5])  # fmt: skip
    return drawn.update_layout(showlegend=False)
