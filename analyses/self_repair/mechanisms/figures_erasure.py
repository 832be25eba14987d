"""Figures of MLP erasure: neurons clean against ablated, threshold curves, the cumulated curve, what freezing loses."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.figures import COLORS, DIVERGING, error_bars, figure, titled
from analyses.result import Result


def erasure_figures(result: Result) -> dict[str, go.Figure]:
    """All of them."""
    return {
        "erasure_scatter": erasure_scatter(result),
        "neuron_threshold_curves": threshold_curves(result),
        "cumulative_neurons": cumulative(result),
        "neuron_identity": identity(result),
        "erasure_freeze": freezing(result),
        "top_neurons": top_neurons(result),
    }


def erasure_scatter(result: Result) -> go.Figure:
    """Each neuron's mean direct effect, clean against ablated; above y = x it repairs, left of 0 it erases."""
    wide = neurons(result)
    drawn = figure(
        title=_title(result, "Neurons, clean and ablated"),
        x_title="direct effect, clean (logits a token)",
        y_title="direct effect, ablated (logits a token)",
    )
    anti = (wide.de_clean < 0) & (wide["repair"] > 0)
    groups = {
        "anti-erasure": (anti, COLORS[1]),
        "positive": ((wide["repair"] > 0) & ~anti, COLORS[0]),
        "negative": (wide["repair"] <= 0, COLORS[6]),
    }
    for name, (mine, color) in groups.items():
        part = wide[mine]
        drawn.add_scatter(
            x=part.de_clean, y=part.de_abl, mode="markers", name=f"{name} ({len(part)})",
            marker={"color": color, "size": 6}, text=[f"neuron {int(i)}" for i in part.index],
        )  # fmt: skip
        drawn.add_histogram(x=part.de_clean, yaxis="y2", marker_color=color, showlegend=False, opacity=0.6)
    ends = [float(min(wide.de_clean.min(), wide.de_abl.min())), float(max(wide.de_clean.max(), wide.de_abl.max()))]
    drawn.add_scatter(x=ends, y=ends, mode="lines", name="no repair", line={"color": "#888888", "dash": "dot"})
    drawn.update_layout(yaxis={"domain": [0, 0.8]}, yaxis2={"domain": [0.84, 1], "title": "neurons"}, barmode="stack")
    return drawn


def threshold_curves(result: Result) -> go.Figure:
    """How often the N-th neuron repairs more than p of the direct effect; dotted: under the null."""
    drawn = figure(
        title=_title(result, "How few neurons repair a token"),
        x_title="rank of the neuron at its token",
        y_title="share of tokens",
    )
    table = result.table[result.table.measure == "threshold"]
    for number, p in enumerate(sorted(table.p.unique(), reverse=True)):
        part, color = table[table.p == p].sort_values("rank"), COLORS[number % len(COLORS)]
        drawn.add_scatter(
            x=part["rank"], y=part.value, mode="lines", name=f"above {100 * p:g} %", line={"color": color}
        )
        drawn.add_scatter(
            x=part["rank"],
            y=part.null,
            mode="lines",
            name="null",
            legendgroup="null",
            showlegend=number == 0,
            line={"color": color, "dash": "dot"},
        )
    return drawn


def cumulative(result: Result) -> go.Figure:
    """Share of all |repair| along neurons sorted by repair, each coloured by its mean direct effect, clean."""
    table = result.table[result.table.measure == "cumulative"].sort_values("rank")
    drawn = figure(
        title=_title(result, "Repair along neurons"),
        x_title="neurons, most repairing first",
        y_title="share of |repair|",
    )
    along = neurons(result).sort_values("repair", ascending=False, kind="stable").de_clean.to_numpy()
    color = along[table["rank"].to_numpy(dtype=int) - 1]
    reach = float(np.quantile(np.abs(along), 0.98)) or 1.0
    drawn.add_scatter(
        x=table["rank"], y=table.value, mode="lines+markers", name="measured [95 %]",
        line={"color": "#BBBBBB", "width": 1},
        marker={"size": 7, "color": color, "colorscale": DIVERGING, "cmin": -reach, "cmax": reach,
                "line": {"color": "#888888", "width": 0.5},
                "colorbar": {"title": {"text": "direct effect,<br>clean (logits)"}}},
        error_y=error_bars(table.value, table.ci_low, table.ci_high, thickness=0.5, width=0, color="#BBBBBB"),
        customdata=color, hovertemplate="%{x} neurons: %{y:.3f}; the last one says %{customdata:.3f} logits, clean"
        "<extra></extra>",
    )  # fmt: skip
    drawn.add_scatter(
        x=table["rank"], y=table.null, mode="lines", name="null", line={"color": COLORS[6], "dash": "dot"}
    )
    drawn.update_layout(legend={"x": 0.02, "y": 0.98})
    return drawn


def top_neurons(result: Result) -> go.Figure:
    """The neuron that repairs most at each token, clean against ablated, coloured by its layer's direct effect."""
    points = result.table[result.table.measure.isin(["token_clean", "token_abl", "token_layer"])]
    wide = points.pivot(index=["token", "neuron"], columns="measure", values="value").reset_index()
    net, few = (result.table[result.table.measure == name].iloc[0] for name in ("positive_over_net", "top5_share"))
    title = (
        f"The neuron that repairs most, token by token; positive / net repair {net.value:.1f}, top 5 / net "
        f"{few.value:.2f}"
    )
    drawn = figure(title=_title(result, title), x_title="direct effect, clean (logits)",
                   y_title="direct effect, ablated (logits)")  # fmt: skip
    reach = float(wide.token_layer.abs().max()) or 1.0
    drawn.add_scatter(
        x=wide.token_clean, y=wide.token_abl, mode="markers", showlegend=False,
        marker={"size": 7, "color": wide.token_layer, "colorscale": DIVERGING, "cmin": -reach, "cmax": reach,
                "line": {"color": "#888888", "width": 0.5},
                "colorbar": {"title": {"text": "direct effect<br>of the layer,<br>clean (logits)"}}},
        customdata=wide.neuron, hovertemplate="neuron %{customdata:.0f}: %{x:.2f} clean, %{y:.2f} ablated"
        "<extra></extra>",
    )  # fmt: skip
    drawn.add_histogram(x=wide.token_clean, yaxis="y2", marker_color=COLORS[6], showlegend=False, opacity=0.6)
    low, high = (
        float(end(wide[["token_clean", "token_abl"]])) for end in (lambda t: t.min().min(), lambda t: t.max().max())
    )
    drawn.add_scatter(x=[low, high], y=[low, high], mode="lines", showlegend=False, hoverinfo="skip",
                      line={"color": "#888888", "dash": "dot"})  # fmt: skip
    drawn.add_vline(x=0, line={"color": "#BBBBBB", "dash": "dot"})
    drawn.update_layout(yaxis={"domain": [0, 0.8]}, yaxis2={"domain": [0.84, 1], "title": "tokens"})
    return drawn


def identity(result: Result) -> go.Figure:
    """The neurons that are most often among a token's top."""
    table = result.table[result.table.measure == "top_rate"].sort_values("value", ascending=False).head(30)
    overlap = result.table[result.table.measure == "overlap"].iloc[0]
    title = f"Often among the top {result.meta['top']}; overlap {overlap.value:.3f}, by chance {overlap.null:.3f}"
    drawn = figure(title=_title(result, title), x_title="neuron", y_title="share of tokens")
    drawn.add_bar(
        x=[str(int(i)) for i in table.neuron], y=table.value, marker_color=COLORS[0],
        error_y=error_bars(table.value, table.ci_low, table.ci_high, thickness=1, width=2),
    )  # fmt: skip
    drawn.update_xaxes(type="category")
    return drawn


def freezing(result: Result) -> go.Figure:
    """Repair that is lost when neurons are frozen, beside random sets of as many."""
    table = result.table[result.table.measure.isin(["self_repair", "frozen"])]
    labels = [name if isinstance(name, str) else "self-repair" for name in table["set"]]
    drawn = figure(title=_title(result, "Repair lost by freezing neurons"), x_title="", y_title="logits a token")
    drawn.add_bar(
        x=labels, y=table.value, name="found", marker_color=COLORS[0],
        error_y=error_bars(table.value, table.ci_low, table.ci_high, thickness=1.2, width=3),
    )  # fmt: skip
    drawn.add_bar(
        x=labels, y=table.null, name="as many at random", marker_color=COLORS[6],
        error_y=error_bars(table.null, table.null_low, table.null_high, thickness=1.2, width=3),
    )  # fmt: skip
    return drawn


def neurons(result: Result) -> pd.DataFrame:
    """A row a neuron: de_clean, de_abl, repair, top_rate, anti_rate."""
    names = ["de_clean", "de_abl", "repair", "top_rate", "anti_rate"]
    table = result.table[result.table.measure.isin(names)]
    return pd.DataFrame(table.pivot(index="neuron", columns="measure", values="value"), columns=names)


def _title(result: Result, text: str) -> str:
    meta = result.meta
    how = f"MLP {meta['layer']}; {meta['component']}, {meta['ablation']}, {meta['selection']}"
    return f"{titled(meta, text)}<br><sup>{how}, {meta['n_sequences']} stories</sup>"
