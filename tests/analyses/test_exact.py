"""Every edge alone: against circuits of all edges but one, and against hooks on TransformerLens."""

import numpy as np
import pytest
import torch

from analyses.localization import exact
from analyses.localization.exact import exact_patching
from analyses.localization.setting import setting_of
from sat_lens.tasks.encoding import task_from_ids
from tests.cases.architectures import HOSTS


def made_task(swapped=False):
    """Five prompts of two lengths; `swapped`: counterfactuals and prompts change places."""
    draw = np.random.default_rng(0)
    lengths = [6, 4, 6, 4, 6]
    clean, corrupt = ([draw.integers(1, 29, n).tolist() for n in lengths] for _ in range(2))
    if swapped:
        clean, corrupt = corrupt, clean
    return task_from_ids("made", clean, corrupt, [(i + 1, i + 9) for i in range(len(lengths))], {}, [])


@pytest.fixture
def setting(tiny_model):
    """`setting(host, **knobs)` of a tiny model."""

    def build(host, task=None, **knobs):
        return setting_of(tiny_model(ablation={"mask": "none"}, **HOSTS[host]), task or made_task(), **knobs)

    return build


def all_but_one(setting):
    """Value of the intact model minus that of each circuit of all edges but one."""
    graph = setting.graph
    edges = np.argwhere(graph.possible)
    members = np.repeat(graph.possible[None], len(edges) + 1, 0)
    members[np.arange(len(edges)), *edges.T] = False
    values = setting.values(members).mean(-1)
    scores = np.full(graph.possible.shape, np.nan)
    scores[*edges.T] = values[-1] - values[:-1]
    return scores


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_noising_is_the_circuit_of_all_edges_but_one(setting, host):
    made = setting(host)
    found, expected = exact_patching(made), all_but_one(made)
    assert np.allclose(found, expected, rtol=0, atol=1e-10, equal_nan=True)
    assert np.array_equal(np.isnan(found), ~made.graph.possible)
    assert np.nanmax(np.abs(found)) > 0.1 and np.nanmin(found) < 0 < np.nanmax(found)


@pytest.mark.parametrize(
    "knobs", [{"value": "kl"}, {"ablation": "mean", "batch": 2}, {"ablation": "zero", "frozen_norm": True}]
)
def test_noising_is_so_for_every_value_ablation_and_norm(setting, knobs):
    made = setting("the_papers", **knobs)
    assert np.allclose(exact_patching(made), all_but_one(made), rtol=0, atol=1e-10, equal_nan=True)


def hooked_denoising(model, task, graph, outputs):
    """The corrupted run of a plain HookedTransformer, one input of one node corrected by a hook."""
    plain = model.to_hooked_transformer()
    plain.set_use_split_qkv_input(True)
    if not model.cfg.attn_only:
        plain.set_use_hook_mlp_in(True)

    def value(hooks):
        logits = plain.run_with_hooks(task.corrupt, fwd_hooks=hooks)
        return task.logit_difference(logits).mean().item()

    def corrected(x, hook, head, delta):
        x = x.clone()
        if head is None:
            return x + delta
        copies = x.shape[2] // (graph.n_kv_heads if hook.name[-7] in "kv" else graph.n_heads)
        x[:, :, head * copies : (head + 1) * copies] += delta[:, :, None]
        return x

    scores = np.full(graph.possible.shape, np.nan)
    start = value([])
    for i, j in np.argwhere(graph.possible).tolist():
        to = graph.destinations[j]
        name = {
            "attn": f"blocks.{to.layer}.hook_{to.qkv}_input",
            "mlp": f"blocks.{to.layer}.hook_mlp_in",
            "logits": f"blocks.{graph.n_layers - 1}.hook_resid_post",
        }[to.kind]
        head, delta = (to.head if to.kind == "attn" else None), outputs[0][i] - outputs[1][i]
        hook = (name, lambda x, hook, head=head, delta=delta: corrected(x, hook, head, delta))
        scores[i, j] = value([hook]) - start
    return scores


def written(model, tokens, graph):
    """What TransformerLens says that every source writes."""
    plain = model.to_hooked_transformer()
    plain.set_use_attn_result(True)
    cache = plain.run_with_cache(tokens)[1]
    found = [cache["blocks.0.hook_resid_pre"]]
    for layer in range(graph.n_layers):
        found += cache[f"blocks.{layer}.attn.hook_result"].unbind(2)
        found += [cache[f"blocks.{layer}.hook_mlp_out"]] if graph.has_mlp else []
    return torch.stack(found)


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_denoising_corrects_one_input_of_one_node_in_the_corrupted_run(tiny_model, host):
    model = tiny_model(ablation={"mask": "none"}, **HOSTS[host])
    task = made_task()
    made = setting_of(model, task)
    with torch.no_grad():
        outputs = [written(model, tokens, made.graph) for tokens in (task.clean, task.corrupt)]
        expected = hooked_denoising(model, task, made.graph, outputs)
    found = exact_patching(made, direction="denoising")
    assert np.allclose(found, expected, rtol=0, atol=1e-10, equal_nan=True)
    assert np.nanmax(np.abs(found)) > 0.1


@pytest.mark.parametrize(("ablation", "frozen_norm"), [("zero", False), ("positional_mean", True)])
def test_denoising_among_constants_adds_what_outputs_change_by(setting, ablation, frozen_norm):
    """A naive loop: each source writes its constant, plus what its node's output changes by."""
    made = setting("the_papers", ablation=ablation, frozen_norm=frozen_norm)
    graph, parts = made.graph, made.parts

    def node(i, read):
        source, columns = graph.sources[i], graph.destinations_of_source[i]
        if source.kind == "mlp":
            return parts.mlp(source.layer, read[columns[0]])
        q, k, v = (read[column][None] for column in columns)
        return parts.heads(source.layer, q, k, v, torch.tensor([source.head]))[0]

    def value(group, i, j):
        contrast = group.contrast
        base = [contrast.other_input(column) for column in range(len(graph.destinations))]
        read = [x.clone() for x in base]
        if i is not None:
            read[j] = read[j] + contrast.clean[i] - contrast.other[i]
        for source in range(1, len(graph.sources)):
            change = node(source, read) - node(source, base)
            for column in np.flatnonzero(graph.possible[source]):
                read[column] = read[column] + change
        last = len(graph.destinations) - 1
        scale = parts.final_scale(contrast.clean_input(last)[:, -1]) if frozen_norm else None
        return made.measured(parts.logits(read[last][:, -1], scale), group)

    found = exact_patching(made, direction="denoising")
    edges = np.argwhere(graph.possible)[::13].tolist()
    with torch.no_grad():
        for i, j in edges:
            effects = [(value(group, i, j) - value(group, None, None)).sum().item() for group in made.groups]
            assert abs(found[i, j] - sum(effects) / made.n) < 1e-10


def test_positive_means_that_the_edge_helps_both_ways(tiny_model):
    """One edge carries the answer: the embedding writes it straight into the logits of a model of zeros."""
    model = tiny_model(ablation={"mask": "none"}, normalization_type=None, tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[3, 0], model.embed.W_E[4, 1] = 1.0, 1.0
        model.unembed.W_U[0, 7], model.unembed.W_U[1, 8] = 5.0, 5.0
    task = task_from_ids("copy", [[1, 3], [2, 3]], [[1, 4], [2, 4]], [(7, 8), (7, 8)], {}, [])
    made = setting_of(model, task)
    assert made.intact_values.tolist() == [5, 5] and made.other_values.tolist() == [-5, -5]
    for direction in exact.SIGNS:
        scores = exact_patching(made, direction=direction)
        edge = made.graph.edge("input->logits")
        assert scores[edge] == 10
        scores[edge] = 0
        assert (scores[made.graph.possible] == 0).all()


def test_a_restored_edge_is_not_a_circuit_of_one_edge(setting):
    made = setting("the_papers")
    edge = made.graph.edge("m0->logits")
    alone = np.zeros((1, *made.graph.possible.shape), dtype=bool)
    alone[0, *edge] = True
    assert np.allclose(made.values(alone)[0], made.other_values, rtol=0, atol=1e-12)
    assert abs(exact_patching(made, direction="denoising")[edge]) > 1e-3


@pytest.mark.parametrize("direction", sorted(exact.SIGNS))
def test_one_at_a_time_is_the_same_as_many(setting, direction, monkeypatch):
    made = setting("grouped")
    expected = exact_patching(made, direction=direction)
    monkeypatch.setattr(exact, "BYTES", 1)
    assert np.allclose(exact_patching(made, direction=direction), expected, rtol=0, atol=1e-12, equal_nan=True)


def test_an_unknown_direction_is_refused(setting):
    with pytest.raises(ValueError, match="direction must be noising or denoising; got 'both'"):
        exact_patching(setting("attention_only"), direction="both")
