"""Nodes and the residual stream swapped between runs: against hooks on TransformerLens, and against circuits."""

import numpy as np
import pytest
import torch

from analyses.localization import patching
from analyses.localization.exact import exact_patching
from analyses.localization.patching import activation_patching, residual_patching
from analyses.localization.setting import setting_of
from sat_lens.tasks.encoding import task_from_ids
from tests.cases.architectures import HOSTS

LENGTHS = (6, 4, 6, 4, 6)
DIRECTIONS = ("noising", "denoising")


def made_task(swapped=False):
    draw = np.random.default_rng(0)
    rows = [[draw.integers(1, 29, n).tolist() for n in LENGTHS] for _ in range(2)]
    clean, corrupt = reversed(rows) if swapped else rows
    return task_from_ids("made", clean, corrupt, [(i + 1, i + 9) for i in range(len(LENGTHS))], {}, [])


@pytest.fixture
def model(tiny_model):
    """`model(host)`: one of a tiny model's architectures."""
    return lambda host: tiny_model(ablation={"mask": "none"}, **HOSTS[host])


HOOKS = {"input": "hook_resid_pre", "a0.h1": "attn.hook_result", "m0": "hook_mlp_out"}
"""One source of each kind, and its hook point in block 0."""


def hooked(model, task, direction, asked):
    """Effects by hooks on a plain HookedTransformer: {name: (all positions, each position from the end)}.

    `asked`: by name a hook point and the head of it that is swapped, None for all of it.
    """
    plain = model.to_hooked_transformer()
    plain.set_use_attn_result(True)
    sign = -1 if direction == "noising" else 1
    whole, each = ({name: np.full((len(LENGTHS), n), np.nan) for name in asked} for n in (1, max(LENGTHS)))
    for row, length in enumerate(LENGTHS):
        runs = [tokens[row : row + 1, :length] for tokens in (task.clean, task.corrupt)]
        into, out_of = runs if direction == "noising" else runs[::-1]
        donor = plain.run_with_cache(out_of)[1]

        def value(hooks, into=into, ids=(task.answers[row], task.wrong_answers[row])):
            logits = plain.run_with_hooks(into, fwd_hooks=hooks)[0, -1]
            return (logits[ids[0]] - logits[ids[1]]).item()

        def swapped(x, hook, positions, head, donor=donor):
            at = (slice(None), positions, slice(None) if head is None else head)
            x = x.clone()
            x[at] = donor[hook.name][at]
            return x

        start = value([])
        for name, (point, head) in asked.items():
            hooks = [
                (point, lambda x, hook, s=positions, h=head: swapped(x, hook, s, h))
                for positions in [slice(None), *([position] for position in range(length))]
            ]
            effects = [sign * (value([hook]) - start) for hook in hooks]
            whole[name][row], each[name][row, -length:] = effects[0], effects[1:]
    return {name: (whole[name].mean(), np.nanmean(each[name], 0)) for name in asked}


@pytest.mark.parametrize("host", sorted(HOSTS))
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sources_are_swapped_as_transformer_lens_hooks_swap_them(model, host, direction):
    host_model, task = model(host), made_task()
    setting = setting_of(host_model, task)
    index = setting.graph.source_index
    asked = {name: (f"blocks.0.{hook}", 1 if "h" in name else None) for name, hook in HOOKS.items() if name in index}
    whole = activation_patching(setting, direction=direction)
    each = activation_patching(setting, direction=direction, positions="each")
    with torch.no_grad():
        expected = hooked(host_model, task, direction, asked)
    for name, (all_positions, by_position) in expected.items():
        assert abs(whole[index[name]] - all_positions) < 1e-10
        assert np.abs(each[index[name]] - by_position).max() < 1e-10
        assert np.abs(by_position).max() > 1e-3


@pytest.mark.parametrize("host", ["the_papers", "parallel", "attention_only"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_stream_is_swapped_as_transformer_lens_hooks_swap_it(model, host, direction):
    host_model, task = model(host), made_task()
    found = residual_patching(setting_of(host_model, task), direction=direction)
    asked = {layer: (f"blocks.{layer}.hook_resid_pre", None) for layer in range(2)}
    with torch.no_grad():
        expected = hooked(host_model, task, direction, asked)
    assert found.shape == (2, 6)
    assert np.abs(found - np.stack([expected[layer][1] for layer in asked])).max() < 1e-10


def without_each_source(setting):
    """Value of the intact model minus that of each circuit from which one source's edges are cut."""
    graph = setting.graph
    n = len(graph.sources)
    members = np.repeat(graph.possible[None], n, 0)
    members[np.arange(n), np.arange(n)] = False
    return setting.intact_values.mean() - setting.values(members).mean(-1)


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_noising_a_source_is_the_circuit_without_its_edges(model, host):
    setting = setting_of(model(host), made_task(), batch=2)
    assert np.abs(activation_patching(setting) - without_each_source(setting)).max() < 1e-10


@pytest.mark.parametrize(
    "knobs", [{"value": "kl"}, {"ablation": "positional_mean"}, {"ablation": "zero", "frozen_norm": True}]
)
def test_noising_is_so_for_every_value_ablation_and_norm(model, knobs):
    setting = setting_of(model("the_papers"), made_task(), **knobs)
    assert np.abs(activation_patching(setting) - without_each_source(setting)).max() < 1e-10


@pytest.mark.parametrize("host", ["the_papers", "parallel"])
def test_denoising_is_noising_seen_from_the_other_run(model, host):
    """The answers stay, so that what costs one run of the pair is what the other lacks."""
    settings = [setting_of(model(host), made_task(swapped)) for swapped in (False, True)]
    for method in (activation_patching, residual_patching):
        there, back = (method(s, direction=d) for s, d in zip(settings, DIRECTIONS[::-1], strict=True))
        assert np.allclose(there, -back, rtol=0, atol=1e-10) and np.abs(there).max() > 0.1


@pytest.mark.parametrize(("ablation", "frozen_norm"), [("zero", False), ("mean", True)])
def test_denoising_among_constants_restores_all_edges_of_the_source(model, ablation, frozen_norm):
    """As exact patching restores one edge: for a source that one destination reads, they are the same number."""
    setting = setting_of(model("the_papers"), made_task(), ablation=ablation, frozen_norm=frozen_norm)
    nodes, edges = (method(setting, direction="denoising") for method in (activation_patching, exact_patching))
    last_layer = [setting.graph.source_index[name] for name in ("a1.h0", "m1")]
    assert abs(nodes[last_layer[1]] - edges[last_layer[1], -1]) < 1e-10
    assert abs(nodes[last_layer[0]] - edges[last_layer[0], -1]) > 1e-6  # m1 reads it too


@pytest.mark.parametrize("positions", patching.POSITIONS)
def test_one_at_a_time_is_the_same_as_many(model, positions, monkeypatch):
    setting = setting_of(model("windows"), made_task())
    expected = activation_patching(setting, positions=positions)
    monkeypatch.setattr(patching, "BYTES", 1)
    assert np.allclose(activation_patching(setting, positions=positions), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("knobs", "said"), [({"direction": "up"}, "direction must be .* got 'up'"), ({"positions": "one"}, "got 'one'")]
)
def test_what_is_unknown_is_refused(model, knobs, said):
    with pytest.raises(ValueError, match=said):
        activation_patching(setting_of(model("the_papers"), made_task()), **knobs)
