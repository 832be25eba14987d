"""What is drawn is the circuit: its edges, their widths, what is left out, and nothing that can run."""

import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from analyses.figures import write_figure
from analyses.localization.circuit import Circuit, largest
from analyses.localization.circuit_drawing import drawing, selection, side_by_side
from analyses.localization.circuit_layout import HEIGHT, WIDTH, layout
from analyses.localization.graph import Graph
from analyses.localization.stored_circuit import circuit_of
from analyses.result import Result

GRAPH = Graph(2, 2, 2, True, False, 16)
HOSTILE = '"><script>alert(1)</script>'
PATH = {"input->a0.h0<v>": 4.0, "a0.h0->m1": -3.0, "m1->logits": 2.0, "input->logits": 1.0}
DEAD = {"input->a0.h1<q>": 10.0}
SVG = "{http://www.w3.org/2000/svg}"


def result_of(edges, graph=GRAPH, unit="logits", **meta):
    scores, members = np.where(graph.possible, 0.0, np.nan), np.zeros_like(graph.possible)
    for name, score in edges.items():
        scores[graph.edge(name)], members[graph.edge(name)] = score, True
    table = Circuit(graph, scores, members).table()
    return Result("localization", table, {"score": unit}, {"graph": dataclasses.asdict(graph), **meta})


def links(svg_text):
    """Title to (group, visible path) of every edge of a drawing."""
    groups = [g for g in ElementTree.fromstring(svg_text).iter(f"{SVG}g") if g.get("class", "").startswith("link")]
    return {g.find(f"{SVG}title").text: (g, g.find(f"{SVG}path")) for g in groups}


def pictures(page):
    return re.findall(r"<svg xmlns.*?</svg>", page.document, re.DOTALL)


def test_edges_on_a_path_are_drawn_and_the_share_that_is_lost_is_said():
    page = drawing(result_of(PATH | DEAD))
    assert {title.partition(":")[0] for title in links(page.svg)} == set(PATH)
    # 4 + 3 + 2 + 1 of 20
    assert (
        "4 of the circuit&#x27;s 5 edges are drawn; they hold 50.0 % of its total |score|; 50.0 % is lost"
        in page.document
    )
    assert "Left out: 1 on no path from the input to the logits." in page.document
    assert f"The model has {GRAPH.n_edges} edges" in page.document


def test_too_many_edges_leave_the_largest():
    page = drawing(result_of(PATH | DEAD), most_edges=3)
    assert len(links(page.svg)) == 3 and "input->logits: +1 logits" not in links(page.svg)
    assert "they hold 45.0 %" in page.document and "and the 1 smallest on such a path" in page.document  # 9 of 20


def test_a_whole_circuit_loses_nothing():
    text = drawing(result_of(PATH)).document
    assert "100.0 % of its total |score|; 0.0 % is lost" in text and "Left out" not in text


def test_widths_go_with_the_score_and_dashes_with_its_sign():
    drawn = {title: path for title, (_, path) in links(drawing(result_of(PATH)).svg).items()}
    widths = {title.partition(":")[0]: float(path.get("stroke-width")) for title, path in drawn.items()}
    assert widths == {"input->a0.h0<v>": 8.0, "a0.h0->m1": 6.0, "m1->logits": 4.0, "input->logits": 2.0}
    assert {title: path.get("class") for title, path in drawn.items()} == {
        "input->a0.h0<v>: +4 logits": "plus",
        "a0.h0->m1: -3 logits": "minus",
        "m1->logits: +2 logits": "plus",
        "input->logits: +1 logits": "plus",
    }


def test_only_the_nodes_of_drawn_edges_stand_there_and_each_lights_up_its_own_edges():
    page = drawing(result_of(PATH | DEAD))
    nodes = [g for g in ElementTree.fromstring(page.svg).iter(f"{SVG}g") if g.get("class").startswith("node")]
    number = {g.find(f"{SVG}text").text: g.get("class").split()[1] for g in nodes}
    assert set(number) == {"input", "a0.h0", "m1", "logits"}
    for title, (group, _) in links(page.svg).items():
        source, destination = title.partition(":")[0].split("->")
        ends = {number[source], number[destination.partition("<")[0]]}
        assert set(group.get("class").split()) == {"link", *ends}
    for cls in number.values():
        assert f".circuit:has(.node.{cls}:is(:hover, :focus)) .link.{cls} {{ opacity: 1; }}" in page.svg


@pytest.mark.parametrize(
    "graph",
    [
        Graph(4, 4, 4, True, False),
        Graph(3, 6, 2, True, True),
        Graph(5, 3, 3, False, False),
        Graph(1, 1, 1, True, False),
    ],
)
def test_no_edge_touches_a_node_but_those_at_its_ends(graph):
    scores = np.where(graph.possible, np.random.default_rng(0).normal(size=graph.possible.shape), np.nan)
    chosen = selection(largest(graph, scores, graph.n_edges), 400)
    places = layout(graph, chosen.nodes())
    assert len(chosen.edges) > 5 or graph.n_layers == 1
    for order, (i, j) in enumerate(chosen.edges):
        source, reader = graph.sources[i].name, chosen.readers(j)[0]
        reader = graph.sources[reader].name if reader >= 0 else "logits"
        d = places.path(source, reader, graph.destinations[j].qkv, order)
        x, y = on_path(d)
        assert np.all(np.diff(y) <= 1e-9), "an edge never turns back"
        for name, (nx, ny) in places.places.items():
            inside = (np.abs(x - nx) < WIDTH / 2) & (np.abs(y - ny) < HEIGHT / 2 - 0.6)
            assert name in (source, reader) or not inside.any(), f"{source}->{reader} runs under {name}"
        (sx, sy), (rx, ry) = places.places[source], places.places[reader]
        assert abs(y[0] - (sy - HEIGHT / 2)) <= 0.5 and abs(x[0] - sx) <= 0.5
        assert abs(y[-1] - (ry + HEIGHT / 2)) <= 0.5 and abs(x[-1] - rx) < WIDTH / 2
    boxes = list(places.places.values())
    assert all(abs(a[0] - b[0]) >= WIDTH or abs(a[1] - b[1]) >= HEIGHT for k, a in enumerate(boxes) for b in boxes[:k])
    assert all(WIDTH / 2 <= x <= places.width - WIDTH / 2 and 0 <= y <= places.height for x, y in boxes)


def on_path(d):
    """Points along `M x yC x1 y1 x2 y2 x yC...`, by the definition of a Bezier curve."""
    start, *curves = [np.array(part.split(), dtype=float) for part in d[1:].split("C")]
    t, points = np.linspace(0, 1, 40)[:, None], []
    for a, b, c in (curve.reshape(3, 2) for curve in curves):
        points.append((1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * a + 3 * (1 - t) * t**2 * b + t**3 * c)
        start = c
    return np.concatenate(points).T


def test_layers_stand_above_one_another_between_input_and_logits():
    places = layout(GRAPH, [source.name for source in GRAPH.sources]).places
    height = {name: -y for name, (_, y) in places.items()}
    order = ["input", "a0.h1", "m0", "a1.h0", "m1", "logits"]
    assert sorted(order, key=height.__getitem__) == order and height["a0.h0"] == height["a0.h1"]


def test_an_edge_into_a_shared_key_belongs_to_every_head_that_shares_it():
    graph = Graph(2, 2, 1, True, False)
    edges = {"input->m0": 1.0, "m0->a1.h0<k>": 2.0, "a1.h0->logits": 3.0, "a1.h1->logits": 3.0}
    drawn = links(drawing(result_of(edges, graph)).svg)
    title = "m0->a1.h0<k>: +2 logits (shared by a1.h0, a1.h1)"
    assert len(drawn[title][0].get("class").split()) == 4  # link, its source, both heads


def test_no_scores_are_said_to_be_none():
    result = result_of(PATH)
    result.table["score"] = np.nan
    page = drawing(result)
    assert (
        "m1->logits: no score" in links(page.svg) and "%" not in page.document.partition("<p>")[2].partition("</p>")[0]
    )


def test_two_models_side_by_side_share_a_layout_and_tell_their_edges_apart():
    first, second = dict(PATH), {"input->m0": 2.0, "m0->logits": 2.0, "input->logits": 1.0, "m1->logits": 5.0}
    page = side_by_side({"one": result_of(first), "two": result_of(second)})
    # in both: input->logits and m1->logits, of 6 in either
    assert "2 edges are in both circuits, of 4 and 4: Jaccard index 0.33" in page.document
    left, right = pictures(page)
    kinds = [
        {t.partition(":")[0]: p.get("class").split()[0] for t, (_, p) in links(one).items()} for one in (left, right)
    ]
    assert kinds[0] == {"input->logits": "both", "m1->logits": "both", "input->a0.h0<v>": "first", "a0.h0->m1": "first"}
    assert kinds[1] == {"input->logits": "both", "input->m0": "second", "m0->logits": "second"}  # m1 has no input there
    rects = [re.findall(r'<rect x="[^>]*>', one) for one in (left, right)]
    assert rects[0] == rects[1]
    assert "a0.h0: no edge drawn here" in right and "a0.h0: not in this circuit" not in left


def test_chance_is_said_beside_the_jaccard_index():
    graph = Graph(1, 1, 1, False, False)  # input to q, k, v and logits, a0.h0 to logits: 5 edges
    every = {graph.edge_name(i, j): 1.0 for i, j in np.argwhere(graph.possible).tolist()}
    page = side_by_side({"all": result_of(every, graph), "one": result_of({"input->logits": 1.0}, graph)})
    assert "Jaccard index 0.20; random circuits of these sizes have 0.20 on average" in page.document


def test_what_cannot_stand_side_by_side_is_refused():
    one, other = result_of(PATH), result_of({"input->logits": 1.0}, Graph(1, 2, 2, True, False))
    with pytest.raises(ValueError, match="one architecture"):
        side_by_side({"one": one, "other": other})
    with pytest.raises(ValueError, match="two circuits; got 1"):
        side_by_side({"one": one})


def test_hostile_names_are_shown_and_not_run():
    meta = {"method": HOSTILE, "task": {"name": "</svg><img src=x>"}, "knobs": {"ablation": "&\x00\udcff"}}
    result = result_of(PATH, unit=HOSTILE, **meta)
    for page in (drawing(result), side_by_side({HOSTILE: result, "</style>": result})):
        assert "<script" not in page.document and "<img" not in page.document
        assert "script-src &#x27;none&#x27;" in page.document
        assert "&lt;script&gt;" in page.document
        for picture in pictures(page):
            ElementTree.fromstring(picture)
        page.document.encode("utf-8")


def test_a_page_asks_no_server_for_anything():
    text = drawing(result_of(PATH)).document
    assert not re.search(r"\b(?:src|href)=|url\(|@import", text)
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize(
    ("edge", "graph"),
    [
        (HOSTILE, {"n_layers": 2, "n_heads": 2}),
        ("m0->m1", {}),
        ("m0->m1", None),
        ("m0->m1", {"n_layers": True, "n_heads": 2}),
        ("m0->m1", {"n_layers": 2, "n_heads": 10**9}),
        ("m0->m1", {"n_layers": 2, "n_heads": 3, "n_kv_heads": 2}),
    ],
)
def test_a_file_that_is_no_circuit_is_refused_in_one_line(edge, graph):
    result = result_of({"m0->m1": 1.0})
    result.table.loc[0, "edge"] = edge
    result.meta["graph"] = graph
    with pytest.raises(ValueError) as refused:
        drawing(result)
    assert "\n" not in str(refused.value)


def test_a_table_of_something_else_is_refused():
    result = result_of(PATH)
    with pytest.raises(ValueError, match="in_circuit is missing"):
        drawing(dataclasses.replace(result, table=result.table.drop(columns="in_circuit")))
    with pytest.raises(ValueError, match="most_edges must be 1 or more"):
        drawing(result, most_edges=0)


def test_the_drawing_is_made_again_from_disk_byte_for_byte(tmp_path):
    result = result_of(PATH | DEAD, method="acdc")
    result.save(tmp_path / "r")
    back = Result.load(tmp_path / "r")
    assert np.array_equal(circuit_of(back).members, circuit_of(result).members)
    assert drawing(back).document == drawing(result).document


def test_a_page_is_written_like_a_figure_with_an_svg_for_papers(tmp_path):
    page = drawing(result_of(PATH))
    assert write_figure(page, tmp_path / "a" / "circuit.html") is None
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["circuit.html"]
    assert write_figure(page, tmp_path / "b" / "circuit.html", static=True) is None
    assert (tmp_path / "b" / "circuit.html").read_text() == page.document
    assert (tmp_path / "b" / "circuit.svg").read_text() == page.svg
    frame = page._repr_html_()
    assert frame.startswith('<iframe sandbox="allow-scripts"') and "<main>" not in frame and frame.count("<") == 2
