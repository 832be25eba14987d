"""What is said of the planted circuits is so: every edge cut by itself, every smaller circuit, every distractor."""

import itertools

import numpy as np
import pytest
import torch

from analyses.localization.planted import PLANTED, planted
from analyses.localization.runner import end_logits
from analyses.localization.setting import setting_of

N = 4  # prompts
ROUNDING = 1e-10  # logits
SIZES = {"copy": (75, 2), "induction": (81, 5), "name_mover": (172, 8), "linear": (118, 8), "gate": (75, 5)}


@pytest.fixture(scope="module")
def known():
    """`known(name, seed)`: the planted model and its setting, built once."""
    made = {}

    def build(name, seed=0):
        if (name, seed) not in made:
            one = planted(name, n=N, seed=seed)
            made[name, seed] = one, setting_of(one.model, one.task)
        return made[name, seed]

    return build


def without_each(graph):
    """Every edge of the graph, and the members that are left when it is cut by itself."""
    edges = np.argwhere(graph.possible)
    members = np.repeat(graph.possible[None], len(edges), 0)
    members[np.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    return edges, members


def test_there_are_five_models_of_known_size(known):
    assert set(PLANTED) == set(SIZES)
    for name, (n_edges, n_members) in SIZES.items():
        one, _ = known(name)
        assert (one.graph.n_edges, int(one.members.sum())) == (n_edges, n_members)
        assert one.members.sum() == len(one.edges) and all(one.edges.values())
        assert {one.model.cfg.normalization_type for one, _ in map(known, SIZES)} == {None, "LN", "RMS"}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PLANTED)
def test_an_edge_matters_on_every_prompt_if_and_only_if_it_is_in_the_circuit(known, name, seed):
    one, setting = known(name, seed)
    edges, members = without_each(setting.graph)
    falls = setting.intact_values - setting.values(members)
    inside = one.members[edges[:, 0], edges[:, 1]]
    gap = setting.intact_values - setting.other_values
    assert (falls[inside] / gap).min() > 0.05
    assert np.abs(falls[~inside]).max() < ROUNDING


@pytest.mark.parametrize("name", PLANTED)
def test_the_circuit_is_faithful_and_no_smaller_part_of_it_is(known, name):
    one, setting = known(name)
    edges = np.argwhere(one.members)
    kept = np.array(list(itertools.product([False, True], repeat=len(edges))))
    members = np.zeros((len(kept), *one.members.shape), dtype=bool)
    members[:, edges[:, 0], edges[:, 1]] = kept
    *smaller, whole = setting.values(members)
    assert np.abs(whole - setting.intact_values).max() < ROUNDING
    gap = (setting.intact_values - setting.other_values).mean()
    assert np.mean(smaller, 1).max() < setting.intact_values.mean() - 0.05 * gap


@pytest.mark.parametrize("name", PLANTED)
def test_the_model_does_its_task_and_not_on_the_counterfactuals(known, name):
    one, _ = known(name)
    with torch.no_grad():
        assert one.task.logit_difference(one.model(one.task.clean)).min() > 0.9
        assert one.task.logit_difference(one.model(one.task.corrupt)).max() < 0.1


@pytest.mark.parametrize("name", PLANTED)
def test_every_source_moves_and_every_prompt_says_something_else(known, name):
    one, setting = known(name)
    moved = sum((group.contrast.clean - group.contrast.other).abs().sum((1, 2, 3)) for group in setting.groups)
    assert moved.min() > 0.1
    assert len({tuple(row) for row in one.task.clean.tolist()}) > 1


@pytest.mark.parametrize("name", ["copy", "induction"])
def test_where_there_is_a_norm_sources_beside_the_circuit_write_equal_lengths(known, name):
    one, setting = known(name)
    beside = ~one.members.any(1)
    assert beside.sum() >= 4
    for group in setting.groups:
        clean, other = (x[beside].square().sum(-1)[..., -1] for x in (group.contrast.clean, group.contrast.other))
        assert torch.allclose(clean, other, rtol=1e-12) and clean.min() > 0.1


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_beside_the_circuit_moves_logits_much(known, name):
    """The circuit alone gives the logit difference, and quite other logits."""
    one, setting = known(name)
    for group in setting.groups:
        alone = end_logits(group.contrast, torch.as_tensor(one.members)[None])[0]
        assert (alone - group.intact).abs().amax(-1).min() > 0.5


def test_the_name_movers_distractor_raises_all_names_alike(known):
    one, setting = known("name_mover")
    members = one.graph.possible.copy()
    members[one.graph.edge("a2.h0->logits")] = False
    (group,) = setting.groups
    change = end_logits(group.contrast, torch.as_tensor(members)[None])[0] - group.intact
    names = change[:, 2:8]
    assert names.abs().max() > 1 and (names - names[:, :1]).abs().max() < ROUNDING


def pattern(one, layer, head):
    """Attention from the last token of each prompt, [n pos]."""
    with torch.no_grad():
        _, cache = one.model.run_with_cache(one.task.clean)
    rows = torch.arange(one.task.n)
    return cache[f"blocks.{layer}.attn.hook_pattern"][rows, head, one.task.positions["end"]]


def test_heads_look_where_they_are_said_to_look_softly(known):
    rows = torch.arange(N)
    one, _ = known("induction")
    clean, end = one.task.clean, one.task.positions["end"]
    found = pattern(one, 1, 1)
    behind = (clean == clean[rows, end][:, None]).int().argmax(1) + 1
    assert torch.equal(clean[rows, behind], one.task.answers)
    assert torch.equal(found.argmax(1), behind) and 0.4 < found.max(1).values.min() < 0.95
    one, _ = known("name_mover")
    found = pattern(one, 2, 2)
    assert torch.equal(one.task.clean[rows, found.argmax(1)], one.task.answers)
    assert torch.equal(pattern(one, 1, 1).argmax(1), torch.full((N,), 5))  # the second subject
    assert (found.max(1).values < 0.95).all()


def test_the_linear_model_is_linear_in_its_embedding(known):
    """f(a) + f(b) = f(a + b) + f(0), with any embeddings."""
    one, _ = known("linear")
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 6, one.model.cfg.d_model, generator=draw, dtype=torch.float64)
    with torch.no_grad():
        f_a, f_b, f_ab, f_0 = (one.model(x, start_at_layer=0) for x in (a, b, a + b, 0 * a))
    assert (f_a + f_b - f_ab - f_0).abs().max() < 1e-9 < f_a.abs().max()


def test_the_same_seed_gives_the_same_and_another_seed_another(known):
    first, again, other = planted("gate", n=3), planted("gate", n=3), planted("gate", n=3, seed=1)
    weights = [torch.cat([p.flatten() for p in one.model.parameters()]) for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(first.task.clean, again.task.clean) and not torch.equal(first.task.clean, other.task.clean)


def test_planting_leaves_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    planted("copy", n=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("arguments", "said"), [({"name": "xor"}, "copy, induction"), ({"name": "copy", "n": 0}, "1")])
def test_what_is_unknown_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        planted(**arguments)
