"""Every number in a figure is one of the Result's, on the axis that says so; names are text."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from analyses.localization.circuit import Circuit
from analyses.localization.circuit_figures import (
    edge_heat_map,
    faithfulness_figure,
    node_heat_map,
    overlap_figure,
    sizes_figure,
)
from analyses.localization.graph import Graph
from analyses.result import Result

GRAPH = Graph(2, 2, 2, True, False, 16)
HOSTILE = "<b>x</b><script>alert(1)</script>"
CURVE = [
    {"size": 1.0, "n_edges": 48, "faithfulness": 1.0, "ci_low": 1.0, "ci_high": 1.0, "n": 64},
    {"size": 0.1, "n_edges": 5, "faithfulness": 0.5, "ci_low": 0.4, "ci_high": 0.7, "n": 64},
    {"size": 0.001, "n_edges": 0, "faithfulness": 0.0, "ci_low": 0.0, "ci_high": 0.0, "n": 64},
]
NULL = [
    {"size": 0.1, "n_edges": 5, "mean": 0.02, "low": -0.1, "high": 0.1, "n_circuits": 20},
    {"size": 1.0, "n_edges": 48, "mean": 1.0, "low": None, "high": None, "n_circuits": 1},
]


def result_of(edges, members=(), **meta):
    scores, inside = np.where(GRAPH.possible, 0.0, np.nan), np.zeros_like(GRAPH.possible)
    for name, score in edges.items():
        scores[GRAPH.edge(name)] = score
    for name in members:
        inside[GRAPH.edge(name)] = True
    meta = {"graph": dataclasses.asdict(GRAPH), **meta}
    return Result("localization", Circuit(GRAPH, scores, inside).table(), {"score": "logits"}, meta)


def test_a_heat_map_has_each_score_where_its_edge_is_and_a_dot_on_each_member():
    drawn = edge_heat_map(result_of({"m0->a1.h1<k>": -9.0, "input->m0": 4.0}, ["input->m0"], method="acdc"))
    heat, dots = drawn.data
    cell = GRAPH.edge("m0->a1.h1<k>")
    assert heat.z[cell] == -3.0 and heat.z[GRAPH.edge("input->m0")] == 2.0  # signed roots
    assert heat.text[cell] == "m0->a1.h1<k>: -9 logits"
    assert np.array_equal(np.isnan(heat.z), ~GRAPH.possible)
    assert (heat.zmin, heat.zmax) == (-3, 3)
    assert heat.colorbar.ticktext == ("-9", "-2.2", "0", "2.2", "9") and heat.colorbar.tickvals[0] == -3
    source, destination = GRAPH.edge("input->m0")
    assert (list(dots.x), list(dots.y)) == ([destination], [source])
    assert drawn.layout.title.text == "Scores of the edges (acdc)"


def test_layers_are_named_once_and_set_apart_on_both_axes():
    drawn = edge_heat_map(result_of({}))
    assert drawn.layout.xaxis.ticktext == ("layer 0", "layer 1", "logits")
    assert drawn.layout.yaxis.ticktext == ("input", "layer 0", "layer 1")
    # destinations: 6 head inputs and an MLP a layer; sources: input, then 2 heads and an MLP a layer
    assert drawn.layout.xaxis.tickvals == (3, 10, 14) and drawn.layout.yaxis.tickvals == (0, 2, 5)
    assert sorted(line.x0 for line in drawn.layout.shapes if line.x0 == line.x1) == [6.5, 13.5, 14.5]


@pytest.mark.parametrize("in_meta", [True, False])
def test_nodes_stand_by_layer_and_head_with_the_mlp_last(in_meta):
    rows = [{"node": "a1.h0", "score": 2.0}, {"node": "m0", "score": -1.0}, {"node": "input", "score": 9.0}]
    result = result_of({}, nodes=rows) if in_meta else dataclasses.replace(result_of({}), table=pd.DataFrame(rows))
    drawn = node_heat_map(result)
    nan = np.nan
    np.testing.assert_array_equal(drawn.data[0].z, [[nan, nan, -1.0], [2.0, nan, nan]])
    assert drawn.layout.xaxis.ticktext == ("0", "1", "MLP")
    with pytest.raises(ValueError, match="node is missing"):
        node_heat_map(result_of({}))


def test_faithfulness_goes_by_size_with_its_interval_and_that_of_random_circuits():
    drawn = faithfulness_figure(result_of({}, curve=CURVE, null_curve=NULL))
    null_band, null, band, line = drawn.data
    assert (list(line.x), list(line.y)) == ([5, 48], [0.5, 1.0])  # no edges have no place on a log axis
    assert (list(band.x), list(band.y)) == ([5, 48, 48, 5], [0.7, 1.0, 1.0, 0.4])
    assert (list(null.y), null.name, null.line.dash) == ([0.02, 1.0], "random circuits", "dot")
    assert list(null_band.y) == [0.1, -0.1]  # where there is an interval
    assert line.customdata[0].tolist() == [0.4, 0.7, "n = 64"] and null.customdata[0][2] == "20 circuits"
    assert drawn.layout.xaxis.type == "log" and "5" in drawn.layout.xaxis.ticktext
    assert {shape.y0 for shape in drawn.layout.shapes} == {0, 1}


def test_several_models_have_a_colour_each_and_their_own_random_circuits():
    drawn = faithfulness_figure({"a": result_of({}, curve=CURVE, null_curve=NULL), "b": result_of({}, curve=CURVE)})
    lines = {trace.name: trace.line.color for trace in drawn.data if not trace.fill}
    assert list(lines) == ["random circuits, a", "a", "b"]
    assert lines["random circuits, a"] == lines["a"] != lines["b"]


def test_a_result_without_a_curve_is_refused():
    with pytest.raises(ValueError, match="'curve' with n_edges"):
        faithfulness_figure(result_of({}))
    with pytest.raises(ValueError, match="'null_curve' with n_edges, mean, low, high; low is missing"):
        faithfulness_figure(result_of({}, curve=CURVE, null_curve=[{"n_edges": 1, "mean": 0}]))


def sizes_result(*rows, method="eap-ig"):
    columns = ("arm", "seed", "metric", "value", "ci_low", "ci_high")
    return Result("localization", pd.DataFrame(rows, columns=columns), {}, {"method": method})


def test_a_marker_a_seed_and_a_bar_at_the_geometric_mean():
    size = "edges at faithfulness 0.9"
    drawn = sizes_figure(
        sizes_result(
            ("none", 1, size, 1000, 900, 1200),
            ("none", 0, size, 10, 8, 20),
            ("none", 0, "accuracy", 0.9, 0.8, 1.0),
            ("local", 0, size, 30, None, None),
            ("local", 1, size, None, None, None),
        )
    )
    none, none_mean, local, local_mean = drawn.data
    assert list(none.y) == [10, 1000] and list(none.text) == ["seed 0", "seed 1"]
    assert list(none.error_y.array) == [10, 200] and list(none.error_y.arrayminus) == [2, 100]
    assert none_mean.y == pytest.approx([100, 100]) and local_mean.y == pytest.approx([30, 30])
    assert list(local.y) == [30]  # a model that never gets there has no size
    assert all(abs(x - 0) < 0.5 for x in none.x) and all(abs(x - 1) < 0.5 for x in local.x)
    assert drawn.layout.xaxis.ticktext == ("none", "local") and drawn.layout.yaxis.type == "log"
    assert [trace.showlegend for trace in drawn.data] == [True, False, False, False]


def test_a_table_without_sizes_is_refused():
    with pytest.raises(ValueError, match="begins with 'edges at faithfulness'"):
        sizes_figure(sizes_result(("none", 0, "accuracy", 1, 1, 1)))
    with pytest.raises(ValueError, match="arm is missing"):
        sizes_figure(result_of({}))


def test_the_overlap_of_every_two_circuits():
    some = ["input->m0", "m0->m1", "m1->logits"]
    results = {"a": result_of({}, some), "b": result_of({}, some[1:]), "c": result_of({}, ["input->logits"])}
    drawn = overlap_figure(results)
    np.testing.assert_allclose(drawn.data[0].z, [[1, 2 / 3, 0], [2 / 3, 1, 0], [0, 0, 1]])
    assert drawn.data[0].customdata[0, 1, 0] == 2
    # one edge of n meets the three with chance 3 / n, and then one of three is in both
    assert drawn.data[0].customdata[0, 2, 1] == pytest.approx(3 / GRAPH.n_edges / 3)
    assert drawn.layout.xaxis.ticktext == ("a (3)", "b (2)", "c (1)")
    other = dataclasses.replace(results["a"], meta={"graph": {"n_layers": 3, "n_heads": 2}})
    with pytest.raises(ValueError, match="one architecture"):
        overlap_figure({"a": results["a"], "other": other})
    with pytest.raises(ValueError, match="two circuits or more; got 1"):
        overlap_figure({"a": results["a"]})


def test_names_cannot_become_markup():
    hostile = {"method": HOSTILE, "task": {"name": HOSTILE}, "checkpoint": HOSTILE, "curve": CURVE, "null_curve": NULL}
    result = result_of({}, ["input->m0"], **hostile)
    result = dataclasses.replace(result, units={"score": HOSTILE})
    row = (HOSTILE, HOSTILE, f"edges at faithfulness {HOSTILE}", 3, 2, 4)
    for drawn in (
        edge_heat_map(result),
        node_heat_map(dataclasses.replace(result, meta={**result.meta, "nodes": [{"node": HOSTILE, "score": 1.0}]})),
        faithfulness_figure({HOSTILE: result, "b": result}),
        sizes_figure(sizes_result(row, method=HOSTILE)),
        overlap_figure({HOSTILE: result, "b": result}),
    ):
        text = drawn.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
        assert "<script>" not in text and "<b>" not in text


def test_figures_are_drawn_again_from_disk(tmp_path):
    result = result_of({"input->m0": 4.0}, ["input->m0"], curve=CURVE, null_curve=NULL)
    result.save(tmp_path / "r")
    back = Result.load(tmp_path / "r")
    for draw in (edge_heat_map, faithfulness_figure):
        assert draw(back).to_json() == draw(result).to_json()
