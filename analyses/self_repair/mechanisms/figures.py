"""The figures of every study, from its Result alone."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from analyses.figures import COLORS, error_bars, figure, heat_map
from analyses.result import Result
from analyses.self_repair.mechanisms.drawing import GREY, bars, of, titled
from analyses.self_repair.mechanisms.figures_erasure import erasure_figures
from analyses.self_repair.mechanisms.figures_iterative import (
    cosine_figures,
    repression_figures,
    shift_figures,
    signal_figures,
)
from analyses.self_repair.mechanisms.figures_norm import norm_figures
from analyses.self_repair.mechanisms.figures_thresholds import threshold_figures


def mediation_figures(result: Result) -> dict[str, go.Figure]:
    """Self-repair lost by freezing each part."""
    table = pd.concat([of(result, "repair"), of(result, "blocked")])
    parts = table.part.replace({"ln": "final norm", "everything live": "none: self-repair"})
    return {
        "mediation": bars(
            result, table, parts, title="Through what repair runs", x_title="frozen part", y_title="logits a token"
        )
    }


def share_figures(result: Result) -> dict[str, go.Figure]:
    """Repair, and what the set carries of it."""
    table = result.table[result.table.unit == "logits"]
    title = f"Repair that {result.meta['set']} carries"
    return {
        "share_of_repair": bars(result, table, table.measure, title=title, x_title="", y_title="logits a token"),
    }


def matrix_figures(result: Result) -> dict[str, go.Figure]:
    """The matrix, and the matrix less its null."""
    table = of(result, "repair")
    rows, columns = table.ablated.drop_duplicates().tolist(), table.repairing.drop_duplicates().tolist()
    found = {}
    less = {"repair_matrix": table.value, "repair_matrix_beyond_null": table.value - table.null}
    for name, values in less.items():
        beyond = ", less that of a random direction" if name.endswith("null") else ""
        found[name] = heat_map(
            values.to_numpy(dtype=float).reshape(len(rows), len(columns)),
            title=titled(result, f"Who repairs whom{beyond}"),
            x_title="repairing", y_title="ablated", unit="logits a token", x=columns, y=rows,
        )  # fmt: skip
        _room(found[name])
    return found


def hydra_figures(result: Result) -> dict[str, go.Figure]:
    """CE against DE of every story, and the slopes by layer."""
    drawn = figure(
        title=titled(result, "Compensation against what is removed"),
        x_title="direct effect removed (logits)", y_title="compensation CE (logits)",
    )  # fmt: skip
    each = result.table[result.table.story >= 0]
    for number, (key, table) in enumerate(each.groupby(["layer", "kind"], sort=True)):
        layer, kind = tuple(key)
        x, y = (table[table.measure == name].sort_values("story").value for name in ("story_de", "story_ce"))
        slope, intercept, r2 = (
            of(result, m, layer=layer, kind=kind).value.iloc[0] for m in ("slope", "intercept", "r2")
        )
        look = {"legendgroup": f"{kind}{int(layer)}", "visible": True if kind == "attn" else "legendonly"}
        color = COLORS[number // 2 % len(COLORS)]
        drawn.add_scatter(
            x=x, y=y, mode="markers", name=f"{kind}{int(layer)}: slope {slope:.2f}, R2 {r2:.2f}", **look,
            marker={"size": 5, "color": color, "symbol": "circle" if kind == "attn" else "x"},
        )  # fmt: skip
        ends = np.array([x.min(), x.max()])
        drawn.add_scatter(x=ends, y=intercept + slope * ends, mode="lines", line={"color": color}, showlegend=False,
                          hoverinfo="skip", **look)  # fmt: skip
    shown = each[(each.kind == "attn") & (each.measure == "story_de")].value
    ends = [float(shown.min()), float(shown.max())] if len(shown) else [0.0, 1.0]
    drawn.add_scatter(x=ends, y=ends, mode="lines", name="full compensation", line={"color": GREY, "dash": "dot"})
    found = {"hydra_regression": drawn}
    for measure, name in (("slope", "hydra_slopes"), ("r2", "hydra_r2")):
        table = of(result, measure)
        labels = [f"{kind}{int(layer)}" for kind, layer in zip(table.kind, table.layer, strict=True)]
        found[name] = bars(
            result, table, labels, title=f"{measure} of CE on DE", x_title="layer", y_title=table.unit.iloc[0]
        )
    return found


def backup_figures(result: Result) -> dict[str, go.Figure]:
    """Scores of the best heads, and their AUC where there are labels."""
    found = {}
    for measure in ("completion", "de_growth"):
        table = of(result, measure).sort_values("value", ascending=False).head(24)
        labels = [
            f"{head}*" if backup == "yes" else head for head, backup in zip(table["head"], table.backup, strict=True)
        ]
        name = {"completion": "completion score", "de_growth": "growth of direct effects"}[measure]
        title = f"Backups by {name}{' (*: labelled)' if (table.backup == 'yes').any() else ''}"
        found[f"backups_{measure}"] = bars(
            result, table, labels, title=title, x_title="head", y_title=f"{table.unit.iloc[0]} a token"
        )
    table = of(result, "auc")
    if len(table):
        found["backups_auc"] = bars(
            result, table, table.score, title="Labelled backups found", x_title="score", y_title="ROC-AUC"
        )
    return found


def dose_figures(result: Result) -> dict[str, go.Figure]:
    """Responses against lambda of the receivers that respond most."""
    gamma = of(result, "gamma")
    most = gamma.reindex(gamma.value.abs().sort_values(ascending=False).index).receiver.head(8)
    drawn = figure(
        title=titled(result, "Response to a dose"),
        x_title="lambda",
        y_title="response (logits a token)",
    )
    for number, receiver in enumerate(most):
        table = of(result, "response", receiver=receiver).sort_values("lambda")
        color = COLORS[number % len(COLORS)]
        bounds = error_bars(table.value, table.ci_low, table.ci_high, thickness=1.0, width=3)
        x, y = [0.0, *table["lambda"]], [0.0, *table.value]
        bounds["array"], bounds["arrayminus"] = ([0.0, *bounds[end]] for end in ("array", "arrayminus"))
        drawn.add_scatter(x=x, y=y, mode="lines+markers", name=receiver, line={"color": color}, error_y=bounds)
    table = of(result, "affinity").set_index("receiver").loc[most].reset_index()
    title = "How affine the response is"
    return {
        "dose_response": drawn,
        "dose_affinity": bars(result, table, table.receiver, title=title, x_title="receiver", y_title="R2"),
    }


def projection_figures(result: Result) -> dict[str, go.Figure]:
    """The ratio of every pair, and less its null."""
    table = result.table
    names = list(dict.fromkeys([*table.early, *table.later]))
    order = sorted(
        names, key=lambda name: (int("".join(filter(str.isdigit, name.split("H")[0]))), name.startswith("m"))
    )
    found = {}
    for name in ("erasure_projection", "erasure_projection_beyond_null"):
        matrix = np.full((len(order), len(order)), np.nan)
        values = table.value - (table.null if name.endswith("null") else 0.0)
        place = {name: i for i, name in enumerate(order)}
        matrix[[place[e] for e in table.early], [place[i] for i in table.later]] = values
        beyond = ", less that of another token" if name.endswith("null") else ""
        found[name] = heat_map(
            matrix, title=titled(result, f"What later components take back (-1: all of it){beyond}"),
            x_title="later", y_title="early", unit="ratio", x=order, y=order,
        )  # fmt: skip
        _room(found[name])
    return found


def _room(drawn: go.Figure) -> None:
    """Titles of the axes beside the names, not on them."""
    drawn.update_yaxes(automargin=True, title_standoff=10)
    drawn.update_xaxes(automargin=True, title_standoff=10)


FIGURES: Mapping[str, Callable[[Result], dict[str, go.Figure]]] = {
    "self_repair_erasure": erasure_figures,
    "self_repair_layer_shift": shift_figures,
    "self_repair_self_repression": repression_figures,
    "self_repair_cosine": cosine_figures,
    "self_repair_signal": signal_figures,
    "self_repair_hydra": hydra_figures,
    "self_repair_backups": backup_figures,
    "self_repair_matrix": matrix_figures,
    "self_repair_mediation": mediation_figures,
    "self_repair_dose": dose_figures,
    "self_repair_erasure_projection": projection_figures,
    "self_repair_share": share_figures,
    "self_repair_ln_ratio": norm_figures,
    "self_repair_thresholds": threshold_figures,
}
"""By the name of a Result."""
