"""The page of cost curves, drawn from their JSON alone: seconds and memory, measured and fitted.

The JSON (`make bench ARGS=--curves` writes it) has `machine`, `date`, `base` (the size that all
points share but for one axis), `points` and `fits`. A point has `axis`, its value `x`, `arm`, and
`measured` and `fitted` values by quantity; a fit is an `analyses.cost_fit.Fit` as a dictionary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analyses.figures import COLORS, figure
from analyses.page import document, escaped, figure_html, number, pairs_html, table_html

AXES = {
    "n_layers": "layers",
    "n_heads": "heads",
    "n_ctx": "context, tokens",
    "d_vocab": "vocabulary, ids",
    "d_model": "width of the residual stream",
    "k": "k, winners of attention and MLP each",
    "tokens": "tokens a batch",
    "n_units": "units",
    "n_prompts": "prompts",
    "n_edges": "edges of the model's graph",
}
QUANTITIES = {
    "training_seconds": ("Training: time of a step", "seconds", 1.0),
    "training_memory": ("Training: peak memory of the process, without its libraries", "MiB", 2.0**-20),
    "localization_seconds": ("Localization by single units: time", "seconds", 1.0),
    "localization_memory": ("Localization by single units: peak memory, without libraries", "MiB", 2.0**-20),
    "circuits_seconds": ("Circuits by EAP-IG and by patching every edge: time", "seconds", 1.0),
    "circuits_memory": (
        "Circuits by EAP-IG and by patching every edge: peak memory, libraries aside",
        "MiB",
        2.0**-20,
    ),
}


def cost_page(curves: Mapping[str, Any]) -> str:
    """The whole page."""
    quantities = [name for name in QUANTITIES if any(name in point["measured"] for point in curves["points"])]
    parts = [_quantity_html(name, curves) for name in quantities]
    intro = (
        "<p>What training, localization and circuits cost, measured on small sizes and fitted: a sum of terms, each "
        "with a price of at least 0. All sizes but the one on the x axis are those of the base (the number of edges is "
        "that of layers and heads). Points: medians of interleaved repetitions; lines: the fit.</p>\n"
    )
    machine = {**curves["machine"], "date": curves["date"]}
    rate = f"{machine.pop('matmul_flops') / 1e9:,.0f} GFLOP/s, float32 products of large squares"
    made = pairs_html("Measured on", {**machine, "rate": rate})
    return document("Cost curves", intro + made + pairs_html("Base", curves["base"]) + "".join(parts))


def _quantity_html(quantity: str, curves: Mapping[str, Any]) -> str:
    title, unit, _ = QUANTITIES[quantity]
    points = [point for point in curves["points"] if quantity in point["measured"]]
    axes = [axis for axis in AXES if any(point["axis"] == axis for point in points)]
    figures = "".join(
        figure_html(
            curve_figure(points, axis, quantity),
            f"Against {AXES[axis]}",
            f"{unit}; markers: measured, lines: fitted. n = {sum(p['axis'] == axis for p in points)} sizes.",
        )
        for axis in axes
    )
    fit = fit_html(curves["fits"][quantity], unit) if quantity in curves["fits"] else ""
    return f'<h2>{escaped(title)}</h2>\n<div class="figures">{figures}</div>\n{fit}'


def curve_figure(points: Sequence[Mapping[str, Any]], axis: str, quantity: str) -> go.Figure:
    """Measured markers and fitted lines along one axis, a colour an arm."""
    _, unit, scale = QUANTITIES[quantity]
    drawn = figure(title="", x_title=AXES[axis], y_title=unit)
    here = sorted((p for p in points if p["axis"] == axis), key=lambda p: p["x"])
    for color, arm in zip(COLORS * len(here), dict.fromkeys(p["arm"] for p in here), strict=False):
        mine = [p for p in here if p["arm"] == arm]
        x = [p["x"] for p in mine]
        y = [scale * p["measured"][quantity] for p in mine]
        drawn.add_scatter(x=x, y=y, mode="markers", name=escaped(arm), marker={"color": color}, line={"color": color})
        line = [scale * p["fitted"][quantity] for p in mine if quantity in p["fitted"]]
        drawn.add_scatter(x=x, y=line, mode="lines", line={"color": color}, showlegend=False)
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def fit_html(fit: Mapping[str, Any], unit: str) -> str:
    """The prices and errors of a fit."""
    rows = [(name, f"{price:.3g}") for name, price in fit["coefficients"].items()]
    caption = (
        f"Prices: {'bytes' if unit == 'MiB' else unit} for one unit of each term. R2 {number(fit['r2'])}; largest "
        f"relative error {number(fit['max_error'])}; of points held out of the fit: largest "
        f"{number(fit['held_out_error'])}, median {number(fit['median_held_out_error'])}; n = {fit['n']} points."
    )
    return table_html(("term", "price"), rows, caption)
