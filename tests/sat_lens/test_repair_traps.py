"""Traps of the field (arXiv 2402.15390 and its code), each planted: what would go wrong, and what keeps us from it."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from scipy import stats

from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.repair import (
    AbsDE,
    All,
    LogitDiff,
    Mean,
    MinRemoved,
    Readout,
    Resample,
    SelfRepairResult,
    TopDE,
    Zero,
    heads,
    joint,
    self_repair,
)
from sat_lens.repair.components import Site
from sat_lens.repair.donors import donor_table
from sat_lens.repair.effects import FIELDS
from sat_lens.repair.result import UNITS
from sat_lens.repair.rows import as_rows
from sat_lens.repair.runner import make_runner

U = 3.0
ONE = LogitDiff(1, 2)


def texts(n=5, n_pos=9, n_ids=29):
    return torch.randint(n_ids, (n, n_pos), generator=torch.Generator().manual_seed(3))


def blank(n_heads=2):
    """All weights 0; axis 0 of the stream is the logit of id 1."""
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_heads=n_heads, d_head=1, d_mlp=2, d_vocab=5, n_ctx=9, act_fn="relu",
        normalization_type=None, dtype=torch.float64, device="cpu",
    )  # fmt: skip
    model = hooked_transformer(cfg)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.unembed.W_U.data[0, 1] = 1.0
    return model.eval()


def result_of(values):
    """A Result of one component whose tokens, in one text each, have these fields; the others are 0."""
    n = len(values["de"])
    table = torch.zeros(n, len(FIELDS) + 1, dtype=torch.float64)
    for name, of in values.items():
        table[:, FIELDS.index(name)] = torch.as_tensor(of, dtype=torch.float64)
    places = torch.zeros(n, 5, dtype=torch.int32)
    places[:, 2] = torch.arange(n)
    return SelfRepairResult(
        components=tuple(heads(blank(1))), doses=(1.0,), columns=(), tokens=torch.zeros(n, 1, dtype=torch.long),
        sums=table[None, None, :, : len(FIELDS)], counts=torch.ones(1, n, dtype=torch.float64),
        squares=torch.zeros(1, 1, dtype=torch.float64), matrix=torch.zeros(1, 1, 0), closure=0.0, meta={},
        places=places, values=table.float(),
    )  # fmt: skip


def test_a_readout_without_the_norms_gain_is_refused_and_would_be_wrong(tiny_model):
    """T1: unfolded gains left out of the direct effect; the norm's share, were it the rest, would swallow the error."""
    model, tokens = tiny_model(), texts()
    final = model.run_with_cache(tokens)[1]["blocks.1.hook_resid_post"]
    bare = Readout(model)
    bare.norm = dataclasses.replace(bare.norm, gain=torch.ones_like(bare.norm.gain))
    with pytest.raises(ValueError, match="the final norm and a linear map"):
        self_repair(model, tokens, [(0, 1)], Zero(), target=bare)
    ids, rows = tokens[:, 1:], torch.arange(5)
    logit = model(tokens).detach()[:, :-1]
    change = (logit - logit.mean(-1, keepdim=True)).gather(-1, ids[..., None])[..., 0]
    for readout, right in ((Readout(model), True), (bare, False)):
        targets = readout.targets(rows, tokens, final)
        score = (final * readout.directions(rows, tokens, targets)).sum(-1) / readout.norm.scale(final)
        constant = (model.ln_final.b @ model.W_U + model.b_U).detach()
        error = (score[:, :-1] + (constant - constant.mean())[ids] - change).abs().max().item()
        assert error < 1e-10 if right else error > 0.1


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_clipped_shares_of_noise_are_above_0_and_those_that_are_reported_first_are_not(sigma):
    """T3: E clip(N(0, sigma), 0, 1) in closed form, .195 and .316; ratio of sums and median: 0."""
    noise = sigma * stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    row = result_of({"de": np.ones_like(noise), "sr_ln": noise, "ln_clipped": noise.clip(0, 1)}).per_component().iloc[0]
    z = 1 / sigma
    expected = sigma * (stats.norm.pdf(0) - stats.norm.pdf(z)) + stats.norm.sf(z)
    assert row.ln_frac_clipped == pytest.approx(expected, abs=2e-3)
    assert row.ln_frac_clipped == pytest.approx({0.5: 0.195, 1.0: 0.316}[sigma], abs=2e-3)
    assert row.ln_frac == pytest.approx(0, abs=1e-3) and row.ln_frac_median == pytest.approx(0, abs=1e-3)
    assert "biased upwards" in UNITS["ln_frac_clipped"] and UNITS["ln_frac"] == "ratio of sums"


def test_shares_that_are_large_and_cancel_are_flagged():
    """T4: L5H0 of pythia-160m (norm +3.99, MLPs -3.24, self-repair .57), and L9H11 of gpt2-small (.50, .57, 1.54)."""
    for ln, mlps, repair, ill in ((3.99, -3.24, 0.571, True), (0.504, 0.568, 1.54, False)):
        found = result_of({"de": [2.0], "dlogit": [repair - 2.0], "sr_ln": [ln], "sr_mlps": [mlps]}).per_component()
        assert found.self_repair[0] == pytest.approx(repair) and bool(found.ill_conditioned[0]) is ill


def test_a_growing_norm_gives_opposite_shares_that_the_symmetric_order_lessens(tiny_model):
    """T4: the norm's and the MLPs' shares in three orders, of the same self-repair; symmetric is the mean of both."""
    model, tokens = tiny_model(), texts()
    orders = ("clean", "ablated", "symmetric")
    of = {
        order: self_repair(model, tokens, heads(model), Resample(), select=All(), ln_order=order).per_component()
        for order in orders
    }
    for name in ("sr_ln", "sr_mlps", "sr_heads"):
        middle = (of["clean"][name] + of["ablated"][name]) / 2
        assert of["symmetric"][name].to_numpy() == pytest.approx(middle.to_numpy(), abs=1e-12)
    assert (of["clean"].sr_ln - of["ablated"].sr_ln).abs().max() > 1e-3


def test_a_head_that_always_writes_the_same_is_not_repaired():
    """T5: DE = ADE = U: the logit stays, which `dlogit + DE` would call a repair of U."""
    model = blank()
    model.blocks[0].attn.b_V.data[0, 0] = U
    model.blocks[0].attn.W_O.data[0, 0, 0] = 1.0
    tokens, knobs = texts(n_ids=5), {"target": ONE}
    row = self_repair(model, tokens, [(0, 0)], Resample(), select=All(), **knobs).per_component().iloc[0]
    assert (row.de, row.ade, row.dlogit) == (U, U, 0), "what is published as simplified would say U"
    assert row.self_repair == row.removed == 0 and np.isnan(row.frac_of_removed), "0 of 0 is no share"
    empty = self_repair(model, tokens, [(0, 0)], Resample(), select=MinRemoved(0.1), **knobs).per_component().iloc[0]
    assert empty.n_tokens == 0
    zeroed = self_repair(model, tokens, [(0, 0)], Zero(), select=MinRemoved(0.1), **knobs).per_component().iloc[0]
    assert (zeroed.removed, zeroed.dlogit, zeroed.n_tokens) == (U, -U, 5 * 8)


def test_the_top_tokens_answer_another_question_and_say_so():
    """T6: the head writes 2 at id 4 and -1 elsewhere, and a neuron makes up for it above 0 alone.

    relu(2 - x) - 2 on what the head may write up to 2: all of +2 is repaired, -1 breaks on. Top: 1; all tokens: less.
    """
    model = blank(1)
    model.embed.W_E.data[:, 1] = torch.tensor([-1.0, -1, -1, -1, 2])
    attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
    model.pos_embed.W_pos.data[:, 2] = torch.arange(9.0)  # every head looks at its own token: the last one
    attn.W_Q.data[0, 2, 0], attn.W_K.data[0, 2, 0], attn.b_Q.data[0, 0] = 0.0, 1.0, 60.0
    attn.W_V.data[0, 1, 0], attn.W_O.data[0, 0, 0] = 1.0, 1.0
    mlp.W_in.data[0, 0], mlp.W_out.data[0, 0] = 1.0, -1.0  # -relu(x): erases what is above 0
    tokens = torch.tensor([[0, 4, 1, 2, 4, 3, 1, 2, 0], [1, 2, 4, 3, 0, 4, 2, 1, 0]])
    found = {
        select: self_repair(model, tokens, [(0, 0)], Zero(), target=ONE, select=select)
        for select in (All(), TopDE(0.25), AbsDE(1.5))
    }
    rows = {select.name: result.per_component().iloc[0] for select, result in found.items()}
    everything, top, large = rows.values()
    assert top.frac_of_removed == large.frac_of_removed == pytest.approx(1) and top.de == pytest.approx(2)
    assert everything.de == pytest.approx((4 * 2 - 12) / 16) and everything.self_repair == pytest.approx(4 * 2 / 16)
    assert everything.frac_of_removed == pytest.approx(-2), "another answer, by the same head"
    assert [result.meta["selection"] for result in found.values()] == list(rows)


def test_parts_of_a_document_and_first_tokens_stand_in_for_nothing(tiny_model):
    """T7: rows 0 to 3 are one document, in order; no donor is of it, whatever the seed; position 0 is not counted."""
    model, tokens = tiny_model(), texts(6)
    documents = torch.tensor([0, 0, 0, 0, 1, 2])
    rows = as_rows(tokens, documents=documents)
    assert not rows.keep[:, 0].any()
    for seed in range(5):
        table = donor_table(rows, seed)
        assert (documents[table] != documents[:, None]).all()
    alike = tokens.clone()
    alike[:4, 1:] = alike[:1, 1:]  # if parts of it replaced one another, nothing would change
    found = self_repair(model, alike, [(0, 1)], Resample(), documents=documents, select=All()).per_token("L0H1")
    assert found[found.seq < 4].dlogit.abs().min() > 1e-6 and found.pos.min() == 1


def test_means_are_of_the_data_set_whatever_the_batch(tiny_model):
    """T8: rows of unlike batches, a first token like no other: the same numbers for every batch size."""
    model, tokens = tiny_model(), texts(6)
    tokens[:3] = tokens[:3] % 5
    tokens[:, 0] = 28
    knobs = {"select": All(), "per_token": False}
    sums = [self_repair(model, tokens, heads(model), Mean(), batch_size=size, **knobs).sums for size in (1, 4, 16)]
    for other in sums[1:]:
        torch.testing.assert_close(other, sums[0])
    by_half = self_repair(model, tokens[:3], heads(model), Mean(), **knobs).sums
    assert not torch.allclose(by_half, sums[0][:, :, :3], atol=1e-4), "a batch's own mean would be another ablation"


def test_what_is_added_to_all_logits_changes_nothing(tiny_model):
    """T10: a head that writes along the mean column of the unembedding; columns of padding would move that mean."""
    model, tokens = tiny_model(tie_word_embeddings=False), texts()
    shifted = copy.deepcopy(model)
    shifted.W_U.data += torch.randn(16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, moved = (self_repair(of, tokens, heads(of), Zero(), select=All()).sums for of in (model, shifted))
    torch.testing.assert_close(plain, moved)
    uncentred = [
        self_repair(of, tokens, heads(of), Zero(), select=All(), target=Readout(of, center=False)).sums
        for of in (model, shifted)
    ]
    assert (uncentred[0] - uncentred[1]).abs().max() > 0.1


def test_single_ablations_are_a_lower_bound_on_redundancy():
    """T11: two heads write U each, a neuron adds what is missing of U: only both together call it."""
    model = blank()
    for head in (0, 1):
        model.blocks[0].attn.b_V.data[head, 0] = U
        model.blocks[0].attn.W_O.data[head, 0, 0] = 1.0
    mlp = model.blocks[0].mlp
    mlp.W_in.data[0, 0], mlp.b_in.data[0], mlp.W_out.data[0, 0] = -1.0, U, 1.0
    chosen = [*heads(model), joint([(0, 0), (0, 1)])]
    found = self_repair(model, texts(n_ids=5), chosen, Zero(), target=ONE, select=All()).per_component()
    assert found.de.tolist() == [U, U, 2 * U] and found.self_repair.tolist() == [0, 0, U]
    assert found.self_repair[2] > found.self_repair[0] + found.self_repair[1]


def test_products_are_in_float32_whatever_the_process_allows(tiny_model):
    """T15: TF32 and bfloat16 products; the setting is back afterwards, also behind an error."""
    model = tiny_model(dtype=torch.float32)
    tokens, seen, before = texts(), [], torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        look = [("blocks.1.hook_resid_pre", lambda x, hook: seen.append(torch.get_float32_matmul_precision()))]
        with model.hooks(fwd_hooks=look):
            self_repair(model, tokens, [(0, 1)], Zero())
        with pytest.raises(RuntimeError, match="halt"), make_runner(model).ready():
            raise RuntimeError("halt")
        assert len(seen) >= 2 and set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_sums_are_float64_and_float32_models_come_close(tiny_model):
    """T15: the same model in both formats; bfloat16 is refused elsewhere."""
    tokens, found = texts(), {}
    for dtype in (torch.float32, torch.float64):
        model = tiny_model(dtype=torch.float64).to_hooked_transformer().to(dtype)
        model.cfg.dtype = dtype
        result = self_repair(model, tokens, heads(model), Zero(), select=All(), downstream="components")
        found[dtype] = result
        assert {value.dtype for value in (result.sums, result.squares, result.matrix)} == {torch.float64}
        assert result.meta["dtype"] == str(dtype).removeprefix("torch.")
    torch.testing.assert_close(found[torch.float32].sums, found[torch.float64].sums, rtol=1e-3, atol=1e-3)


def test_a_pass_keeps_what_is_asked_for_and_no_patterns(tiny_model):
    """T15: memory of n batch pos d_model; attention patterns and hidden layers stay where they are."""
    model, tokens = tiny_model(), texts()
    runner = make_runner(model)
    with runner.ready():
        kept = runner.clean(tokens, [Site(1, "z")], outputs=True)
    assert list(kept.sites) == [Site(1, "z")] and kept.replay is None
    held = [*kept.sites.values(), *kept.streams.values(), *kept.attn_out.values(), *kept.mlp_out.values()]
    assert all(value.numel() == tokens.numel() * 16 for value in held)


def test_kinds_of_ablation_give_different_answers_and_say_which(tiny_model):
    """T16: zero, mean and resample of one head; names in the meta keep them apart."""
    model, tokens = tiny_model(), texts()
    kinds = [Zero(), Mean(), Mean("position"), Resample(), Resample(n=2, seed=1)]
    found = [self_repair(model, tokens, [(0, 1)], kind, select=All()) for kind in kinds]
    assert len({result.meta["ablation"] for result in found}) == len(kinds)
    repair = sorted(result.per_component().self_repair[0] for result in found)
    assert np.diff(repair).min() > 1e-4


def test_a_result_says_which_weights_and_versions_it_is_of(tiny_model, tmp_path):
    from importlib.metadata import version

    from analyses.provenance import weights_sha256

    model, tokens = tiny_model(), texts()
    one = self_repair(model, tokens, [(0, 1)], Zero())
    assert one.meta["transformer_lens"] == version("transformer-lens") and one.meta["torch"] == torch.__version__
    assert one.meta["weights_sha256"] == weights_sha256(model), "the digest that results of analyses carry"
    one.save(tmp_path)
    assert json.loads((tmp_path / "self_repair.json").read_text())["meta"] == one.meta
    model.b_U.data[3] += 1e-9
    assert self_repair(model, tokens, [(0, 1)], Zero()).meta["weights_sha256"] != one.meta["weights_sha256"]
