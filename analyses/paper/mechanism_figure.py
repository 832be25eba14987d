"""Figure 1: a model's two streams from bottom to top, and what chooses the units of the second one."""

from typing import Any

import plotly.graph_objects as go

from analyses.figures import COLORS, TEMPLATE
from analyses.paper.mechanism import (
    ABLATED,
    ATTENTION,
    CLEAN,
    GATE,
    MASK,
    MLP,
    RELEVANCE,
    START,
    told,
)

BLUE, ORANGE, GREEN, GREY = COLORS[0], COLORS[1], COLORS[2], COLORS[6]
PALE = {BLUE: "#DCEBF5", ORANGE: "#FBE5D8", GREEN: "#DDF1EA", GREY: "#F0F0F0"}
X = {CLEAN: 0.0, f"box {CLEAN}": 1.75, RELEVANCE: 4.3, MASK: 6.35, GATE: 8.45, f"box {ABLATED}": 10.4, ABLATED: 12.2}
BUS = 3.12
"""Where what leaves the end of the clean stream goes down to all relevance heads (global masks)."""
ROW, BLOCK, HALF = 1.0, 2.9, (0.8, 0.34)
MOST = 4
"""Blocks that are drawn, at most: the first two and the last one where there are more."""
KINDS = {
    "clean stream": (BLUE, "solid"), "ablated stream": (ORANGE, "solid"), "what chooses units": (GREEN, "solid"),
    "keys and values of earlier positions": (BLUE, "dot"),
}  # fmt: skip


class _Sheet:
    """Boxes, arrows and texts as they are laid; `figure` at the end."""

    def __init__(self, height: float) -> None:
        self.drawn = go.Figure()
        self.boxes: dict[str, list[Any]] = {"x": [], "y": [], "text": [], "hover": []}
        self.lines: dict[str, tuple[list[Any], list[Any]]] = {kind: ([], []) for kind in KINDS}
        self.heads: dict[str, list[tuple[float, float, str]]] = {kind: [] for kind in KINDS}
        self.height = height

    def box(self, x: float, y: float, text: str, color: str, hover: str, half: tuple[float, float] = HALF) -> None:
        self.drawn.add_shape(
            type="rect", x0=x - half[0], x1=x + half[0], y0=y - half[1], y1=y + half[1], layer="below",
            line={"color": color, "width": 1.4}, fillcolor=PALE[color],
        )  # fmt: skip
        self.text(x, y, text, hover)

    def text(self, x: float, y: float, text: str, hover: str = "") -> None:
        for key, value in zip(self.boxes, (x, y, text, hover), strict=True):
            self.boxes[key].append(value)

    def arrow(self, kind: str, *points: tuple[float, float], head: bool = True) -> None:
        xs, ys = self.lines[kind]
        xs += [x for x, _ in points] + [None]
        ys += [y for _, y in points] + [None]
        if head:
            (x0, y0), (x1, y1) = points[-2:]
            way = ("right" if x1 > x0 else "left") if abs(x1 - x0) > abs(y1 - y0) else "up" if y1 > y0 else "down"
            inset = {"right": (-0.07, 0), "left": (0.07, 0), "up": (0, -0.07), "down": (0, 0.07)}[way]
            self.heads[kind].append((x1 + inset[0], y1 + inset[1], f"triangle-{way}"))

    def figure(self, title: str) -> go.Figure:
        for kind, (color, dash) in KINDS.items():
            xs, ys = self.lines[kind]
            if not xs:
                continue
            look = {"color": color, "dash": dash, "width": 2.4 if "stream" in kind else 1.8}
            self.drawn.add_scatter(x=xs, y=ys, mode="lines", line=look, name=kind, hoverinfo="skip")
            self.drawn.add_scatter(
                x=[x for x, _, _ in self.heads[kind]], y=[y for _, y, _ in self.heads[kind]], mode="markers",
                marker={"color": color, "size": 9, "symbol": [symbol for *_, symbol in self.heads[kind]]},
                hoverinfo="skip", showlegend=False,
            )  # fmt: skip
        self.drawn.add_scatter(
            x=self.boxes["x"], y=self.boxes["y"], text=self.boxes["text"], mode="text", showlegend=False,
            customdata=self.boxes["hover"], hovertemplate="%{customdata}<extra></extra>", textfont={"size": 12},
        )  # fmt: skip
        self.drawn.update_xaxes(visible=False, range=[-1.3, 13.5])
        self.drawn.update_yaxes(visible=False, range=[-1.35, self.height + 1.25])
        return self.drawn.update_layout(
            template=TEMPLATE, title_text=title, width=980, height=int(150 + 66 * (self.height + 2.6)),
            margin={"l": 20, "r": 20, "t": 60, "b": 40}, legend={"orientation": "h", "y": -0.01, "x": 0.02},
        )  # fmt: skip


def mechanism_figure(found: dict[str, Any]) -> go.Figure:
    """The mechanism of one model; point at a part for its hook points.

    Args:
        found: of `mechanism.mechanism`, or a Result's meta["mechanism"].
    """
    layers, gated = found["layers"], found["mask"] != "none"
    n = len(layers)
    shown = list(range(n)) if n <= MOST else [0, 1, None, n - 1]
    bottoms, y = [], 0.0
    for layer in shown:
        bottoms.append(y)
        y += BLOCK if layer is not None else 1.0
    sheet = _Sheet(y)
    for layer, bottom in zip(shown, bottoms, strict=True):
        if layer is None:
            rest = [name for hooks in layers[2 : n - 1] for names in hooks.values() for name in names]
            between = f"{n - 3} blocks more like these: {len(rest)} hook points"
            sheet.text(6.1, bottom + 0.35, f"... blocks 2 to {n - 2} ...", told(between, rest[:12] + ["..."]))
        else:
            _block(sheet, found, layer, bottom, gated)
    _ends(sheet, found, y, gated)
    if found["mask"] in ("global", "both"):
        last = [b for layer, b in zip(shown, bottoms, strict=True) if layer is not None]
        sheet.arrow(
            "what chooses units", (X[CLEAN] + 0.85, y + 0.05), (BUS, y + 0.05), (BUS, last[0] + 0.6), head=False
        )
    return sheet.figure(_title(found))


def _title(found: dict[str, Any]) -> str:
    if found["mask"] == "none":
        return f"No masks: an ordinary transformer of {len(found['layers'])} blocks"
    neurons = f" and {found['k_mlp']} of {found['neurons']:,} neurons" if found["neurons"] else ""
    reads = {
        "local": "each block's heads read the clean stream that enters it",
        "global": "all heads read the clean stream's end",
        "both": "heads read the clean stream that enters their block, and its end",
    }[found["mask"]]
    units = "heads" if found["unit"] == "head" else "z channels"
    head = f"{found['mask'].capitalize()} masks: {reads}"
    return f"{head}<br>a layer keeps {found['k_attn']} of {found['attn_units']:,} {units}{neurons} at each token"


def _block(sheet: _Sheet, found: dict[str, Any], layer: int, bottom: float, gated: bool) -> None:
    hooks = found["layers"][layer]
    right = X[ABLATED] + 0.75 if gated else X[f"box {CLEAN}"] + 1.1
    sheet.drawn.add_shape(
        type="rect", x0=-0.75, x1=right, y0=bottom, y1=bottom + BLOCK - 0.35, layer="below",
        line={"color": "#BBBBBB", "width": 1, "dash": "dash"}, fillcolor="#FCFCFC",
    )  # fmt: skip
    sheet.text(-1.02, bottom + (BLOCK - 0.35) / 2, f"<b>{layer}</b>", told(f"block {layer}", hooks.get(CLEAN, [])))
    parts = [ATTENTION, *([MLP] if found["neurons"] else [])]
    for row, part in enumerate(parts):
        y = bottom + 0.6 + row * (ROW + 0.3)
        _column(sheet, "clean stream", CLEAN, part, y, hooks)
        if not gated:
            continue
        _column(sheet, "ablated stream", ABLATED, part, y, hooks)
        kept, width = (
            (found["k_attn"], found["attn_units"]) if part == ATTENTION else (found["k_mlp"], found["neurons"])
        )
        name = "z" if part == ATTENTION else "neurons"
        kept_units = f"{found['unit']}s" if part == ATTENTION else "neurons"
        for what, text in ((RELEVANCE, f"relevance<br>of {name}"), (MASK, f"{kept} of {width:,}<br>{kept_units}")):
            hover = told(f"{part}: {what}", hooks.get(f"{part}: {what}", []))
            sheet.box(X[what], y, text, GREEN, hover)
        gate = "z ⊙ mask" if part == ATTENTION else "post ⊙ mask"
        sheet.box(X[GATE], y, gate, ORANGE, told(f"{part}: gate", hooks.get(f"{part}: {GATE}", [])))
        for start, end in ((RELEVANCE, MASK), (MASK, GATE)):
            sheet.arrow("what chooses units", (X[start] + HALF[0], y), (X[end] - HALF[0], y))
        if found["mask"] in ("global", "both"):
            sheet.arrow("what chooses units", (BUS, y), (X[RELEVANCE] - HALF[0], y))
        if part == ATTENTION:
            above = y + HALF[1] + 0.27
            start = (X[f"box {CLEAN}"] + 0.35, y + HALF[1])
            ends = ((X[f"box {ABLATED}"], above), (X[f"box {ABLATED}"], y + HALF[1]))
            sheet.arrow("keys and values of earlier positions", start, (start[0], above), *ends)
    if gated and found["mask"] in ("local", "both"):
        low = bottom + 0.12
        into = X[RELEVANCE] - HALF[0] - 0.2
        rows = [bottom + 0.6 + row * (ROW + 0.3) for row in range(len(parts))]
        sheet.arrow("what chooses units", (X[CLEAN], low), (into, low), (into, rows[-1]), head=False)
        for y in rows:
            y_in = y - 0.12 if found["mask"] == "both" else y
            sheet.arrow("what chooses units", (into, y_in), (X[RELEVANCE] - HALF[0], y_in))


def _column(sheet: _Sheet, kind: str, stream: str, part: str, y: float, hooks: dict[str, list[str]]) -> None:
    """One part of one stream: it reads the stream below and adds to it above; the gate stands before what it adds."""
    x, box = X[stream], X[f"box {stream}"]
    color = BLUE if stream == CLEAN else ORANGE
    sheet.box(
        box,
        y,
        part if part == MLP else "attention",
        color,
        told(f"{stream}: {part}", hooks.get(f"{stream}: {part}", [])),
    )
    toward = 1 if box > x else -1
    sheet.arrow(kind, (x, y - 0.22), (box - toward * HALF[0], y - 0.22))
    if stream == CLEAN:
        sheet.arrow(kind, (box - toward * HALF[0], y + 0.2), (x, y + 0.2))
    else:
        sheet.arrow(kind, (box - HALF[0], y), (X[GATE] + HALF[0], y))
        above = y + HALF[1] + 0.12
        sheet.arrow(kind, (X[GATE], y + HALF[1]), (X[GATE], above), (x, above))


def _ends(sheet: _Sheet, found: dict[str, Any], top: float, gated: bool) -> None:
    """Embedding below; final norms and logits above; the two residual streams in between."""
    start = told("tokens and positions, the same for both streams", found["ends"].get(START, []))
    for kind, stream in (("clean stream", CLEAN), ("ablated stream", ABLATED))[: 2 if gated else 1]:
        color, x = KINDS[kind][0], X[stream]
        resid = [name for hooks in found["layers"] for name in hooks.get(stream, [])]
        sheet.box(x, -0.85, "embedding", GREY, start, (0.8, 0.3))
        sheet.arrow(kind, (x, -0.55), (x, top - 0.25))
        end = told(f"{stream}: final norm", found["ends"].get(f"{stream}: end", []))
        sheet.box(x, top + 0.05, "final norm", color, end, (0.8, 0.3))
        sheet.arrow(kind, (x, top + 0.35), (x, top + 0.72))
        name = "logits" if not gated else f"{stream.split()[0]} logits"
        sheet.text(x, top + 0.95, f"<b>{name}</b>", told(f"{stream}: residual", resid))
