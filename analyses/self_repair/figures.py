"""Figures of self-repair, drawn from its Result alone; every title says which tokens were selected."""

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, Page, curve, error_bars, figure, heat_map
from analyses.page import circuitsvis_bundle
from analyses.result import Result
from analyses.self_repair.captions import NAMED, titled
from analyses.self_repair.depth import shares_by_depth, spread
from analyses.self_repair.plane import de_vs_dlogit, token_grid, token_noise
from analyses.self_repair.text_page import text_page
from analyses.self_repair.token_view import token_view

SHARES = {
    "sr_heads": "other heads",
    "sr_mlps": "MLPs",
    "sr_ln": "final norm",
    "sr_own": "own, rescaled",
    "sr_gate": "masks",
}


def self_repair_figures(result: Result) -> dict[str, go.Figure | Page]:
    """All that the Result holds enough of, by file name."""
    found: dict[str, go.Figure | Page] = {
        "repair_by_depth": repair_by_depth(result),
        "de_vs_dlogit": de_vs_dlogit(result),
        "token_grid": token_grid(result),
        "breakdown_bars": breakdown_bars(result),
        "ln_fraction_by_depth": ln_fraction_by_depth(result),
        "ln_ratio_hist": ln_ratio_hist(result),
        "repair_heatmap": repair_heatmap(result),
    }
    if "sr_frac_clipped" in result.table:  # not of a Result from before there was one
        found["shares_by_depth"] = shares_by_depth(result)
    if result.meta["grid"] and "stories" in result.meta["grid"][0]:
        found["token_noise"] = token_noise(result)
    if "matrix" in result.meta:
        found["repair_matrix"] = repair_matrix(result)
    if result.meta.get("texts"):
        found["text"] = text_page(result)
        if bundle := circuitsvis_bundle():
            found["token_view"] = token_view(result, bundle)
    return found


def repair_by_depth(result: Result) -> go.Figure:
    """Self-repair of each component with its interval, and the mean of each layer, over depth."""
    table, asked = result.table[result.table.n_tokens > 0], result.meta["knobs"]["components"]
    drawn = figure(
        title=titled(result, "Self-repair by depth"), x_title="layer / layers", y_title="self-repair (logits)"
    )
    drawn.add_scatter(
        x=spread(table), y=table.self_repair, mode="markers",
        name=f"{NAMED.get(asked, asked)} [95 %]", marker={"color": COLORS[0]},
        error_y=error_bars(table.self_repair, table.ci_low, table.ci_high, thickness=1, width=0),
        customdata=table[["component", "n_tokens", "ln_own"]],
        hovertemplate="%{customdata[0]}: %{y:.3f} logits over %{customdata[1]:,} tokens; "
        "norm without reaction %{customdata[2]:.3f}<extra></extra>",
    )  # fmt: skip
    layers = table.groupby("depth")[["self_repair", "ln_own"]].mean()
    drawn.add_scatter(x=layers.index, y=layers.self_repair, mode="lines", name="mean of the layer",
                      line={"color": COLORS[1]})  # fmt: skip
    drawn.add_scatter(x=layers.index, y=layers.ln_own, mode="lines", name="norm, if nothing reacted",
                      line={"color": COLORS[6], "dash": "dot"})  # fmt: skip
    drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"})
    return drawn


def breakdown_bars(result: Result) -> go.Figure:
    """What each component's self-repair is made of, beside its direct effect, clean and ablated; a row a layer."""
    table = result.table
    layers = sorted(table.layer.unique())
    drawn = make_subplots(rows=len(layers), cols=1, shared_yaxes=True, vertical_spacing=min(0.08, 0.3 / len(layers)))
    title = titled(result, f"What self-repair is made of, order {result.meta['knobs']['ln_order']}")
    drawn.update_layout(
        template=TEMPLATE, title_text=title, barmode="group", height=150 + 150 * len(layers), margin={"t": 110},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"},
    )  # fmt: skip
    series = {"de": "direct effect", "ade": "direct effect, ablated", **SHARES}
    for i, (column, name) in enumerate(series.items()):
        if column not in ("de", "ade") and not np.nan_to_num(table[column].to_numpy(float)).any():
            continue
        for row, layer in enumerate(layers, start=1):
            mine = table[table.layer == layer]
            drawn.add_bar(
                x=mine.component, y=mine[column], name=name, marker={"color": COLORS[(i + 5) % len(COLORS)]},
                legendgroup=column, showlegend=row == 1, row=row, col=1,
                hovertemplate=f"%{{x}}, {name}: %{{y:.3f}} logits<extra></extra>",
            )  # fmt: skip
    doubtful = table[table.ill_conditioned.astype(bool) & (table.n_tokens > 0)]
    for number, (layer, mine) in enumerate(doubtful.groupby("layer")):
        drawn.add_scatter(
            x=mine.component, y=np.zeros(len(mine)), mode="markers", name="norm and MLPs cancel: see symmetric",
            marker={"symbol": "x-thin", "size": 9, "line": {"width": 2, "color": "#222222"}}, legendgroup="doubtful",
            showlegend=number == 0, row=layers.index(layer) + 1, col=1,
        )  # fmt: skip
    drawn.update_yaxes(matches="y")
    drawn.update_yaxes(title_text="logits", row=(len(layers) + 1) // 2, col=1)
    return drawn


def ln_fraction_by_depth(result: Result) -> go.Figure:
    """The final norm's share of the direct effect in three kinds; the clipped one is above 0 for noise."""
    table = result.table
    kinds = {
        "ln_frac_clipped": "clipped to 0..1 by token (published; biased upwards)",
        "ln_frac_median": "median over tokens",
        "ln_frac": "ratio of sums",
    }
    means = table.groupby("depth")[list(kinds)].mean()
    drawn = curve(
        {name: (means.index, means[column]) for column, name in kinds.items()},
        title=titled(result, "The final norm's share of the direct effect"),
        x_title="layer / layers",
        y_title="share of the direct effect",
        mode="lines+markers",
    )
    drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"})
    return drawn


def ln_ratio_hist(result: Result) -> go.Figure:
    """How the ablation changes the scale of the final norm; above 1 it falls, and all that is left is raised."""
    detail = result.meta["scale_ratio"]
    edges = np.asarray(detail["edges"])
    drawn = figure(
        title=titled(result, f"Scale of the final norm, clean / ablated: {100 * detail['above_1']:.0f} % above 1"),
        x_title="clean / ablated scale", y_title=f"tokens, of {detail['n']:,}",
    )  # fmt: skip
    drawn.add_bar(
        x=(edges[1:] + edges[:-1]) / 2, y=detail["counts"], width=np.diff(edges), name="tokens of all components",
        hovertemplate="%{x:.3f}: %{y:,} tokens<extra></extra>",
    )  # fmt: skip
    drawn.add_vline(x=1, line={"color": "#888888", "dash": "dot"})
    return drawn


def repair_heatmap(result: Result) -> go.Figure:
    """Self-repair of every component, logits: a row a layer, a column a head; layers as a whole are one column."""
    table = result.table.assign(column=[str(int(h)) if h == h and h is not None else k for h, k in
                                        zip(result.table["head"], result.table.kind, strict=True)])  # fmt: skip
    values = table.pivot(index="layer", columns="column", values="self_repair")
    names = sorted(values.columns, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    return heat_map(
        values[names], x=[f"head {n}" if n.isdigit() else n for n in names], y=[f"layer {i}" for i in values.index],
        title=titled(result, "Self-repair"), x_title="", y_title="", unit="logits",
    )  # fmt: skip


def repair_matrix(result: Result) -> go.Figure:
    """Who repairs what: change of the direct effect of each later component when one is taken out."""
    detail = result.meta["matrix"]
    drawn = heat_map(
        detail["values"], x=detail["columns"], y=list(result.table.component),
        title=titled(result, "Change of direct effects, clean scale"), x_title="repairs", y_title="taken out",
        unit="logits a token",
    )  # fmt: skip
    drawn.update_yaxes(automargin=True, title_standoff=10)
    drawn.update_xaxes(automargin=True, title_standoff=10)
    return drawn
