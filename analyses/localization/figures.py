"""Figures of unit effects, drawn from the Result alone."""

import plotly.graph_objects as go

from analyses.figures import curve, error_bars, figure, heat_map
from analyses.metrics import concentration_curve, gini
from analyses.result import Result


def head_figure(result: Result) -> go.Figure:
    """Heat map of the heads: layer by head, effect on the logit difference."""
    heads = result.table[result.table.kind == "head"]
    grid = heads.pivot(index="layer", columns="head", values="effect_logit_diff")
    drawn = heat_map(
        grid.to_numpy(dtype=float),
        x=[int(head) for head in grid.columns],
        y=[int(layer) for layer in grid.index],
        title=_title(result, "Effect of ablating one head"),
        x_title="head",
        y_title="layer",
        unit="logits",
    )
    # Plotly's own choice of ticks has half numbers in it on a wide screen.
    drawn.update_xaxes(tickmode="linear", tick0=0, dtick=max(1, len(grid.columns) // 12))
    drawn.update_yaxes(tickmode="linear", tick0=0, dtick=max(1, len(grid) // 12))
    return drawn


def effects_figure(result: Result, kind: str) -> go.Figure:
    """Effects of all units of a kind, largest |effect| first, with 95 % intervals, a colour a layer."""
    rows = result.table[result.table.kind == kind].reset_index(drop=True)
    drawn = figure(
        title=_title(result, f"Effect of ablating one {kind}"),
        x_title=f"{kind}s, largest |effect| first (rank)",
        y_title="effect on the logit difference (logits)",
    )
    index = ["head", "channel"] if kind == "channel" else [kind]
    for layer, part in rows.groupby("layer"):
        effect = part.effect_logit_diff
        drawn.add_scatter(
            x=part.index.to_numpy() + 1, y=effect, mode="markers", name=f"layer {layer}", marker={"size": 5},
            error_y=error_bars(effect, part.ci_low, part.ci_high, thickness=0.7, width=0),
            text=[f"layer {layer}, " + ", ".join(f"{c} {v}" for c, v in zip(index, cells, strict=True))
                  for cells in part[index].to_numpy()],
            hovertemplate="%{text}: %{y:.4g} logits<extra></extra>",
        )  # fmt: skip
    drawn.update_xaxes(type="log")
    return drawn


def concentration_figure(result: Result) -> go.Figure:
    """Share of the total |effect| that the largest units hold, a curve a kind; the Gini in its name."""
    series = {}
    for kind, part in result.table.groupby("kind", sort=False):
        effects = part.effect_logit_diff.to_numpy(dtype=float)
        series[f"{kind}s (Gini {float(gini(effects)):.2f})"] = concentration_curve(effects)
    drawn = curve(
        series,
        title=_title(result, "Concentration of the effect"),
        x_title="share of units, largest |effect| first",
        y_title="share of the total |effect|",
        diagonal=True,
    )
    drawn.update_yaxes(range=[0, 1.02])
    return drawn


def unit_figures(result: Result) -> dict[str, go.Figure]:
    """All figures of a result by file name."""
    kinds = [str(kind) for kind in result.table.kind.unique()]
    heads = {"heads": head_figure(result)} if "head" in kinds else {}
    sorted_effects = {f"{kind}s_sorted": effects_figure(result, kind) for kind in kinds}
    return {**heads, **sorted_effects, "concentration": concentration_figure(result)}


def _title(result: Result, what: str) -> str:
    task, knobs = result.meta.get("task", {}), result.meta.get("knobs", {})
    details = [str(x) for x in (task.get("name"), knobs.get("ablation"), knobs.get("stream")) if x]
    return f"{what} ({', '.join(details)})" if details else what
