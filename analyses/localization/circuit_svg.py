"""A layout and its edges as SVG: styles that answer to the pointer, a title on every part, no script."""

from collections.abc import Mapping, Sequence
from typing import Any

from analyses.localization.circuit_layout import HEIGHT, PORTS, WIDTH, Layout
from analyses.page import escaped, tip_html

Strokes = dict[str, tuple[str, str]]
"""Kind of edge to its colour and its meaning; the kind `minus` and negative edges are dashed."""
THINNEST, THICKEST = 0.9, 8.0  # pixels
SHOWN = 3
"""Edges that a node's title names."""

STYLE = """<style>
main { max-width: 1400px; }
.strokes { display: flex; flex-wrap: wrap; gap: 4px 22px; margin: 0.4em 0; padding: 0; font-size: 0.88rem; }
.strokes li { display: flex; align-items: center; gap: 7px; list-style: none; overflow-wrap: anywhere; }
.strokes svg { flex: none; }
.pair { display: grid; gap: 0 28px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); }
.pair section { min-width: 0; }
.pair h2 { margin-top: 0.6em; }
</style>
"""
SVG_STYLE = """
.circuit { font-family: Helvetica, Arial, sans-serif; fill: #222; }
.circuit .band { fill: #f5f5f5; }
.circuit .layer { font-size: 13px; fill: #555; }
.circuit .node { cursor: default; outline: none; }
.circuit .node rect { fill: #fff; stroke: #444; stroke-width: 1.2; }
.circuit .node.other rect { fill: #e8e8e8; }
.circuit .node text { font-size: 13px; text-anchor: middle; }
.circuit .node .port { font-size: 10px; fill: #444; }
.circuit .node.absent rect { fill: none; stroke: #aaa; stroke-dasharray: 2 3; }
.circuit .node.absent text { fill: #767676; }
.circuit .link path { fill: none; }
.circuit .hit { stroke: transparent; stroke-width: 9px; }
.circuit .minus { stroke-dasharray: 6 3; }
.circuit:has(:is(.node, .link):is(:hover, :focus)) .link { opacity: 0.06; }
.circuit .link:hover.link, .circuit:has(.node:hover) .link.link:hover { opacity: 1; }
.circuit .node:is(:hover, :focus) rect { stroke-width: 2.5; }
"""


def svg(places: Layout, edges: Sequence[Mapping[str, Any]], strokes: Strokes, smallest: float = 0.8) -> str:
    """The picture.

    Args:
        places: of the nodes.
        edges: the largest first; each with `source`, `readers` (nodes that read it; the edge ends at the first),
            `qkv`, `title`, `kind` (of `strokes`), `negative`, and `share` of the largest |score|.
        strokes: colours.
        smallest: share of its size that it shrinks to where there is little room; below that it scrolls.
    """
    numbers = {name: i for i, name in enumerate(places.places)}
    lines = "".join(_link(places, numbers, edge, order) for order, edge in reversed(list(enumerate(edges))))
    nodes = "".join(_node(places, numbers[name], name, edges) for name in places.places)
    bands = "".join(
        f'<rect class="band" x="0" y="{top:.0f}" width="{places.width}" height="{low - top:.0f}" rx="6"/>'
        f'<text class="layer" x="8" y="{(top + low) / 2 + 4:.0f}">layer {layer}</text>\n'
        for layer, top, low in places.bands
    )
    size = f"width:100%;min-width:{smallest * places.width:.0f}px;max-width:{places.width}px"
    alone = "".join(
        f".circuit:has(.node.n{i}:is(:hover, :focus)) .link.n{i} {{ opacity: 1; }}\n" for i in numbers.values()
    )
    colors = "".join(f".circuit .{kind} {{ stroke: {color}; }}\n" for kind, (color, _) in strokes.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="circuit" viewBox="0 0 {places.width} {places.height}" '
        f'style="display:block;margin:0 auto;{size}" role="img" aria-label="circuit of {len(edges)} edges">\n'
        f"<style>{SVG_STYLE}{colors}{alone}</style>\n{bands}{lines}{nodes}</svg>\n"
    )


def _link(places: Layout, numbers: Mapping[str, int], edge: Mapping[str, Any], order: int) -> str:
    ends = {edge["source"], *edge["readers"]}
    classes = " ".join(f"n{numbers[name]}" for name in places.places if name in ends)
    d = places.path(edge["source"], edge["readers"][0], edge["qkv"], order)
    shared = f" (shared by {', '.join(edge['readers'])})" if len(edge["readers"]) > 1 else ""
    dashed = " minus" if edge["negative"] and edge["kind"] != "minus" else ""
    return (
        f'<g class="link {classes}"><title>{escaped(edge["title"] + shared)}</title>'
        f'<path class="{edge["kind"]}{dashed}" d="{d}" stroke-width="{width(edge["share"]):.1f}" '
        f'stroke-opacity="{0.6 + 0.3 * edge["share"]:.2f}"/><path class="hit" d="{d}"/></g>\n'
    )


def width(share: float) -> float:
    """Pixels for a share of the largest |score|: proportional, but never too thin to see."""
    return max(THINNEST, THICKEST * share)


def _node(places: Layout, number: int, name: str, edges: Sequence[Mapping[str, Any]]) -> str:
    x, y = places.places[name]
    into = [edge for edge in edges if name in edge["readers"]]
    out = [edge for edge in edges if edge["source"] == name]
    absent = not into and not out
    lines = [f"{name}: " + ("no edge drawn here" if absent else f"{len(into)} edges in, {len(out)} out")]
    lines += [f"in   {edge['title']}" for edge in into[:SHOWN]] + [f"out  {edge['title']}" for edge in out[:SHOWN]]
    head = name.startswith("a")
    kind = f"n{number}{'' if head else ' other'}{' absent' if absent else ''}"
    letters = "".join(
        f'<text class="port" x="{x + dx:.0f}" y="{y + 14:.0f}">{qkv}</text>'
        for qkv, dx in PORTS.items()
        if qkv and head
    )
    return (
        f'<g class="node {kind}" tabindex="0">'
        f"<title>{tip_html(lines)}</title>"
        f'<rect x="{x - WIDTH / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{WIDTH}" height="{HEIGHT}" '
        f'rx="{5 if head else 14}"/><text x="{x:.0f}" y="{y + (0 if head else 5):.0f}">{escaped(name)}</text>'
        f"{letters}</g>\n"
    )


def legend_html(strokes: Strokes, largest: float | None = None, unit: str = "") -> str:
    """What the colours mean, and, with the `largest` |score|, what the widths do."""
    keys = [
        _key(f'stroke="{color}" stroke-width="4"{dash(kind)}', meaning) for kind, (color, meaning) in strokes.items()
    ]
    if largest:
        keys += [
            _key(f'stroke="#4A4A4A" stroke-width="{width(share):.1f}"', f"|score| {largest * share:.2g} {unit}".strip())
            for share in (1.0, 0.5, 0.1)
        ]
    return f'<ul class="strokes">{"".join(keys)}</ul>\n'


def dash(kind: str) -> str:
    return ' stroke-dasharray="6 3"' if kind == "minus" else ""


def _key(stroke: str, meaning: str) -> str:
    return (
        f'<li><svg width="38" height="10" aria-hidden="true"><path d="M0 5H38" {stroke}/></svg>{escaped(meaning)}</li>'
    )
