"""The graph: counts by hand, names, and which edges exist."""

import pytest

from analyses.localization.graph import Graph, graph_of


def test_the_published_model_has_23981_edges():
    graph = Graph(n_layers=8, n_heads=16, n_kv_heads=16, has_mlp=True, parallel=False)
    by_hand = sum(48 * (1 + 17 * layer) + 17 * (layer + 1) for layer in range(8)) + 137
    assert graph.n_edges == by_hand == 23_981
    assert len(graph.sources) == 137 and len(graph.destinations) == 8 * 49 + 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [3 * 2 * 1 + 3, 3 * 2 * 4 + 6, 7]),
        ({"parallel_attn_mlp": True}, [3 * 2 * 1 + 1, 3 * 2 * 4 + 4, 7]),
        ({"attn_only": True, "d_mlp": None}, [3 * 2 * 1, 3 * 2 * 3, 5]),
        ({"n_key_value_heads": 1}, [(2 + 1 + 1) * 1 + 3, (2 + 1 + 1) * 4 + 6, 7]),
    ],
)
def test_counts_by_hand_of_two_layers_of_two_heads(tiny_config, changes, expected):
    assert graph_of(tiny_config(n_heads=2, d_head=8, **changes)).n_edges == sum(expected)


def test_names_are_mib_s_and_lead_back_to_the_edge():
    graph = Graph(2, 2, 2, True, False)
    for name in ("input->a0.h0<q>", "a0.h1->m0", "a0.h1->a1.h0<v>", "m0->logits"):
        assert graph.edge_name(*graph.edge(name)) == name


@pytest.mark.parametrize("name", ["m0->a0.h0<q>", "a1.h0->a1.h1<k>", "a0.h5->m0", "m1->m1", "logits->m0", "a0.h0", ""])
def test_edges_that_do_not_exist_are_refused_by_name(name):
    with pytest.raises(ValueError, match="is no edge"):
        Graph(2, 2, 2, True, False).edge(name)


def test_no_edge_goes_back():
    graph = Graph(3, 2, 2, True, False)
    for i, source in enumerate(graph.sources):
        for j, destination in enumerate(graph.destinations):
            if graph.possible[i, j]:
                assert source.layer < destination.layer or (source.kind, destination.kind) == ("attn", "mlp")
                assert source.layer <= destination.layer


def test_norms_behind_attention_are_refused(tiny_config):
    with pytest.raises(ValueError, match="pre-norm"):
        graph_of(tiny_config(use_normalization_before_and_after=True))
