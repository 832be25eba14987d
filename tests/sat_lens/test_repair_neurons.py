"""Repair by neuron of later MLPs: against a naive loop over whole passes, the MLPs' share, and a planted neuron."""

import pandas as pd
import pytest
import torch

from sat_lens.repair import All, Dose, LogitDiff, Resample, Zero, heads, joint, mlp_layers, neurons, self_repair
from sat_lens.repair.gated_measure import gated_self_repair
from sat_lens.repair.runner import FullRunner
from tests.cases.architectures import HOSTS

D_MLP = 24
WITH_MLPS = [host for host in HOSTS if host != "attention_only"]


def texts(n=4, n_pos=8):
    return torch.randint(29, (n, n_pos), generator=torch.Generator().manual_seed(3))


def measured(model, tokens, components, ablation=None, **knobs):
    knobs = {"select": All(), "downstream": "neurons"} | knobs
    return self_repair(model, tokens, components, ablation or Resample(), **knobs)


def by_loop(model, tokens, layer, head):
    """Mean change of each neuron's direct effect with a head zeroed: hooks on whole passes, a neuron at a time."""

    def zero(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    with torch.no_grad():
        _, clean = model.run_with_cache(tokens)
        with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)]):
            _, run = model.run_with_cache(tokens)
    column = (model.W_U - model.W_U.mean(1, keepdim=True)).T[tokens[:, 1:]]
    column = column if model.cfg.normalization_type is None else column * model.ln_final.w
    scale = clean["ln_final.hook_scale"][..., 0] if "ln_final.hook_scale" in clean else torch.ones(tokens.shape)
    found = {}
    for later in range(model.cfg.n_layers):
        name = f"blocks.{later}.mlp.hook_post"
        for n in range(D_MLP):
            out = (run[name] - clean[name])[..., n, None] * model.blocks[later].mlp.W_out[n]
            if model.cfg.normalization_type == "LN":
                out = out - out.mean(-1, keepdim=True)
            effect = (out[:, :-1] * column).sum(-1) / scale[:, :-1]
            found[f"L{later}N{n}"] = effect[:, 1:].mean().item()
    return pd.Series(found)


@pytest.mark.parametrize("host", ["the_papers", "rms_rotary_gated", "parallel", "no_norm"])
def test_each_neurons_repair_is_that_of_a_loop_over_neurons(tiny_model, host):
    model, tokens = tiny_model(**HOSTS[host]), texts()
    found = measured(model, tokens, [(0, 1), (1, 2)], Zero()).neuron_repair()
    for layer, head in ((0, 1), (1, 2)):
        wanted = by_loop(model, tokens, layer, head)
        pd.testing.assert_series_equal(found.loc[f"L{layer}H{head}"], wanted, check_names=False, atol=1e-9, rtol=1e-6)
        assert wanted.abs().max() > 1e-4 or (host == "parallel" and layer == 1)


@pytest.mark.parametrize("host", WITH_MLPS)
def test_neurons_sum_to_their_mlp_and_to_the_mlps_share(tiny_model, host):
    model, tokens = tiny_model(**HOSTS[host]), texts()
    lengths = torch.tensor([8, 5, 8, 7])
    result = measured(model, tokens, heads(model), Dose(Resample(n=2), (0.5, 1.0)), lengths=lengths, batch_size=3)
    coarse = measured(
        model, tokens, heads(model), Dose(Resample(n=2), (0.5, 1.0)), lengths=lengths, downstream="components"
    )
    table = result.per_component()
    for dose in (0.5, 1.0):
        each, matrix = result.neuron_repair(dose), result.repair_matrix(dose)
        pd.testing.assert_frame_equal(matrix, coarse.repair_matrix(dose), atol=1e-12)
        assert each.shape == (8, 2 * D_MLP)
        for layer in (0, 1):
            layers = each[[f"L{layer}N{n}" for n in range(D_MLP)]].sum(axis=1)
            assert layers.to_numpy() == pytest.approx(matrix[f"mlp{layer}"].to_numpy(), abs=1e-9)
        share = table[table.dose == dose].sr_mlps.to_numpy()
        assert each.sum(axis=1).to_numpy() == pytest.approx(share, abs=1e-9) and abs(share).max() > 1e-3


def test_what_is_taken_out_repairs_nothing(tiny_model):
    """MLPs, neurons and sets with them: their own neurons are 0, the others sum to the share, by either runner."""
    model, tokens = tiny_model(), texts()
    chosen = [*mlp_layers(model), *neurons(model, 0, [2]), joint([(0, 2), *neurons(model, 1, [0, 5])])]
    chosen.append(joint([(0, 1), *mlp_layers(model, [1])]))
    result = measured(model, tokens, chosen)
    each = result.neuron_repair()
    assert each.sum(axis=1).to_numpy() == pytest.approx(result.per_component().sr_mlps.to_numpy(), abs=1e-9)
    first, second = ([f"L{layer}N{n}" for n in range(D_MLP)] for layer in (0, 1))
    assert (each.loc[["mlp0", "mlp1", "L0N2"], first] == 0).all(axis=None) and (each.loc["mlp1"] == 0).all()
    with_neurons = each.loc["L0H2+L1N0+L1N5"]
    assert (with_neurons[["L1N0", "L1N5"]] == 0).all() and with_neurons[["L1N1", "L1N2"]].abs().min() > 1e-8
    assert (each.loc["L0H1+mlp1", second] == 0).all() and each.loc["L0H1+mlp1", first].abs().max() > 1e-5
    whole = measured(model, tokens, chosen, runner=FullRunner(model)).neuron_repair()
    pd.testing.assert_frame_equal(each, whole, atol=1e-12)


@pytest.mark.parametrize("stream", ["gated", "both"])
def test_neurons_under_masks_sum_to_the_share_too(tiny_model, stream):
    model, tokens = tiny_model(), texts()
    knobs = {"select": All(), "downstream": "neurons"}
    result = gated_self_repair(model, tokens, heads(model), Resample(), stream=stream, **knobs)
    share = result.per_component().sr_mlps.to_numpy()
    assert result.neuron_repair().sum(axis=1).to_numpy() == pytest.approx(share, abs=1e-9) and abs(share).max() > 1e-4


def test_the_planted_neuron_does_it_all(tiny_model):
    """Neuron 7 of layer 1 adds what is missing of 2 on axis 0, where head 0.1 writes 2."""
    model = tiny_model(ablation={"mask": "none"}, normalization_type=None, act_fn="relu", tie_word_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.blocks[0].attn.b_V[1, 0] = model.blocks[0].attn.W_O[1, 0, 0] = 2**0.5
        mlp = model.blocks[1].mlp
        mlp.W_in[0, 7], mlp.b_in[7], mlp.W_out[7, 0] = -1.0, 2.0, 1.0
        model.unembed.W_U[0, 1] = 1.0
    row = measured(model, texts(), [(0, 1)], Zero(), target=LogitDiff(1, 2)).neuron_repair().loc["L0H1"]
    assert row["L1N7"] == pytest.approx(2) and (row.drop("L1N7") == 0).all()


def test_neurons_are_refused_where_there_are_none_or_they_write_otherwise(tiny_model, monkeypatch):
    model, tokens = tiny_model(), texts()
    with pytest.raises(ValueError, match="attention only"):
        measured(tiny_model(attn_only=True, d_mlp=None), tokens, [(0, 1)])
    with pytest.raises(ValueError, match="measure with downstream='neurons'"):
        measured(model, tokens, [(0, 1)], downstream="components").neuron_repair()
    with model.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", lambda out, hook: out.tanh())]):
        with pytest.raises(ValueError, match="times W_out; mlp_out of layer 1 differs"):
            measured(model, tokens, [(0, 1)])
    needed = {}
    for kind in ("components", "neurons"):
        monkeypatch.setattr(
            "sat_lens.repair.measure.require", lambda n, *a, kind=kind: needed.setdefault(kind, []).append(n)
        )
        measured(model, tokens, heads(model), Resample(), downstream=kind, head_chunk=1, batch_size=4)
    chunk, sums = (b - a for a, b in zip(needed["components"], needed["neurons"], strict=True))
    assert sums == 8 * 8 * 2 * D_MLP, "8 bytes a head and neuron"
    held, changes = 2 * D_MLP * 8, D_MLP * (3 * 8 + 8)
    assert chunk == tokens.numel() * (held + changes), "clean activations, and changes of a layer"
