"""Self-repair of self-ablating models: by hooks on the model's own hook points, one head and one text at a time."""

import pytest
import torch

from sat_lens.repair import (
    AbsDE,
    All,
    Dose,
    Mean,
    Optimal,
    Resample,
    TopDE,
    Zero,
    gated,
    gated_alone,
    heads,
    joint,
    mlp_layers,
    neurons,
)
from sat_lens.repair.donors import donor_table
from sat_lens.repair.effects import FIELDS
from sat_lens.repair.gated_masks import mask_rule
from sat_lens.repair.gated_measure import gated_self_repair
from sat_lens.repair.rows import as_rows

N, POS = 5, 7
LENGTHS = torch.tensor([7, 5, 7, 6, 3])
MODELS = {
    "local": {"ablation": {"mask": "local"}},
    "global": {"ablation": {"mask": "global"}},
    "over all layers": {"ablation": {"mask": "local", "scope": "model", "k_attn": 6, "k_mlp": 9}},
    "soft, both": {"ablation": {"mask": "both", "forward": "soft"}},
    "whole heads": {"ablation": {"mask": "global", "unit": "head", "k_attn": 2}, "n_layers": 3},
    "rotary, grouped, RMS": {
        "n_key_value_heads": 2, "positional_embedding_type": "rotary", "rotary_dim": 4, "normalization_type": "RMS",
        "gated_mlp": True, "act_fn": "silu",
    },
    "parallel": {"parallel_attn_mlp": True},
    "attention only": {"attn_only": True, "d_mlp": None},
}  # fmt: skip

QUICK = (("local", "gated"), ("local", "both"), ("global", "both"), ("over all layers", "both"))


def texts():
    return torch.randint(29, (N, POS), generator=torch.Generator().manual_seed(3))


def of_fields(result):
    """`{field: sums [component, text]}`."""
    return {name: result.sums[0, :, :, i] for i, name in enumerate(FIELDS)}


def site_names(component, stream):
    """Hook points of a component in a stream, before the masks, with its units."""
    for site, units in component.writes:
        clean = {"z": "attn.hook_z", "mlp_out": "hook_mlp_out", "post": "mlp.hook_post"}[site.name]
        gated = {"z": "ablated.hook_z", "mlp_out": "ablated.hook_mlp_out", "post": "ablated.hook_post"}[site.name]
        whole = site.name == "mlp_out"
        yield f"blocks.{site.layer}.{clean if stream == 'clean' else gated}", slice(None) if whole else list(units)


def cached(model):
    """Every hook point of both streams, text by text."""
    with torch.no_grad():
        return [model.run_with_cache(tokens[None], stream="ablated")[1] for tokens in texts()]


def by_hand(model, caches, component, row, both):
    """logits clean, ablated with live masks, ablated with the clean masks, [pos d_vocab]; a text by itself."""
    tokens = texts()
    table = donor_table(as_rows(tokens, LENGTHS), 0)
    length = int(LENGTHS[row])
    streams = ("clean", "gated") if both else ("gated",)

    def edit(name, units):
        def hook(value, hook):
            value = value.clone()
            for pos in range(length):
                donor = int(table[row, pos])
                if donor >= 0:
                    value[:, pos, units] = caches[donor][name][:, pos, units]
            return value

        return name, hook

    hooks = [edit(*place) for stream in streams for place in site_names(component, stream)]
    kept = [name for name in model.hook_dict if name.endswith("hook_mask")]
    freeze = [(name, lambda value, hook: caches[row][hook.name][:, :length]) for name in kept]
    text = tokens[row : row + 1, :length]
    with torch.no_grad():
        clean = model(text, stream="ablated")
        live = model.run_with_hooks(text, stream="ablated", fwd_hooks=hooks)
        frozen = model.run_with_hooks(text, stream="ablated", fwd_hooks=[*hooks, *freeze])
    return [(logits - logits.mean(-1, keepdim=True))[0] for logits in (clean, live, frozen)]


def next_logits(logits, tokens, row):
    length = int(LENGTHS[row])
    position = torch.arange(1, length - 1)
    return logits[position, tokens[row, position + 1]]


def measured(model, components, stream, **knobs):
    knobs = {"select": All(), "lengths": LENGTHS, "batch_size": 3} | knobs
    return gated_self_repair(model, texts(), components, knobs.pop("ablation", Resample()), stream=stream, **knobs)


@pytest.mark.parametrize(
    ("name", "stream"),
    [
        pytest.param(name, stream, marks=() if (name, stream) in QUICK else pytest.mark.slow)
        for name in MODELS
        for stream in ("gated", "both")
    ],
)
def test_change_of_the_logit_and_share_of_the_masks_are_those_of_hooks(tiny_model, name, stream):
    model, tokens = tiny_model(**MODELS[name]), texts()
    components, caches = [heads(model)[1], heads(model)[-2]], cached(model)
    if not model.cfg.attn_only:
        components += [mlp_layers(model)[0], *neurons(model, 1, [4])]
        components += [joint([(0, 0), (1, 3), mlp_layers(model)[1]])]
    found = of_fields(measured(model, components, stream))
    table = donor_table(as_rows(tokens, LENGTHS), 0)
    for i, component in enumerate(components):
        for row in (1, 3):
            keep = table[row, 1 : int(LENGTHS[row]) - 1] >= 0
            clean, live, frozen = (
                next_logits(logits, tokens, row)[keep]
                for logits in by_hand(model, caches, component, row, stream == "both")
            )
            assert found["dlogit"][i, row].item() == pytest.approx((live - clean).sum().item(), abs=1e-8)
            assert found["sr_gate"][i, row].item() == pytest.approx((live - frozen).sum().item(), abs=1e-8)
    if stream == "gated":
        assert not found["sr_gate"].any()


@pytest.mark.parametrize(
    "name",
    [
        "rotary, grouped, RMS",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("local", "over all layers", "parallel")),
        "attention only",
    ],
)
def test_selected_tokens_run_alone_give_what_whole_texts_give(tiny_model, name, monkeypatch):
    model, select = tiny_model(**MODELS[name]), AbsDE(0.25)
    knobs = {"select": select, "downstream": "components", "ablation": Dose(Resample(n=2), (0.5, 1.0))}
    components = heads(model)[::2]
    if not model.cfg.attn_only:
        components += [mlp_layers(model)[0], *neurons(model, 1, [4])]
    seen, run = [], gated_alone.last_of_tokens
    monkeypatch.setattr(gated, "last_of_tokens", lambda *args: seen.append(args[2].shape) or run(*args))
    found = {}
    for most in (0.0, 1.0):
        monkeypatch.setattr(gated, "MOST", most)
        found[most] = measured(model, components, "gated", **knobs)
        assert bool(seen) == bool(most)
    one, other = found.values()
    assert 0 < one.counts.sum() < 0.7 * len(components) * LENGTHS.sum() and {shape[1] for shape in seen} == {1}
    for field in ("sums", "counts", "squares", "matrix", "places", "values"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=1e-6, atol=1e-9)


def test_direct_effects_are_those_of_the_gated_stream_by_hand(tiny_model):
    """DE: the masked z times W_O in the direction of the target, over the gated scale; ADE: of the donor's z."""
    model, tokens = tiny_model(), texts()
    found = of_fields(measured(model, heads(model), "both"))
    table = donor_table(as_rows(tokens, LENGTHS), 0)
    with torch.no_grad():
        cache = model.run_with_cache(tokens, stream="ablated")[1]
    w_u = model.W_U - model.W_U.mean(1, keepdim=True)
    for row, i in ((0, 2), (3, 6)):
        layer, head = divmod(i, 4)
        de = ade = 0.0
        for pos in range(1, int(LENGTHS[row]) - 1):
            if (donor := int(table[row, pos])) < 0:
                continue
            v = model.ln_final.w * w_u[:, tokens[row, pos + 1]]
            scale = cache["ablated_ln_final.hook_scale"][row, pos, 0]
            mask = cache[f"blocks.{layer}.attn.hook_mask"][row, pos, head]
            for who in (row, donor):
                out = (cache[f"blocks.{layer}.ablated.hook_z"][who, pos, head] * mask) @ model.W_O[layer, head]
                value = ((out - out.mean()) @ v / scale).item()
                de, ade = (de + value, ade) if who == row else (de, ade + value)
        assert found["de"][i, row].item() == pytest.approx(de, abs=1e-9)
        assert found["ade"][i, row].item() == pytest.approx(ade, abs=1e-9)


@pytest.mark.parametrize(("stream", "order"), [("gated", "symmetric"), ("both", "clean"), ("both", "ablated")])
def test_the_shares_sum_to_self_repair(tiny_model, stream, order):
    model = tiny_model(ablation={"mask": "global"})
    table = measured(model, heads(model), stream, ln_order=order).per_component()
    shares = table.sr_heads + table.sr_mlps + table.sr_ln + table.sr_own + table.sr_gate
    assert (shares - table.self_repair).abs().max() < 1e-10
    assert (table.self_repair - (table.dlogit + table.de - table.ade)).abs().max() < 1e-12
    assert (table.sr_gate.abs() > 1e-6).any() == (stream == "both")


def test_masks_of_fixed_scores_do_not_react(tiny_model):
    model = tiny_model(ablation={"mask": "both"})
    with torch.no_grad():
        for name, weight in model.gates.named_parameters():
            if name.endswith("weight"):
                weight.zero_()
    found = of_fields(measured(model, heads(model), "both", ablation=Zero()))
    assert found["sr_gate"].abs().max() < 1e-12 and found["dlogit"].abs().max() > 1e-3


def test_random_masks_cannot_react_and_dealt_ones_do(tiny_model):
    model = tiny_model()
    gate = {
        m: of_fields(measured(model, heads(model, [0]), "both", masks=m))["sr_gate"] for m in ("random", "dealt", "own")
    }
    assert gate["random"].abs().max() < 1e-12
    assert gate["dealt"].abs().max() > 1e-6 and not torch.allclose(gate["dealt"], gate["own"])


def test_control_masks_have_the_right_number_of_winners_and_no_future(tiny_model):
    model, tokens = tiny_model(), texts()
    with torch.no_grad():
        stream = model.clean_stream(tokens)
        for kind in ("own", "dealt", "random"):
            for layer in mask_rule(model, kind, seed=1)(stream):
                assert (layer.attn.flatten(-2).sum(-1) == 3).all() and (layer.mlp.sum(-1) == 5).all()
        dealt, own = (mask_rule(model, kind)(stream)[0].mlp for kind in ("dealt", "own"))
    for pos in range(POS):
        assert any((dealt[:, pos] == own[:, earlier]).all() for earlier in range(max(pos, 1)))


def test_a_head_that_its_mask_silences_has_no_direct_effect(tiny_model):
    model, tokens = tiny_model(ablation={"unit": "head", "k_attn": 1}), texts()
    found = measured(model, heads(model), "both", per_token=True)
    with torch.no_grad():
        cache = model.run_with_cache(tokens, stream="ablated")[1]
    silent = 0
    for i, component in enumerate(found.components):
        mask = cache[f"blocks.{component.layer}.attn.hook_mask"][..., component.head, 0]
        for row in found.per_token(component.name).itertuples():
            assert i >= 0 and (row.de == 0 == row.ade) == (mask[row.seq, row.pos] == 0)
            silent += row.de == 0
    assert silent > 10


@pytest.mark.parametrize(("ablation", "stream"), [(Zero(), "both"), (Mean(), "gated"), (Resample(n=2), "both")])
def test_batches_and_chunks_change_nothing(tiny_model, ablation, stream):
    model = tiny_model(ablation={"mask": "global"})
    knobs = {"ablation": ablation, "select": TopDE(0.3), "downstream": "components"}
    one = measured(model, heads(model)[::3], stream, batch_size=5, **knobs)
    other = measured(model, heads(model)[::3], stream, batch_size=2, head_chunk=1, **knobs)
    assert torch.allclose(one.sums, other.sums, atol=1e-10) and torch.equal(one.counts, other.counts)
    assert torch.allclose(one.matrix, other.matrix, atol=1e-10) and one.matrix.abs().max() > 1e-4


@pytest.mark.parametrize("stream", ["gated", "both"])
def test_a_dose_of_nothing_does_nothing_and_a_whole_one_everything(tiny_model, stream):
    model = tiny_model()
    doses = measured(model, heads(model), stream, ablation=Dose(Zero(), (0.0, 1.0)))
    whole = measured(model, heads(model), stream, ablation=Zero())
    dlogit = FIELDS.index("dlogit")
    assert doses.sums[0, ..., dlogit].abs().max() < 1e-12
    assert torch.allclose(doses.sums[1], whole.sums[0], atol=1e-12)


def test_what_cannot_be_asked_is_said_in_a_line(tiny_model):
    model, plain = tiny_model(), tiny_model(ablation={"mask": "none"})
    for given, knobs in (
        (plain, {"stream": "gated"}),
        (model, {"stream": "ablated"}),
        (model, {"stream": "clean", "masks": "dealt"}),
        (model, {"stream": "both", "masks": "shuffled"}),
        (model, {"stream": "both", "ablation": Optimal()}),
        (model, {"stream": "both", "ln_order": "other"}),
    ):
        with pytest.raises(ValueError) as error:
            measured(given, heads(given), **knobs)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="clean"):
        measured(plain, heads(plain), "gated")
    assert measured(plain, heads(plain), "clean").meta["selection"] == "all tokens"
