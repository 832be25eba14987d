"""A figure as it is filled: frames, shapes, annotations, legend, title; room for all of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.colors
import plotly.graph_objects as go

from analyses.static_figures.axes import Axis, color_bar, same_limits, scale, spines, untangle
from analyses.static_figures.legend import legend
from analyses.static_figures.marks import MARKS
from analyses.static_figures.values import (
    DASHES,
    INCH,
    POINT,
    TEXT,
    axes_of,
    found_at,
    is_number,
    listed,
    merged,
    numbers,
    plain_text,
    rgba,
)

SIZE = (900, 500)
"""Pixels, where the figure has no width or height."""


class Drawing:
    """A matplotlib figure as it is filled; `figure` is whole once constructed."""

    def __init__(self, drawn: go.Figure, layout: dict[str, Any]) -> None:
        from matplotlib.figure import Figure
        from matplotlib.transforms import Bbox, BboxTransformTo, TransformedBbox

        self.layout = layout
        self.width, self.height = (
            layout.get(name) or size for name, size in zip(("width", "height"), SIZE, strict=True)
        )
        self.figure = Figure(figsize=(self.width / INCH, self.height / INCH), dpi=INCH, facecolor="white")
        self.area = Bbox([[0, 0], [1, 1]])
        self.paper = BboxTransformTo(TransformedBbox(self.area, self.figure.transFigure))
        self.frames: dict[tuple[str, str], Any] = {}
        self.bars: list[tuple[Any, Mapping[str, Any]]] = []
        traces = [{"type": trace.type, **trace.to_plotly_json()} for trace in drawn.data]
        self.letters = found_at(layout, "font.size", 12)
        self.traces = [trace for trace in traces if trace.get("visible", True) is True]
        self.categories = {name: self._categories(name) for name in self._used_axes()}
        colors = layout.get("colorway") or plotly.colors.DEFAULT_PLOTLY_COLORS
        for i, trace in enumerate(self.traces):
            trace["_color"], trace["_order"] = colors[i % len(colors)], 2 + 0.01 * i
            if trace["type"] not in MARKS:
                raise ValueError(f"a trace of type {trace['type']!r} is not drawn without a browser")
            MARKS[trace["type"]](self, self._frame(*axes_of(trace)), trace)
        for shape in layout.get("shapes", ()):
            self._shape(shape)
        notes = [self._annotation(note) for note in layout.get("annotations", ())]
        for (x, y), ax in self.frames.items():
            self._finish(ax, x, y)
        self._match()
        key = legend(self)
        self._title()
        self._place(notes, key)

    def _used_axes(self) -> set[str]:
        return {name for trace in self.traces for name in axes_of(trace)} or {"x", "y"}

    def axis(self, name: str) -> Axis:
        """The axis `x2` with what the template says of all."""
        found = merged(self.layout.get(f"_{name[0]}axis", {}), self.layout.get(f"{name[0]}axis{name[1:]}", {}))
        if found.get("overlaying") or found.get("type") in ("date", "multicategory"):
            raise ValueError(f"an axis that is {found.get('type') or 'overlaid'} is not drawn without a browser")
        return found

    def _categories(self, name: str) -> list[str] | None:
        """What stands on an axis of categories, in order; None for one of numbers."""
        axis = self.axis(name)
        values = [v for t in self.traces if name in axes_of(t) for v in listed(t.get(name[0]))]
        texts = any(isinstance(v, str) and not is_number(v) for v in values)
        if axis.get("type") != "category" and not (axis.get("type") in (None, "-") and texts):
            return None
        found = dict.fromkeys(
            [*map(str, listed(axis.get("categoryarray"))), *(str(v) for v in values if v is not None)]
        )
        return list(found)

    def _frame(self, x: str, y: str) -> Any:
        if (x, y) not in self.frames:
            self.frames[x, y] = self.figure.add_axes((0.1, 0.1, 0.8, 0.8), label=f"{x}{y}")
        return self.frames[x, y]

    def values(self, trace: Mapping[str, Any], which: str) -> np.ndarray:
        """x or y of a trace as numbers: the place of a category, 0, 1, ... where there are none, NaN for none."""
        name = axes_of(trace)["xy".index(which)]
        given, other = trace.get(which), trace.get("y" if which == "x" else "x")
        if given is None:
            return np.arange(len(listed(other)), dtype=float)
        if (known := self.categories[name]) is not None:
            return np.array([np.nan if v is None else known.index(str(v)) for v in listed(given)], dtype=float)
        return numbers(given)

    def _transform(self, ax: Any, xref: str, yref: str) -> Any:
        from matplotlib.transforms import blended_transform_factory

        parts = []
        for ref in (xref, yref):
            inside = ax is not None and ref != "paper"
            parts.append((ax.transAxes if ref.endswith(" domain") else ax.transData) if inside else self.paper)
        return parts[0] if parts[0] is parts[1] else blended_transform_factory(*parts)

    def _referred(self, xref: str, yref: str) -> Any:
        """The frame that axis references mean; None where both are the paper."""
        x, y = (ref.split()[0] for ref in (xref, yref))
        found = [ax for (a, b), ax in self.frames.items() if x in (a, "paper") and y in (b, "paper")]
        if not found and (x, y) != ("paper", "paper"):
            if "paper" in (x, y):
                raise ValueError(f"nothing is drawn on the axes {x}, {y}")
            return self._frame(x, y)
        return found[0] if found and (x, y) != ("paper", "paper") else None

    def _at(self, value: Any, ref: str, log: bool) -> float:
        """A coordinate of a shape or annotation; `log`: given as an exponent on logarithmic axes, as Plotly has it."""
        if ref == "paper" or ref.endswith(" domain"):
            return float(value)
        known = self.categories.get(ref)
        if known is not None and str(value) in known:
            return float(known.index(str(value)))
        return 10 ** float(value) if log and self.axis(ref).get("type") == "log" else float(value)

    def _shape(self, shape: Mapping[str, Any]) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Ellipse, Rectangle

        xref, yref = shape.get("xref", "x"), shape.get("yref", "y")
        ax = self._referred(xref, yref)
        x0, x1 = (self._at(shape[end], xref, False) for end in ("x0", "x1"))
        y0, y1 = (self._at(shape[end], yref, False) for end in ("y0", "y1"))
        line, opacity = shape.get("line", {}), shape.get("opacity", 1)
        look = {
            "transform": self._transform(ax, xref, yref), "linestyle": DASHES[line.get("dash", "solid")],
            "linewidth": line.get("width", 2) * POINT, "zorder": 1.0 if shape.get("layer") == "below" else 4.0,
        }  # fmt: skip
        color = rgba(line.get("color", "#444444"), opacity)
        face = rgba(shape["fillcolor"], opacity) if shape.get("fillcolor") else "none"
        if shape["type"] == "line":
            artist: Any = Line2D([x0, x1], [y0, y1], color=color, **look)
        elif shape["type"] == "rect":
            artist = Rectangle((x0, y0), x1 - x0, y1 - y0, edgecolor=color, facecolor=face, **look)
        elif shape["type"] == "circle":
            middle = ((x0 + x1) / 2, (y0 + y1) / 2)
            artist = Ellipse(middle, x1 - x0, y1 - y0, edgecolor=color, facecolor=face, **look)
        else:
            raise ValueError(f"a shape of type {shape['type']!r} is not drawn without a browser")
        (self.figure if ax is None else ax).add_artist(artist)

    def _annotation(self, note: Mapping[str, Any]) -> Any:
        xref, yref = note.get("xref", "x"), note.get("yref", "y")
        ax = self._referred(xref, yref)
        at = (self._at(note["x"], xref, True), self._at(note["y"], yref, True))
        font, text = note.get("font", {}), plain_text(note.get("text", ""))
        arrow = note.get("showarrow", True)
        shift = (note.get("ax", -10), -note.get("ay", -30)) if arrow else (note.get("xshift", 0), note.get("yshift", 0))
        box = {"facecolor": rgba(note["bgcolor"]), "edgecolor": "none", "pad": 1.5} if note.get("bgcolor") else None
        size = font.get("size", self.letters)
        look = {"arrowstyle": "-|>", "color": rgba(note.get("arrowcolor", "#444444")), "shrinkA": 0, "shrinkB": 0}
        return (ax or self.figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[], zorder=5)).annotate(
            text, at, xycoords=self._transform(ax, xref, yref), xytext=(shift[0] * POINT, shift[1] * POINT),
            textcoords="offset points", fontsize=size * POINT, color=rgba(font.get("color", TEXT)), zorder=6,
            ha=_anchor("x", note.get("xanchor", "auto"), at[0], xref, arrow), annotation_clip=False,
            va=_anchor("y", note.get("yanchor", "auto"), at[1], yref, arrow), rotation=-note.get("textangle", 0),
            bbox=box, arrowprops=look if arrow else None,
        )  # fmt: skip

    def _finish(self, ax: Any, x: str, y: str) -> None:
        for name in (x, y):
            axis = self.axis(name)
            scale(ax, name[0], axis, self.categories[name])
            spines(ax, name[0], axis, self.letters)
            if axis.get("scaleanchor"):
                ax.set_aspect("equal", adjustable="datalim")
        ax.set_facecolor("none")
        ax.set_axisbelow(True)

    def _match(self) -> None:
        """Axes that go with another one reach as far."""
        for names, ax in self.frames.items():
            for i, name in enumerate(names):
                other = self.axis(name).get("matches")
                if partner := next((f for n, f in self.frames.items() if n[i] == other and f is not ax), None):
                    same_limits(ax, partner, name[0])

    def _title(self) -> None:
        title = self.layout.get("title", {})
        if title.get("text"):
            top = self.layout["margin"]["t"]
            size = title.get("font", {}).get("size", 17) * POINT
            x, anchor = title.get("x", 0.05), title.get("xanchor", "auto")
            self.figure.text(
                x, 1 - min(top / 2, 30) / self.height, plain_text(title["text"]), fontsize=size, va="center",
                ha=anchor if anchor != "auto" else "center" if x == 0.5 else "left",
            )  # fmt: skip

    def _place(self, notes: Sequence[Any], key: Any) -> None:
        """Set the frames, and make room at the sides for whatever would not be on the paper."""
        scales = [self.figure.add_axes((0, 0, 0.1, 0.1), label=f"scale{i}") for i in range(len(self.bars))]
        for ax, (mesh, bar) in zip(scales, self.bars, strict=True):
            color_bar(self.figure, ax, mesh, bar, self.letters * POINT)
        margins = {side: float(self.layout["margin"][side]) for side in "lrbt"}
        for attempt in range(3):
            self._set(margins, scales)
            for ax in self.frames.values():
                untangle(ax)
            renderer = self.figure.canvas.get_renderer() if hasattr(self.figure.canvas, "get_renderer") else None
            shown = [ax.get_tightbbox(renderer) for ax in (*self.frames.values(), *scales)]
            shown += [note.get_window_extent(renderer) for note in notes]
            shown += [key.get_window_extent(renderer)] if key is not None else []
            sides = {
                "l": -min(box.x0 for box in shown), "r": max(box.x1 for box in shown) - self.width,
                "b": -min(box.y0 for box in shown), "t": max(box.y1 for box in shown) - self.height + 30,
            }  # fmt: skip
            over = {side: size + 8 for side, size in sides.items() if size > (0 if side != "t" else 8)}
            if not over or attempt == 2:
                break
            for side, size in over.items():
                margins[side] = min(margins[side] + size, 0.45 * (self.width if side in "lr" else self.height))

    def _set(self, margins: Mapping[str, float], scales: Sequence[Any]) -> None:
        left, bottom = margins["l"] / self.width, margins["b"] / self.height
        right, top = 1 - margins["r"] / self.width, 1 - margins["t"] / self.height
        self.area.set_points(np.array([[left, bottom], [right, top]]))
        for (x, y), ax in self.frames.items():
            (x0, x1), (y0, y1) = (self.axis(name).get("domain") or (0, 1) for name in (x, y))
            corner = (left + x0 * (right - left), bottom + y0 * (top - bottom))
            ax.set_position((*corner, (x1 - x0) * (right - left), (y1 - y0) * (top - bottom)))
        for i, (ax, (mesh, bar)) in enumerate(zip(scales, self.bars, strict=True)):
            frame = mesh.axes.get_position()
            x = left + bar["x"] * (right - left) if "x" in bar else frame.x1 + (0.02 + 0.0 * i) * (right - left)
            length = bar.get("len", 1.0)
            low, tall = (bottom, top - bottom) if "y" in bar else (frame.y0, frame.height)
            middle = low + bar.get("y", 0.5) * tall
            width = bar.get("thickness", 22) / self.width
            ax.set_position((x, middle - length * tall / 2, width, length * tall))


def layout_of(drawn: go.Figure) -> dict[str, Any]:
    """The layout over its template; what the template says of all axes is `_xaxis` and `_yaxis`."""
    template = drawn.layout.template.layout.to_plotly_json()
    given = drawn.layout.to_plotly_json()
    axes = {f"_{name}": template.pop(name, {}) for name in ("xaxis", "yaxis")}
    found = merged(template, {name: value for name, value in given.items() if name != "template"})
    margin = merged({"l": 80, "r": 80, "t": 100, "b": 80}, found.get("margin", {}))
    return {**found, **axes, "margin": margin}


def fonts(layout: Mapping[str, Any]) -> list[str]:
    """Those of the layout that are installed, and matplotlib's own."""
    from matplotlib.font_manager import fontManager

    asked = [name.strip(" '\"") for name in found_at(layout, "font.family", "").split(",")]
    return [name for name in asked if name in {font.name for font in fontManager.ttflist}] + ["DejaVu Sans"]


def _anchor(which: str, given: str, at: float, ref: str, arrow: bool) -> str:
    """matplotlib's word for Plotly's anchor; `auto` is by thirds of the paper or frame."""
    if given != "auto":
        return {"middle": "center"}.get(given, given)
    if arrow or not (ref == "paper" or ref.endswith(" domain")) or 1 / 3 <= at <= 2 / 3:
        return "center"
    low, high = ("left", "right") if which == "x" else ("bottom", "top")
    return low if at < 1 / 3 else high
