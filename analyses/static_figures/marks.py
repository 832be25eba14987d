"""One function a kind of trace: scatter, bar, histogram, box, heat map."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.colors

from analyses.static_figures.values import (
    POINT,
    TEXT,
    axes_of,
    is_number,
    line_look,
    listed,
    main_color,
    marker_look,
    mode_of,
    numbers,
    one_of,
    plain_text,
    rgba,
)

STEPS = {"hv": "steps-post", "vh": "steps-pre", "hvh": "steps-mid"}


def scatter(drawing: Any, ax: Any, trace: Mapping[str, Any]) -> None:
    x, y, order = drawing.values(trace, "x"), drawing.values(trace, "y"), trace["_order"]
    mode, line, color = mode_of(trace), trace.get("line", {}), main_color(trace)
    if trace.get("stackgroup"):
        raise ValueError("stacked areas are not drawn without a browser")
    fill = trace.get("fill") or "none"
    if fill not in ("none", "toself", "tozeroy"):
        raise ValueError(f"an area filled {fill} is not drawn without a browser")
    if fill != "none":
        face = rgba(trace.get("fillcolor") or color, trace.get("opacity", 1) * (1 if trace.get("fillcolor") else 0.5))
        if fill == "toself":
            ax.fill(x, y, facecolor=face, edgecolor="none", zorder=order)
        else:
            ax.fill_between(x, y, facecolor=face, edgecolor="none", zorder=order)
    if "lines" in mode and line.get("width") != 0:
        ax.plot(x, y, zorder=order, **line_look(trace), drawstyle=STEPS.get(line.get("shape"), "default"))
    for which in ("x", "y"):
        if bars := trace.get(f"error_{which}"):
            _error_bars(ax, which, x, y, bars, color, order)
    if "markers" in mode:
        _markers(ax, x, y, trace)
    if "text" in mode:
        _texts(ax, x, y, trace)


def bar(drawing: Any, ax: Any, trace: Mapping[str, Any]) -> None:
    across = trace.get("orientation") == "h"
    at, size = (drawing.values(trace, which) for which in ("yx" if across else "xy"))
    mates = [t for t in drawing.traces if t["type"] == "bar" and axes_of(t) == axes_of(trace)]
    mode, gap = drawing.layout.get("barmode", "group"), drawing.layout.get("bargap", 0.2)
    places = np.unique(np.concatenate([drawing.values(t, "y" if across else "x") for t in mates]))
    room = (float(np.diff(places).min()) if len(places) > 1 else 1.0) * (1 - gap)
    base = numbers(trace["base"]) if trace.get("base") is not None else np.zeros(len(at))
    if mode == "group":
        groups = list(dict.fromkeys(t.get("offsetgroup", id(t)) for t in mates))
        room /= len(groups)
        at = at + room * (groups.index(trace.get("offsetgroup", id(trace))) - (len(groups) - 1) / 2)
    elif mode in ("stack", "relative"):
        base = base + _below(drawing, mates, trace, at, size, across)
    elif mode != "overlay":
        raise ValueError(f"bars in mode {mode!r} are not drawn without a browser")
    width = numbers(trace["width"]) if trace.get("width") is not None else room
    marker = trace.get("marker", {})
    colors = marker.get("color", trace["_color"])
    colors = [rgba(c, trace.get("opacity", 1)) for c in ([colors] if isinstance(colors, str) else listed(colors))]
    edge = marker.get("line", {})
    (ax.barh if across else ax.bar)(
        at, size, width, base, color=colors, zorder=trace["_order"], edgecolor=rgba(edge.get("color", "white")),
        linewidth=(edge.get("width") or 0) * POINT,
    )  # fmt: skip
    for which in ("x", "y"):
        if bars := trace.get(f"error_{which}"):
            ends = (base + size, at) if across else (at, base + size)
            _error_bars(ax, which, *ends, bars, TEXT, trace["_order"] + 0.005)


def _below(
    drawing: Any, mates: Sequence[Any], trace: Any, at: np.ndarray, size: np.ndarray, across: bool
) -> np.ndarray:
    """Where a stacked bar begins: the sum of those before it on its side of 0."""
    found = np.zeros(len(at))
    for mate in mates[: next(i for i, t in enumerate(mates) if t is trace)]:
        place, value = (drawing.values(mate, which) for which in ("yx" if across else "xy"))
        for i, here in enumerate(at):
            found[i] += value[(place == here) & ((value > 0) == (size[i] > 0))].sum()
    return found


def histogram(drawing: Any, ax: Any, trace: Mapping[str, Any]) -> None:
    if trace.get("y") is not None or trace.get("histfunc") or trace.get("cumulative"):
        raise ValueError("histograms of y, of sums, or cumulative ones are not drawn without a browser")
    values = drawing.values(trace, "x")
    values, bins = values[~np.isnan(values)], trace.get("xbins", {})
    edges = np.histogram_bin_edges(values, trace.get("nbinsx") or "auto") if len(values) else np.array([0.0, 1.0])
    if bins.get("size"):
        start = bins.get("start", values.min(initial=0.0))
        edges = np.arange(start, bins.get("end", values.max(initial=1.0)) + bins["size"] / 2, bins["size"])
    counts = np.histogram(values, edges)[0].astype(float)
    norm = trace.get("histnorm") or ""
    if norm not in ("", "percent", "probability"):
        raise ValueError(f"a histogram normed to {norm!r} is not drawn without a browser")
    counts *= {"": 1.0, "percent": 100.0, "probability": 1.0}[norm] / (max(counts.sum(), 1) if norm else 1)
    ax.bar(
        edges[:-1], counts, np.diff(edges), align="edge", zorder=trace["_order"],
        color=rgba(main_color(trace), trace.get("opacity", 1)),
    )  # fmt: skip


def box(drawing: Any, ax: Any, trace: Mapping[str, Any]) -> None:
    y, color = drawing.values(trace, "y"), main_color(trace)
    x = np.zeros(len(y)) if trace.get("x") is None else drawing.values(trace, "x")
    mates = [t for t in drawing.traces if t["type"] == "box" and axes_of(t) == axes_of(trace)]
    groups = list(dict.fromkeys(t.get("offsetgroup", id(t)) for t in mates))
    if drawing.layout.get("boxmode") != "group":
        groups = groups[:1]
    i = groups.index(trace.get("offsetgroup", id(trace))) if len(groups) > 1 else 0
    room = 0.7 / len(groups)
    for place in np.unique(x):
        of = y[(x == place) & ~np.isnan(y)]
        if not len(of):
            continue
        look = {"color": rgba(color), "linewidth": trace.get("line", {}).get("width", 2) * POINT}
        size = trace.get("marker", {}).get("size", 6) * POINT
        ax.boxplot(
            of, positions=[place + room * (i - (len(groups) - 1) / 2)], widths=0.8 * room, patch_artist=True,
            manage_ticks=False, zorder=trace["_order"], boxprops={**look, "facecolor": rgba(color, 0.4)},
            whiskerprops=look, capprops=look, medianprops=look,
            flierprops={"marker": "o", "markersize": size, "markerfacecolor": color, "markeredgecolor": "none"},
        )  # fmt: skip


def heat_map(drawing: Any, ax: Any, trace: Mapping[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    z = np.array([numbers(row) for row in trace["z"]])
    z = z.T if trace.get("transpose") else z
    named = trace.get("coloraxis")
    scale = {**trace, **drawing.layout.get(named, {})} if named else trace
    stops = scale.get("colorscale") or "Plasma"
    stops = plotly.colors.get_colorscale(stops) if isinstance(stops, str) else stops
    stops = [(float(at), rgba(color)) for at, color in stops]
    stops = [(1 - at, color) for at, color in reversed(stops)] if scale.get("reversescale") else stops
    low, high = (scale.get(f"{'c' if named else 'z'}{end}") for end in ("min", "max"))
    known = z[np.isfinite(z)]
    low = known.min(initial=0.0) if low is None else low
    high = known.max(initial=1.0) if high is None else high
    x, y = (
        np.arange(n, dtype=float) if trace.get(which) is None else drawing.values(trace, which)
        for which, n in zip("xy", z.shape[::-1], strict=True)
    )
    mesh = ax.pcolormesh(
        _edges(x), _edges(y), np.ma.masked_invalid(z), cmap=LinearSegmentedColormap.from_list("scale", stops),
        norm=Normalize(float(low), float(high)), zorder=trace["_order"] - 1.5, rasterized=z.size > 20_000,
    )  # fmt: skip
    ax.set_xlim(_edges(x)[[0, -1]])
    ax.set_ylim(_edges(y)[[0, -1]])
    if scale.get("showscale", True) and not (named and any(bar.get("_named") == named for _, bar in drawing.bars)):
        drawing.bars.append((mesh, {**scale.get("colorbar", {}), "_named": named}))


def _markers(ax: Any, x: np.ndarray, y: np.ndarray, trace: Mapping[str, Any]) -> None:
    marker = trace.get("marker", {})
    if is_number(str(listed(marker.get("color", ""))[:1] or "")) or marker.get("colorscale"):
        raise ValueError("markers coloured by a number are not drawn without a browser")
    each = any(np.ndim(marker.get(name)) for name in ("color", "symbol", "size"))
    for part in [[i] for i in range(len(x))] if each else [slice(None)]:
        look = marker_look(trace, part[0] if isinstance(part, list) else 0)
        ax.plot(x[part], y[part], linestyle="none", zorder=trace["_order"] + 0.004, **look)


def _error_bars(
    ax: Any, which: str, x: np.ndarray, y: np.ndarray, bars: Mapping[str, Any], color: Any, z: float
) -> None:
    if bars.get("type", "data") != "data" or bars.get("visible") is False:
        return
    up = numbers(bars.get("array"))
    down = up if bars.get("symmetric", "arrayminus" not in bars) else numbers(bars.get("arrayminus"))
    known = np.isfinite(up) & np.isfinite(down)
    ax.errorbar(
        x[known], y[known], **{f"{which}err": np.clip(np.stack([down, up])[:, known], 0, None)}, linestyle="none",
        ecolor=rgba(bars.get("color") or color), elinewidth=bars.get("thickness", 2) * POINT, zorder=z,
        capsize=bars.get("width", 4) * POINT, capthick=bars.get("thickness", 2) * POINT,
    )  # fmt: skip


def _texts(ax: Any, x: np.ndarray, y: np.ndarray, trace: Mapping[str, Any]) -> None:
    font, where = trace.get("textfont", {}), trace.get("textposition", "middle center")
    texts = trace.get("text", "")
    for i, (at, height) in enumerate(zip(x, y, strict=True)):
        up, right = str(one_of(where, i)).split()
        ax.annotate(
            plain_text(one_of(texts, i)), (at, height), xytext=({"left": -5, "right": 5}.get(right, 0),
            {"top": 5, "bottom": -5}.get(up, 0)), textcoords="offset points", zorder=6, annotation_clip=False,
            ha={"left": "right", "right": "left"}.get(right, "center"),
            va={"top": "bottom", "bottom": "top"}.get(up, "center"), fontsize=one_of(font.get("size", 12), i) * POINT,
            color=rgba(one_of(font.get("color", TEXT), i)),
        )  # fmt: skip


def _edges(centres: np.ndarray) -> np.ndarray:
    """Of the cells of a heat map."""
    if len(centres) < 2:
        return np.array([centres[0] - 0.5, centres[0] + 0.5]) if len(centres) else np.array([0.0, 1.0])
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[1.5 * centres[0] - 0.5 * centres[1]], middles, [1.5 * centres[-1] - 0.5 * centres[-2]]])


MARKS = {
    "scatter": scatter, "scattergl": scatter, "bar": bar, "histogram": histogram, "box": box, "heatmap": heat_map,
}  # fmt: skip
"""By type of trace: `(drawing, frame, trace)`."""
