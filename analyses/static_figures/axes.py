"""Axes as Plotly has them: scales, ranges, ticks and their labels; colour bars."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyses.static_figures.values import POINT, found_at, listed, numbers, plain_text, rgba

Axis = Mapping[str, Any]


def scale(ax: Any, which: str, axis: Axis, categories: Sequence[str] | None) -> None:
    """Type, range and ticks of the x or y axis of a frame, all of whose marks are there."""
    of = ax.xaxis if which == "x" else ax.yaxis
    limits = (ax.get_xlim, ax.set_xlim) if which == "x" else (ax.get_ylim, ax.set_ylim)
    is_log = axis.get("type") == "log"
    if is_log:
        (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    if categories is not None:
        limits[1](-0.5, len(categories) - 0.5)
    if axis.get("rangemode") == "tozero" and not is_log:
        low, high = limits[0]()
        limits[1](min(0.0, low), max(0.0, high))
    given = axis.get("range")
    if given is not None:
        low, high = (value if end is None else 10**end if is_log else end
                     for end, value in zip(given, limits[0](), strict=True))  # fmt: skip
        limits[1](low, high)
    if axis.get("autorange") == "reversed":
        limits[1](*limits[0]()[::-1])
    ticks(of, axis, categories, sorted(limits[0]()), is_log)


def ticks(of: Any, axis: Axis, categories: Sequence[str] | None, limits: Sequence[float], is_log: bool) -> None:
    """Where they are and what they say."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = limits
    of.set_minor_locator(NullLocator())
    if axis.get("tickvals") is not None and axis.get("tickmode", "array") == "array":
        at = numbers([categories.index(str(v)) for v in axis["tickvals"]] if categories else axis["tickvals"])
        texts = listed(axis.get("ticktext")) or [label(v, at, axis) for v in at]
        inside = [(v, plain_text(text)) for v, text in zip(at, texts, strict=True) if low <= v <= high]
        of.set_ticks([v for v, _ in inside], [text for _, text in inside])
        return
    if categories is not None:
        step = max(1, int(axis.get("dtick") or 1))
        shown = range(0, len(categories), step)
        of.set_ticks(list(shown), [plain_text(categories[i]) for i in shown])
        return
    step, first = axis.get("dtick"), axis.get("tick0") or 0
    if isinstance(step, int | float) and step > 0:
        low_, high_ = (np.log10(low), np.log10(high)) if is_log else (low, high)
        count = np.arange(np.ceil((low_ - first) / step - 1e-9), np.floor((high_ - first) / step + 1e-9) + 1)
        at = first + step * count
        of.set_major_locator(FixedLocator(list(10**at if is_log else at)))
    elif is_log:
        narrow = high < 30 * low
        of.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if narrow else (1.0,), numticks=12))
    else:
        of.set_major_locator(MaxNLocator(nbins=axis.get("nticks") or 6, steps=[1, 2, 5, 10]))
    of.set_major_formatter(FuncFormatter(lambda value, _: label(value, of.get_majorticklocs(), axis)))
    of.set_minor_formatter(NullFormatter())


def label(value: Any, among: Any, axis: Axis) -> str:
    """A tick as Plotly writes it: 20k, 3M, a true minus; by `tickformat` where there is one.

    Raises:
        ValueError: a format that Python does not know.
    """
    around = f"{axis.get('tickprefix', '')}{{}}{axis.get('ticksuffix', '')}".format
    if spec := axis.get("tickformat"):
        try:
            text = format(int(value) if spec.endswith("d") else float(value), spec)
        except ValueError:
            raise ValueError(f"ticks of the format {spec!r} are not drawn without a browser") from None
        return around(text.replace("-", "\N{MINUS SIGN}"))
    largest = float(np.max(np.abs(among), initial=0.0))
    if axis.get("type") == "log":
        largest = abs(value)
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if largest >= (10 * size if letter == "k" else size):
            return around(f"{value / size:.6g}{letter if value else ''}".replace("-", "\N{MINUS SIGN}"))
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
    return around(text.replace("-", "\N{MINUS SIGN}"))


def rotate(ax: Any, which: str, degrees: float | int) -> None:
    """Turn the tick labels."""
    for tick in ax.get_xticklabels() if which == "x" else ax.get_yticklabels():
        tick.set_rotation(degrees)
        if which == "x" and degrees % 180:
            tick.set_ha("center" if degrees % 90 == 0 else "right" if degrees > 0 else "left")
            tick.set_rotation_mode("default" if degrees % 90 == 0 else "anchor")


def untangle(ax: Any) -> None:
    """Turn the labels below a frame where they would run into one another."""
    for degrees in (30, 90):
        boxes = [text.get_window_extent() for text in ax.get_xticklabels() if text.get_text() and text.get_visible()]
        angles = {text.get_rotation() for text in ax.get_xticklabels()}
        boxes.sort(key=lambda box: box.x0)
        if angles - {0.0} or all(a.x1 + 3 <= b.x0 for a, b in zip(boxes, boxes[1:], strict=False)):
            return
        if degrees == 30 and len(boxes) > 1 and min(b.x0 - a.x0 for a, b in zip(boxes, boxes[1:], strict=False)) < 16:
            continue  # too close for slanted ones
        at = ax.get_xticks()
        texts = [text.get_text() for text in ax.get_xticklabels()]
        ax.xaxis.set_ticks(at, texts)
        rotate(ax, "x", degrees)
        return


def color_bar(figure: Any, ax: Any, mesh: Any, bar: Mapping[str, Any], size: float | int) -> None:
    """The scale of a heat map in a frame of its own; `size` of its letters in points."""
    from matplotlib.ticker import MaxNLocator

    drawn = figure.colorbar(mesh, cax=ax)
    drawn.outline.set_visible(False)
    ax.tick_params(labelsize=size, length=0)
    if bar.get("tickvals") is not None:
        drawn.set_ticks(list(bar["tickvals"]), labels=[plain_text(t) for t in bar.get("ticktext") or bar["tickvals"]])
    else:
        drawn.locator = MaxNLocator(6, steps=[1, 2, 5, 10])
        drawn.update_ticks()
        shown = drawn.get_ticks()
        low, high = mesh.norm.vmin, mesh.norm.vmax
        kept = [value for value in shown if low - 1e-12 <= value <= high + 1e-12]
        drawn.set_ticks(kept, labels=[label(value, kept, bar) for value in kept])
    if text := found_at(bar, "title.text", ""):
        ax.set_title(plain_text(text), fontsize=size, loc="left", pad=5, color=rgba("#222222"))


def same_limits(ax: Any, other: Any, which: str) -> None:
    """Both axes reach as far as either."""
    ends = [a.get_xlim() if which == "x" else a.get_ylim() for a in (ax, other)]
    low, high = min(map(min, ends)), max(map(max, ends))
    low, high = (high, low) if ends[0][0] > ends[0][1] else (low, high)
    for a in (ax, other):
        (a.set_xlim if which == "x" else a.set_ylim)(low, high)


def spines(ax: Any, which: str, axis: Axis, size: float | int) -> None:
    """Lines, tick marks, grid and title of one axis; `size` of letters in pixels."""
    of = ax.xaxis if which == "x" else ax.yaxis
    visible, sides = axis.get("visible", True), ("bottom", "top") if which == "x" else ("left", "right")
    side = axis.get("side") or sides[0]
    for spine in sides:
        ax.spines[spine].set_visible(bool(visible and axis.get("showline", False) and spine == side))
        ax.spines[spine].set(color=rgba(axis.get("linecolor", "#444444")), linewidth=POINT)
    of.set_ticks_position(side)
    of.set_label_position(side)
    ax.tick_params(
        axis=which, which="both", color="#888888", labelcolor="#222222", pad=3,
        length=5 * POINT if visible and axis.get("ticks") == "outside" else 0,
        labelsize=found_at(axis, "tickfont.size", size) * POINT,
        **{f"label{side}": bool(visible and axis.get("showticklabels", True))},
    )  # fmt: skip
    if visible and axis.get("showgrid", True):
        of.grid(True, which="major", color=rgba(axis.get("gridcolor", "#EEEEEE")), linewidth=POINT)
    if visible and (text := found_at(axis, "title.text", "")):
        of.set_label_text(plain_text(text))
        of.label.set_size(found_at(axis, "title.font.size", size * 1.1) * POINT)
    if axis.get("tickangle"):
        rotate(ax, which, -float(axis["tickangle"]))
