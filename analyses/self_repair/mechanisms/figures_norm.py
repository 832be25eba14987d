"""Figures of the norm's ratio: its histograms under several ablations laid over one another, and their planes."""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, figure, titled
from analyses.result import Result

GREY = COLORS[6]


def norm_figures(result: Result) -> dict[str, go.Figure]:
    """Both of them."""
    return {"ln_ratio_hist": ln_ratio_hist(result), "ablations_plane": ablations_plane(result)}


def ln_ratio_hist(result: Result) -> go.Figure:
    """The scale of the final norm, clean over ablated, by what the component is replaced by; dotted: the null."""
    drawn = figure(
        title=_title(result, "Scale of the final norm, clean / ablated"), x_title="clean / ablated scale",
        y_title="share of tokens",
    )  # fmt: skip
    table = result.table
    for number, name in enumerate(result.meta["ablations"]):
        bins = table[(table.measure == "histogram") & (table.replaced_by == name)].sort_values("low")
        above = table[(table.measure == "above_1") & (table.replaced_by == name)].iloc[0]
        middle = table[(table.measure == "median") & (table.replaced_by == name)].iloc[0]
        color, edges = COLORS[number % len(COLORS)], [*bins.low, bins.high.iloc[-1]]
        label = (
            f"{name}: median {middle.value:.3f}, {100 * above.value:.0f} % above 1 "
            f"[{100 * above.ci_low:.0f}, {100 * above.ci_high:.0f}]"
        )
        for values, look, shown in ((bins.value, "solid", label), (bins["null"], "dot", f"{name}: random direction")):
            solid = look == "solid"
            drawn.add_scatter(
                x=edges, y=[*values, values.iloc[-1]], mode="lines", name=shown, legendgroup=name,
                line={"color": color, "width": 2 if solid else 1.2, "shape": "hv", "dash": look},
                fill="tozeroy" if solid else None, fillcolor=_faint(color) if solid else None,
                hovertemplate="from %{x:.3f}: %{y:.3f} of tokens<extra></extra>",
            )  # fmt: skip
    drawn.add_vline(x=1, line={"color": "#888888", "dash": "dash"})
    drawn.update_layout(legend={"orientation": "h", "y": -0.2}, margin={"t": 80})
    return drawn


def ablations_plane(result: Result) -> go.Figure:
    """Direct effect and change of the logit at the same tokens, a panel an ablation; on the line none is repaired."""
    table, names = result.table, result.meta["ablations"]
    drawn = make_subplots(rows=1, cols=len(names), shared_yaxes=True, horizontal_spacing=0.03,
                          subplot_titles=[_mean(result, name) for name in names])  # fmt: skip
    title = _title(result, "Direct effect and change of the logit, by what replaces it")
    drawn.update_layout(template=TEMPLATE, title_text=title, showlegend=False, margin={"t": 130}, height=480)
    drawn.update_annotations(font_size=12)
    points = table[table.measure.isin(["token_de", "token_dlogit"])]
    de = points[points.measure == "token_de"].value
    ends = [min(0.0, float(de.min())), max(0.0, float(de.max()))]
    for number, name in enumerate(names):
        x, y = (
            points[(points.replaced_by == name) & (points.measure == measure)].sort_values("token").value
            for measure in ("token_de", "token_dlogit")
        )
        place = {"row": 1, "col": number + 1}
        drawn.add_scatter(x=ends, y=[-end for end in ends], mode="lines", hoverinfo="skip",
                          line={"color": GREY, "dash": "dash"}, **place)  # fmt: skip
        drawn.add_scatter(
            x=x, y=y, mode="markers", marker={"color": COLORS[number % len(COLORS)], "size": 5, "opacity": 0.6},
            hovertemplate="direct effect %{x:.2f}, logit %{y:+.2f}<extra></extra>", **place,
        )  # fmt: skip
        drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"}, **place)
        drawn.update_xaxes(title_text="direct effect (logits)", **place)
    drawn.update_yaxes(title_text="change of the logit (logits)", row=1, col=1)
    return drawn


def _mean(result: Result, name: str) -> str:
    """Title of a panel: the ablation and its mean self-repair."""
    table = result.table
    row = table[(table.measure == "self_repair") & (table.replaced_by == name)].iloc[0]
    return (
        f"{name}<br>self-repair {row.value:+.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]"
        f"<br>random direction {row.null:+.2f} [{row.null_low:.2f}, {row.null_high:.2f}]"
    )


def _title(result: Result, text: str) -> str:
    meta, table = result.meta, result.table
    n = table[table.measure == "ratio"].iloc[0]
    what = f"{meta['component']}; {meta['selection']}; {int(n.n_tokens):,} tokens of {int(n.n_stories)} stories"
    return f"{titled(meta, text)}<br><sup>{what}</sup>"


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.15)"
