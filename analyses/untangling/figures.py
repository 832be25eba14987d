"""Figures of untangling, drawn from its Result alone."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, Page, error_bars, figure, heat_map
from analyses.page import document
from analyses.result import Result
from analyses.untangling.pareto import front

SHOWN = {
    "latents": COLORS[0], "latents, one by one": COLORS[5], "greedy": COLORS[2], "masks": COLORS[1],
    "masks clean": COLORS[4], "units": COLORS[3], "random": COLORS[6],
}  # fmt: skip
"""Methods of the curves and their colours; the others stand in the areas."""
PAIRS = (("latents", "random"), ("masks", "units ablated"), ("units", "neurons"))
"""The method whose curve is drawn over the tolerance, the first that a run has, and what it is compared with."""


def untangling_figures(result: Result) -> dict[str, go.Figure | Page]:
    """All that the Result holds enough of, by file name."""
    from analyses.untangling.page import answers_html

    found: dict[str, go.Figure | Page] = {
        "tolerance": tolerance_figure(result),
        "fronts": fronts_figure(result),
        "areas": areas_figure(result),
        "history": history_figure(result),
    }
    for i, points in enumerate(result.meta["importance"][:12]):
        found[f"importance_{i}"] = importance_figure(points)
    for i, sample in enumerate(result.meta["states"][:12]):
        found[f"latents_{i}"] = latents_figure(sample)
    if result.meta["states"]:
        found["density"] = density_figure(result)
    if result.meta["knowledge"]:
        found["knowledge"] = knowledge_figure(result)
    if result.meta["answers"]:
        found["answers"] = Page(document("Answers before and after", answers_html(result)))
    return found


def panels(result: Result) -> list[tuple[str, str]]:
    """(arm, task removed), a panel each."""
    columns = result.table[["arm", "target"]].drop_duplicates()
    return list(columns.itertuples(index=False, name=None))


def grid(result: Result, title: str, x_title: str, y_title: str) -> tuple[go.Figure, list[tuple[str, str]]]:
    """A frame a panel, two in a row."""
    shown = panels(result)
    n_rows = -(-len(shown) // 2)
    drawn = make_subplots(
        rows=n_rows, cols=2, subplot_titles=[f"{arm}: {target} removed" for arm, target in shown],
        vertical_spacing=0.3 / max(2, n_rows), x_title=x_title, y_title=y_title,
    )  # fmt: skip
    drawn.update_layout(template=TEMPLATE, title_text=title, height=170 + 340 * n_rows, margin_t=110)
    return drawn, shown


def bands(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean over seeds and folds by tau, and the lowest and highest of them."""
    groups = table.groupby("tau")[column]
    return pd.DataFrame({name: getattr(groups, name)() for name in ("mean", "min", "max")})


def tolerance_figure(result: Result) -> go.Figure:
    """Both accuracies on held-out examples over the tolerance; the band spans all seeds and folds."""
    drawn, shown = grid(
        result, "What goes and what stays, on held-out pairs (band: all seeds and folds)",
        "tolerance (nats a token; leftmost: 0)", "exact match",
    )  # fmt: skip
    looks = {"target_accuracy": ("removed task", COLORS[1]), "preserved_accuracy": ("kept task", COLORS[0])}
    for i, (arm, target) in enumerate(shown):
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        part = held(result.table, arm, target)
        main, beside = next(pair for pair in PAIRS if (part.method == pair[0]).any() or pair == PAIRS[-1])
        drawn.layout.annotations[i].text = f"{arm}: {target} removed<br>by {main} (dotted: {beside})"
        for method, dash in ((main, "solid"), (beside, "dot")):
            rows = part[part.method == method]
            for column, (name, color) in looks.items() if len(rows) else ():
                curve = bands(rows, column)
                x = np.maximum(curve.index.to_numpy(float), 2e-4)
                shown_in_legend = {"legendgroup": name, "showlegend": i == 0 and dash == "solid"}
                if dash == "solid":
                    drawn.add_scatter(
                        x=[*x, *x[::-1]], y=[*curve["max"], *curve["min"][::-1]], fill="toself", mode="none",
                        fillcolor=color, opacity=0.15, hoverinfo="skip", legendgroup=name, showlegend=False, **place,
                    )  # fmt: skip
                drawn.add_scatter(
                    x=x, y=curve["mean"], name=name, line={"color": color, "dash": dash}, mode="lines+markers",
                    customdata=rows.groupby("tau").n_removed.mean(),
                    hovertemplate=f"{method}, tau %{{x:.4g}}: %{{y:.3f}}, %{{customdata:.0f}} parts<extra></extra>",
                    **shown_in_legend, **place,
                )  # fmt: skip
        drawn.update_xaxes(type="log", tickvals=[2e-4, 1e-3, 1e-2, 1e-1], ticktext=["0", ".001", ".01", ".1"], **place)
        drawn.update_yaxes(range=[-0.03, 1.03], **place)
    return drawn


def held(table: pd.DataFrame, arm: str, target: str) -> pd.DataFrame:
    return table.loc[(table.split == "held_out") & (table.arm == arm) & (table.target == target)]


def fronts_figure(result: Result) -> go.Figure:
    """Kept over removed, mean of seeds and folds at each tolerance, with the staircase of each method's front."""
    drawn, shown = grid(
        result, "Removed and kept, on held-out pairs", "removed (1 - exact match)", "kept (exact match)"
    )
    for i, (arm, target) in enumerate(shown):
        place = {"row": i // 2 + 1, "col": i % 2 + 1}
        part = held(result.table, arm, target)
        drawn.add_scatter(
            x=[0, 1], y=[1, 0], mode="lines", line={"color": "#BBBBBB", "dash": "dot"}, showlegend=False, **place
        )
        for method, color in SHOWN.items():
            if len(rows := part[part.method == method]):
                points = rows.groupby("tau")[["target_accuracy", "preserved_accuracy"]].mean()
                x, y = front(1 - points.target_accuracy, points.preserved_accuracy)
                drawn.add_scatter(
                    x=x, y=y, name=method, mode="lines+markers", line={"color": color, "shape": "vh"},
                    legendgroup=method, showlegend=i == first_panel(result, method),
                    hovertemplate=f"{method}: removed %{{x:.2f}}, kept %{{y:.2f}}<extra></extra>", **place,
                )  # fmt: skip
        drawn.update_xaxes(range=[-0.03, 1.03], **place)
        drawn.update_yaxes(range=[-0.03, 1.03], **place)
    return drawn


def first_panel(result: Result, method: str) -> int:
    """The first panel in which a method is drawn."""
    for i, (arm, target) in enumerate(panels(result)):
        if (held(result.table, arm, target).method == method).any():
            return i
    return -1


def areas_figure(result: Result) -> go.Figure:
    """Area under the front by method, a marker a seed, for each arm and direction."""
    rows = pd.DataFrame(result.meta["areas"])
    names, arms, targets = (list(dict.fromkeys(rows[column])) for column in ("method", "arm", "target"))
    drawn = make_subplots(
        rows=len(targets), cols=1, subplot_titles=[f"{target} removed" for target in targets],
        vertical_spacing=0.32 / len(targets), y_title="area",
    )  # fmt: skip
    title = "Area under the front, held-out pairs (1: clean removal; bars: 95 % over seeds)"
    drawn.update_layout(template=TEMPLATE, title_text=title, height=200 + 360 * len(targets), margin_b=120)
    for i, (target, arm) in enumerate((target, arm) for target in targets for arm in arms):
        place = {"row": targets.index(target) + 1, "col": 1}
        part = rows[(rows.arm == arm) & (rows.target == target)]
        at = np.array([names.index(m) for m in part.method]) + (arms.index(arm) - (len(arms) - 1) / 2) * 0.7 / len(arms)
        value, low, high = (part[c].astype(float).fillna(part.area).clip(0, 1) for c in ("area", "ci_low", "ci_high"))
        look = {"name": arm, "legendgroup": arm, "marker": {"color": COLORS[arms.index(arm) % len(COLORS)]}}
        drawn.add_scatter(
            x=at, y=value, mode="markers", showlegend=i < len(arms), customdata=part[["method", "n_seeds"]],
            error_y=error_bars(value, low, high, thickness=1, width=0),
            hovertemplate="%{customdata[0]}: %{y:.3f}, %{customdata[1]} seeds<extra></extra>", **look, **place,
        )  # fmt: skip
    drawn.update_xaxes(tickmode="array", tickvals=list(range(len(names))), ticktext=names, tickangle=35, showgrid=False)
    drawn.update_yaxes(range=[-0.03, 1.03])
    return drawn


def history_figure(result: Result) -> go.Figure:
    """Validation accuracy of both tasks over training, a line a run; the step that was kept is a circle."""
    drawn = figure(title="Training: exact match on validation examples", x_title="step", y_title="exact match")
    dashes = {"sum": "solid", "concat": "dot"}
    arms = list(dict.fromkeys(one["arm"] for one in result.meta["runs"]))
    named = set()
    for one in result.meta["runs"]:
        color = COLORS[arms.index(one["arm"]) % len(COLORS)]
        lines = pd.DataFrame([line for line in one["history"] if "val_loss" in line])
        for task, dash in dashes.items():
            group = f"{one['arm']}, {task}"
            drawn.add_scatter(
                x=lines.step, y=lines[f"val_{task}"], name=group, legendgroup=group, showlegend=group not in named,
                line={"color": color, "dash": dash}, hovertemplate=f"{one['name']}: %{{y:.3f}}<extra></extra>",
            )  # fmt: skip
            named.add(group)
            kept = lines[lines.step == one["step"]]
            drawn.add_scatter(x=kept.step, y=kept[f"val_{task}"], mode="markers", marker={"color": color, "size": 9},
                              showlegend=False, hoverinfo="skip")  # fmt: skip
    drawn.update_yaxes(range=[-0.03, 1.03])
    return drawn


def importance_figure(points: dict[str, Any]) -> go.Figure:
    """Each latent's importance for the two tasks; those that the rule takes are filled."""
    target, preserved = points["target"], points["preserved"]
    drawn = figure(
        title=f"Importance of latents: {points['run']}, tau {points['tau']:g}, {target} removed",
        x_title=f"{preserved}: loss above intact (nats a token)", y_title=f"{target}: loss above intact (nats a token)",
    )  # fmt: skip
    chosen = np.isin(points["latent"], points["chosen"])
    for name, rows, symbol in (("taken out", chosen, "circle"), ("left", ~chosen, "circle-open")):
        drawn.add_scatter(
            x=np.asarray(points[preserved])[rows], y=np.asarray(points[target])[rows], mode="markers", name=name,
            marker={"symbol": symbol, "color": COLORS[1 if name == "taken out" else 0]},
            customdata=np.asarray(points["latent"])[rows],
            hovertemplate="latent %{customdata}: %{x:.4f}, %{y:.4f}<extra></extra>",
        )  # fmt: skip
    return drawn


def latents_figure(sample: dict[str, Any]) -> go.Figure:
    """The largest latents at the first answer token of some examples, before the ReLU and after it."""
    pre = np.asarray(sample["pre"])
    names = [f"latent {j}" for j in sample["latent"]]
    before, after = (
        heat_map(values, x=names, y=sample["texts"], title="", x_title="", y_title="", unit="activation")
        for values in (pre, np.maximum(pre, 0))
    )
    drawn = make_subplots(rows=2, cols=1, subplot_titles=("before the ReLU", "after it"), vertical_spacing=0.12)
    for row, part in enumerate((before, after), 1):
        drawn.add_trace(part.data[0], row=row, col=1)
    largest = float(np.abs(pre).max()) or 1.0
    drawn.update_traces(zmin=-largest, zmax=largest, showscale=False)
    drawn.update_traces(showscale=True, row=1, col=1)
    drawn.update_xaxes(showticklabels=False)
    drawn.update_layout(
        template=TEMPLATE,
        height=760,
        title_text=f"Latents at the first answer token: {sample['run']}, l1 {sample['l1']:g}",
    )
    return drawn


def density_figure(result: Result) -> go.Figure:
    """On what share of answer tokens each latent is active, sorted; latents that are never active are left out."""
    drawn = figure(title="Density of latents", x_title="latent, by density", y_title="share of answer tokens")
    for sample in result.meta["states"]:
        density = np.asarray(sample["density"])
        alive = density[density > 0]
        name = f"{sample['run']}: {len(alive)} of {len(density)} active, L0 {density.sum():.1f}"
        drawn.add_scatter(x=np.arange(1, len(alive) + 1), y=alive, name=name, mode="lines")
    drawn.update_yaxes(type="log")
    return drawn


def knowledge_figure(result: Result) -> go.Figure:
    """Relearning of the removed task, the edit staying; what a probe finds in the edited state stands at the left."""
    rows = pd.DataFrame(result.meta["knowledge"])
    drawn = figure(
        title="Is it gone? Relearning with the edit in place (mean of runs); x: a probe on the edited state",
        x_title="training steps on the removed task", y_title="accuracy on the removed task",
    )  # fmt: skip
    edits: Sequence[str] = list(dict.fromkeys(rows.edit))
    for i, edit in enumerate(edits):
        for j, target in enumerate(dict.fromkeys(rows.target)):
            part = rows[(rows.edit == edit) & (rows.target == target)]
            look = {"color": COLORS[i], "dash": "dot" if j else "solid"}
            curve = part[part.test == "relearn"].groupby("steps").accuracy.mean()
            probe = part[part.test == "probe"].accuracy
            if len(curve):
                drawn.add_scatter(x=curve.index, y=curve, name=f"{edit}, {target}", line=look, mode="lines+markers")
            if len(probe):
                drawn.add_scatter(
                    x=[-1.5], y=[probe.mean()], mode="markers", name=f"probe: {edit}, {target}",
                    marker={"color": COLORS[i], "symbol": "x-open" if j else "x", "size": 10},
                )  # fmt: skip
    drawn.update_yaxes(range=[-0.03, 1.03])
    return drawn


def reproduction_figures(result: Result) -> dict[str, go.Figure | Page]:
    """Published points and ours: kept over removed."""
    drawn = figure(
        title="The source's experiment: concatenation removed, sum kept", x_title="removed (1 - exact match)",
        y_title="kept (exact match)",
    )  # fmt: skip
    for i, (key, part) in enumerate(result.table.groupby(["order", "judged_on", "source"], sort=False)):
        order, judged_on, source = cast(tuple[str, ...], key)
        published = source == "published"
        line = {"color": "#000000" if published else COLORS[i % len(COLORS)], "dash": "dot" if published else "solid"}
        drawn.add_scatter(
            x=1 - part.target_accuracy, y=part.preserved_accuracy, mode="lines+markers",
            name=f"{source}: {order}, judged on {judged_on.replace('_', ' ')}",
            line=line,
            customdata=part.tau_sum, hovertemplate="tau %{customdata} (sum): %{x:.2f}, %{y:.2f}<extra></extra>",
        )  # fmt: skip
    return {"reproduction": drawn}
