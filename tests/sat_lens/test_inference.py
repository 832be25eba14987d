"""Fused attention in inference mode: the written-out numbers, and nothing else changes."""

import copy

import pytest
import torch
import torch.nn.functional as F

from sat_lens.inference import FusedAttention, FusedGroupedQueryAttention

HOSTS = {
    "the_papers": {},
    "scaled": {"use_attn_scale": True, "scale_attn_by_inverse_layer_idx": True},
    "rotary": {"positional_embedding_type": "rotary", "rotary_dim": 4, "normalization_type": "RMS"},
    "grouped": {"positional_embedding_type": "rotary", "rotary_dim": 4, "n_key_value_heads": 2},
    "grouped_learned": {"n_key_value_heads": 2},
    "parallel": {"parallel_attn_mlp": True},
    "split_inputs": {"use_split_qkv_input": True},
}
NOT_FUSED = {
    "results": {"use_attn_result": True},
    "windows": {"use_local_attn": True, "attn_types": ["local", "local"], "window_size": 3},
    "both_ways": {"attention_dir": "bidirectional"},
}


@pytest.fixture
def fused_calls(monkeypatch):
    """The number of calls of the fused kernel so far."""
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    return calls


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_logits_in_inference_mode_are_the_written_out_ones(tiny_model, tokens, fused_calls, host):
    model = tiny_model(**HOSTS[host])
    written_out = model(tokens)
    assert not fused_calls
    with torch.inference_mode():
        fused = model(tokens)
    assert len(fused_calls) == 2
    assert (fused - written_out).abs().max() < 1e-12


@pytest.mark.parametrize("host", sorted(HOSTS))
@pytest.mark.parametrize("stream", ["ablated", "both"])
def test_both_streams_in_inference_mode_are_the_written_out_ones(tiny_model, tokens, host, stream):
    model = tiny_model(**HOSTS[host])
    with torch.no_grad():
        written_out = model(tokens, stream=stream)
    with torch.inference_mode():
        fused = model(tokens, stream=stream)
    pairs = zip(fused, written_out, strict=True) if stream == "both" else [(fused, written_out)]
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("host", sorted(NOT_FUSED))
def test_what_the_kernel_cannot_do_stays_transformer_lens_own(tiny_model, tokens, fused_calls, host):
    model = tiny_model(ablation={"mask": "none"}, **NOT_FUSED[host])
    with torch.inference_mode():
        assert torch.equal(model(tokens), model.to_hooked_transformer()(tokens))
    assert not fused_calls


def test_without_inference_mode_logits_are_transformer_lens_bit_for_bit(tiny_model, tokens, fused_calls):
    model = tiny_model()
    with torch.no_grad():
        assert torch.equal(model(tokens), model.to_hooked_transformer()(tokens))
    assert not fused_calls


@pytest.mark.parametrize("point", ["hook_attn_scores", "hook_pattern"])
def test_a_hook_on_scores_or_pattern_is_seen_and_obeyed(tiny_model, tokens, fused_calls, point):
    model = tiny_model()
    name = f"blocks.1.attn.{point}"
    seen = []

    def first_key_only(x, hook):
        seen.append(x.shape)
        x = torch.full_like(x, -torch.inf if point == "hook_attn_scores" else 0.0)
        x[..., 0] = 1.0
        return x

    with torch.inference_mode():
        edited = model.run_with_hooks(tokens, fwd_hooks=[(name, first_key_only)])
        plain = model.to_hooked_transformer().run_with_hooks(tokens, fwd_hooks=[(name, first_key_only)])
    assert seen == [(2, 4, 9, 9)] * 2
    assert len(fused_calls) == 1, "only the layer without a hook is fused"
    assert (edited - plain).abs().max() < 1e-12


def test_a_hook_on_the_ablated_pattern_is_seen_and_obeyed(tiny_model, tokens):
    model = tiny_model()
    hook = ("blocks.1.ablated.hook_pattern", lambda x, hook: x * 0)
    with torch.inference_mode():
        before = model(tokens, stream="ablated")
        edited = model.run_with_hooks(tokens, stream="ablated", fwd_hooks=[hook])
    with torch.no_grad():
        expected = model.run_with_hooks(tokens, stream="ablated", fwd_hooks=[hook])
    assert (edited - before).abs().max() > 1e-3
    assert (edited - expected).abs().max() < 1e-12


@pytest.mark.parametrize("point", ["hook_q", "hook_k", "hook_v", "hook_z"])
def test_every_other_hook_of_the_layer_fires_and_moves_the_logits(tiny_model, tokens, fused_calls, point):
    model = tiny_model()
    hook = (f"blocks.0.attn.{point}", lambda x, hook: x * 2)
    with torch.inference_mode():
        edited = model.run_with_hooks(tokens, fwd_hooks=[hook])
    assert len(fused_calls) == 2
    assert (edited - model.run_with_hooks(tokens, fwd_hooks=[hook])).abs().max() < 1e-12
    assert (edited - model(tokens)).abs().max() > 1e-3


def test_a_copy_is_fused_with_its_own_weights(tiny_model, tokens):
    model = tiny_model()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.blocks[0].attn.W_Q.mul_(-1)
    with torch.inference_mode():
        assert (other(tokens) - model(tokens)).abs().max() > 1e-3
    assert isinstance(other.blocks[0].attn, FusedAttention)


def test_the_plain_model_has_plain_attention(tiny_model):
    model = tiny_model(n_key_value_heads=2)
    assert type(model.blocks[0].attn) is FusedGroupedQueryAttention
    assert type(model.to_hooked_transformer().blocks[0].attn).__module__.startswith("transformer_lens")
