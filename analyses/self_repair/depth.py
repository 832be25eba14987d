"""Self-repair along the layers: of one model, of several, and what it is made of."""

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, figure
from analyses.result import Result
from analyses.self_repair.captions import titled

PARTS = {"sr_ln": ("final norm", "ln"), "sr_mlps": ("MLPs", "mlps"), "sr_heads": ("other heads", "heads")}
KINDS = {
    "frac_clipped": "clipped to 0..1 by token (published; biased upwards)",
    "frac_median": "median over tokens",
    "ratio": "ratio of sums",
}


def shares_by_depth(result: Result) -> go.Figure:
    """What the norm, MLPs and other heads make up for: above in logits, below as shares of the direct effect."""
    table = result.table[result.table.n_tokens > 0]
    titles = [*(name for name, _ in PARTS.values()), "", "", ""]
    drawn = make_subplots(rows=2, cols=3, subplot_titles=titles, shared_xaxes=True, vertical_spacing=0.1)
    title = titled(result, "What self-repair is made of, by depth")
    drawn.update_layout(template=TEMPLATE, title_text=title, height=680, margin={"t": 100},
                        legend={"orientation": "h", "y": -0.12})  # fmt: skip
    for number, (column, (_, short)) in enumerate(PARTS.items()):
        place = {"row": 1, "col": number + 1}
        drawn.add_scatter(
            x=spread(table), y=table[column], mode="markers", name="component", showlegend=number == 0,
            marker={"color": COLORS[6], "size": 6}, customdata=table[["component", "n_tokens"]],
            hovertemplate="%{customdata[0]}: %{y:.3f} logits over %{customdata[1]:,} tokens<extra></extra>", **place,
        )  # fmt: skip
        means = table.groupby("depth")[column].mean()
        drawn.add_scatter(x=means.index, y=means, mode="lines", name="mean of the layer", showlegend=number == 0,
                          line={"color": "#222222"}, **place)  # fmt: skip
        shares = table.assign(ratio=table[column] / table.de, frac_clipped=table[f"{short}_frac_clipped"],
                              frac_median=table[f"{short}_frac_median"])  # fmt: skip
        for i, (kind, name) in enumerate(KINDS.items()):
            means = shares.groupby("depth")[kind].mean()
            drawn.add_scatter(x=means.index, y=means, mode="lines+markers", name=name, showlegend=number == 0,
                              line={"color": COLORS[i]}, row=2, col=number + 1)  # fmt: skip
        drawn.update_xaxes(title_text="layer / layers", row=2, col=number + 1)
        for row in (1, 2):
            drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"}, row=row, col=number + 1)
    drawn.update_yaxes(title_text="logits", row=1, col=1)
    drawn.update_yaxes(title_text="share of the direct effect", row=2, col=1)
    return drawn


def spread(table: pd.DataFrame) -> pd.Series:
    """Depth of each component, those of a layer beside one another."""
    within = table.groupby("layer").cumcount() / table.groupby("layer").layer.transform("size")
    return table.depth + 0.3 * within / max(1, int(table.layer.max()) + 1)


def depth_of_models(result: Result) -> go.Figure:
    """Self-repair by depth of every model of a comparison: a dot a component, a line through the means of the layers.

    Args:
        result: of `comparison.self_repair_compared`.
    """
    knobs, arms = result.meta["knobs"], list(dict.fromkeys(result.table.arm))
    drawn = figure(
        title=f"Self-repair by depth<br><sup>{knobs['selection']}; {knobs['ablation']}; means of layers as lines</sup>",
        x_title="layer / layers", y_title="self-repair (logits)",
    )  # fmt: skip
    for number, (name, model) in enumerate(result.meta["models"].items()):
        table = pd.DataFrame(model["components"])
        color = COLORS[arms.index(model["arm"]) % len(COLORS)]
        shift = 0.02 * (number / max(1, len(result.meta["models"]) - 1) - 0.5)
        drawn.add_scatter(
            x=table.depth + shift, y=table.self_repair, mode="markers", name=name, legendgroup=name, showlegend=False,
            marker={"color": color, "size": 5, "opacity": 0.5}, text=table.component,
            hovertemplate=f"{name}, %{{text}}: %{{y:.3f}} logits<extra></extra>",
        )  # fmt: skip
        means = table.groupby("depth").self_repair.mean()
        drawn.add_scatter(x=means.index, y=means, mode="lines", name=name, legendgroup=name, line={"color": color})
    drawn.add_hline(y=0, line={"color": "#BBBBBB", "dash": "dot"})
    return drawn
