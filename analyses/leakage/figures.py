"""Figures of the battery, drawn from its Result alone."""

import numpy as np
import plotly.graph_objects as go

from analyses.figures import COLORS, Page, by_arm, curve, error_bars, figure, heat_map, titled
from analyses.leakage.finding import LEAKS, NOTHING, OPEN
from analyses.leakage.text_page import text_page
from analyses.result import Result

VERDICTS = {LEAKS: COLORS[1], OPEN: COLORS[6], NOTHING: COLORS[0]}


def leakage_figures(result: Result) -> dict[str, go.Figure | Page]:
    """All that the Result holds enough of, by file name."""
    details = result.meta["details"]
    found: dict[str, go.Figure | Page] = {"findings": findings_figure(result)}
    if "ladder" in details:
        found["ladder"] = ladder_figure(result)
    if details.get("decoder", {}).get("layer"):
        found["layers"] = layers_figure(result)
    if "depth" in details:
        found["depth"] = depth_figure(result)
    if "hijack" in details:
        found["swap"] = swap_figure(result)
    if "blank stream" in details and result.meta.get("texts"):
        found["text"] = text_page(result)
    return found


def findings_figure(result: Result) -> go.Figure:
    """Excess of each test in bits with its interval, coloured by verdict; the strongest on top."""
    table = result.table[(result.table.unit == "bits") & result.table.ci_low.notna()].iloc[::-1]
    drawn = figure(
        title=titled(result.meta, "What each test finds beyond its null"),
        x_title="bits beyond the null [95 %]",
        y_title="",
    )
    for call, color in VERDICTS.items():
        part = table[table.verdict == call]
        drawn.add_scatter(
            x=part.excess,
            y=[f"{test} ({kind})" for test, kind in zip(part.test, part.kind, strict=True)],
            error_x=error_bars(part.excess, part.ci_low, part.ci_high),
            mode="markers",
            name=call,
            marker={"color": color, "size": 9},
            line={"color": color},
            customdata=part[["measure", "value", "null", "p_holm"]],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]:.3f} against a null of %{customdata[2]:.3f}; "
            "corrected p %{customdata[3]:.2g}<extra></extra>",
        )
    order = [f"{test} ({kind})" for test, kind in zip(table.test, table.kind, strict=True)]
    drawn.update_yaxes(categoryorder="array", categoryarray=order, automargin=True)
    drawn.add_vline(x=0, line={"color": "#BBBBBB", "dash": "dot"})
    drawn.update_layout(height=120 + 34 * max(len(table), 4))
    return drawn


def ladder_figure(result: Result) -> go.Figure:
    """Loss of the ablated stream by where the mask is from, over positions that have every rung."""
    detail = result.meta["details"]["ladder"]
    loss = np.asarray(detail["loss_bits"], dtype=float)
    drawn = figure(
        title=titled(result.meta, f"Loss by the mask's origin, {detail['n_rows']:,} positions"),
        x_title="whose mask",
        y_title="loss of the next token (bits)",
    )
    drawn.add_scatter(
        x=detail["rungs"], y=loss, mode="lines+markers", name="ablated stream",
        hovertemplate="%{x}: %{y:.3f} bits<extra></extra>",
    )  # fmt: skip
    drawn.update_yaxes(rangemode="tozero")
    return drawn


def layers_figure(result: Result) -> go.Figure:
    """Bits that a probe of masks gains over the bigram, of each layer alone and of layers 0 to l."""
    series, details = {}, result.meta["details"]
    for test, of in (("decoder", "next token"), ("decoder of prediction", "prediction")):
        if (detail := details.get(test, {})).get("layer"):
            layers = list(range(len(detail["layer"])))
            series[f"{of}, layer alone"] = (layers, detail["layer"])
            series[f"{of}, layers 0 to l"] = (layers, detail["cumulated"])
    drawn = curve(
        series,
        title=titled(result.meta, "Bits that masks tell a probe, beyond the current token"),
        x_title="layer",
        y_title="bits gained over the bigram",
        mode="lines+markers",
    )
    for i, trace in enumerate(drawn.data):
        trace.line.update(color=COLORS[i // 2], dash="dot" if i % 2 == 0 else "solid")
    drawn.update_xaxes(dtick=1)
    return drawn


def depth_figure(result: Result) -> go.Figure:
    """Bits of the prediction in the mask of a layer, and in the stream that enters the layer."""
    detail = result.meta["details"]["depth"]
    layers = list(range(len(detail["mask"])))
    drawn = curve(
        {"mask of the layer": (layers, detail["mask"]), "stream that enters it": (layers, detail["resid_pre"])},
        title=titled(result.meta, "What the mask tells of the prediction, and what the layer could know"),
        x_title="layer",
        y_title="bits gained over the bigram",
        mode="lines+markers",
    )
    drawn.update_xaxes(dtick=1)
    return drawn


def swap_figure(result: Result) -> go.Figure:
    """How often the donor's prediction becomes the recipient's, by class of both."""
    detail = result.meta["details"]["hijack"]
    n = np.asarray(detail["n"])
    shown = [i for i in range(len(n)) if n[i].any() or n[:, i].any()]
    names = [detail["classes"][i] for i in shown]
    rates = np.asarray(detail["hijack"], dtype=float)[np.ix_(shown, shown)]
    drawn = heat_map(
        rates,
        x=names,
        y=names,
        title=titled(result.meta, f"Swaps that hijack the prediction, {int(n.sum()):,} swaps"),
        x_title="donor predicts",
        y_title="recipient predicts",
        unit="share of swaps",
    )
    drawn.update_yaxes(automargin=True)
    drawn.update_traces(
        zmin=0,
        zmax=1,
        colorscale=["#FFFFFF", COLORS[0]],
        customdata=n[np.ix_(shown, shown)],
        hovertemplate="recipient %{y}, donor %{x}: %{z:.3f} of %{customdata} swaps<extra></extra>",
    )
    return drawn


ARMS_TESTS: tuple[str, ...] = (
    "swap (bits)",
    "blank stream (bits)",
    "minimal pairs (bits of odds)",
    "ladder (bits)",
    "decoder (bits)",
    "mutual information (bits)",
)


def arms_figure(result: Result) -> go.Figure:
    """Excess of some tests by arm: a panel a test, a marker a model with its interval.

    Args:
        result: of `comparison.leakage_compared`.
    """
    return by_arm(result.table, ARMS_TESTS, "Leakage by arm, beyond the null", zero=ARMS_TESTS)
