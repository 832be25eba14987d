"""Figures of probes, drawn from the Result alone."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, Page, error_bars, heat_map, titled
from analyses.probing.comparison import MEASURES
from analyses.probing.sites import family
from analyses.result import Result

ARMS: dict[str, tuple[str, str]] = {  # column: name, dash
    "accuracy": ("the label", "solid"),
    "control": ("control task", "dash"),
    "untrained": ("untrained model", "dashdot"),
    "shuffle": ("labels shuffled", "dot"),
    "majority": ("majority class", "longdash"),
}
SYMBOLS: tuple[str, ...] = ("circle", "diamond", "square", "x")
"""Of markers: a second round of colours has the second one."""


def probing_figures(result: Result) -> dict[str, go.Figure | Page]:
    """All that the Result holds enough of, by file name."""
    table = placed(result.table)
    found: dict[str, go.Figure | Page] = {}
    for target, part in table[table.probe == "linear"].groupby("target", sort=False):
        found[f"layers-{target}"] = layers_figure(result, part, str(target))
    if len(table[table.probe == "linear"]):
        found["description"] = description_figure(result, table)
    if len(table[table.probe == "sparse"]):
        found["sparse"] = sparse_figure(result, table)
    if "loss_rise" in table:
        found["erasure"] = erasure_figure(result, table)
    if len(table[table.probe == "ridge"]):
        found["masks"] = masks_figure(result, table)
    return found


def placed(table: pd.DataFrame) -> pd.DataFrame:
    """With `family` (site without layer; streams that enter a layer are counted as those that leave the one before) and
    `depth`: layers that have run, the site's own included, where it is in one."""
    families = [family(site).replace("hook_resid_pre", "hook_resid_post") for site in table.site]
    last = int(table.layer.max()) + 1
    depth = [
        last if "ln_final" in row.site else row.layer + ("hook_resid_pre" not in row.site) for row in table.itertuples()
    ]
    return table.assign(family=families, depth=depth)


def layers_figure(result: Result, part: pd.DataFrame, target: str) -> go.Figure:
    """Accuracy by depth for one target: a panel a kind of site; the label, its controls and the majority class."""
    families = list(dict.fromkeys(part.family))
    drawn = _panels(families, shared="all")
    for i, name in enumerate(families):
        rows, place = part[part.family == name].sort_values("depth"), _place(i)
        for j, (column, (arm, dash)) in enumerate(ARMS.items()):
            if column in rows:
                ends = [rows.get(f"{column}_low"), rows.get(f"{column}_high")]
                drawn.add_scatter(
                    x=rows.depth, y=rows[column], name=arm, legendgroup=arm, showlegend=i == 0, mode="lines+markers",
                    error_y=None if ends[0] is None else error_bars(rows[column], *ends, thickness=1, width=0),
                    line={"color": COLORS[j], "dash": dash}, hovertemplate=f"{arm}: %{{y:.3f}}<extra></extra>", **place,
                )  # fmt: skip
    drawn.update_xaxes(title_text="layers that have run", dtick=1)
    drawn.update_yaxes(title_text="accuracy [95 %]", col=1)
    drawn.update_layout(title_text=titled(result.meta, f"Reading {target.replace('_', ' ')} by layer"))
    return drawn


def description_figure(result: Result, table: pd.DataFrame) -> go.Figure:
    """How much shorter the labels' code becomes by knowing the features, by depth: a panel a kind of site."""
    part = table[table.probe == "linear"]
    families = list(dict.fromkeys(part.family))
    drawn = _panels(families, shared="all")
    for i, name in enumerate(families):
        for j, (target, rows) in enumerate(part[part.family == name].groupby("target", sort=False)):
            rows = rows.sort_values("depth")
            drawn.add_scatter(
                x=rows.depth, y=rows.compression, name=str(target), legendgroup=str(target), showlegend=i == 0,
                error_y=error_bars(rows.compression, rows.compression_low, rows.compression_high, thickness=1, width=0),
                mode="lines+markers", **_look(j), hovertemplate=f"{target}: %{{y:.2f}} x<extra></extra>",
                **_place(i),
            )  # fmt: skip
    drawn.update_xaxes(title_text="layers that have run", dtick=1)
    drawn.update_yaxes(title_text="uniform bits / bits [95 %]", col=1)
    drawn.update_layout(title_text=titled(result.meta, "Compression of the labels by the online code"))
    return drawn


def sparse_figure(result: Result, table: pd.DataFrame) -> go.Figure:
    """Accuracy by the number of units, a panel a target and kind of site: each layer, and units at random (thin)."""
    part = table[table.probe.isin(["sparse", "linear"])]
    wanted = part[part.family.str.startswith("mlp.hook_")]
    part = wanted if len(wanted) else part
    families = list(dict.fromkeys(part.family))
    panels = [(target, name) for target in dict.fromkeys(part.target) for name in families]
    drawn = _panels([f"{target.replace('_', ' ')}: {name}" for target, name in panels], _beside(families))
    names = list(dict.fromkeys(_layer_name(row) for row in part.itertuples()))
    shown: set[str] = set()
    for i, (target, kind) in enumerate(panels):
        for site, rows in part[(part.target == target) & (part.family == kind)].groupby("site", sort=False):
            rows = rows.sort_values("k")
            sparse, name = rows[rows.probe == "sparse"], _layer_name(next(rows.itertuples()))
            look = _look(names.index(name))
            drawn.add_scatter(
                x=rows.k, y=rows.accuracy, name=name, legendgroup=name, showlegend=name not in shown,
                mode="lines+markers", **look,
                error_y=error_bars(rows.accuracy, rows.accuracy_low, rows.accuracy_high, thickness=1, width=0),
                hovertemplate=f"{site}, %{{x}} units: %{{y:.3f}}<extra></extra>", **_place(i),
            )  # fmt: skip
            drawn.add_scatter(
                x=sparse.k, y=sparse.random_units, legendgroup=name, showlegend=False, mode="lines",
                line={**look["line"], "dash": "dot", "width": 1},
                hovertemplate=f"{site}, %{{x}} drawn units: %{{y:.3f}}<extra></extra>", **_place(i),
            )  # fmt: skip
            shown.add(name)
    drawn.update_xaxes(title_text="units", type="log", dtick=float(np.log10(2)), tickformat="d")
    drawn.update_yaxes(title_text="accuracy [95 %]", col=1)
    drawn.update_layout(title_text=titled(result.meta, "How few units carry the label (thin: units at random)"))
    return drawn


def erasure_figure(result: Result, table: pd.DataFrame) -> go.Figure:
    """Rise of the loss when the label is erased, and when a random subspace of its rank is, a panel a target."""
    part = table[(table.probe == "linear") & table.loss_rise.notna()]
    targets = list(dict.fromkeys(part.target))
    drawn = _panels([target.replace("_", " ") for target in targets], shared=False)
    for i, target in enumerate(targets):
        rows = part[part.target == target]
        for column, name, color in (("loss_rise", "the label", COLORS[1]), ("random_rise", "at random", COLORS[6])):
            drawn.add_bar(
                x=rows.site, y=rows[column], name=name, legendgroup=name, showlegend=i == 0, marker={"color": color},
                error_y=error_bars(rows[column], rows[f"{column}_low"], rows[f"{column}_high"], thickness=1, width=0),
                customdata=rows[["rank", "erased", "majority"]],
                hovertemplate="%{x}: %{y:.4f} nats a token<br>%{customdata[0]} directions; a new probe then reads "
                "%{customdata[1]:.3f} (majority %{customdata[2]:.3f})<extra></extra>", **_place(i),
            )  # fmt: skip
    drawn.update_yaxes(title_text="rise of the loss (nats)", col=1)
    drawn.update_xaxes(tickangle=45)
    drawn.update_layout(title_text=titled(result.meta, "What the model loses when the label is erased"))
    drawn.update_layout(height=drawn.layout.height + 160)
    return drawn


def masks_figure(result: Result, table: pd.DataFrame) -> go.Figure:
    """Share of each mask's winners found from each site, beyond the units that win most often."""
    rows = table[table.probe == "ridge"]
    beyond = (rows.assign(value=rows.accuracy - rows.majority)).pivot(index="target", columns="site", values="value")
    beyond = beyond.loc[list(dict.fromkeys(rows.target)), list(dict.fromkeys(rows.site))]
    drawn = heat_map(
        beyond.to_numpy(), x=list(beyond.columns), y=list(beyond.index), unit="share",
        title=titled(result.meta, "Winners read from the residual stream, beyond the usual ones"),
        x_title="read from", y_title="mask",
    )  # fmt: skip
    drawn.update_yaxes(automargin=True, autorange="reversed")
    drawn.update_xaxes(automargin=True)
    return drawn


def arms_figures(result: Result) -> dict[str, go.Figure | Page]:
    """Each measure by depth, arms side by side: a figure a target and measure.

    Args:
        result: of `comparison.probing_compared`.
    """
    table = result.table.assign(
        layer=[int(site.split(".")[1]) if site.startswith("blocks.") else -1 for site in result.table.site]
    )
    table = placed(table).astype({"value": float})
    arms, found = list(dict.fromkeys(table.arm)), {}
    known = table.dropna(subset="value")
    for target, measure in known[["target", "measure"]].drop_duplicates().itertuples(index=False):
        part = known[(known.target == target) & (known.measure == measure)]
        families = list(dict.fromkeys(part.family))
        drawn = _panels(families, shared="all")
        for i, name in enumerate(families):
            mine = part[part.family == name].sort_values("depth")
            for arm, seed in mine[["arm", "seed"]].drop_duplicates().itertuples(index=False):
                rows = mine[(mine.arm == arm) & (mine.seed.eq(seed) | mine.seed.isna())]
                bars = rows.ci_low.notna().any()
                drawn.add_scatter(
                    x=rows.depth, y=rows.value, name=arm, legendgroup=arm, mode="lines+markers",
                    showlegend=not any(trace.name == arm and trace.showlegend for trace in drawn.data),
                    error_y=error_bars(rows.value, rows.ci_low, rows.ci_high, thickness=1, width=0) if bars else None,
                    **_look(arms.index(arm)), opacity=0.7,
                    hovertemplate=f"{arm}, seed {seed}: %{{y:.3f}}<extra></extra>", **_place(i),
                )  # fmt: skip
        drawn.update_xaxes(title_text="layers that have run", dtick=1)
        drawn.update_yaxes(title_text=MEASURES[str(measure)], col=1)
        drawn.update_layout(title_text=f"{measure} of {target}, by arm".replace("_", " "))
        found[f"{measure}-{target}"] = drawn
    return found


def _beside(families: list[str]) -> str | bool:
    """The scale is shared in a row where the two kinds of site of a target stand in it."""
    return "rows" if len(families) == 2 else False


def _panels(titles: list[str], shared: str | bool) -> go.Figure:
    """Frames in two columns, one a title; `shared`: Plotly's `shared_yaxes`."""
    n_rows = -(-len(titles) // 2)
    drawn = make_subplots(
        rows=n_rows, cols=min(2, len(titles)), subplot_titles=titles, shared_yaxes=shared,
        vertical_spacing=0.36 / n_rows,
    )  # fmt: skip
    drawn.update_layout(template=TEMPLATE, height=170 + 300 * n_rows)
    return drawn


def _layer_name(row: Any) -> str:
    """`layer 2`; the site itself where it is in none."""
    return f"layer {row.layer}" if row.layer >= 0 else row.site


def _look(j: int) -> dict[str, Any]:
    """Line and marker of series `j`: the colours in turn, each round of them with another marker."""
    return {
        "line": {"color": COLORS[j % len(COLORS)]},
        "marker": {"symbol": SYMBOLS[j // len(COLORS) % len(SYMBOLS)], "size": 6},
    }


def _place(i: int) -> dict[str, int]:
    return {"row": i // 2 + 1, "col": i % 2 + 1}
