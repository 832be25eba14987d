"""Figures of masks against circuits, drawn from the Results of `mask_overlap` and `mask_usage` alone."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.figures import figure, heat_map
from analyses.result import Result

NAMES = {
    "mask": "masks",
    "other_text": "masks on other text",
    "magnitude": "mean |activation|",
    "random": "chance, within layers",
    "matched": "chance, equal |activation|",
    "other_prompts": "masks of other prompts",
    "mask_union": "masks, all tokens together",
    "shuffled_units": "masks, units shuffled",
    "attribution": "attribution",
    "exact": "each unit ablated alone",
    "attribution_token": "attribution by token",
    "attribution, as mask_union": "attribution, as all tokens together",
}
WHERE = {"all": "all positions", "end": "last position"}


def overlap_figure(
    result: Result, measure: str = "auroc", positions: str = "end", scores: str = "attribution"
) -> go.Figure:
    """How well masks and other rankings name the circuit's units: a dot with an interval each, a colour a site."""
    table = result.table
    rows = table[(table.measure == measure) & (table.positions == positions) & (table.scores == scores)]
    rows = rows[rows.layer.isna() & (rows.by != "circuit")]
    size = int(rows["size"].iloc[0]) if len(rows) else 0
    drawn = figure(
        title=_title(result, f"The {size} units of the circuit among those that masks name, {WHERE[positions]}"),
        x_title="ranking of units",
        y_title=measure,
    )
    for site, part in rows.groupby("site", sort=False):
        _dots(drawn, part, {"all": "all units", "attn": "z channels", "mlp": "neurons"}[str(site)])
    if measure.endswith("auroc"):
        drawn.add_hline(y=0.5, line={"color": "#BBBBBB", "dash": "dot"})
    drawn.update_layout(scattermode="group")
    return drawn


def layers_figure(result: Result, positions: str = "end", scores: str = "attribution") -> go.Figure:
    """Heat map: auroc of the masks minus that of chance, layer by site; blank where no unit is of the circuit."""
    table = result.table
    rows = table[(table.by == "random") & (table.positions == positions) & (table.scores == scores)]
    grid = rows[rows.layer.notna()].pivot(index="layer", columns="site", values="difference")
    return heat_map(
        grid.to_numpy(dtype=float),
        x=[str(site) for site in grid.columns],
        y=[int(layer) for layer in grid.index],
        title=_title(result, f"Where masks name the circuit, {WHERE[positions]}"),
        x_title="site",
        y_title="layer",
        unit="auroc above chance",
    )


def faithfulness_figure(result: Result) -> go.Figure:
    """Faithfulness of masks as circuits, of their nulls, and of attribution's circuits of equal size."""
    rows = result.table[result.table.measure.isin(["faithfulness", "faithfulness_at_equal_size"])]
    drawn = figure(
        title=_title(result, "Masks as circuits, and attribution's circuits of equal size"),
        x_title="circuit",
        y_title="faithfulness (share of the value that the units add)",
    )
    for positions, part in rows.groupby("positions", sort=False):
        _dots(drawn, part, WHERE[str(positions)])
    drawn.add_hline(y=1, line={"color": "#BBBBBB", "dash": "dot"})
    drawn.update_layout(scattermode="group")
    return drawn


def sizes_figure(result: Result) -> go.Figure:
    """Units a token of the masks, and of attribution's circuits that are as faithful."""
    rows = result.table[result.table.measure.isin(["units_a_token", "units_at_equal_faithfulness"])]
    drawn = figure(
        title=_title(result, "Units a token for the faithfulness of the masks"),
        x_title="circuit",
        y_title="units a token",
    )
    for positions, part in rows.groupby("positions", sort=False):
        _dots(drawn, part, WHERE[str(positions)])
    drawn.update_layout(scattermode="group")
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def usage_figure(usage: Result, positions: str = "end") -> go.Figure:
    """A dot a unit: its usage on other text against that on the task; away from the diagonal it is the task's own."""
    rows = usage.table[usage.table.positions == positions]
    other = usage.meta["knobs"]["other"]
    drawn = figure(
        title=_title(usage, f"Units that masks name, {WHERE[positions]}"),
        x_title=f"usage on {other} (share of tokens)",
        y_title="usage on the task (share of tokens)",
    )
    drawn.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="equal", line={"color": "#BBBBBB", "dash": "dot"})
    for site, part in rows.groupby("site", sort=False):
        drawn.add_scatter(
            x=part.usage_other, y=part.usage, mode="markers", name={"attn": "z channels", "mlp": "neurons"}[str(site)],
            text=part.name, hovertemplate="%{text}: %{y:.3f}, elsewhere %{x:.3f}<extra></extra>", marker={"size": 6},
        )  # fmt: skip
    return drawn


def mask_figures(result: Result) -> dict[str, go.Figure]:
    """All figures of an overlap by file name."""
    found = {}
    for positions in result.meta["knobs"]["positions"]:
        for scores in result.meta["knobs"]["scores"]:
            found[f"overlap_{positions}_{scores}"] = overlap_figure(result, "auroc", positions, scores)
            found[f"layers_{positions}_{scores}"] = layers_figure(result, positions, scores)
    return {**found, "mask_faithfulness": faithfulness_figure(result), "mask_sizes": sizes_figure(result)}


def _dots(drawn: go.Figure, rows: pd.DataFrame, name: str) -> None:
    value = rows.value.to_numpy(dtype=float)
    above, below = (np.abs(rows[end].to_numpy(dtype=float) - value) for end in ("ci_high", "ci_low"))
    drawn.add_scatter(
        x=[NAMES[by] for by in rows.by], y=value, mode="markers", name=name, marker={"size": 8},
        error_y={"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1, "width": 0},
        hovertemplate="%{x}: %{y:.3g}<extra>" + name + "</extra>",
    )  # fmt: skip


def _title(result: Result, what: str) -> str:
    task, knobs = result.meta["task"], result.meta["knobs"]
    details = [str(x) for x in (task.get("name"), knobs.get("ablation")) if x]
    return f"{what} ({', '.join(details)})"
