"""A circuit drawn as a graph, and two side by side: pages of SVG without a script, from Results alone.

Drawn are the edges of the circuit that lie on a path from the input to the logits, the largest by
|score| where there are too many. What is left out is said above the drawing, in edges and in the share
of the circuit's total |score|. Point at a node for its edges, at an edge for its score.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool

from analyses.figures import COLORS, Page
from analyses.localization.circuit import Circuit
from analyses.localization.circuit_layout import Layout, layout
from analyses.localization.circuit_svg import STYLE, Strokes, legend_html, svg
from analyses.localization.similarity import expected_jaccard, jaccard
from analyses.localization.stored_circuit import circuit_of, description, unit_of
from analyses.page import details_html, document, escaped, table_html
from analyses.result import Result

BLUE, ORANGE, DARK = COLORS[0], COLORS[1], "#4A4A4A"
SIGNS: Strokes = {"plus": (BLUE, "helps: the value falls when it is cut"), "minus": (ORANGE, "hurts: the value rises")}
POINT = "Point at a node for its edges alone, at an edge for its score."


@dataclasses.dataclass(frozen=True)
class Selection:
    """The part of a circuit that is drawn.

    Args:
        circuit: all of it.
        drawn: the members that are.
        n_dead: members on no path from the input to the logits.
        n_small: members on such a path that are left out as the smallest.
    """

    circuit: Circuit
    drawn: Bool[np.ndarray, "source destination"]
    n_dead: int
    n_small: int

    @property
    def edges(self) -> list[tuple[int, int]]:
        """Source and destination of what is drawn, the largest |score| first."""
        found = [(i, j) for i, j in np.argwhere(self.drawn).tolist()]
        return sorted(found, key=lambda at: -self.sizes[at])

    @property
    def sizes(self) -> np.ndarray:
        """|score|, 0 where there is none."""
        return np.nan_to_num(np.abs(self.circuit.scores))

    @property
    def share(self) -> float | None:
        """Of the circuit's total |score|, what the drawn edges hold; None for a total of 0."""
        total = float(self.sizes[self.circuit.members].sum())
        return float(self.sizes[self.drawn].sum()) / total if total else None

    def nodes(self) -> list[str]:
        """Names of the sources and destinations of drawn edges, in the order of the graph."""
        sources = self.circuit.graph.sources
        used = {i for i, _ in self.edges} | {self.readers(j)[0] for _, j in self.edges}
        return [sources[i].name for i in sorted(used) if i >= 0]

    def readers(self, destination: int) -> list[int]:
        """Sources whose nodes read there, those with drawn edges if any have some; -1 for the logits.

        There is more than one where heads share a key or value.
        """
        nodes = self.circuit.graph.sources_of_destination[destination].tolist()
        return [node for node in nodes if self.drawn[node].any()] or nodes or [-1]

    def sentence(self) -> str:
        """How many edges are drawn, which are not, and the share of |score| that this loses."""
        n, all_edges = int(self.drawn.sum()), self.circuit.n_edges
        parts = [f"{n:,} of the circuit's {all_edges:,} edges are drawn"]
        if self.share is not None:
            parts.append(
                f"they hold {100 * self.share:.1f} % of its total |score|; {100 * (1 - self.share):.1f} % is lost"
            )
        left_out = [f"{self.n_dead:,} on no path from the input to the logits"] if self.n_dead else []
        left_out += [f"the {self.n_small:,} smallest on such a path"] if self.n_small else []
        rest = f" Left out: {' and '.join(left_out)}." if left_out else ""
        return f"{'; '.join(parts)}.{rest} The model has {self.circuit.graph.n_edges:,} edges."


def selection(circuit: Circuit, most_edges: int) -> Selection:
    """What is drawn of a circuit: without dead ends, at most so many edges.

    Raises:
        ValueError: most_edges below 1.
    """
    if most_edges < 1:
        raise ValueError(f"most_edges must be 1 or more; got {most_edges}")
    kept = circuit.pruned().members
    rows, columns = np.nonzero(kept)
    order = np.argsort(-np.nan_to_num(np.abs(circuit.scores[rows, columns])), kind="stable")[:most_edges]
    drawn = np.zeros_like(kept)
    drawn[rows[order], columns[order]] = True
    n_kept = len(rows)
    return Selection(circuit, drawn, circuit.n_edges - n_kept, n_kept - len(order))


def drawing(result: Result, *, most_edges: int = 400) -> Page:
    """The circuit of a Result.

    Args:
        result: a table of edges, with `graph` in its meta.
        most_edges: the largest of the circuit that are drawn.

    Raises:
        ValueError: a Result without a circuit, most_edges below 1.
    """
    body, picture = drawing_html(result, most_edges=most_edges)
    title = f"Circuit: {text}" if (text := description(result)) else "Circuit"
    return Page(document(title, body), picture)


def drawing_html(result: Result, *, most_edges: int = 400) -> tuple[str, str]:
    """The circuit of a Result as part of a page, and its SVG alone; arguments and errors as of `drawing`."""
    chosen = selection(circuit_of(result), most_edges)
    kinds = {at: "minus" if chosen.circuit.scores[at] < 0 else "plus" for at in chosen.edges}
    picture = _svg(chosen, layout(chosen.circuit.graph, chosen.nodes()), kinds, SIGNS, unit_of(result))
    body = (
        f"{STYLE}<p>{escaped(chosen.sentence())} {POINT}</p>\n"
        f"{legend_html(SIGNS, _largest(chosen), unit_of(result))}"
        f'<div class="wide">{picture}</div>\n{_table(chosen, unit_of(result))}'
    )
    return body, picture


def side_by_side(results: Mapping[str, Result], *, most_edges: int = 400) -> Page:
    """Two circuits of one architecture in one layout, the edges of both told from those of one.

    Args:
        results: by name of the model, or of whatever sets the circuits apart.
        most_edges: drawn of each.

    Raises:
        ValueError: not two Results, or circuits of different architectures.
    """
    if len(results) != 2:
        raise ValueError(f"side by side stand two circuits; got {len(results)}")
    chosen = {name: selection(circuit_of(result), most_edges) for name, result in results.items()}
    first, second = (one.circuit for one in chosen.values())
    if first.graph != second.graph:
        raise ValueError("side by side stand circuits of one architecture; these two have different edges")
    nodes = {node for one in chosen.values() for node in one.nodes()}
    both, panels = first.members & second.members, ""
    strokes: Strokes = {"both": (DARK, "in both circuits")}
    for (name, one), color, kind in zip(chosen.items(), (BLUE, ORANGE), ("first", "second"), strict=True):
        strokes[kind] = (color, f"only in {name}")
        kinds = {at: "both" if both[at] else kind for at in one.edges}
        unit = unit_of(results[name])
        picture = _svg(one, layout(first.graph, nodes), kinds, {**strokes}, unit, smallest=0.65)
        panels += (
            f'<section><h2>{escaped(name)}</h2><p class="how">{escaped(description(results[name]))}</p>'
            f'<p>{escaped(one.sentence())}</p><div class="wide">{picture}</div>{_table(one, unit)}</section>\n'
        )
    how = f"{POINT} Dashed edges hurt: their score is negative. Widths are relative to the largest score of each."
    body = (
        f"{STYLE}<p>{escaped(overlap_sentence(first, second))} {how}</p>\n"
        f'{legend_html(strokes)}<div class="pair">{panels}</div>\n'
    )
    return Page(document(" and ".join(results), body))


def overlap_sentence(first: Circuit, second: Circuit) -> str:
    """Edges in common, Jaccard index, and the index of two random circuits of these sizes."""
    n, m, common = first.n_edges, second.n_edges, int((first.members & second.members).sum())
    by_chance = expected_jaccard(n, m, first.graph.n_edges)
    return (
        f"{common:,} edges are in both circuits, of {n:,} and {m:,}: Jaccard index "
        f"{jaccard(first.members, second.members):.2f}; random circuits of these sizes have {by_chance:.2f} on average."
    )


def _largest(chosen: Selection) -> float:
    return float(chosen.sizes[chosen.drawn].max(initial=0.0))


def _svg(
    chosen: Selection,
    places: Layout,
    kinds: Mapping[tuple[int, int], str],
    strokes: Strokes,
    unit: str,
    smallest: float = 0.8,
) -> str:
    graph, scores, largest = chosen.circuit.graph, chosen.circuit.scores, _largest(chosen) or 1.0
    edges = [
        {
            "source": graph.sources[i].name,
            "readers": [graph.sources[r].name if r >= 0 else "logits" for r in chosen.readers(j)],
            "qkv": graph.destinations[j].qkv,
            "title": f"{graph.edge_name(i, j)}: {score_text(float(scores[i, j]), unit)}",
            "kind": kinds[i, j],
            "negative": bool(scores[i, j] < 0),
            "share": float(chosen.sizes[i, j]) / largest,
        }
        for i, j in chosen.edges
    ]
    return svg(places, edges, strokes, smallest)


def score_text(score: float, unit: str) -> str:
    """`+0.123 logits`."""
    return "no score" if score != score else f"{score:+.3g} {unit}".strip()


def _table(chosen: Selection, unit: str) -> str:
    graph, scores = chosen.circuit.graph, chosen.circuit.scores
    rows = [(graph.edge_name(i, j), score_text(float(scores[i, j]), "")) for i, j in chosen.edges]
    caption = f"Scores of the drawn edges, {unit or 'no unit'}: how much the value falls when the edge is cut."
    return details_html(
        "The drawn edges as a table", table_html(("edge", f"score, {unit}".rstrip(", ")), rows, caption)
    )
