"""Random circuits share what they should with a circuit and nothing else; random weights share the distribution."""

import numpy as np
import pytest
import torch

from analyses.localization.circuit import Circuit
from analyses.localization.faithfulness import gap_of
from analyses.localization.graph import Graph
from analyses.localization.nulls import (
    against_random,
    random_circuits,
    random_subsets,
    share_as_large,
)
from analyses.random_weights import random_weights

GRAPH = Graph(2, 4, 4, True, False, 16)
GROUPED = Graph(2, 4, 2, True, False, 16)


def members_of(graph, *names):
    members = np.zeros_like(graph.possible)
    for name in names:
        members[graph.edge(name)] = True
    return members


PATHS = ("input->a0.h1<q>", "input->a0.h1<v>", "a0.h1->a1.h2<k>", "input->a1.h2<v>", "a1.h2->m1", "m1->logits")


def layers_of(graph, members):
    pairs = [(graph.sources[i].layer, graph.destinations[j].layer) for i, j in np.argwhere(members).tolist()]
    return sorted(pairs)


def test_random_circuits_have_the_size_and_every_edge_its_chance():
    found = random_circuits(GRAPH, 20, 2000, seed=1)
    assert (found.sum((1, 2)) == 20).all() and not (found & ~GRAPH.possible).any()
    share = 20 / GRAPH.n_edges
    assert np.abs(found.mean(0)[GRAPH.possible] - share).max() < 5 * np.sqrt(share * (1 - share) / 2000)
    assert np.array_equal(found[:5], random_circuits(GRAPH, 20, 5, seed=1))
    assert not np.array_equal(found[:5], random_circuits(GRAPH, 20, 5, seed=2))
    assert random_circuits(GRAPH, 3, 0).shape == (0, *GRAPH.possible.shape)


def test_random_circuits_like_another_keep_its_layers():
    like = members_of(GRAPH, *PATHS)
    for one in random_circuits(GRAPH, 6, 20, like=like):
        assert layers_of(GRAPH, one) == layers_of(GRAPH, like)
    uniform = random_circuits(GRAPH, 6, 20, like=like, keep="size")
    assert any(layers_of(GRAPH, one) != layers_of(GRAPH, like) for one in uniform)


@pytest.mark.parametrize("graph", [GRAPH, GROUPED])
def test_random_circuits_of_one_shape_keep_every_path(graph):
    kv = graph.n_heads // graph.n_kv_heads
    paths = ["input->a0.h3<q>", f"input->a0.h{3 // kv}<v>", f"a0.h3->a1.h{2 // kv}<k>", "a1.h2->m1", "m1->logits"]
    paths += [f"input->a1.h{2 // kv}<v>"]
    like = members_of(graph, *paths)
    found = random_circuits(graph, 6, 60, like=like, keep="shape")
    pruned = [Circuit(graph, np.where(graph.possible, 0.0, np.nan), one).pruned().n_edges for one in found]
    assert set(pruned) == {Circuit(graph, np.where(graph.possible, 0.0, np.nan), like).pruned().n_edges} == {6}
    assert found[:, graph.source_index["m1"], -1].all()
    assert len({one.tobytes() for one in found}) == 16  # 4 heads in layer 0, 4 in layer 1


def test_p_values_by_hand():
    assert share_as_large(1.0, np.array([0.0, 1.0, 2.0])) == 3 / 4
    assert share_as_large(3.0, np.zeros(99)) == 1 / 100
    assert share_as_large(1.0, np.array([1 - 1e-12])) == 1  # a tie in another order of summing
    assert np.isnan(share_as_large(1.0, np.array([]))) and np.isnan(share_as_large(np.nan, np.zeros(3)))


def test_random_subsets_have_their_share():
    of = members_of(GRAPH, *PATHS)
    draw = np.random.default_rng(0)
    found = random_subsets(of, 2000, draw, 0.3)
    assert not (found & ~of).any() and abs(found.sum() / of.sum() / 2000 - 0.3) < 0.02
    spread = random_subsets(of, 2000, draw).sum((1, 2))
    # uniform shares: all counts from 0 to 6 are equally likely
    assert np.abs(np.bincount(spread, minlength=7) / 2000 - 1 / 7).max() < 0.04


def test_the_true_circuit_beats_random_ones_and_a_random_one_does_not(three_paths):
    made = three_paths()
    gap = gap_of(made.setting)
    true = against_random(made.setting, made.circuit(1, 2, 3, 4, 5), gap, n_random=39)
    assert true.faithfulness == pytest.approx(1) and true.p_value_near == 1 / 40 and true.p_value <= 2 / 40
    idle = random_circuits(made.setting.graph, 5, 1, seed=5)[0] & ~made.circuit(1, 2, 3, 4, 5)
    none = against_random(made.setting, idle, gap, n_random=39)
    assert none.faithfulness == pytest.approx(0) and none.p_value > 0.5
    same = against_random(made.setting, made.circuit(1, 2, 3, 4, 5), gap, n_random=9, keep="shape")
    assert same.random == pytest.approx(1) and same.p_value == 1  # it has no heads: all deals are itself


@pytest.mark.parametrize("how", ["permute", "normal"])
def test_random_weights_keep_the_distribution_and_leave_the_model_alone(tiny_model, tokens, how):
    model = tiny_model(ablation={"mask": "none"})
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    one, again, other = (random_weights(model, seed, how) for seed in (0, 0, 1))
    found = dict(one.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) and found[name].shape == parameter.shape
        if how == "permute":
            assert torch.equal(found[name].flatten().sort()[0], parameter.flatten().sort()[0])
    W_E = found["embed.W_E"]
    assert abs(W_E.std() / model.embed.W_E.std() - 1) < 0.2 and not torch.equal(W_E, model.embed.W_E)
    with torch.no_grad():
        assert torch.equal(one(tokens), again(tokens))
        assert (one(tokens) - other(tokens)).abs().max() > 0.1 < (one(tokens) - model(tokens)).abs().max()
    assert torch.equal(one.unembed.W_U, one.embed.W_E.T) == torch.equal(model.unembed.W_U, model.embed.W_E.T)


def test_what_does_not_fit_is_refused(tiny_model):
    like = members_of(GRAPH, *PATHS)
    for call, said in (
        (lambda: random_circuits(GRAPH, 6, 1, like=like, keep="heads"), "keep must be"),
        (lambda: random_circuits(GRAPH, 5, 1, like=like), "must have 5 edges; it has 6"),
        (lambda: random_circuits(GRAPH, 10**6, 1), "0 to"),
        (lambda: random_weights(tiny_model(), 0, "zero"), "how must be"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
