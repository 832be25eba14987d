"""ACDC and the incremental runs it stands on, against one whole run for each edge."""

import numpy as np
import pytest
import torch

from analyses.localization import acdc as module
from analyses.localization.acdc import acdc, acdc_scores
from analyses.localization.increments import CircuitRun
from analyses.localization.runner import end_logits
from analyses.localization.setting import setting_of
from sat_lens.tasks.encoding import task_from_ids

HOSTS = {
    "the_papers": {},
    "rms_rotary": {"normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 4},
    "grouped": {"n_key_value_heads": 2},
    "parallel": {"parallel_attn_mlp": True},
    "attention_only": {"attn_only": True, "d_mlp": None},
    "three_layers": {"n_layers": 3},
    "windows": {"use_local_attn": True, "attn_types": ["global", "local"], "window_size": 3},
}


@pytest.fixture
def setting(tiny_model):
    """`setting(host, lengths, **knobs)`: prompts of these lengths and a tiny model."""

    def build(host, lengths=(5, 5), **knobs):
        draw = np.random.default_rng(5)
        rows = [[draw.integers(1, 29, n).tolist() for n in lengths] for _ in "ab"]
        task = task_from_ids("made", *rows, [(i + 1, i + 9) for i in range(len(lengths))], {}, [])
        few = {"n_heads": 2, "d_head": 8} if host != "grouped" else {}
        return setting_of(tiny_model(ablation={"mask": "none"}, **few | HOSTS[host]), task, **knobs)

    return build


def by_hand(graph, order):
    """Edges from the logits back, written out."""
    columns = [graph.destination_index["logits"]]
    for layer in reversed(range(graph.n_layers)):
        columns += [graph.destination_index[f"m{layer}"]] if graph.has_mlp else []
        for qkv in "vkq" if order == "ours" else "qkv":
            heads = reversed(range(graph.n_heads if qkv == "q" else graph.n_kv_heads))
            columns += [graph.destination_index[f"a{layer}.h{head}<{qkv}>"] for head in heads]
    return [(i, j) for j in columns for i in reversed(range(len(graph.sources))) if graph.possible[i, j]]


def shuffled(graph):
    """As another implementation may have it: layer by layer, anything within."""
    draw = np.random.default_rng(3)
    rank = {edge: (-graph.destinations[edge[1]].layer, draw.random()) for edge in by_hand(graph, "ours")}
    return sorted(rank, key=rank.__getitem__)


def naive_acdc(setting, tau, edges, prompts=slice(None)):
    """One edge at a time, every circuit run whole."""
    members = setting.graph.possible.copy()
    costs = np.where(members, 0.0, np.nan)
    now = setting.values(members[None])[0, prompts].mean()
    for edge in edges:
        members[edge] = False
        then = setting.values(members[None])[0, prompts].mean()
        costs[edge] = now - then
        if now - then < tau:
            now = then
        else:
            members[edge] = True
    return members, costs


@pytest.mark.parametrize(
    ("host", "order", "knobs"),
    [
        *((host, "ours", {"value": "kl"}) for host in sorted(HOSTS)),
        ("the_papers", "reference", {"value": "kl", "lengths": (6, 4, 6)}),
        ("grouped", "reference", {"value": "logit_diff"}),
        ("parallel", "shuffled", {"value": "logit_diff", "frozen_norm": True}),
        ("windows", "shuffled", {"value": "kl", "batch": 1}),
    ],
)
def test_guessing_keeps_the_edges_of_one_edge_at_a_time(setting, host, order, knobs):
    made, tau = setting(host, **knobs), 0.02 if knobs["value"] == "kl" else 0.05
    edges = shuffled(made.graph) if order == "shuffled" else by_hand(made.graph, order)
    expected, expected_costs = naive_acdc(made, tau, edges)
    assert 3 < expected.sum() < made.graph.n_edges - 3
    for guess in (1, 6, 64) if host == "the_papers" else (8,):
        found, costs = acdc(made, tau=tau, guess=guess, order=edges if order == "shuffled" else order)
        assert np.array_equal(found, expected)
        assert np.allclose(costs, expected_costs, atol=1e-9, equal_nan=True)


def test_orders_give_circuits_of_their_own(setting):
    made = setting("the_papers", value="kl")
    assert not np.array_equal(acdc(made, tau=0.002)[0], acdc(made, tau=0.002, order="reference")[0])


def test_the_first_batch_alone_counts_where_that_is_asked_for(setting):
    made = setting("attention_only", lengths=(6, 4, 6), value="kl")
    expected, _ = naive_acdc(made, 0.02, by_hand(made.graph, "ours"), made.groups[0].rows.numpy())
    found = acdc(made, tau=0.02, batches="first")[0]
    assert np.array_equal(found, expected) and not np.array_equal(found, acdc(made, tau=0.02)[0])


def test_memory_for_one_variant_at_a_time_changes_nothing(setting, monkeypatch):
    made = setting("the_papers", value="kl")
    expected = acdc(made, tau=0.002)[0]
    monkeypatch.setattr(module, "BYTES", 1)
    monkeypatch.setattr("analyses.localization.increments.CHUNK", 1)
    assert np.array_equal(acdc(made, tau=0.002)[0], expected)


def test_a_score_is_the_largest_threshold_that_keeps_the_edge(setting):
    made = setting("the_papers", value="kl")
    small, large = (acdc(made, tau=tau)[0] for tau in (0.001, 0.01))
    scores = acdc_scores(made, taus=[0.01, 0.001])
    assert np.array_equal(scores == 0.01, large) and np.array_equal(scores == 0.001, small & ~large)
    assert np.array_equal(scores == 0, made.graph.possible & ~small & ~large)
    assert np.array_equal(np.isnan(scores), ~made.graph.possible)


@pytest.mark.parametrize("host", sorted(HOSTS))
@pytest.mark.parametrize("frozen_norm", [False, True])
def test_an_incremental_run_after_many_cuts_is_a_whole_run(setting, host, frozen_norm):
    contrast = setting(host).groups[0].contrast
    draw = np.random.default_rng(0)
    with torch.inference_mode():
        run = CircuitRun(contrast, frozen_norm=frozen_norm)
        n_tried = 0
        for _ in range(25):
            destination = int(draw.integers(len(run.graph.destinations)))
            sources = np.flatnonzero(run.members[:, destination])
            if not len(sources):
                continue
            cut = draw.choice(sources, size=min(2, len(sources)), replace=False)
            tried = run.members.copy()
            tried[cut, destination] = False
            whole = end_logits(contrast, torch.as_tensor(tried)[None], frozen_norm)[0]
            inputs = (run.inputs[destination] - run.moved[cut].sum(0))[None]
            if run.matters(destination):
                assert (run.end_logits(destination, inputs)[0] - whole).abs().max() < 1e-10
                n_tried += 1
            run.take(destination, cut)
            assert np.array_equal(run.members, tried)
            last = len(run.graph.destinations) - 1
            assert (run.end_logits(last, run.inputs[last][None])[0] - whole).abs().max() < 1e-10
        assert n_tried > 5


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_cuts_at_several_heads_are_asked_about_at_once(setting, host):
    contrast = setting(host).groups[0].contrast
    draw = np.random.default_rng(2)
    with torch.inference_mode():
        run = CircuitRun(contrast, draw.random(contrast.parts.graph.possible.shape) < 0.8)
        of_layer = [j for j, d in enumerate(run.graph.destinations) if d.layer == 1 and d.kind == "attn"]
        edges = np.array([(i, j) for i, j in np.argwhere(run.members) if j in of_layer])
        cuts = draw.random((4, len(edges))) < 0.3
        members = np.repeat(run.members[None], 4, 0)
        for variant, cut in zip(members, cuts, strict=True):
            variant[tuple(edges[cut].T)] = False
        whole = end_logits(contrast, torch.as_tensor(members))
        changes = run.without(edges, cuts)
        assert (changes.logits - whole).abs().max() < 1e-10
        run.adopt(edges[cuts[2]], changes, 2)
        last = len(run.graph.destinations) - 1
        assert (run.end_logits(last, run.inputs[last][None])[0] - whole[2]).abs().max() < 1e-10


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_a_run_can_begin_at_any_circuit(setting, host):
    contrast = setting(host).groups[0].contrast
    members = np.random.default_rng(1).random(contrast.parts.graph.possible.shape) < 0.7
    with torch.inference_mode():
        run = CircuitRun(contrast, members)
        last = len(run.graph.destinations) - 1
        whole = end_logits(contrast, torch.as_tensor(members)[None])[0]
        assert (run.end_logits(last, run.inputs[last][None])[0] - whole).abs().max() < 1e-10


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        *(({"tau": tau}, "tau must be a number above 0, in logits") for tau in (0.0, -1.0, float("nan"), float("inf"))),
        ({"tau": 1.0, "order": "mine"}, "order must be ours or reference"),
        ({"tau": 1.0, "order": [(0, 0), (0, 0)]}, "each of the 29 edges once; got 2"),
        ({"tau": 1.0, "batches": "last"}, "batches must be all or first"),
    ],
)
def test_what_is_no_search_is_refused(setting, knobs, said):
    with pytest.raises(ValueError, match=said):
        acdc(setting("attention_only"), **knobs)


def test_too_little_memory_is_said_before_the_search(setting, monkeypatch):
    made = setting("attention_only")
    monkeypatch.setattr("sat_lens.memory.available_bytes", lambda device: 2**16)
    with pytest.raises(ValueError, match="ACDC on 2 prompts needs about"):
        acdc(made, tau=1.0)
