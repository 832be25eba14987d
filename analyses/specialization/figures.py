"""Figures of specialization, drawn from its Result alone."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, DIVERGING, TEMPLATE, by_arm, error_bars, titled
from analyses.result import Result
from analyses.specialization.means import ALL_LAYERS
from analyses.specialization.measures import NONE, UNITS

SHOWN: tuple[tuple[str, str], ...] = (
    ("information share", "current_token"), ("information share", "role"), ("information share", "position"),
    ("variance explained", "current_token"), ("effective contexts", NONE), ("logit kurtosis", "logits"),
)  # fmt: skip
OBSERVED, NULL = COLORS[0], COLORS[6]
CLASSES_SHOWN = ("role", "token_class", "part_of_speech", "position")


def specialization_figures(result: Result) -> dict[str, go.Figure]:
    """All that the Result holds enough of, by file name."""
    found: dict[str, go.Figure] = {}
    for kind in result.table.kind.unique():
        found[f"metrics_{kind}"] = metrics_figure(result, kind)
        if _preferences(result, kind):
            found[f"preferences_{kind}"] = preferences_figure(result, kind)
    found["layers"] = layers_figure(result)
    return found


def metrics_figure(result: Result, kind: str) -> go.Figure:
    """Units of each layer, a panel a metric: what was found (left) and the mean of each unit's null (right)."""
    table = result.table[result.table.kind == kind]
    shown = [key for key in SHOWN if ((table.metric == key[0]) & (table.target == key[1])).any()]
    drawn = _panels([_named(*key) for key in shown], titled(result.meta, f"Selectivity of {kind}s by layer"))
    for i, (metric, target) in enumerate(shown):
        rows = table[(table.metric == metric) & (table.target == target)]
        rows = rows[rows.against == rows.against.iloc[0]].sort_values("layer", kind="stable")
        for name, column, color in (("units", "value", OBSERVED), (f"null: {rows.against.iloc[0]}", "null", NULL)):
            drawn.add_box(
                x=[f"layer {layer}" for layer in rows.layer], y=rows[column], name=name, offsetgroup=column,
                marker={"color": color, "size": 2}, line={"width": 1}, showlegend=i == 0 and column == "value",
                hovertext=rows.unit, row=i // 3 + 1, col=i % 3 + 1,
            )  # fmt: skip
        drawn.update_yaxes(title_text=UNITS[metric], row=i // 3 + 1, col=i % 3 + 1)
    drawn.update_layout(boxmode="group")
    return drawn


def layers_figure(result: Result) -> go.Figure:
    """Mean excess over the first null by layer, a line a kind of unit, with intervals over stories."""
    means = pd.DataFrame(result.meta["means"])
    means = means[means.layer != ALL_LAYERS]
    shown = [key for key in SHOWN if ((means.metric == key[0]) & (means.target == key[1])).any()]
    drawn = _panels([_named(*key) for key in shown], titled(result.meta, "Beyond the null, mean over live units"))
    kinds = list(means.kind.unique())
    for i, (metric, target) in enumerate(shown):
        rows = means[(means.metric == metric) & (means.target == target)]
        for kind, part in rows.groupby("kind", sort=False):
            part = part[part.against == part.against.iloc[0]].astype({"value": float, "null": float})
            color = COLORS[kinds.index(str(kind)) % len(COLORS)]
            bars = error_bars(part.excess, part.ci_low - part.null, part.ci_high - part.null, thickness=1, width=0)
            drawn.add_scatter(
                x=part.layer, y=part.excess, error_y=bars,
                mode="lines+markers", name=str(kind), legendgroup=str(kind), showlegend=i == 0,
                line={"color": color}, row=i // 3 + 1, col=i % 3 + 1,
            )  # fmt: skip
        drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"}, row=i // 3 + 1, col=i % 3 + 1)
        drawn.update_xaxes(dtick=1, title_text="layer", row=i // 3 + 1, col=i % 3 + 1)
        drawn.update_yaxes(title_text=UNITS[metric], row=i // 3 + 1, col=i % 3 + 1)
    return drawn


def preferences_figure(result: Result, kind: str) -> go.Figure:
    """The classes that units prefer, a panel a target: the units that it tells most of, by the class they like best."""
    found = _preferences(result, kind)
    if not found:
        asked = sorted({one["kind"] for one in result.meta["preferences"]})
        raise ValueError(f"preferences are known of {', '.join(asked) or 'no kind of unit'}; got {kind!r}")
    titles = [f"{one['target']}: {len(one['units'])} units" for one in found]
    drawn = make_subplots(rows=1, cols=len(found), subplot_titles=titles, horizontal_spacing=0.08)
    for column, one in enumerate(found, 1):
        lift = np.asarray(one["log2_lift"], dtype=float)
        order = np.lexsort((-lift.max(1), lift.argmax(1)))
        drawn.add_heatmap(
            z=lift[order], x=one["classes"], y=[one["units"][i] for i in order], colorscale=DIVERGING, zmid=0, zmin=-6,
            zmax=6, colorbar={"title": {"text": "log2 lift"}}, showscale=column == len(found), row=1, col=column,
            hovertemplate="%{y}, %{x}: 2^%{z} times its usage<extra></extra>",
        )  # fmt: skip
        drawn.update_xaxes(type="category", row=1, col=column)
        drawn.update_yaxes(type="category", autorange="reversed", showticklabels=len(order) <= 60, row=1, col=column)
    title = titled(result.meta, f"What {kind}s prefer: P(active | class) / P(active)")
    return drawn.update_layout(template=TEMPLATE, title_text=title, height=720)


def arms_figure(result: Result) -> go.Figure:
    """Excess of the claim's measures by arm: a panel a measure, a marker a model with its interval.

    Args:
        result: of `comparison.specialization_compared`.
    """
    claim = [row["metric"] for row in result.meta["differences"] if row["family"] == "claim"]
    shown = list(dict.fromkeys(claim)) or list(dict.fromkeys(result.table.metric))[:6]
    height = 100 + 290 * max(1, -(-len(shown[:6]) // 3))
    drawn = by_arm(result.table, shown[:6], "Specialization by arm", height=height, digits=4, horizontal_spacing=0.09)
    drawn.update_annotations(font_size=12)
    return drawn


def _preferences(result: Result, kind: str) -> list[dict[str, Any]]:
    shown = [one for one in result.meta["preferences"] if one["kind"] == kind and one["target"] in CLASSES_SHOWN]
    return [one for one in shown if len(one["units"]) > 1][:3]


def _panels(titles: list[str], title: str) -> go.Figure:
    titles = titles[:6]
    rows = max(1, -(-len(titles) // 3))
    drawn = make_subplots(rows=rows, cols=3, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.09)
    drawn.update_layout(template=TEMPLATE, title_text=title, height=100 + 290 * rows)
    drawn.update_annotations(font_size=12)
    return drawn


def _named(metric: str, target: str) -> str:
    return f"{metric}: {target}" if target not in (NONE, "logits") else metric
