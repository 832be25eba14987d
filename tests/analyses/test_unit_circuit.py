"""Circuits of units: their files, what they are worth against hooks on the whole model, and their attribution."""

import json

import numpy as np
import pytest
import torch

from analyses.localization.circuit import read_mib
from analyses.localization.graph import graph_of
from analyses.localization.unit_attribution import token_attribution, unit_attribution
from analyses.localization.unit_circuit import (
    circuit_of,
    edges_among,
    largest_units,
    named,
    read_mib_units,
    units_of,
    write_mib_units,
)
from analyses.localization.unit_setting import stacked, unit_setting_of, unit_values
from analyses.localization.units import unit_effects
from sat_lens.tasks import Task
from tests.cases.architectures import HOSTS


@pytest.fixture
def task():
    draw = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(29, (5, 7), generator=draw) for _ in range(2))
    answers = torch.randint(29, (5,), generator=draw)
    return Task("random", clean, corrupt, answers, (answers + 1) % 29, {"end": torch.tensor([4, 6, 4, 6, 6])})


def random_rows(units, n, seed=0):
    return np.random.default_rng(seed).random((n, units.n)) < 0.6


def naive_values(model, task, members, *, ablation, value, positions):
    """One circuit by hooks, prompt by prompt, unit by unit: members [n pos unit]."""
    units, found = units_of(model.cfg), []
    names = {("attn", "z"): "attn.hook_z", ("mlp", "post"): "mlp.hook_post"}
    corrupt = [task.corrupt[i : i + 1, : task.lengths[i]] for i in range(task.n)]
    caches = [model.run_with_cache(tokens)[1] for tokens in corrupt]

    def mean_of(name):
        return torch.cat([cache[name][0].flatten(1) for cache in caches]).mean(0)

    for i in range(task.n):
        length = int(task.lengths[i])
        hooks = []
        for layer in range(units.n_layers):
            for (site, _), suffix in list(names.items())[: 2 if units.d_mlp else 1]:
                name, columns = f"blocks.{layer}.{suffix}", units.columns(layer, site)

                def hook(x, hook, name=name, at=columns, i=i, length=length):
                    flat = x.flatten(2).clone()
                    for pos in range(length):
                        if positions == "end" and pos < length - 1:
                            continue
                        for column, member in enumerate(members[i, pos, at]):
                            if not member:
                                new = {
                                    "zero": 0.0,
                                    "mean": mean_of(name)[column],
                                    "resample": caches[i][name].flatten(2)[0, pos, column],
                                }[ablation]
                                flat[0, pos, column] = new
                    return flat.reshape(x.shape)

                hooks.append((name, hook))
        tokens = task.clean[i : i + 1, :length]
        logits = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1]
        if value == "kl":
            p, q = (torch.log_softmax(x, 0) for x in (model(tokens)[0, -1], logits))
            found.append(-(p.exp() * (p - q)).sum())
        else:
            found.append(logits[task.answers[i]] - logits[task.wrong_answers[i]])
    return torch.stack(found).numpy()


@pytest.mark.parametrize(
    ("ablation", "value", "positions"),
    [
        ("resample", "logit_diff", "all"),
        ("mean", "kl", "end"),
        ("zero", "kl", "all"),
        ("resample", "logit_diff", "end"),
    ],
)
def test_values_are_those_of_hooks_that_look_at_every_unit_and_token(tiny_model, task, ablation, value, positions):
    model = tiny_model({"mask": "none"})
    units = units_of(model.cfg)
    setting = unit_setting_of(model, task, ablation=ablation, value=value, positions=positions, batch=2)
    by_token = torch.rand(2, task.n, 7, units.n, generator=torch.Generator().manual_seed(1)) < 0.6
    with torch.no_grad():
        found = setting.values(by_token)
        for one, circuit in zip(found, by_token, strict=True):
            naive = naive_values(model, task, circuit, ablation=ablation, value=value, positions=positions)
            assert np.abs(one - naive).max() < 1e-10
        assert np.abs(found[0] - found[1]).max() > 1e-3
        same = torch.from_numpy(random_rows(units, 1))
        naive = naive_values(
            model, task, same[None].expand(task.n, 7, -1), ablation=ablation, value=value, positions=positions
        )
        assert np.abs(setting.values(same[:, None, None])[0] - naive).max() < 1e-10


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_all_units_are_the_intact_model_and_all_but_one_is_its_single_ablation(tiny_model, task, host):
    model = tiny_model({"mask": "none"}, **HOSTS[host])
    units = units_of(model.cfg)
    setting = unit_setting_of(model, task)
    everything = np.ones((1, 1, 1, units.n), dtype=bool)
    with torch.no_grad():
        intact = task.logit_difference(model(task.clean)).numpy()
    assert np.abs(setting.values(everything)[0] - intact).max() < 1e-10
    assert np.abs(setting.intact_values - intact).max() < 1e-10
    kinds = ("channel",) if model.cfg.attn_only else ("channel", "neuron")
    table = unit_effects(model, task, units=kinds, ablation="resample", n_bootstrap=1).table
    without = ~np.eye(units.n, dtype=bool)[:, None, None]
    effects = intact.mean() - setting.values(without).mean(1)
    for row in table.itertuples():
        channel = row.kind == "channel"
        name = f"a{row.layer}.h{row.head}.c{row.channel}" if channel else f"m{row.layer}.n{row.neuron}"
        assert effects[units.index[name]] == pytest.approx(row.effect_logit_diff, abs=1e-10)


def test_at_the_end_with_zeros_and_its_own_masks_the_circuit_is_the_ablated_stream(tiny_model, task):
    from analyses.localization.mask_usage import text_masks

    for mask in ("local", "global"):
        model = tiny_model({"mask": mask})
        found = unit_setting_of(model, task, ablation="zero", positions="end").values(
            text_masks(model, task.clean)[None]
        )
        with torch.no_grad():
            ablated = task.logit_difference(model(task.clean, stream="ablated")).numpy()
        assert np.abs(found[0] - ablated).max() < 1e-10


@pytest.mark.parametrize("positions", ["all", "end"])
def test_one_step_is_clean_minus_other_times_the_gradient_of_the_unit(tiny_model, task, positions):
    model = tiny_model({"mask": "none"})
    units = units_of(model.cfg)
    found = unit_attribution(unit_setting_of(model, task, positions=positions), steps=1).by_prompt
    for i in range(task.n):
        tokens, other = (t[i : i + 1, : task.lengths[i]] for t in (task.clean, task.corrupt))
        kept = {}
        names = [
            f"blocks.{layer}.{'attn.hook_z' if site == 'attn' else 'mlp.hook_post'}" for layer, site in units.sites
        ]

        def keep(x, hook, kept=kept):
            kept[hook.name] = x
            x.retain_grad()

        logits = model.run_with_hooks(tokens, fwd_hooks=[(name, keep) for name in names])[0, -1]
        (logits[task.answers[i]] - logits[task.wrong_answers[i]]).backward()
        with torch.no_grad():
            _, donor = model.run_with_cache(other)
            products = [((kept[name] - donor[name]) * kept[name].grad)[0].flatten(1) for name in names]
            score = torch.cat([p[-1] if positions == "end" else p.sum(0) for p in products])
        assert np.abs(found[i] - score.numpy()).max() < 1e-10
        model.zero_grad()


@pytest.mark.parametrize(("ablation", "value"), [("resample", "logit_diff"), ("zero", "kl"), ("mean", "logit_diff")])
def test_integrated_scores_add_up_to_what_the_units_are_worth(tiny_model, task, ablation, value):
    setting = unit_setting_of(tiny_model({"mask": "none"}), task.subset([0, 2]), ablation=ablation, value=value)
    gap = setting.intact_values - setting.empty_values
    errors = [
        np.abs(unit_attribution(setting, steps=steps).by_prompt.sum(1) - gap).max() / np.abs(gap).max()
        for steps in (8, 64)
    ]
    assert errors[1] < 2e-3 and errors[1] < errors[0] / 8  # the midpoint rule's error falls with steps squared


def test_scores_of_tokens_add_up_to_those_of_the_prompt_and_no_gradient_is_left(tiny_model, task):
    model = tiny_model({"mask": "none"})
    setting = unit_setting_of(model, task)
    whole = unit_attribution(setting, steps=2).by_prompt
    for group in setting.groups:
        tokens = token_attribution(setting, group, steps=2)
        assert tokens.shape == (len(group.rows), group.tokens.shape[1], setting.units.n)
        assert np.abs(tokens.sum(1).numpy() - whole[group.rows]).max() < 1e-12
    assert all(parameter.grad is None for parameter in model.parameters())


def test_names_are_layer_head_channel_and_neuron_in_the_order_of_a_row(tiny_model):
    units = units_of(tiny_model({"mask": "none"}).cfg)  # 2 layers of 4 heads of 4 channels, and 24 neurons
    assert units.n == 2 * (16 + 24) and len(units.names) == units.n
    circuit = named(units, ["a1.h2.c3", "m0.n5"])
    assert circuit.channels[1, 2, 3] and circuit.neurons[0, 5] and circuit.n_units == 2
    assert np.flatnonzero(circuit.row).tolist() == [16 + 2 * 4 + 3, 32 + 5]
    assert circuit.names() == ["a1.h2.c3", "m0.n5"]
    assert (circuit_of(units, circuit.row).channels == circuit.channels).all()
    with pytest.raises(ValueError, match="'a1.h9.c0' is no unit"):
        named(units, ["a1.h9.c0"])


def test_the_largest_units_are_those_of_the_largest_size_or_value(tiny_model):
    units = units_of(tiny_model({"mask": "none"}).cfg)
    scores = np.zeros(units.n)
    scores[[3, 40, 70]] = -5.0, 4.0, 3.0
    assert np.flatnonzero(largest_units(units, scores, 2).row).tolist() == [3, 40]
    assert np.flatnonzero(largest_units(units, scores, 2, absolute=False).row).tolist() == [40, 70]
    for n, message in ((units.n + 1, "0 to 80 units"), (-1, "got -1")):
        with pytest.raises(ValueError, match=message):
            largest_units(units, scores, n)
    with pytest.raises(ValueError, match="NaN"):
        largest_units(units, np.full(units.n, np.nan), 1)


@pytest.mark.parametrize("host", ["the_papers", "attention_only", "grouped"])
def test_a_file_gives_back_what_was_written_and_is_still_one_of_edges(tiny_model, tmp_path, host):
    cfg = tiny_model({"mask": "none"}, **HOSTS[host]).cfg
    units, graph, path = units_of(cfg), graph_of(cfg), tmp_path / "circuit.json"
    circuit = circuit_of(units, random_rows(units, 1)[0])
    edges = edges_among(circuit, graph)
    write_mib_units(circuit, edges, path)
    read, read_edges = read_mib_units(path, graph, units)
    assert (read.row == circuit.row).all() and (read_edges.members == edges.members).all()
    assert (read_mib(path, graph).members == edges.members).all()


def test_edges_among_units_join_the_nodes_that_have_one(tiny_model):
    cfg = tiny_model({"mask": "none"}).cfg
    edges = edges_among(named(units_of(cfg), ["a0.h1.c2", "m1.n0"]), graph_of(cfg))
    names = {edges.graph.edge_name(*at) for at in np.argwhere(edges.members).tolist()}
    heads = {f"input->a0.h1<{qkv}>" for qkv in "qkv"}
    assert names == heads | {"input->m1", "input->logits", "a0.h1->m1", "a0.h1->logits", "m1->logits"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"neurons": [True]}, "neurons of a0.h0 must be 4 bits"),
        ({"neurons": [1, 0, 0, 1]}, "neurons of a0.h0 must be 4 bits"),
        ({"neurons": "all"}, "neurons of a0.h0 must be 4 bits"),
    ],
)
def test_bits_that_do_not_fit_are_refused(tiny_model, tmp_path, change, message):
    cfg = tiny_model({"mask": "none"}).cfg
    units, graph, path = units_of(cfg), graph_of(cfg), tmp_path / "circuit.json"
    circuit = named(units, ["a0.h1.c2"])
    write_mib_units(circuit, edges_among(circuit, graph), path)
    content = json.loads(path.read_text())
    content["nodes"]["a0.h0"] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_mib_units(path, graph, units)
    content["cfg"]["neurons_of"] = "resid"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must be of hook_z, hook_post"):
        read_mib_units(path, graph, units)


def test_a_node_without_bits_is_in_or_out_whole(tiny_model, tmp_path):
    cfg = tiny_model({"mask": "none"}).cfg
    units, graph, path = units_of(cfg), graph_of(cfg), tmp_path / "circuit.json"
    circuit = named(units, ["a0.h1.c2"])
    write_mib_units(circuit, edges_among(circuit, graph), path)
    content = json.loads(path.read_text())
    for node in content["nodes"].values():
        node.pop("neurons", None)
    path.write_text(json.dumps(content))
    read, _ = read_mib_units(path, graph, units)
    assert read.names() == [f"a0.h1.c{channel}" for channel in range(4)]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [({"ablation": "optimal"}, "resample, mean, zero; got 'optimal'"), ({"value": "loss"}, "logit_diff, kl"),
     ({"positions": "last"}, "all, end; got 'last'")],
)  # fmt: skip
def test_what_is_unknown_is_refused(tiny_model, task, knobs, message):
    with pytest.raises(ValueError, match=message):
        unit_setting_of(tiny_model({"mask": "none"}), task, **knobs)


def test_steps_that_give_nothing_are_refused(tiny_model, task):
    model = tiny_model({"mask": "none"})
    with pytest.raises(ValueError, match="1 or more; got 0"):
        unit_attribution(unit_setting_of(model, task), steps=0)
    with pytest.raises(ValueError, match="kl has gradient 0"):
        unit_attribution(unit_setting_of(model, task, value="kl"), steps=1)


def test_one_call_runs_many_circuits(tiny_model, task):
    model = tiny_model({"mask": "none"})
    units = units_of(model.cfg)
    circuits = [circuit_of(units, row) for row in random_rows(units, 3)]
    setting = unit_setting_of(model, task)
    assert np.array_equal(unit_values(model, task, circuits), setting.values(stacked(circuits)))
