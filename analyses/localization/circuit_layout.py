"""Where the nodes of a circuit stand and which way its edges go, in pixels: layer above layer, the input at the bottom.

A layer is a band of two rows, its heads below and its MLP above them, since heads may write into the
MLP of their layer. A head keeps its column in all layers; odd layers are set off by half a
column. An edge leaves its source at the top, enters its destination from below (a head has an entrance
each for query, key and value), and goes around the nodes in between, never under them.
"""

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np

from analyses.localization.graph import Graph

WIDTH, HEIGHT = 64, 36  # of a node
STEP, MARGIN = 88, 5  # from column to column; between a node and an edge that goes around it
ROW = 76  # from row to row within a layer
LEFT, EDGE = 70, 30  # room for the names of the layers; at the other sides
PORTS = {"q": -20, "k": 0, "v": 20, "": 0}
Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Centres of the nodes by name, the rows that they stand in, bands of the layers, and the size of all.

    Args:
        places: (x, y) by name of the node; y grows downwards.
        rows: for each y from the bottom up, the x of its nodes.
        bands: layer, upper and lower y.
    """

    places: dict[str, Point]
    rows: dict[float, list[float]]
    bands: list[tuple[int, float, float]]
    width: int
    height: int

    def path(self, source: str, destination: str, qkv: str = "", order: int = 0) -> str:
        """The `d` of an SVG path; `order` tells edges apart that go around the same node."""
        (x0, y0), (x1, y1) = self.places[source], self.places[destination]
        start, end = (x0, y0 - HEIGHT / 2), (x1 + PORTS[qkv], y1 + HEIGHT / 2)
        spread = (STEP - WIDTH - 2 * MARGIN) * ((order * 0.618) % 1)
        d, before = f"M{start[0]:.0f} {start[1]:.0f}", start
        for x, y in self._around(start, end, spread):
            middle = (before[1] + y) / 2
            d += f"C{before[0]:.0f} {middle:.0f} {x:.0f} {middle:.0f} {x:.0f} {y:.0f}"
            before = (x, y)
        return d

    def _around(self, start: Point, end: Point, spread: float) -> list[Point]:
        """Points that a curve must pass so that it touches no node on its way."""
        x, y = curve(start, end)
        for row, nodes in self.rows.items():
            if not start[1] - HEIGHT > row > end[1] + HEIGHT:
                continue
            here = x[np.abs(y - row) <= HEIGHT / 2 + 2]
            for node in nodes:
                if len(here) and here.min() < node + WIDTH / 2 + 2 and here.max() > node - WIDTH / 2 - 2:
                    side = 1 if here.mean() >= node else -1
                    beside = node + side * (WIDTH / 2 + MARGIN + spread)
                    low, high = (beside, row + HEIGHT / 2), (beside, row - HEIGHT / 2)
                    return [*self._around(start, low, spread), high, *self._around(high, end, spread)]
        return [end]


def curve(start: Point, end: Point, n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """x and y along the Bezier curve that leaves `start` and reaches `end` vertically."""
    t = np.linspace(0, 1, n)
    near_end = 3 * (1 - t) * t**2 + t**3
    middle = 3 * (1 - t) ** 2 * t + 3 * (1 - t) * t**2
    x = start[0] + (end[0] - start[0]) * near_end
    return x, start[1] * (1 - t) ** 3 + (start[1] + end[1]) / 2 * middle + end[1] * t**3


def layout(graph: Graph, nodes: Collection[str]) -> Layout:
    """The places of the named nodes, input and logits always among them; layers without one take no room."""
    used = [source for source in graph.sources if source.name in nodes]
    columns = {head: i for i, head in enumerate(sorted({source.head for source in used if source.kind == "attn"}))}
    n = len(columns) + any(source.kind == "mlp" for source in used)
    width = LEFT + EDGE + (max(n, 3) + 0.5) * STEP
    centre, first = (LEFT + width - EDGE) / 2, (LEFT + width - EDGE - (n - 0.5) * STEP) / 2
    places: dict[str, Point] = {"input": (centre, 0.0)}
    bands, y = [], -HEIGHT / 2.0
    for layer, rows in _layers(graph, used):
        lower = y - 30.0
        y = lower - 16 - HEIGHT / 2 + ROW
        for row in rows:
            y -= ROW
            for source in row:
                column = columns[source.head] if source.kind == "attn" else len(columns)
                places[source.name] = (first + STEP * (column + 0.5 * (layer % 2)), y)
        y -= HEIGHT / 2 + 16
        bands.append((layer, y, lower))
    places["logits"] = (centre, y - 30 - HEIGHT / 2)
    return _set_down(places, bands, int(width))


def _layers(graph: Graph, used: list) -> Iterator[tuple[int, list[list]]]:
    for layer in range(graph.n_layers):
        rows = [
            [source for source in used if source.layer == layer and source.kind == kind] for kind in ("attn", "mlp")
        ]
        if rows := [row for row in rows if row]:
            yield layer, rows


def _set_down(places: dict[str, Point], bands: list[tuple[int, float, float]], width: int) -> Layout:
    """Moved down so that y begins at the upper edge."""
    down = EDGE + HEIGHT / 2 - places["logits"][1]
    places = {name: (x, y + down) for name, (x, y) in places.items()}
    rows: dict[float, list[float]] = {}
    for x, y in places.values():
        rows.setdefault(y, []).append(x)
    height = int(places["input"][1] + HEIGHT / 2 + EDGE)
    return Layout(places, rows, [(layer, top + down, low + down) for layer, top, low in bands], width, height)
