"""Circuits: tables, choices by score, dead ends, and MIB's JSON."""

import json

import numpy as np
import pytest

from analyses.localization.circuit import Circuit, largest, read_mib, write_mib
from analyses.localization.graph import Graph

GRAPH = Graph(2, 2, 2, True, False, 16)


def circuit_of(*names: str) -> Circuit:
    members = np.zeros_like(GRAPH.possible)
    for name in names:
        members[GRAPH.edge(name)] = True
    return Circuit(GRAPH, np.where(GRAPH.possible, 0.0, np.nan), members)


@pytest.fixture
def scored():
    scores = np.where(GRAPH.possible, np.random.default_rng(0).normal(size=GRAPH.possible.shape), np.nan)
    return largest(GRAPH, scores, 7)


def test_the_largest_scores_by_size_or_by_value():
    scores = np.where(GRAPH.possible, 0.0, np.nan)
    for name, score in (("input->m0", -3.0), ("m0->logits", 2.0), ("a0.h1->a1.h0<k>", 1.0)):
        scores[GRAPH.edge(name)] = score
    by_size, by_value = (largest(GRAPH, scores, 2, absolute=absolute) for absolute in (True, False))
    assert set(by_size.table().query("in_circuit")["edge"]) == {"input->m0", "m0->logits"}
    assert set(by_value.table().query("in_circuit")["edge"]) == {"m0->logits", "a0.h1->a1.h0<k>"}
    assert by_size.table()["edge"][0] == "input->m0" and len(by_size.table()) == GRAPH.n_edges


def test_edges_that_lead_nowhere_or_come_from_nowhere_are_pruned():
    path = ("input->a0.h0<v>", "a0.h0->m1", "m1->logits")
    dead_end, out_of_nowhere = "input->a0.h1<q>", "m0->a1.h0<k>"
    leads_on = "a1.h0->logits"  # a1.h0 is reached by nothing that starts at the input
    pruned = circuit_of(*path, dead_end, out_of_nowhere, leads_on).pruned()
    assert set(pruned.table().query("in_circuit")["edge"]) == set(path)
    assert pruned.nodes() == ["input", "a0.h0", "m1", "logits"]


def test_a_circuit_comes_back_from_mib_s_json(scored, tmp_path):
    write_mib(scored, tmp_path / "c.json")
    back = read_mib(tmp_path / "c.json", GRAPH)
    assert np.array_equal(back.members, scored.members) and back.n_edges == 7
    assert np.array_equal(back.scores, scored.scores, equal_nan=True)
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 16}
    assert set(content["nodes"]) == {"input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"}
    assert content["edges"]["a0.h1->m0"].keys() == {"score", "in_graph"}


def spoiled(content, how):
    edges = content["edges"]
    if how == "score":
        edges["input->m0"]["score"] = "much"
    elif how == "nan":
        edges["input->m0"]["score"] = float("nan")
    elif how == "edge":
        edges["input->m0"] = 3
    elif how == "unknown":
        edges["m1->m0"] = {"score": 1.0, "in_graph": True}
    elif how == "missing":
        del edges["a0.h1->m0"]
    elif how == "layers":
        content["cfg"]["n_layers"] = 3
    elif how == "list":
        content["edges"] = []
    elif how == "not_a_dict":
        return [1]
    return content


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("score", "input->m0 needs a score"),
        ("nan", "input->m0 needs a score"),
        ("edge", "input->m0 needs a score"),
        ("unknown", "'m1->m0' is no edge"),
        ("missing", "1 edges are missing, a0.h1->m0"),
        ("layers", "n_layers=3"),
        ("list", "must be JSON"),
        ("not_a_dict", "must be JSON"),
    ],
)
def test_a_spoiled_file_is_refused_in_one_line(scored, tmp_path, how, words):
    path = tmp_path / "c.json"
    write_mib(scored, path)
    path.write_text(json.dumps(spoiled(json.loads(path.read_text()), how)))
    with pytest.raises(ValueError, match=words) as error:
        read_mib(path, GRAPH)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match="must be JSON"):
        read_mib(tmp_path / "c.json", GRAPH)


def test_members_must_be_edges_and_sizes_must_fit(scored):
    with pytest.raises(ValueError, match="must be edges"):
        Circuit(GRAPH, scored.scores, np.ones_like(GRAPH.possible))
    with pytest.raises(ValueError, match="scores and members must be"):
        Circuit(GRAPH, scored.scores[:2], scored.members[:2])
    with pytest.raises(ValueError, match="0 to"):
        largest(GRAPH, scored.scores, GRAPH.n_edges + 1)
    with pytest.raises(ValueError, match="some are NaN"):
        largest(GRAPH, np.full(GRAPH.possible.shape, np.nan), 3)
