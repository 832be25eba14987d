"""Cosine and signal: by TransformerLens hooks on whole passes, and on models whose answer is known."""

import numpy as np
import pytest
import torch

from analyses.result import Result
from analyses.self_repair.mechanisms import STUDIES, study_figures
from analyses.self_repair.mechanisms.scene import Scene
from analyses.self_repair.mechanisms.signal import split
from analyses.texts import Stories
from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.repair import All, LogitDiff, Resample, Zero, self_repair

cosine, signal = STUDIES["cosine"][0], STUDIES["signal"][0]
U = 3.0
ONE = LogitDiff(1, 2)
ALL = {"ablation": Zero(), "select": All()}
PLANTED = {**ALL, "component": (0, 0), "target": ONE}


def texts(n=4, n_pos=7, n_ids=29):
    tokens = torch.randint(n_ids, (n, n_pos), generator=torch.Generator().manual_seed(3))
    return Stories(tokens, torch.tensor([n_pos, 5, n_pos, 6][:n]))


def value(result, measure, column="value", **index):
    table = result.table[result.table.measure == measure]
    for name, wanted in index.items():
        table = table[table[name] == wanted]
    assert len(table) == 1, f"{measure} {index}: {len(table)} rows"
    return float(table[column].iloc[0])


@pytest.fixture
def model(tiny_model):
    return tiny_model(ablation={"mask": "none"}, n_layers=2)


def cached(model, stories, hooks=()):
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model.run_with_cache(stories.tokens)[1]


def zero_head(layer, head):
    def hook(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    return f"blocks.{layer}.attn.hook_z", hook


def kept(stories):
    keep = stories.predicted.clone()
    keep[:, 0] = False
    return keep


def direction(model, stories):
    """Centred column of the next token, with the gain, its mean over d_model taken off."""
    ids = torch.cat([stories.tokens[:, 1:], stories.tokens[:, :1]], 1)
    v = (model.W_U - model.W_U.mean(1, keepdim=True)).T[ids] * model.ln_final.w
    return v - v.mean(-1, keepdim=True)


def test_cosines_by_hand(model):
    """Every token and pair by torch's own cosine, with whole outputs and with v taken off by hand."""
    stories, keep = texts(), kept(texts())
    result = cosine(model, stories, component=(0, 1), **ALL)
    clean, run = cached(model, stories), cached(model, stories, [zero_head(0, 1)])
    v = direction(model, stories)

    def outputs(cache):
        heads = [
            cache[f"blocks.{layer}.attn.hook_z"][:, :, h] @ model.blocks[layer].attn.W_O[h]
            for layer in (0, 1)
            for h in range(4)
        ]
        mlps = [cache[f"blocks.{layer}.hook_mlp_out"] for layer in (0, 1)]
        found = dict(zip([f"L{i // 4}H{i % 4}" for i in range(8)] + ["mlp0", "mlp1"], [*heads, *mlps], strict=True))
        found = {name: x - x.mean(-1, keepdim=True) for name, x in found.items()}
        return found | {"behind": sum(found[name] for name in ("mlp0", "L1H0", "L1H1", "L1H2", "L1H3", "mlp1"))}

    before, after = outputs(clean), outputs(run)
    for answer in ("kept", "projected out"):

        def cos(x, y, answer=answer):
            if answer != "kept":
                x, y = (one - (one * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True) * v for one in (x, y))
            return torch.cosine_similarity(x, y, dim=-1)[keep].detach().numpy()

        for name in ("mlp0", "L1H2", "mlp1", "behind"):
            own = [cos(before["L0H1"], found[name]) for found in (before, after)]
            index = {"receiver": name, "answer": answer}
            assert value(result, "clean", reference="own", **index) == pytest.approx(own[0].mean(), abs=1e-9)
            assert value(result, "change", reference="own", **index) == pytest.approx(
                (own[1] - own[0]).mean(), abs=1e-9
            )
            assert abs(own[1] - own[0]).max() > 1e-4
            others = [np.mean([cos(before[f"L0H{h}"], found[name]) for h in (0, 2, 3)], 0) for found in (before, after)]
            change = (others[1] - others[0]).mean()
            assert value(result, "change", reference="other heads", **index) == pytest.approx(change, abs=1e-9)
    table = result.table
    wide = {m: table[table.measure == m].reset_index(drop=True) for m in ("change", "beyond")}
    np.testing.assert_allclose(wide["beyond"].value, wide["change"].value - wide["change"].null, atol=1e-12)
    assert (wide["beyond"].ci_low < wide["beyond"].ci_high).all() and (table.n_tokens == int(keep.sum())).all()


def blank():
    """All weights 0; axis 0 is the logit of id 1; head 0.0 writes U on axis 0 and U on axis 1, at every token."""
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_heads=1, d_head=1, d_mlp=4, d_vocab=5, n_ctx=7, act_fn="relu",
        normalization_type=None, dtype=torch.float64, device="cpu",
    )  # fmt: skip
    model = hooked_transformer(cfg)
    for parameter in model.parameters():
        parameter.data.zero_()
    attn = model.blocks[0].attn
    attn.b_V.data[0, 0] = U
    attn.W_O.data[0, 0, :2] = 1.0
    model.unembed.W_U.data[0, 1] = 1.0
    return model.eval()


def test_a_backup_turns_towards_the_head_that_it_stands_in_for():
    """It writes (U, U) on axes 0 and 1 once the head is out, and a constant on axis 2 always: cos 0, then 2/sqrt(6).

    Without the answer (axis 0): (U, U) on axes 1 and 2 against U on axis 1: 1/sqrt(2).
    """
    model = blank()
    mlp = model.blocks[0].mlp
    mlp.W_in.data[0, 2], mlp.b_in.data[2] = -1.0, U
    mlp.W_out.data[2, :2] = 1.0
    mlp.b_out.data[2] = U
    result = cosine(model, texts(n_ids=5), **PLANTED)
    at = {"receiver": "mlp0", "reference": "own"}
    assert value(result, "clean", answer="kept", **at) == pytest.approx(0, abs=1e-12)
    assert value(result, "change", answer="kept", **at) == pytest.approx(2 / 6**0.5)
    assert value(result, "change", answer="projected out", **at) == pytest.approx(1 / 2**0.5)
    assert abs(value(result, "change", "null", answer="kept", **at)) < value(result, "change", answer="kept", **at)
    random = {"receiver": "mlp0", "reference": "random", "answer": "kept"}
    assert abs(value(result, "change", **random)) < 0.4 and "other heads" not in set(result.table.reference)


def test_what_is_along_the_answer_alone_has_no_cosine_without_it():
    """Backup and head write axis 0 alone: projected out, nothing is left of either."""
    model = blank()
    model.blocks[0].attn.W_O.data[0, 0, 1] = 0.0
    mlp = model.blocks[0].mlp
    mlp.W_in.data[0, 2], mlp.b_in.data[2], mlp.W_out.data[2, 0] = -1.0, U, 1.0
    result = cosine(model, texts(n_ids=5), **PLANTED)
    at = {"receiver": "mlp0", "reference": "own"}
    assert value(result, "change", answer="kept", **at) == pytest.approx(1)
    assert value(result, "change", answer="projected out", **at) == 0


def test_parts_of_the_signal_by_hand(model):
    """Whole, answer and rest are added to attn_out of whole passes; neurons by a loop."""
    stories, keep = texts(), kept(texts())
    result = signal(model, stories, component=(0, 2), **ALL)
    clean, v = cached(model, stories), direction(model, stories)
    gone = -clean["blocks.0.attn.hook_z"][:, :, 2] @ model.blocks[0].attn.W_O[2]
    along = (gone * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True) * v
    last = "blocks.1.hook_resid_post"
    f0, s0 = (clean[last] * v).sum(-1), clean["ln_final.hook_scale"][..., 0]
    for part, what in (("whole", gone), ("answer", along), ("rest", gone - along)):
        run = cached(model, stories, [("blocks.0.hook_attn_out", lambda value, hook, what=what: value + what)])
        f1, s1 = (run[last] * v).sum(-1), run["ln_final.hook_scale"][..., 0]
        dlogit, own = f1 / s1 - f0 / s0, (what * v).sum(-1) / s0
        mlps, anti = torch.zeros_like(s0), torch.zeros_like(s0)
        for layer in (0, 1):
            name = f"blocks.{layer}.mlp.hook_post"
            for n in range(24):
                per = (model.blocks[layer].mlp.W_out[n] * v).sum(-1) / s0
                repair = (run[name] - clean[name])[..., n] * per
                mlps = mlps + repair
                anti = anti + repair * ((clean[name][..., n] * per < 0) & (repair > 0))
        wanted = {"removed": -own, "dlogit": dlogit, "self_repair": dlogit - own, "mlps": mlps, "anti_erasure": anti}
        for measure, by_token in wanted.items():
            assert value(result, measure, part=part) == pytest.approx(by_token[keep].mean().item(), abs=1e-9), measure
        shares = sum(value(result, measure, part=part) for measure in ("heads", "mlps", "ln"))
        assert shares == pytest.approx(value(result, "self_repair", part=part), abs=1e-9)
    assert value(result, "removed", part="rest") == pytest.approx(0, abs=1e-12)
    assert value(result, "removed", part="answer") == pytest.approx(value(result, "removed", part="whole"))
    known = self_repair(model, stories.tokens, [(0, 2)], Zero(), lengths=stories.lengths, select=All())
    row = known.per_component().iloc[0]
    for measure, column in (
        ("self_repair", "self_repair"),
        ("mlps", "sr_mlps"),
        ("heads", "sr_heads"),
        ("ln", "sr_ln"),
    ):
        assert value(result, measure, part="whole") == pytest.approx(row[column], abs=1e-9)


@pytest.mark.parametrize(("read", "repaired"), [(0, "answer"), (1, "rest")])
def test_the_part_that_an_eraser_reads_is_the_one_that_is_repaired(read, repaired):
    """-relu(axis `read`) on axis 0, the answer; the head writes U on both axes."""
    model = blank()
    mlp = model.blocks[0].mlp
    mlp.W_in.data[read, 2], mlp.W_out.data[2, 0] = 1.0, -1.0
    result = signal(model, texts(n_ids=5), **PLANTED)
    for part in ("whole", "answer", "rest"):
        mine = U if part in ("whole", repaired) else 0.0
        for measure in ("self_repair", "mlps", "anti_erasure"):
            assert value(result, measure, part=part) == pytest.approx(mine, abs=1e-12)
        removed = 0.0 if part == "rest" else U
        assert value(result, "removed", part=part) == pytest.approx(removed, abs=1e-12)
        assert value(result, "dlogit", part=part) == pytest.approx(mine - removed, abs=1e-12)
        assert value(result, "frac_of_removed", part=part) == pytest.approx(mine / U)
        assert value(result, "length", part=part) == pytest.approx(1 if part == "whole" else 0.5**0.5)
        assert value(result, "heads", part=part) == pytest.approx(0, abs=1e-12) and value(result, "ln", part=part) == 0


def test_a_token_without_a_target_has_no_answer(model):
    stories = texts()
    ids = torch.full_like(stories.tokens, -1)
    ids[:, 3] = 4
    for take in Scene(model, stories, ablation=Zero(), target=ids).takes():
        change = torch.randn(*take.f0.shape, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        parts = split(take, change)
        assert parts["answer"].norm(dim=-1).nonzero()[:, 1].unique().tolist() == [3]
        torch.testing.assert_close(parts["answer"] + parts["rest"], change)
        assert (parts["rest"][:, 3] * take.v[:, 3]).sum(-1).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["cosine", "signal"])
def test_figures_show_the_tables_numbers_and_say_how_they_were_asked(name, model, tmp_path):
    STUDIES[name][0](model, texts(), component=(0, 0), ablation=Resample(), select=All()).save(tmp_path)
    result = Result.load(tmp_path)
    drawn = study_figures(result)[name]
    title = drawn.layout.title.text
    assert all(word in title for word in ("L0H0", "resample (n=1, seed=0)", "all tokens", "4 stories"))
    bars = [trace for trace in drawn.data if trace.type == "bar"]
    if name == "cosine":
        for trace, answer in zip(bars, ("kept", "projected out"), strict=True):
            names = drawn.layout["xaxis" if answer == "kept" else "xaxis2"].ticktext
            for receiver, shown in zip(names, trace.y, strict=True):
                receiver = receiver.replace("all behind", "behind")
                index = {"receiver": receiver, "answer": answer, "reference": "own"}
                assert shown == pytest.approx(value(result, "change", **index))
            assert list(names) == ["mlp0", "L1H0", "L1H1", "L1H2", "L1H3", "mlp1", "all behind"]
    else:
        for trace, part in zip(bars, ("whole", "answer", "rest"), strict=True):
            assert trace.y[1] == pytest.approx(value(result, "self_repair", part=part))
            assert trace.y[4] == pytest.approx(value(result, "anti_erasure", part=part))


def test_a_longer_stream_alone_is_no_self_repression(tiny_model):
    """Trap 12: a head that reads axis 1 and writes axis 0; with a live norm it says less of whatever is added."""
    model = tiny_model(ablation={"mask": "none"}, normalization_type="RMS")
    attn = model.blocks[1].attn
    with torch.no_grad():
        attn.W_Q.zero_(), attn.W_K.zero_(), attn.W_V.zero_(), attn.b_Q.zero_(), attn.b_K.zero_(), attn.b_V.zero_()
        attn.W_V[2, 1, 0] = 1.0
        attn.W_O.zero_()
        attn.W_O[2, 0, 0] = 1.0
        model.pos_embed.W_pos[:, 1] = torch.where(torch.arange(len(model.pos_embed.W_pos)) % 2 == 0, 4.0, 3.0)
    knobs = {"component": (1, 2), "times": (5,), "select": All(), "ablation": Zero()}
    held = STUDIES["self_repression"][0](model, texts(), **knobs)
    live = STUDIES["self_repression"][0](model, texts(), hold_norm=False, **knobs)
    assert value(held, "slope", added="own") == pytest.approx(1, abs=1e-9), "nothing that it reads has changed"
    assert value(live, "slope", added="own") < 0.97
    assert held.meta["hold_norm"] and "random direction" in held.meta["null"]


def test_who_writes_the_repair_is_not_who_it_is_due_to():
    """Trap 9: MLP 0 adds what is missing of U on axis 1, which head 1.0 copies to the answer: the head writes it."""
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=8, n_heads=1, d_head=1, d_mlp=4, d_vocab=5, n_ctx=7, act_fn="relu",
        normalization_type=None, dtype=torch.float64, device="cpu",
    )  # fmt: skip
    model = hooked_transformer(cfg)
    for parameter in model.parameters():
        parameter.data.zero_()
    first, second, mlp = model.blocks[0].attn, model.blocks[1].attn, model.blocks[0].mlp
    first.b_V.data[0, 0], first.W_O.data[0, 0, 0] = U, 1.0
    mlp.W_in.data[0, 2], mlp.b_in.data[2], mlp.W_out.data[2, 1] = -1.0, U, 1.0
    second.W_V.data[0, 1, 0], second.W_O.data[0, 0, 0] = 1.0, 1.0
    model.unembed.W_U.data[0, 1] = 1.0
    stories = texts(n_ids=5)
    row = self_repair(
        model, stories.tokens, [(0, 0)], Zero(), target=ONE, select=All(), downstream="components"
    ).repair_matrix()
    assert row.loc["L0H0", "L1H0"] == U and row.loc["L0H0", "mlp0"] == 0
    found = STUDIES["mediation"][0](model, stories, **PLANTED)
    assert value(found, "share", part="mlps") == value(found, "share", part="heads") == 1, "it needs both"


def test_controls_of_self_repression_are_the_same_in_every_batch(model):
    knobs = {"component": (1, 2), "times": (3,), **ALL}
    whole, single = (STUDIES["self_repression"][0](model, texts(), batch_size=size, **knobs).table for size in (4, 1))
    np.testing.assert_allclose(whole[["value", "null"]], single[["value", "null"]], atol=1e-9)


def test_bad_questions_are_refused(tiny_model, model):
    for study, message in ((cosine, "the cosine study is asked of a head"), (signal, "the signal study is asked")):
        with pytest.raises(ValueError, match=message):
            study(model, texts(), component=[(0, 0), (0, 1)])
    parallel = tiny_model(ablation={"mask": "none"}, parallel_attn_mlp=True)
    with pytest.raises(ValueError, match="a component behind the head; L1H0 has none"):
        cosine(parallel, texts(), component=(1, 0))
