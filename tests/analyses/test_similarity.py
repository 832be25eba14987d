"""Overlap of circuits, with expectations that are counted out."""

import itertools

import numpy as np
import pytest

from analyses.localization.graph import Graph
from analyses.localization.nulls import random_circuits
from analyses.localization.similarity import agreement, edge_kinds, expected_jaccard, jaccard

GRAPH = Graph(2, 4, 4, True, False, 16)


def members_of(*names):
    members = np.zeros_like(GRAPH.possible)
    for name in names:
        members[GRAPH.edge(name)] = True
    return members


def test_jaccard_by_hand():
    a, b = members_of("input->m0", "m0->logits", "m0->m1"), members_of("input->m0", "m1->logits")
    assert jaccard(a, b) == 1 / 4 and jaccard(a, a) == 1 and jaccard(a, a & ~a) == 0 and jaccard(a & ~a, b & ~b) == 1


@pytest.mark.parametrize(("n_a", "n_b", "n"), [(2, 3, 6), (1, 1, 5), (4, 5, 6), (0, 2, 4), (0, 0, 3), (3, 3, 3)])
def test_expected_jaccard_is_the_mean_over_all_pairs_of_circuits(n_a, n_b, n):
    pairs = itertools.product(itertools.combinations(range(n), n_a), itertools.combinations(range(n), n_b))
    each = [len({*a} & {*b}) / len({*a} | {*b}) if a or b else 1.0 for a, b in pairs]
    assert expected_jaccard(n_a, n_b, n) == pytest.approx(np.mean(each))


def test_random_circuits_agree_as_much_as_expected():
    found = random_circuits(GRAPH, 30, 60)
    table = agreement({str(i): one for i, one in enumerate(found)}, GRAPH)
    assert len(table) == 60 * 59 / 2 and table["expected_jaccard"].nunique() == 1
    assert table["jaccard"].mean() == pytest.approx(table["expected_jaccard"][0], rel=0.05)
    assert table["kind_jaccard"].mean() == pytest.approx(table["expected_kind_jaccard"].mean(), rel=0.03)
    assert 0.02 < (table["p_value"] <= 0.05).mean() <= 0.06  # exact, but discrete


def test_circuits_through_other_heads_agree_by_kind():
    names = ("input->a0.h{}<q>", "a0.h{}->m0", "m0->a1.h{}<v>", "a1.h{}->logits")
    one, other = (members_of(*(name.format(head) for name in names)) for head in (0, 3))
    row = agreement({"s0": one, "s1": other}, GRAPH).iloc[0]
    assert (row["a"], row["b"], row["n_edges_a"], row["shared"], row["jaccard"]) == ("s0", "s1", 4, 0, 0)
    assert row["kind_jaccard"] == 1 and row["expected_kind_jaccard"] < 0.5 and row["p_value"] == 1


def test_kinds_are_those_of_names_without_heads():
    kinds = edge_kinds(GRAPH)
    by_name: dict[int, set[str]] = {}
    for i, j in np.argwhere(GRAPH.possible).tolist():
        letters = GRAPH.edge_name(i, j)
        for head in range(4):
            letters = letters.replace(f".h{head}", "")
        by_name.setdefault(int(kinds[i, j]), set()).add(letters)
    assert all(len(names) == 1 for names in by_name.values())
    assert len(set.union(*by_name.values())) == len(by_name)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="0 to 5 edges"):
        expected_jaccard(6, 1, 5)
    with pytest.raises(ValueError, match="'b' is"):
        agreement({"a": GRAPH.possible, "b": GRAPH.possible[:3]}, GRAPH)
