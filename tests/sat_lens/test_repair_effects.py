"""Self-repair against the definitions, one whole forward pass a head, and against what must hold of it."""

import copy

import pandas as pd
import pytest
import torch

from sat_lens.repair import All, Dose, Mean, Resample, Zero, attn_layers, heads, joint, mlp_layers, neurons, self_repair
from sat_lens.repair.runner import FullRunner
from tests.benchmarks.brute_self_repair import as_the_source, one_forward_a_head, plain_forwards
from tests.cases.architectures import HOSTS

EFFECTS = ("de", "ade", "dlogit", "self_repair", "sr_heads", "sr_mlps", "sr_ln")
SHARES = ["sr_heads", "sr_mlps", "sr_ln", "sr_own", "sr_gate"]


def texts(n=5, n_pos=9, seed=3):
    return torch.randint(29, (n, n_pos), generator=torch.Generator().manual_seed(seed))


def table(model, tokens, components=None, ablation=None, **knobs):
    ablation = Resample(source=tokens.roll(1, 0)) if ablation is None else ablation
    knobs = {"select": All(), "skip_bos": False} | knobs
    return self_repair(model, tokens, heads(model) if components is None else components, ablation, **knobs)


def assert_same(one, other, atol=1e-9):
    pd.testing.assert_frame_equal(one.per_component(), other.per_component(), rtol=1e-6, atol=atol)


@pytest.mark.parametrize("host", HOSTS)
def test_every_head_is_as_the_definitions_say(tiny_model, host):
    model, tokens = tiny_model(**HOSTS[host]), texts()
    result = table(model, tokens)
    found = result.per_component().set_index("component")
    wanted = one_forward_a_head(model, tokens, tokens.roll(1, 0), [(layer, h) for layer in range(2) for h in range(4)])
    assert len(found) == len(wanted) == 8
    for (layer, h), by_token in wanted.items():
        mine = result.per_token(f"L{layer}H{h}")
        for name in EFFECTS:
            expected = by_token[name]
            assert found.loc[f"L{layer}H{h}", name] == pytest.approx(expected.mean().item(), abs=1e-9), name
            at = expected[mine.seq.tolist(), mine.pos.tolist()]
            torch.testing.assert_close(torch.tensor(mine[name].to_numpy()), at, rtol=1e-5, atol=1e-5)
    assert found.dlogit.abs().min() > 1e-3
    assert result.closure_error() < 1e-10


def test_the_source_s_procedure_gives_the_same_as_one_forward_a_head(tiny_model):
    model, tokens = tiny_model(), texts()
    one, other = (way(model, tokens, tokens.roll(1, 0), [(0, 1)])[0, 1] for way in (one_forward_a_head, as_the_source))
    for name in EFFECTS:
        torch.testing.assert_close(one[name], other[name])
    plain = plain_forwards(model, tokens, tokens.roll(1, 0), [(0, 1)])[0, 1]
    torch.testing.assert_close(plain["dlogit"], one["dlogit"])


@pytest.mark.parametrize("host", ["the_papers", "rms_rotary_gated", "parallel", "attention_only", "no_norm"])
def test_sets_layers_and_neurons_are_as_in_whole_forward_passes(tiny_model, host):
    model, tokens = tiny_model(**HOSTS[host]), texts()
    chosen = [*attn_layers(model), joint([(0, 1), (0, 3), (1, 2)])]
    if host != "attention_only":
        chosen += [*mlp_layers(model), *neurons(model, 0, [2, 7]), joint([(1, 0), *mlp_layers(model, [0])])]
        chosen.append(joint([(0, 2), *neurons(model, 1, [0, 5]), *mlp_layers(model, [0])]))
    by_suffix = table(model, tokens, chosen, downstream="components")
    by_whole = table(model, tokens, chosen, downstream="components", runner=FullRunner(model))
    assert_same(by_suffix, by_whole)
    pd.testing.assert_frame_equal(by_suffix.repair_matrix(), by_whole.repair_matrix(), atol=1e-10, rtol=1e-7)
    found = by_suffix.per_component()
    last = tokens.roll(1, 0)
    _, source = model.run_with_cache(last)
    logits = model(tokens)

    def swap(z, hook):
        z = z.clone()
        units = [1, 3] if hook.layer() == 0 else [2]
        z[:, :, units] = source[hook.name][:, :, units]
        return z

    ablated = model.run_with_hooks(tokens, fwd_hooks=[(f"blocks.{i}.attn.hook_z", swap) for i in range(2)])
    change = (ablated - logits) - (ablated - logits).mean(-1, keepdim=True)
    wanted = change[:, :-1].gather(-1, tokens[:, 1:, None]).mean().item()
    assert found.set_index("component").loc["L0H1+L0H3+L1H2", "dlogit"] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("order", ["clean", "ablated", "symmetric"])
def test_in_every_order_the_shares_sum_to_the_same_self_repair(tiny_model, order):
    model, tokens = tiny_model(), texts()
    found = table(model, tokens, ln_order=order).per_component()
    assert found[SHARES].sum(axis=1).to_numpy() == pytest.approx(found.self_repair.to_numpy(), abs=1e-10)
    assert found.self_repair.to_numpy() == pytest.approx((found.dlogit + found.removed).to_numpy(), abs=1e-10)
    clean = table(model, tokens).per_component()
    for name in ("de", "ade", "dlogit", "self_repair", "ln_own"):
        assert found[name].to_numpy() == pytest.approx(clean[name].to_numpy(), abs=1e-12)
    assert (found.sr_own.abs().max() > 1e-4) == (order != "clean")


def test_the_papers_form_of_the_norm_s_share_is_the_order_ablated(tiny_model):
    """dlogit = (s0/s1 - 1) logit + (s0/s1) (sum of changes at the clean scale), token by token."""
    model, tokens = tiny_model(), texts()
    clean, ablated = (table(model, tokens, ln_order=order).per_token("L0H2") for order in ("clean", "ablated"))
    logits = model(tokens)
    centred = (logits - logits.mean(-1, keepdim=True))[clean.seq.tolist(), clean.pos.tolist()]
    constant = model.ln_final.b @ model.W_U + model.b_U
    logit = centred.gather(1, torch.tensor(clean.target.tolist())[:, None])[:, 0]
    logit = logit - (constant - constant.mean())[clean.target.tolist()]
    by_hand = (clean.scale_ratio.to_numpy() - 1) * logit.detach().numpy()
    assert ablated.sr_ln.to_numpy() == pytest.approx(by_hand, abs=1e-5)


def test_the_norm_s_own_share_is_the_repair_with_later_blocks_frozen(tiny_model):
    model, tokens = tiny_model(), texts()
    source = tokens.roll(1, 0)
    _, clean = model.run_with_cache(tokens)
    _, donor = model.run_with_cache(source)
    gone = (donor["blocks.0.attn.hook_z"] - clean["blocks.0.attn.hook_z"])[:, :, 1] @ model.blocks[0].attn.W_O[1]
    frozen = model.unembed(model.ln_final(clean["blocks.1.hook_resid_post"] + gone))
    change = frozen - model(tokens)
    change = (change - change.mean(-1, keepdim=True))[:, :-1].gather(-1, tokens[:, 1:, None]).mean().item()
    found = table(model, tokens, [(0, 1)]).per_component().iloc[0]
    assert found.ln_own == pytest.approx(change + found.removed, abs=1e-10)


def test_a_source_equal_to_the_texts_changes_nothing(tiny_model):
    model, tokens = tiny_model(), texts()
    found = table(model, tokens, ablation=Resample(source=tokens)).per_component()
    assert found[["removed", "dlogit", "self_repair", *SHARES, "ln_own"]].abs().to_numpy().max() < 1e-12
    assert found.de.abs().min() > 1e-3


def test_without_a_norm_nothing_is_repaired_by_it(tiny_model):
    found = table(tiny_model(normalization_type=None), texts()).per_component()
    assert (found.sr_ln == 0).all() and (found.ln_own == 0).all() and (found.sr_mlps.abs() > 1e-6).any()


def test_heads_of_a_parallel_last_layer_are_repaired_by_the_norm_alone(tiny_model):
    found = table(tiny_model(parallel_attn_mlp=True), texts()).per_component()
    last = found[found.layer == 1]
    assert last[["sr_heads", "sr_mlps"]].abs().to_numpy().max() < 1e-12 and last.sr_ln.abs().min() > 1e-4
    assert (found[found.layer == 0].sr_mlps.abs() > 1e-4).all()
    sequential = table(tiny_model(), texts()).per_component()
    assert (sequential[sequential.layer == 1].sr_mlps.abs() > 1e-4).all()


@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_folded_weights_give_the_same(tiny_model, norm):
    plain = tiny_model(normalization_type=norm).to_hooked_transformer()
    folded = copy.deepcopy(plain)
    knobs = {
        "fold_ln": True,
        "center_unembed": True,
        "center_writing_weights": norm == "LN",
        "fold_value_biases": False,
    }
    folded.load_and_process_state_dict(folded.state_dict(), **knobs)
    assert folded.cfg.normalization_type == f"{norm}Pre"
    by_token = table(plain, texts()).sums[..., :9], table(folded, texts()).sums[..., :9]
    torch.testing.assert_close(*by_token, rtol=0, atol=2e-5)  # TransformerLens folds in float32: logits move by 7e-7
    assert by_token[0].abs().max() > 1


def test_batches_and_chunks_change_nothing(tiny_model):
    model, tokens = tiny_model(), texts(5)
    lengths = torch.tensor([9, 4, 7, 9, 2])
    one = table(model, tokens, ablation=Resample(n=2), lengths=lengths, downstream="components")
    for knobs in ({"batch_size": 1}, {"batch_size": 2, "head_chunk": 3}, {"head_chunk": 1}):
        other = table(model, tokens, ablation=Resample(n=2), lengths=lengths, downstream="components", **knobs)
        assert_same(one, other)
        torch.testing.assert_close(one.sums, other.sums)
        torch.testing.assert_close(one.matrix, other.matrix)
        assert torch.equal(one.places, other.places)


def test_padding_does_not_reach_any_number(tiny_model):
    model, tokens, lengths = tiny_model(), texts(4), torch.tensor([9, 5, 7, 9])
    padded = torch.where(torch.arange(9) < lengths[:, None], tokens, 28 - tokens)
    assert_same(*(table(model, t, ablation=Resample(), lengths=lengths) for t in (tokens, padded)))


def test_a_row_that_is_alone_gives_what_it_gives_among_others(tiny_model):
    model, tokens = tiny_model(), texts(4)
    whole = table(model, tokens, ablation=Zero())
    alone = table(model, tokens[2:3], ablation=Zero())
    torch.testing.assert_close(whole.sums[:, :, 2], alone.sums[:, :, 0])


def test_a_whole_dose_is_the_ablation_and_none_is_nothing(tiny_model):
    model, tokens = tiny_model(), texts()
    found = table(model, tokens, ablation=Dose(Mean(), (0.0, 0.5, 1.0))).per_component()
    whole = table(model, tokens, ablation=Mean()).per_component()
    none, half, full = (found[found.dose == dose].reset_index(drop=True) for dose in (0.0, 0.5, 1.0))
    pd.testing.assert_frame_equal(full, whole)
    assert none.dlogit.abs().max() < 1e-12
    assert half.removed.to_numpy() == pytest.approx(full.removed.to_numpy() / 2, abs=1e-12)


def test_the_matrix_s_rows_sum_to_the_shares(tiny_model):
    model, tokens = tiny_model(), texts()
    result = table(model, tokens, downstream="components")
    matrix, found = result.repair_matrix(), result.per_component()
    mlps = [name for name in matrix if name.startswith("mlp")]
    assert matrix[mlps].sum(axis=1).to_numpy() == pytest.approx(found.sr_mlps.to_numpy(), abs=1e-10)
    assert matrix.drop(columns=mlps).sum(axis=1).to_numpy() == pytest.approx(found.sr_heads.to_numpy(), abs=1e-10)
    assert matrix.loc["L1H0", "L0H0"] == 0 and abs(matrix.loc["L0H0", "L1H0"]) > 1e-5


def test_it_leaves_no_trace_on_the_model(tiny_model):
    plain, tokens = tiny_model().to_hooked_transformer(), texts()
    kinds = [type(block.attn) for block in plain.blocks]
    act = plain.blocks[0].mlp.act_fn
    table(plain, tokens)
    assert kinds == [type(block.attn) for block in plain.blocks] and plain.blocks[0].mlp.act_fn is act
    plain(tokens).sum().backward()
