"""Every hook point: named as the interface says, fired once, in the data path, and gone without a trace."""

from collections import Counter

import pytest
import torch

from sat_lens import SelfAblatingTransformer, fast
from sat_lens._tl import hooked_transformer

LAYERS = (0, 1)
SCORES = [f"blocks.{layer}.{part}.hook_relevance" for layer in LAYERS for part in ("attn", "mlp")]
MASKS = [f"blocks.{layer}.{part}.hook_mask" for layer in LAYERS for part in ("attn", "mlp")]
GATED = [f"blocks.{layer}.{name}" for layer in LAYERS for name in ("attn.hook_gated_z", "mlp.hook_gated_post")]
RESIDUAL = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
INSIDE = ("hook_q", "hook_k", "hook_v", "hook_z", "hook_pattern", "hook_pre", "hook_post")
ABLATED = [f"blocks.{layer}.ablated.{name}" for layer in LAYERS for name in (*RESIDUAL, *INSIDE)]
ABLATED += ["ablated_ln_final.hook_scale", "ablated_ln_final.hook_normalized"]
IN_A_BLOCK = (
    "hook_resid_pre", "ln1.hook_scale", "ln1.hook_normalized", "attn.hook_q", "attn.hook_k", "attn.hook_v",
    "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_z", "hook_attn_out", "hook_resid_mid",
    "ln2.hook_scale", "ln2.hook_normalized", "mlp.hook_pre", "mlp.hook_post", "hook_mlp_out", "hook_resid_post",
)  # fmt: skip
CLEAN = [f"blocks.{layer}.{name}" for layer in LAYERS for name in IN_A_BLOCK]
CLEAN += ["hook_embed", "hook_pos_embed", "ln_final.hook_scale", "ln_final.hook_normalized"]
CLEAN_LOGITS = ["unembed.hook_in", "unembed.hook_out"]  # there for stream="both"; "ablated" needs no clean logits
CLEAN += CLEAN_LOGITS
OURS = SCORES + MASKS + GATED + ABLATED
D_MODEL, HEADS, CHANNELS, NEURONS = (2, 9, 16), (2, 9, 4), (2, 9, 4, 4), (2, 9, 24)
ENDS = {
    "attn.hook_relevance": CHANNELS, "attn.hook_mask": CHANNELS, "hook_gated_z": CHANNELS, "hook_z": CHANNELS,
    "mlp.hook_relevance": NEURONS, "mlp.hook_mask": NEURONS, "hook_gated_post": NEURONS, "hook_q": CHANNELS,
    "hook_k": CHANNELS, "hook_v": CHANNELS, "hook_pattern": (2, 4, 9, 9), "hook_pre": NEURONS,
    "hook_post": NEURONS, "hook_scale": (2, 9, 1), "hook_normalized": D_MODEL,
}  # fmt: skip

WITH_MORE_HOOKS = {"use_attn_result": True, "use_split_qkv_input": True, "use_hook_mlp_in": True}
OPTIONAL = ("attn.hook_result", "hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")


def noise(activation: torch.Tensor, hook: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return activation * 1.5 + 0.3 * torch.randn(activation.shape, generator=generator, dtype=activation.dtype)


def negated(activation: torch.Tensor, hook: object) -> torch.Tensor:
    return -activation


def firings(model: torch.nn.Module, tokens: torch.Tensor, **kwargs: str) -> Counter:
    count: Counter = Counter()
    hooks = [(lambda name: True, lambda activation, hook: count.update([hook.name]))]
    model.run_with_hooks(tokens, fwd_hooks=hooks, **kwargs)
    return count


@pytest.mark.parametrize("mask", ["local", "global", "both"])
def test_the_hook_points_are_those_of_hooked_transformer_and_those_of_the_interface(tiny_model, mask):
    model = tiny_model({"mask": mask})
    plain = set(hooked_transformer(model.cfg).hook_dict)
    assert set(model.hook_dict) == plain | set(OURS)
    assert set(CLEAN) <= plain
    assert all(model.hook_dict[name].name == name for name in OURS)


@pytest.mark.parametrize("mask", ["local", "global", "both"])
@pytest.mark.parametrize("stream", ["ablated", "both"])
def test_each_fires_once_and_the_clean_ones_as_often_as_in_hooked_transformer(tiny_model, tokens, mask, stream):
    model = tiny_model({"mask": mask})
    expected = firings(model.to_hooked_transformer(), tokens)
    assert set(expected) == set(CLEAN)
    for name in CLEAN_LOGITS if stream == "ablated" else ():
        del expected[name]
    expected.update(OURS)
    assert firings(model, tokens, stream=stream) == expected


def test_the_clean_stream_fires_no_other_hook(tiny_model, tokens):
    model = tiny_model()
    assert firings(model, tokens) == firings(model.to_hooked_transformer(), tokens)


def test_optional_hooks_of_hooked_transformer_fire_as_often_as_there(tiny_model, tokens):
    model = tiny_model()
    for name, value in WITH_MORE_HOOKS.items():
        setattr(model.cfg, name, value)
    expected = firings(model.to_hooked_transformer(), tokens)
    assert {f"blocks.0.{name}" for name in OPTIONAL} <= set(expected)
    expected.update(OURS)
    assert firings(model, tokens, stream="both") == expected


def test_losses_with_a_hook_fire_each_hook_once_as_well(tiny_model, tokens):
    model = tiny_model()
    expected = firings(model, tokens, stream="both")
    count: Counter = Counter()
    with model.hooks([(lambda name: True, lambda activation, hook: count.update([hook.name]))]):
        model.losses(tokens)
    assert count == expected


@pytest.mark.parametrize("name", OURS)
def test_shapes_are_those_of_the_interface(tiny_model, tokens, name):
    _, cache = tiny_model().run_with_cache(tokens, stream="both")
    expected = next((shape for end, shape in ENDS.items() if name.endswith(end)), D_MODEL)
    assert tuple(cache[name].shape) == expected


@pytest.mark.parametrize("name", CLEAN)
def test_an_edit_of_a_clean_hook_moves_the_clean_logits_as_in_hooked_transformer(tiny_model, tokens, name):
    model = tiny_model()
    edited = model.run_with_hooks(tokens, stream="both", fwd_hooks=[(name, noise)])
    assert (edited.clean - model(tokens)).abs().max() > 1e-3
    expected = model.to_hooked_transformer().run_with_hooks(tokens, fwd_hooks=[(name, noise)])
    torch.testing.assert_close(edited.clean, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stream", ["ablated", "both"])
@pytest.mark.parametrize("name", OURS)
def test_an_edit_of_an_ablated_hook_moves_the_ablated_logits_alone(tiny_model, tokens, name, stream):
    model = tiny_model()
    before = model(tokens, stream="both")
    edit = negated if name in SCORES else noise
    after = model.run_with_hooks(tokens, stream=stream, fwd_hooks=[(name, edit)])
    if stream == "both":
        assert torch.equal(after.clean, before.clean)
        after = after.ablated
    assert (after - before.ablated).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name",
    ["hook_embed", "blocks.0.hook_resid_pre", "blocks.1.attn.hook_k", "blocks.1.attn.hook_v", "blocks.0.mlp.hook_post"],
)
def test_an_edit_of_what_the_ablated_stream_reads_moves_it_too(tiny_model, tokens, name):
    model = tiny_model({"detach": "scores"})
    after = model.run_with_hooks(tokens, stream="ablated", fwd_hooks=[(name, noise)])
    assert (after - model(tokens, stream="ablated")).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["blocks.1.attn.hook_q", "blocks.1.hook_resid_post", "ln_final.hook_normalized"])
def test_an_edit_of_what_local_masks_and_the_ablated_stream_do_not_read_leaves_it(tiny_model, tokens, name):
    model = tiny_model()
    after = model.run_with_hooks(tokens, stream="ablated", fwd_hooks=[(name, noise)])
    assert torch.equal(after, model(tokens, stream="ablated"))


def test_global_masks_read_the_clean_final_norm_edits_included(tiny_model, tokens):
    model = tiny_model({"mask": "global"})
    after = model.run_with_hooks(tokens, stream="ablated", fwd_hooks=[("ln_final.hook_normalized", noise)])
    assert (after - model(tokens, stream="ablated")).abs().max() > 1e-3


def test_a_score_lifted_far_above_the_others_makes_its_unit_a_winner(tiny_model, tokens):
    model = tiny_model()
    _, before = model.run_with_cache(tokens, stream="both")
    loser = (before["blocks.1.mlp.hook_mask"][0, 4] == 0).nonzero()[0].item()

    def lifted(scores: torch.Tensor, hook: object) -> torch.Tensor:
        scores = scores.clone()
        scores[0, 4, loser] = 1e6
        return scores

    with model.hooks([("blocks.1.mlp.hook_relevance", lifted)]):
        _, after = model.run_with_cache(tokens, stream="both")
    mask = after["blocks.1.mlp.hook_mask"]
    assert mask[0, 4, loser] == 1 and (mask.sum(-1) == 5).all()
    changed = (mask != before["blocks.1.mlp.hook_mask"]).nonzero()[:, :2].unique(dim=0)
    assert changed.tolist() == [[0, 4]]


def test_an_edited_mask_is_the_one_that_is_used(tiny_model, tokens):
    model = tiny_model()
    ones = [(lambda name: name.endswith("hook_mask"), lambda mask, hook: torch.ones_like(mask))]
    after = model.run_with_hooks(tokens, stream="both", fwd_hooks=ones)
    torch.testing.assert_close(after.ablated, after.clean, rtol=1e-10, atol=1e-10)


def test_hooks_leave_no_trace(tiny_model, tokens, request):
    model = tiny_model({"mask": "both"})
    before = model(tokens, stream="both")
    model.run_with_hooks(tokens, stream="both", fwd_hooks=[(name, noise) for name in OURS + CLEAN])
    model.run_with_cache(tokens, stream="both")
    after = model(tokens, stream="both")
    assert torch.equal(after.clean, before.clean) and torch.equal(after.ablated, before.ablated)
    assert fast.applies(model)


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_pre", "blocks.1.mlp.hook_mask", "blocks.1.ablated.hook_post"])
def test_hooks_leave_no_trace_after_an_exception_either(tiny_model, tokens, name):
    def fails(activation: torch.Tensor, hook: object) -> torch.Tensor:
        raise RuntimeError("on purpose")

    model = tiny_model()
    before = model(tokens, stream="both")
    with pytest.raises(RuntimeError, match="on purpose"):
        model.run_with_hooks(tokens, stream="both", fwd_hooks=[(name, fails)])
    after = model(tokens, stream="both")
    assert torch.equal(after.clean, before.clean) and torch.equal(after.ablated, before.ablated)
    assert fast.applies(model)


def test_a_refused_call_leaves_no_trace(tiny_model, tokens):
    model = tiny_model()
    with pytest.raises(ValueError):
        model(tokens, stream="both", stop_at_layer=1)
    with pytest.raises((IndexError, RuntimeError)):
        model(tokens + 29, stream="both")  # ids beyond the vocabulary
    assert fast.applies(model)


@pytest.mark.parametrize("name", OURS + ["hook_embed", "blocks.0.attn.hook_k", "blocks.0.hook_resid_post"])
def test_a_backward_hook_sees_the_gradient_once(tiny_model, tokens, name):
    model = tiny_model({"forward": "soft"})
    seen: list[torch.Tensor] = []
    with model.hooks(bwd_hooks=[(name, lambda gradient, hook: seen.append(gradient.detach().clone()))]):
        model(tokens, return_type="loss", stream="ablated").backward()
    assert len(seen) == 1 and seen[0].abs().max() > 0


def test_a_backward_hook_sees_the_derivative_of_the_ablated_loss(tiny_model, tokens):
    model = tiny_model()
    name, step, place = "blocks.1.ablated.hook_post", 1e-6, (0, 3, 7)
    seen: list[torch.Tensor] = []

    def loss(shift: float) -> torch.Tensor:
        def shifted(activation: torch.Tensor, hook: object) -> torch.Tensor:
            activation = activation.clone()
            activation[place] = activation[place] + shift
            return activation

        with torch.no_grad(), model.hooks([(name, shifted)]):
            return model(tokens, return_type="loss", stream="ablated")

    _, cache = model.run_with_cache(tokens, stream="both")
    place = tuple(cache["blocks.1.mlp.hook_mask"].nonzero()[20].tolist())  # a winner: the others have gradient 0
    with model.hooks(bwd_hooks=[(name, lambda gradient, hook: seen.append(gradient.detach().clone()))]):
        model(tokens, return_type="loss", stream="ablated").backward()
    numeric = (loss(step) - loss(-step)).item() / (2 * step)
    assert seen[0][place].item() == pytest.approx(numeric, rel=1e-4)


def test_run_with_cache_collects_gradients_of_the_ablated_stream(tiny_model, tokens):
    model = tiny_model()
    _, cache = model.run_with_cache(tokens, stream="ablated", return_type="loss", incl_bwd=True)
    assert cache["blocks.0.ablated.hook_resid_pre_grad"].abs().max() > 0


@pytest.mark.parametrize("name", ["hook_embed", "blocks.1.attn.hook_mask", "ablated_ln_final.hook_scale"])
@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_a_hook_anywhere_switches_the_fused_losses_off(tiny_model, tokens, name, direction):
    model = tiny_model()
    assert fast.applies(model)
    model.hook_dict[name].add_hook(lambda activation, hook: None, dir=direction)
    assert not fast.applies(model)
    model.reset_hooks()
    assert fast.applies(model)


def test_an_edit_reaches_the_losses(tiny_model, tokens):
    model = tiny_model()
    before = model.losses(tokens)
    with model.hooks([("blocks.1.ablated.hook_post", noise)]):
        after = model.losses(tokens)
    torch.testing.assert_close(after.clean, before.clean)
    assert (after.ablated - before.ablated).abs() > 1e-3


def test_a_host_without_mlps_has_no_mlp_hooks_and_a_parallel_one_no_middle(tiny_config):
    from sat_lens import SelfAblation

    attention_only = SelfAblatingTransformer(tiny_config(attn_only=True, d_mlp=None), ablation=SelfAblation())
    parallel = SelfAblatingTransformer(tiny_config(parallel_attn_mlp=True), ablation=SelfAblation())
    ours = {name for name in attention_only.hook_dict if "ablated" in name or "mask" in name}
    assert not [name for name in ours if any(word in name for word in ("mlp", "hook_pre", "hook_post", "mid"))]
    assert "blocks.0.ablated.hook_resid_mid" not in parallel.hook_dict
    assert "blocks.0.ablated.hook_mlp_out" in parallel.hook_dict


@pytest.mark.parametrize("normalization", ["LNPre", "RMS", None])
def test_the_final_norm_s_hooks_belong_to_every_norm_but_none(tiny_model, tokens, normalization):
    model = tiny_model(normalization_type=normalization, tie_word_embeddings=False)
    expected = {"ablated_ln_final.hook_scale", "ablated_ln_final.hook_normalized"} if normalization else set()
    fired = firings(model, tokens, stream="both")
    assert {name for name in fired if name.startswith("ablated_ln_final")} == expected
    assert all(fired[name] == 1 for name in expected)


ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 4, "n_key_value_heads": 2, "gated_mlp": True,
          "normalization_type": "RMS", "act_fn": "silu"}  # fmt: skip


@pytest.mark.parametrize("name", ["hook_q", "hook_k", "hook_v", "hook_pattern", "hook_pre", "hook_post"])
def test_hooks_of_a_llama_type_model_fire_once_with_its_shapes_and_are_live(tiny_model, tokens, name):
    model = tiny_model(**ROTARY, tie_word_embeddings=False)
    full = f"blocks.1.ablated.{name}"
    assert firings(model, tokens, stream="both")[full] == 1
    _, cache = model.run_with_cache(tokens, stream="both")
    clean = (
        f"blocks.1.attn.{name}" if name in ("hook_q", "hook_k", "hook_v", "hook_pattern") else f"blocks.1.mlp.{name}"
    )
    assert cache[full].shape == cache[clean].shape
    edited = model.run_with_hooks(tokens, stream="both", fwd_hooks=[(full, noise)])
    assert (edited.ablated - model(tokens, stream="ablated")).abs().max() > 1e-3
