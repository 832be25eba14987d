"""Figures of a run and of a comparison, from the Result alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analyses.figures import COLORS, TEMPLATE, by_arm, error_bars, figure, titled
from analyses.result import Result
from analyses.rewriting.comparison import SHOWN
from analyses.rewriting.method_page import method_page
from analyses.rewriting.summed_up import mean_of

LINES = {"reconstruction": "right", "zero latents": "left", "mean output": "right", "zero output": "left"}
"""Baselines that are drawn beside curves, and at which end their names stand."""
BIT_TICKS = tuple(m * 10**e for e in range(1, 6) for m in (1, 2, 5))
NAMES = {"kl": "KL(base || edited), nats a token", "d_loss": "rise of the loss, nats a token"}
ORDERED = {"score": "best first", "random": "random", "density": "most active first"}
SOURCES = {"own": COLORS[0], "shuffled": COLORS[1], "random coder": COLORS[6]}


def rewriting_figures(result: Result) -> dict[str, Any]:
    """All that the Result holds something for, by file name."""
    found = {"fraction": fraction_figure(result), "one_at_a_time": one_at_a_time_figure(result)}
    if len(_sweep(result)) > 1:
        found["bits"] = bits_figure(result)
    if result.meta.get("faults"):
        found["method"] = method_page(result)
    if any(result.meta["reliability"].values()):
        found["calibration"] = calibration_figure(result)
    if result.meta.get("scores"):
        found["scores"] = scores_figure(result)
    return found


def fraction_figure(result: Result) -> go.Figure:
    """KL and loss against the fraction of latents that are rewritten, beside baselines; 95 % over stories."""
    drawn = make_subplots(cols=2, subplot_titles=list(NAMES.values()), horizontal_spacing=0.1)
    rows = _plans(result)
    keys = ["name", "calibration", "order"]
    several = rows.groupby(keys).fraction.transform("nunique") > 1
    for i, (key, part) in enumerate(_curves(rows, several, keys)):
        part = part.sort_values("fraction")
        for column, measure in enumerate(NAMES, 1):
            drawn.add_scatter(
                x=part.fraction, y=part[measure], mode="lines+markers", name=_curve_name(key), legendgroup=str(i),
                error_y=error_bars(*(part[f"{measure}{end}"] for end in ("", "_low", "_high")), thickness=1, width=0),
                line={"color": COLORS[i % len(COLORS)], "dash": "dot" if key[2] == "random" else "solid"},
                showlegend=column == 1, row=1, col=column,
            )  # fmt: skip
    for column, measure in enumerate(NAMES, 1):
        _baselines(drawn, result, measure, row=1, col=column)
        drawn.update_xaxes(title_text="share of explained latents rewritten", range=[-0.02, 1.02], row=1, col=column)
        drawn.update_yaxes(rangemode="tozero", row=1, col=column)
    return _dressed(drawn, titled(result.meta, f"Latents rewritten{_how(result)}"))


def bits_figure(result: Result) -> go.Figure:
    """KL and loss of everything rewritten against the mean length of an explanation, beside baselines."""
    drawn = make_subplots(cols=2, subplot_titles=list(NAMES.values()), horizontal_spacing=0.1)
    for i, (explainer, part) in enumerate(_sweep(result).groupby("explainer", sort=False)):
        part = part.sort_values("bits")
        for column, measure in enumerate(NAMES, 1):
            drawn.add_scatter(
                x=part.bits, y=part[measure], mode="lines+markers", name=str(explainer), text=part["name"],
                error_y=error_bars(*(part[f"{measure}{end}"] for end in ("", "_low", "_high")), thickness=1, width=0),
                line={"color": COLORS[i % len(COLORS)]}, legendgroup=str(i), showlegend=column == 1, row=1, col=column,
                hovertemplate="%{text}: %{x:,.0f} bits, %{y:.4f}<extra></extra>",
            )  # fmt: skip
    for column, measure in enumerate(NAMES, 1):
        _baselines(drawn, result, measure, LINES | {"zero latents": "right"}, row=1, col=column)
        drawn.update_xaxes(
            title_text="bits an explanation, mean", type="log", tickvals=list(BIT_TICKS),
            ticktext=[f"{tick:,}" for tick in BIT_TICKS], row=1, col=column,
        )  # fmt: skip
        drawn.update_yaxes(rangemode="tozero", row=1, col=column)
    return _dressed(drawn, titled(result.meta, f"What longer explanations buy{_how(result)}"))


def calibration_figure(result: Result) -> go.Figure:
    """Mean true against mean simulated activation, by calibration, on stories it was not fitted on."""
    name, rows = next((name, rows) for name, rows in result.meta["reliability"].items() if rows)
    drawn = figure(
        title=titled(result.meta, f"Calibration ({name})"), x_title="simulated, share of the latent's 99 % quantile",
        y_title="true, share of the same",
    )  # fmt: skip
    drawn.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="equal", line={"color": "#BBBBBB", "dash": "dot"})
    table = pd.DataFrame(rows)
    for i, (kind, part) in enumerate(table.groupby("calibration", sort=False)):
        drawn.add_scatter(
            x=part.simulated, y=part.true, mode="lines+markers", name=str(kind), customdata=part.n,
            line={"color": COLORS[i % len(COLORS)]},
            hovertemplate=f"{kind}: %{{x:.3f}} simulated, %{{y:.3f}} true, n = %{{customdata:,}}<extra></extra>",
        )  # fmt: skip
    return drawn


def one_at_a_time_rows(result: Result) -> pd.DataFrame:
    """Baselines, and everything rewritten, one change at a time; `label` says which."""
    rows = _plans(result)
    rows = rows[rows.fraction == rows.fraction.max()] if len(rows) else rows
    rows = rows[rows.order != "random"] if (rows.order != "random").any() else rows
    table = pd.concat([result.table[result.table.part == "baseline"], rows.assign(label=rows.apply(_change, axis=1))])
    table["label"] = table.label.where(table.part == "plan", table.name) if "label" in table else table.name
    return table.drop_duplicates("label")


def one_at_a_time_figure(result: Result) -> go.Figure:
    """KL of everything rewritten, and of baselines, one change at a time; 95 % over stories."""
    table = one_at_a_time_rows(result)
    drawn = figure(title=titled(result.meta, "What each part costs"), x_title=NAMES["kl"], y_title="")
    for part, color in (("baseline", COLORS[6]), ("plan", COLORS[0])):
        own = table[table.part == part]
        drawn.add_scatter(
            x=own.kl, y=own.label, mode="markers", name={"baseline": "baselines", "plan": "everything rewritten"}[part],
            marker={"color": color}, error_x=error_bars(own.kl, own.kl_low, own.kl_high, thickness=1, width=0),
            hovertemplate="%{y}: %{x:.4f}<extra></extra>",
        )  # fmt: skip
    drawn.update_yaxes(autorange="reversed", automargin=True)
    return drawn.update_layout(height=max(420, 110 + 22 * len(table)), legend={"orientation": "h", "y": 1.06, "x": 0})


def scores_figure(result: Result) -> go.Figure:
    """Histograms of the latents' scores beside those of floors."""
    name, one = next(iter(result.meta["scores"].items()))
    titles = {
        "r": "correlation", "average_precision": "average precision", "detection": "detection, balanced accuracy",
        "fuzzing": "fuzzing, balanced accuracy",
    }  # fmt: skip
    drawn = make_subplots(rows=2, cols=2, subplot_titles=list(titles.values()), vertical_spacing=0.16)
    for i, score in enumerate(titles):
        found = one["histograms"][score]
        middle = (np.array(found["edges"][1:]) + np.array(found["edges"][:-1])) / 2
        for source, counts in found["counts"].items():
            mean = mean_of(result.meta, name, score, source).get("value")
            share = np.array(counts) / max(1, sum(counts))
            drawn.add_bar(
                x=middle, y=share, name=source, marker={"color": SOURCES.get(source, COLORS[2])}, opacity=0.6,
                legendgroup=source, showlegend=i == 0, row=i // 2 + 1, col=i % 2 + 1,
                hovertemplate=f"{source}: %{{x:.2f}}, %{{y:.1%}} of latents"
                f"{'' if mean is None else f'; mean {mean:.3f}'}<extra></extra>",
            )  # fmt: skip
        drawn.update_yaxes(title_text="share of latents", row=i // 2 + 1, col=i % 2 + 1)
    drawn.update_layout(barmode="overlay", bargap=0)
    return _dressed(drawn, titled(result.meta, f"Scores of explanations and floors ({one['explainer']})"), 620)


def arms_figures(result: Result) -> dict[str, Any]:
    """Of a comparison."""
    there = [metric for metric in SHOWN if (result.table.metric == metric).any()]
    drawn = by_arm(result.table, there, "Rewriting, by arm; a marker is a seed, bars: 95 % over stories", height=820)
    return {"arms": drawn}


def _plans(result: Result) -> pd.DataFrame:
    return result.table.query("part == 'plan'")


def _sweep(result: Result) -> pd.DataFrame:
    """Everything rewritten by each set of explanations, in the way of the first plan."""
    rows = _plans(result)
    if not len(rows):
        return rows
    rows = rows[rows.fraction == rows.fraction.max()]
    first = rows.iloc[0]
    alike = [rows[key] == first[key] for key in ("calibration", "keep", "oracle", "skip", "bias")]
    return rows[np.logical_and.reduce(alike)].drop_duplicates("name")


def _curves(rows: pd.DataFrame, several: pd.Series, keys: list[str]) -> list[tuple[Any, pd.DataFrame]]:
    """Curves of the standard plans; where an end is the same for both orders, each order has it."""
    if not several.any():
        return list(rows.groupby(keys, sort=False))
    first = rows.iloc[0]
    plain = rows[np.logical_and.reduce([rows[key] == first[key] for key in ("keep", "oracle", "skip", "bias")])]
    found = []
    for key, part in plain[several[plain.index]].groupby(keys, sort=False):
        whole = plain[(plain.name == key[0]) & (plain.calibration == key[1])]
        ends = whole[whole.fraction.isin([0.0, 1.0]) & ~whole.fraction.isin(part.fraction)]
        found.append((key, pd.concat([part, ends])))
    return found


def _curve_name(key: tuple[str, str, str]) -> str:
    name, calibration, order = key
    fitted = "not calibrated" if calibration == "none" else calibration
    return f"{name}, {fitted}, {ORDERED[order]}"


def _change(row: pd.Series) -> str:
    parts = [] if row.calibration == "none" else [row.calibration]
    parts += [] if row.keep == "all" else ["k largest kept"]
    parts += [] if row.oracle == "none" else [f"oracle: {row.oracle}"]
    parts += [] if row.skip else ["no skip connection"]
    parts += [] if row.bias else ["no bias"]
    return f"{row['name']}: {', '.join(parts) or 'as simulated'}"


def _baselines(drawn: go.Figure, result: Result, measure: str, names: Mapping[str, str] = LINES, **place: Any) -> None:
    by = result.table[result.table.part == "baseline"].set_index("name")[measure]
    for name, end in names.items():
        drawn.add_hline(
            y=by[name], line={"color": "#999999", "dash": "dash", "width": 1}, annotation_text=name,
            annotation_font={"size": 10, "color": "#666666"}, annotation_position=f"top {end}", **place,
        )  # fmt: skip


def _how(result: Result) -> str:
    knobs: Mapping[str, Any] = result.meta["knobs"]
    return " at the last position" if knobs["positions"] == "last" else ""


def _dressed(drawn: go.Figure, title: str, height: int = 560) -> go.Figure:
    legend = {"orientation": "h", "y": -0.18, "x": 0}
    return drawn.update_layout(template=TEMPLATE, title_text=title, height=height, legend=legend, margin={"t": 90})
