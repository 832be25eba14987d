"""Attribution of edges, against soft edges under autograd, exact cuts, and the sums that must come out."""

import numpy as np
import pytest
import torch

from analyses.localization.attribution import (
    attribution_patching,
    eap,
    eap_ig,
    edges_from_nodes,
    node_attribution,
)
from analyses.localization.graph import Graph
from analyses.localization.setting import setting_of
from sat_lens.tasks.encoding import task_from_ids
from tests.cases import architectures

HOSTS = {**architectures.HOSTS, "folded_norms": {"normalization_type": "LNPre"}}


def made(lengths):
    draw = np.random.default_rng(0)
    clean = [draw.integers(1, 29, n).tolist() for n in lengths]
    corrupt = [[token if draw.random() < 0.6 else int(draw.integers(1, 29)) for token in row] for row in clean]
    answers = [(i + 1, i + 9) for i in range(len(lengths))]
    return clean, corrupt, answers


@pytest.fixture
def build(tiny_model):
    """`build(host, order, lengths, shrunk, **knobs)`: prompts of two lengths put to a tiny model."""

    def make(host, order=(0, 1, 2, 3), lengths=(7, 5, 7, 5), shrunk=1.0, model=None, **knobs):
        model = model or tiny_model(ablation={"mask": "none"}, **HOSTS[host])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(1.0 if name.endswith(".w") else shrunk)
        columns = [[column[i] for i in order] for column in made(lengths)]
        return setting_of(model, task_from_ids("made", *columns, {}, []), **knobs)

    return make


def soft_value(setting, weights, probes, written=None):
    """Mean value of a run with soft edges, node by node.

    A destination reads other + sum over sources of weight (out - other) + probe (clean - other).
    `written(group)` gives what some sources write instead of their own, by index.
    """
    parts, graph, total = setting.parts, setting.graph, 0.0
    for group in setting.groups:
        runs = group.contrast
        given = written(group) if written else {}
        outputs = []

        def read(column, runs=runs, outputs=outputs):
            sources = np.flatnonzero(graph.possible[:, column])
            now = torch.stack([outputs[source] for source in sources]) - runs.other[sources]
            moved = (runs.clean - runs.other)[sources]
            return (
                runs.other_input(int(column))
                + torch.einsum("s,snpm->npm", weights[sources, column], now)
                + torch.einsum("s,snpm->npm", probes[sources, column], moved)
            )

        for node, source in enumerate(graph.sources):
            inputs = [read(column) for column in graph.destinations_of_source[node]]
            if node in given:
                outputs.append(given[node])
            elif source.kind == "input":
                outputs.append(runs.clean[0])
            elif source.kind == "mlp":
                outputs.append(parts.mlp(source.layer, inputs[0]))
            else:
                which = torch.tensor([source.head])
                outputs.append(parts.heads(source.layer, *(x[None] for x in inputs), which=which)[0])
        last = len(graph.destinations) - 1
        scale = parts.final_scale(runs.clean_input(last)[:, -1]) if setting.frozen_norm else None
        total = total + setting.measured(parts.logits(read(last)[:, -1], scale), group).sum()
    return total / setting.n


def derivative(setting, of, written=None):
    """By autograd, of the soft run of the whole model, with respect to every `weights` or `probes`."""
    weights, probes = (
        torch.full(setting.graph.possible.shape, x, dtype=torch.float64, requires_grad=True) for x in (1.0, 0.0)
    )
    value = soft_value(setting, weights, probes, written)
    (found,) = torch.autograd.grad(value, {"weights": weights, "probes": probes}[of])
    return np.where(setting.graph.possible, found.numpy(), np.nan)


def between(rows, point):
    """What the sources `rows` write at a point of the way from other (0) to intact (1)."""
    return lambda group: {
        row: group.contrast.other[row] + point * (group.contrast.clean[row] - group.contrast.other[row]) for row in rows
    }


def falls(setting, cuts):
    """How much the mean value falls when all edges from `rows` into `columns` are cut, for each cut."""
    members = np.repeat(setting.graph.possible[None], len(cuts), 0)
    for circuit, (rows, columns) in zip(members, cuts, strict=True):
        circuit[np.ix_(rows, columns)] = False
    return setting.intact_values.mean() - setting.values(members).mean(1)


def written_at_once(setting):
    """Sets of sources, as the graph says: no source reads what another of its set writes."""
    graph = setting.graph
    kinds = ("attn", "mlp")
    keys = [("input",)] + [(layer, kind) for layer in range(graph.n_layers) for kind in kinds]
    sets = {key: [] for key in keys}
    for i, source in enumerate(graph.sources):
        joint = "attn" if graph.parallel else source.kind
        sets[("input",) if source.kind == "input" else (source.layer, joint)].append(i)
    return [rows for rows in sets.values() if rows]


def same(found, expected, atol=1e-9):
    return np.array_equal(np.isnan(found), np.isnan(expected)) and np.nanmax(np.abs(found - expected)) < atol


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_eap_is_the_derivative_with_respect_to_soft_edges(build, host):
    for knobs in ({}, {"frozen_norm": True, "ablation": "positional_mean"}):
        setting = build(host, **knobs)
        expected = derivative(setting, "weights")
        assert np.nanmax(np.abs(expected)) > 1e-3
        assert same(eap(setting), expected)


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_eap_ig_averages_derivatives_of_runs_on_the_way(build, host):
    for knobs in ({}, {"value": "kl"}):
        setting = build(host, **knobs)
        points = (0.25, 0.75)
        expected = sum(derivative(setting, "probes", between([0], point)) for point in points) / 2
        assert same(eap_ig(setting, steps=2), expected)
        assert same(eap(setting, at="other"), derivative(setting, "probes", between([0], 0.0)))


@pytest.mark.parametrize("host", ["the_papers", "parallel", "grouped"])
def test_along_activations_what_is_written_at_once_is_moved_and_credited_alone(build, host):
    setting = build(host)
    expected = np.where(setting.graph.possible, 0.0, np.nan)
    for rows in written_at_once(setting):
        for point in (0.5, 1.0):
            expected[rows] += derivative(setting, "probes", between(rows, point))[rows] / 2
    assert same(eap_ig(setting, steps=2, along="activations", rule="right"), expected)


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_on_a_linear_model_every_score_is_the_exact_fall_when_the_edge_is_cut(build, tiny_model, ablation):
    model = tiny_model(ablation={"mask": "none"}, normalization_type=None, attn_only=True, d_mlp=None)
    with torch.no_grad():
        for block in model.blocks:  # attention that is uniform, whatever it reads
            block.attn.W_Q.zero_(), block.attn.b_Q.zero_()
    setting = build(None, model=model, ablation=ablation)
    expected = np.where(setting.graph.possible, 0.0, np.nan)
    edges = np.argwhere(setting.graph.possible)
    expected[tuple(edges.T)] = falls(setting, [([i], [j]) for i, j in edges])
    assert (np.abs(expected) > 1e-3).sum() > 10
    for scores in (eap(setting), eap(setting, at="other"), eap_ig(setting), eap_ig(setting, along="activations")):
        assert same(scores, expected)


@pytest.mark.parametrize(
    ("host", "knobs"),
    [("the_papers", {}), ("rms_rotary_gated", {"value": "kl"}), ("parallel", {"ablation": "mean"})],
)
def test_scores_of_what_leaves_the_input_add_up_to_the_gap(build, host, knobs):
    setting = build(host, lengths=(7, 7, 7, 7), shrunk=0.5, **knobs)
    gap = falls(setting, [([0], range(len(setting.graph.destinations)))])[0]
    errors = [np.nansum(eap_ig(setting, steps=steps)[0]) - gap for steps in (16, 32)]
    assert abs(errors[1]) < 1e-2 * abs(gap)
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # 1/steps^2
    if setting.ablation == "resample":
        assert abs(gap - (setting.intact_values - setting.other_values).mean()) < 1e-9


@pytest.mark.parametrize("host", ["the_papers", "parallel"])
def test_along_activations_every_set_adds_up_to_its_own_gap(build, host):
    setting = build(host, lengths=(7, 7, 7, 7), shrunk=0.5)
    scores = [eap_ig(setting, steps=steps, along="activations") for steps in (12, 24)]
    sets = written_at_once(setting)
    gaps = falls(setting, [(rows, range(len(setting.graph.destinations))) for rows in sets])
    for rows, gap in zip(sets, gaps, strict=True):
        errors = [np.nansum(found[rows]) - gap for found in scores]
        assert abs(errors[1]) < 1e-2 * abs(gap)
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_with_a_linear_read_out_scores_into_the_logits_are_exact(build):
    setting = build("the_papers", frozen_norm=True)
    last = len(setting.graph.destinations) - 1
    for scores in (eap(setting), eap_ig(setting, steps=1), eap_ig(setting, steps=2, along="activations")):
        assert same(scores[:, last], falls(setting, [([row], [last]) for row in range(len(scores))]))


def test_a_key_or_value_that_heads_share_has_the_sum_of_its_copies(build, tiny_model):
    grouped, apart = (tiny_model(ablation={"mask": "none"}, **host) for host in (HOSTS["grouped"], HOSTS["the_papers"]))
    state = dict(grouped.state_dict())
    for name in [name for name in state if "._" in name]:
        state[name.replace("._", ".")] = state.pop(name).repeat_interleave(2, 0)
    apart.load_state_dict(state)
    found, copies = (build(None, model=model) for model in (grouped, apart))
    found, copies, graph, wide = eap_ig(found), eap_ig(copies), found.graph, copies.graph
    for j, destination in enumerate(graph.destinations):
        heads = (
            [destination.head * 2, destination.head * 2 + 1] if destination.qkv in ("k", "v") else [destination.head]
        )
        columns = [
            k
            for k, d in enumerate(wide.destinations)
            if d[:2] == destination[:2] and d.qkv == destination.qkv and d.head in heads
        ]
        assert len(columns) == len(heads)
        assert np.allclose(found[:, j], copies[:, columns].sum(1), atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("method", [eap, eap_ig, attribution_patching])
def test_neither_batches_nor_the_order_of_prompts_matter(build, method):
    expected = method(build("the_papers"))
    assert same(method(build("the_papers", batch=1)), expected)
    assert same(method(build("the_papers", order=(3, 0, 2, 1), batch=1)), expected)


@pytest.mark.parametrize("along", ["inputs", "activations"])
def test_how_much_is_run_at_once_does_not_matter(build, monkeypatch, along):
    setting = build("the_papers", lengths=(7, 7, 7, 5))
    expected = eap_ig(setting, steps=3, along=along)
    for tokens in (1, 14, 21, 50):  # a run of a prompt; two of three; a prompt; two prompts
        monkeypatch.setattr("analyses.localization.attribution.AT_ONCE", tokens)
        assert same(eap_ig(setting, steps=3, along=along), expected, 1e-12)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter_and_the_model_is_left_as_it_was(build, tiny_model, mode):
    model = tiny_model(ablation={"mask": "none"})
    next(model.parameters()).requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        setting = build(None, model=model)
        expected = eap(setting)
    with mode():
        assert same(eap(setting), expected, 1e-15)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


def test_nodes_have_the_derivative_with_respect_to_what_they_write(build):
    setting = build("the_papers")
    ones, zeros = (torch.full(setting.graph.possible.shape, x, dtype=torch.float64) for x in (1.0, 0.0))
    expected = []
    for row in range(len(setting.graph.sources)):
        point = torch.ones((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(soft_value(setting, ones, zeros, between([row], point)), point)
        expected.append(slope.item())
    assert np.abs(node_attribution(setting) - expected).max() < 1e-9
    integrated = node_attribution(setting, steps=3, along="activations")
    assert np.allclose(integrated, np.nansum(eap_ig(setting, steps=3, along="activations"), 1))


def test_an_edge_is_above_a_threshold_exactly_when_both_of_its_ends_are():
    graph = Graph(n_layers=2, n_heads=2, n_kv_heads=1, has_mlp=False, parallel=False)
    nodes = np.array([4.0, 3.0, -2.0, 1.0, 0.5])  # input, a0.h0, a0.h1, a1.h0, a1.h1
    scores = edges_from_nodes(graph, nodes)
    expected = {
        "input->a0.h0<q>": 3.0,
        "input->a0.h1<q>": -2.0,
        "input->a0.h0<k>": 3.0,  # read by both heads of the layer: the larger counts
        "a0.h0->a1.h1<q>": 0.5,
        "a0.h1->a1.h0<q>": -1.0,
        "a0.h1->logits": -2.0,
        "input->logits": 4.0,
    }
    for name, score in expected.items():
        assert scores[graph.edge(name)] == score, name
    assert np.array_equal(~np.isnan(scores), graph.possible)


def test_what_cannot_be_is_refused(build):
    setting = build("the_papers", value="kl")
    for hopeless in (eap, node_attribution, attribution_patching):
        with pytest.raises(ValueError, match="gradient 0 at the intact run"):
            hopeless(setting)
    assert np.nanmax(np.abs(derivative(setting, "weights"))) < 1e-12  # as it says
    assert np.nanmax(np.abs(attribution_patching(setting, steps=2))) > 1e-3
    for knobs, said in (({"steps": 0}, "steps must"), ({"along": "x"}, "along must"), ({"rule": "x"}, "rule must")):
        with pytest.raises(ValueError, match=said):
            eap_ig(setting, **knobs)
    with pytest.raises(ValueError, match="at must"):
        eap(setting, at="corrupt")


def test_too_little_memory_is_said_before_it_is_taken(build, monkeypatch):
    setting = build("the_papers")
    monkeypatch.setattr("sat_lens.memory.available_bytes", lambda device: 1000)
    with pytest.raises(ValueError, match="gradients of 2 prompts at once.*lower the setting's batch"):
        eap(setting)
