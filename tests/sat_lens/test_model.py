"""The two streams against plain HookedTransformers with hooks at one position, and the model's manners."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformer_lens.components import LayerNorm

from sat_lens import SelfAblatingTransformer, SelfAblation, TwoStreams
from sat_lens._tl import HookedTransformer, hooked_transformer
from sat_lens.presets import host_config

WIDTHS = {"channel": 16, "head": 4}

ARCHITECTURES = {
    "the_papers": {},
    "untied_with_every_bias": {"tie_word_embeddings": False, "act_fn": "gelu"},
    "scaled_attention": {"use_attn_scale": True, "act_fn": "relu"},
    "scaled_by_layer": {"use_attn_scale": True, "scale_attn_by_inverse_layer_idx": True},
    "llama": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "rotary_adjacent_pairs": True,
        "normalization_type": "RMS",
        "final_rms": True,
        "gated_mlp": True,
        "act_fn": "silu",
        "n_key_value_heads": 2,
        "use_attn_scale": True,
        "tie_word_embeddings": False,
    },
    "ungrouped_llama": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 2,
        "normalization_type": "RMS",
        "n_key_value_heads": 2,
        "ungroup_grouped_query_attention": True,
        "tie_word_embeddings": False,
    },
    "parallel": {"parallel_attn_mlp": True, "tie_word_embeddings": False},
    "attention_only": {"attn_only": True, "d_mlp": None, "tie_word_embeddings": False},
    "local_windows": {"use_local_attn": True, "window_size": 3, "attn_types": ["local", "global"]},
    "folded_layer_norm": {"normalization_type": "LNPre", "tie_word_embeddings": False},
    "folded_rms_norm": {"normalization_type": "RMSPre", "tie_word_embeddings": False},
    "no_norm": {"normalization_type": None, "tie_word_embeddings": False},
    "norm_after_the_embedding": {"post_embedding_ln": True, "tie_word_embeddings": False},
    "other_output_vocabulary": {"d_vocab_out": 11, "tie_word_embeddings": False},
}
ABLATIONS = {
    "local": {},
    "global": {"mask": "global"},
    "both": {"mask": "both"},
    "soft": {"mask": "both", "forward": "soft", "temperature": 0.5},
    "soft_softmax": {"forward": "soft", "estimator": "softmax"},
    "heads": {"unit": "head", "k_attn": 2},
    "whole_model": {"mask": "global", "scope": "model", "k_attn": 9, "k_mlp": 11},
    "normalized": {"score_input": "normalized"},
}


def with_tokenizer(model: SelfAblatingTransformer, tokenizer: object) -> SelfAblatingTransformer:
    model.tokenizer, model.cfg.tokenizer_prepends_bos = tokenizer, False
    return model


def counterfactual(model: SelfAblatingTransformer, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ablated logits of the model, and those of a plain HookedTransformer masked at one position at a time."""
    out, cache = model.run_with_cache(tokens, stream="both")
    plain = model.to_hooked_transformer()

    def masked_at(t: int, mask: torch.Tensor):
        def hook(activation: torch.Tensor, hook: object) -> torch.Tensor:
            activation = activation.clone()
            activation[:, t] = activation[:, t] * mask[:, t]
            return activation

        return hook

    sites = [
        (f"blocks.{layer}.{name}", cache[f"blocks.{layer}.{part}.hook_mask"])
        for layer in range(model.cfg.n_layers)
        for name, part in (("attn.hook_z", "attn"), ("mlp.hook_post", "mlp"))
        if part == "attn" or not model.cfg.attn_only
    ]
    rows = []
    for t in range(tokens.shape[1]):
        hooks = [(name, masked_at(t, mask)) for name, mask in sites]
        rows.append(plain.run_with_hooks(tokens, fwd_hooks=hooks)[:, t])
    return out.ablated, torch.stack(rows, 1)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
@pytest.mark.parametrize("mask", ["local", "global", "both"])
def test_ablated_logits_are_those_of_the_clean_model_masked_at_their_own_position(
    tiny_model, tokens, architecture, mask
):
    model = tiny_model({"mask": mask}, **ARCHITECTURES[architecture])
    ablated, expected = counterfactual(model, tokens)
    assert (ablated - expected).abs().max() <= 1e-10
    assert (ablated - model(tokens)).abs().max() > 1e-2, "the mask does something"


@pytest.mark.parametrize("ablation", sorted(ABLATIONS))
@pytest.mark.parametrize("architecture", ["the_papers", "llama"])
def test_the_counterfactual_holds_for_every_kind_of_mask(tiny_model, tokens, architecture, ablation):
    ablated, expected = counterfactual(tiny_model(ABLATIONS[ablation], **ARCHITECTURES[architecture]), tokens)
    assert (ablated - expected).abs().max() <= 1e-10


def test_the_counterfactual_holds_in_a_deeper_model_in_single_precision(tiny_model, tokens):
    model = tiny_model({"mask": "both"}, n_layers=4, dtype=torch.float32)
    ablated, expected = counterfactual(model, tokens)
    assert (ablated - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_clean_stream_is_a_plain_hooked_transformer_bit_for_bit(tiny_model, tokens, architecture):
    model = tiny_model({"mask": "both"}, **ARCHITECTURES[architecture])
    plain = hooked_transformer(copy.copy(model.cfg))
    without_gates = {key: value for key, value in model.state_dict().items() if not key.startswith("gates.")}
    shapes = {key: value.shape for key, value in plain.state_dict().items()}
    assert {key: value.shape for key, value in without_gates.items()} == shapes
    plain.load_state_dict(without_gates, strict=True)
    expected = plain(tokens)
    assert torch.equal(model(tokens), expected)
    assert torch.equal(model(tokens, stream="both").clean, expected)
    assert torch.equal(model.to_hooked_transformer()(tokens), expected)


@pytest.mark.parametrize("ablation", ["both", "soft", "whole_model"])
@pytest.mark.parametrize("architecture", ["the_papers", "llama", "local_windows"])
def test_no_future_token_moves_a_logit_or_a_mask(tiny_model, tokens, architecture, ablation):
    model = tiny_model(ABLATIONS[ablation], **ARCHITECTURES[architecture])
    before, cache_before = model.run_with_cache(tokens, stream="both")
    for t in range(1, tokens.shape[1]):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 11) % 29
        after, cache_after = model.run_with_cache(changed, stream="both")
        for one, other in zip(before, after, strict=True):
            assert (one[:, :t] - other[:, :t]).abs().max() <= 1e-12
            assert (one[:, t] - other[:, t]).abs().max() > 1e-6
        for name in cache_before:
            if name.endswith("hook_mask"):
                assert (cache_before[name][:, :t] - cache_after[name][:, :t]).abs().max() <= 1e-10


@pytest.mark.parametrize("forward", ["hard", "soft"])
@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("architecture", ["the_papers", "llama", "parallel", "local_windows"])
def test_k_equal_to_the_width_makes_the_streams_equal(tiny_model, tokens, architecture, scope, forward):
    layers = 2 if scope == "model" else 1
    widest = {"k_attn": 16 * layers, "k_mlp": 24 * layers, "scope": scope, "forward": forward, "mask": "both"}
    model = tiny_model(widest, **ARCHITECTURES[architecture])
    clean, ablated = model(tokens, stream="both")
    assert (clean - ablated).abs().max() <= 1e-11 * clean.abs().max()


def test_zero_masks_leave_only_the_embedding_and_the_biases(tiny_model, tokens):
    model = tiny_model()
    zero = [(lambda name: name.endswith("hook_mask"), lambda mask, hook: torch.zeros_like(mask))]
    ablated = model.run_with_hooks(tokens, stream="ablated", fwd_hooks=zero)
    resid = model.embed(tokens) + model.pos_embed(tokens)
    resid = resid + sum(block.attn.b_O + block.mlp.b_out for block in model.blocks)
    torch.testing.assert_close(ablated, model.unembed(model.ln_final(resid)))


def test_rows_of_a_batch_do_not_see_each_other(tiny_model, tokens):
    model = tiny_model({"mask": "both"})
    together = model(tokens, stream="both")
    for clean, ablated in zip(together.clean, together.ablated, strict=True):
        assert clean.shape == ablated.shape == (9, 29)
    for row in range(2):
        alone = model(tokens[row], stream="both")
        torch.testing.assert_close(alone.ablated[0], together.ablated[row])
    swapped = model(tokens.flip(0), stream="both")
    torch.testing.assert_close(swapped.ablated.flip(0), together.ablated)


def test_stream_ablated_and_stream_both_say_the_same(tiny_model, tokens):
    model = tiny_model()
    both = model(tokens, stream="both")
    assert isinstance(both, TwoStreams)
    assert torch.equal(model(tokens, stream="ablated"), both.ablated)
    assert torch.equal(model(tokens), both.clean)


def test_streams_return_losses_as_hooked_transformer_does(tiny_model, tokens):
    model = tiny_model()
    logits = model(tokens, stream="both")
    loss = model(tokens, "loss", stream="both")
    per_token = model(tokens, return_type="loss", loss_per_token=True, stream="ablated")
    for name in ("clean", "ablated"):
        expected = F.cross_entropy(getattr(logits, name)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        torch.testing.assert_close(getattr(loss, name), expected)
    torch.testing.assert_close(loss.clean, model(tokens, return_type="loss"))
    assert per_token.shape == (2, 8)
    torch.testing.assert_close(per_token.mean(), loss.ablated)


def test_one_token_is_a_sequence_too(tiny_model):
    clean, ablated = tiny_model()(torch.tensor([[3]]), stream="both")
    assert clean.shape == ablated.shape == (1, 1, 29)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("past_kv_cache", "cache"),
        ("start_at_layer", 0),
        ("stop_at_layer", 1),
        ("attention_mask", torch.ones(2, 9, dtype=torch.long)),
        ("padding_side", "left"),
        ("shortformer_pos_embed", torch.zeros(2, 9, 16)),
        ("tokens", torch.zeros(2, 9, dtype=torch.long)),
    ],
)
@pytest.mark.parametrize("stream", ["ablated", "both"])
def test_what_two_streams_cannot_honour_is_refused_by_name(tiny_model, tokens, stream, name, value):
    with pytest.raises(ValueError, match=f"stream='{stream}' cannot honour {name}"):
        tiny_model()(tokens, stream=stream, **{name: value})


def test_what_two_streams_refuse_works_for_the_clean_stream(tiny_model, tiny_tokenizer, tokens):
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    model = with_tokenizer(tiny_model(), tiny_tokenizer)  # TransformerLens wants one for its cache
    logits = model(tokens)
    middle = model(tokens, stop_at_layer=1)
    torch.testing.assert_close(model(middle, start_at_layer=1), logits)
    torch.testing.assert_close(model(tokens, attention_mask=torch.ones_like(tokens)), logits)
    cache = TransformerLensKeyValueCache.init_cache(model.cfg, "cpu", 2)
    first = model(tokens[:, :5], past_kv_cache=cache)
    second = model(tokens[:, 5:], past_kv_cache=cache, stream="clean")
    torch.testing.assert_close(torch.cat([first, second], 1), logits)


def test_left_padding_is_refused_for_two_streams_alone(tiny_model, tiny_tokenizer, tokens):
    model = with_tokenizer(tiny_model(), tiny_tokenizer)
    model.tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match="left padding; set tokenizer.padding_side to 'right'"):
        model(tokens, stream="both")
    assert model(tokens, stream="clean").shape == (2, 9, 29)


def test_strings_are_encoded_as_hooked_transformer_encodes_them(tiny_model, tiny_tokenizer):
    model = with_tokenizer(tiny_model(), tiny_tokenizer)
    for text in ("w3 w5 w3", ["w1 w2", "w7 w8"]):
        for prepend_bos in (True, False):
            tokens = model.to_tokens(text, prepend_bos=prepend_bos)
            assert torch.equal(model(text, prepend_bos=prepend_bos), model(tokens))
            both = model(text, prepend_bos=prepend_bos, stream="both")
            assert torch.equal(both.ablated, model(tokens, stream="ablated"))


def test_shorter_strings_of_a_batch_are_padded_on_the_right_and_do_not_notice(tiny_model, tiny_tokenizer):
    model = with_tokenizer(tiny_model(), tiny_tokenizer)
    alone = model("w1 w2", stream="ablated")
    padded = model(["w1 w2", "w3 w4 w5 w6"], stream="ablated")
    torch.testing.assert_close(padded[0, : alone.shape[1]], alone[0])


@pytest.mark.parametrize("return_type", ["both", None, "logit"])
def test_an_unknown_return_type_of_two_streams_is_refused(tiny_model, tokens, return_type):
    with pytest.raises(ValueError, match="returns 'logits' or 'loss'; got return_type="):
        tiny_model()(tokens, return_type=return_type, stream="both")


def test_an_unknown_stream_is_refused(tiny_model, tokens):
    with pytest.raises(ValueError, match="stream must be one of clean, ablated, both; got 'dirty'"):
        tiny_model()(tokens, stream="dirty")


def test_a_model_without_a_mask_is_an_ordinary_transformer_and_refuses_other_streams(tiny_model, tokens):
    model = tiny_model({"mask": "none"})
    assert not [name for name in model.state_dict() if "gates" in name]
    assert not [name for name in model.hook_dict if "ablated" in name or "mask" in name]
    for stream in ("ablated", "both"):
        with pytest.raises(ValueError, match="no mask .* only stream='clean' exists"):
            model(tokens, stream=stream)
    losses = model.losses(tokens)
    assert losses.total is losses.clean and losses.ablated is None and losses.reconstruction is None
    torch.testing.assert_close(losses.clean, model(tokens, return_type="loss"))


def test_the_default_model_has_no_mask(tiny_config):
    assert SelfAblatingTransformer(tiny_config()).ablation.mask == "none"


def test_a_k_beyond_the_width_is_refused(tiny_config):
    with pytest.raises(ValueError, match="k_attn must be between 1 and the 16 units it chooses from; got 600"):
        SelfAblatingTransformer(tiny_config(), ablation=SelfAblation(k_attn=600))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"positional_embedding_type": "alibi"}, "positional_embedding_type='alibi'"),
        ({"positional_embedding_type": "shortformer"}, "positional_embedding_type='shortformer'"),
        ({"attention_dir": "bidirectional"}, "attention_dir='bidirectional'"),
        ({"act_fn": "solu_ln"}, "act_fn='solu_ln'"),
        ({"use_qk_norm": True}, "norms of queries and keys"),
        ({"clip_qkv": 0.5}, "clipped queries"),
        ({"attn_scores_soft_cap": 30.0}, "soft-capped"),
        ({"output_logits_soft_cap": 30.0}, "soft-capped"),
        ({"use_attention_sinks": True}, "attention sinks"),
        ({"use_normalization_before_and_after": True, "normalization_type": "RMS"}, "norms after attention and MLP"),
    ],
)
def test_a_host_that_two_streams_do_not_support_is_refused_by_name(tiny_config, changes, words):
    cfg = tiny_config(**changes | {"tie_word_embeddings": False})
    with pytest.raises(ValueError, match=words):
        SelfAblatingTransformer(cfg, ablation=SelfAblation())
    assert SelfAblatingTransformer(cfg).ablation.mask == "none"


def test_run_with_cache_keeps_both_streams_apart(tiny_model, tokens):
    model = tiny_model()
    logits, cache = model.run_with_cache(tokens, stream="both")
    assert isinstance(logits, TwoStreams)
    assert torch.equal(logits.clean, model(tokens))
    for layer in range(2):
        z, mask, gated = (
            cache[f"blocks.{layer}.{name}"] for name in ("ablated.hook_z", "attn.hook_mask", "attn.hook_gated_z")
        )
        assert torch.equal(z * mask, gated)
        post, neurons = cache[f"blocks.{layer}.ablated.hook_post"], cache[f"blocks.{layer}.mlp.hook_mask"]
        assert torch.equal(post * neurons, cache[f"blocks.{layer}.mlp.hook_gated_post"])
        assert torch.equal(cache[f"blocks.{layer}.attn.hook_z"], model.run_with_cache(tokens)[1]["z", layer])
    first = cache["blocks.0.ablated.hook_resid_pre"]
    assert torch.equal(first, cache["resid_pre", 0])
    assert not torch.allclose(cache["blocks.1.ablated.hook_resid_pre"], cache["resid_pre", 1])
    final = cache["ablated_ln_final.hook_normalized"] * model.ln_final.w + model.ln_final.b
    torch.testing.assert_close(model.unembed(final), logits.ablated)


@pytest.mark.parametrize(("mask", "expected"), [("none", 8_049_024), ("local", 8_709_504), ("global", 8_709_504)])
def test_the_published_size_has_the_published_number_of_parameters(mask, expected):
    cfg = host_config("paper", 50_257)
    cfg.init_weights = False
    assert (cfg.d_model, cfg.n_layers, cfg.n_heads, cfg.n_ctx, cfg.use_attn_scale) == (128, 8, 16, 256, False)
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask=mask))
    assert sum(p.numel() for p in model.parameters()) == expected


def test_the_constructor_takes_what_from_pretrained_gives_it(tiny_config):
    model = SelfAblatingTransformer(tiny_config(), None, move_to_device=False, default_padding_side="right")
    assert isinstance(model, HookedTransformer) and isinstance(model.ln_final, LayerNorm)


def test_to_hooked_transformer_shares_every_weight(tiny_model, tokens):
    for changes in ({}, {"tie_word_embeddings": False}):
        model = tiny_model(**changes)
        plain = model.to_hooked_transformer()
        assert type(plain) is HookedTransformer
        ours = model.state_dict()
        for key, value in plain.state_dict().items():
            assert value.data_ptr() == ours[key].data_ptr() or value.numel() == 0, key
        with torch.no_grad():
            model.blocks[1].mlp.W_in += 1
            model.embed.W_E += 1
        assert torch.equal(plain(tokens), model(tokens))


def test_the_plain_model_has_a_configuration_of_its_own(tiny_model, tokens):
    model = tiny_model()
    plain = model.to_hooked_transformer()
    plain.set_use_attn_result(True)
    assert not model.cfg.use_attn_result


def test_a_deep_copy_of_the_plain_model_can_be_processed(tiny_model, tokens):
    model = tiny_model()
    before = model(tokens)
    plain = copy.deepcopy(model.to_hooked_transformer())
    plain.process_weights_()  # folds and centres in place, so not on weights that are shared
    assert (plain(tokens).log_softmax(-1) - before.log_softmax(-1)).abs().max() <= 1e-4
    assert torch.equal(model(tokens), before)


def test_taking_the_plain_model_draws_no_random_number(tiny_model):
    model = tiny_model()
    before = torch.get_rng_state()
    model.to_hooked_transformer()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_is_independent(tiny_model, tokens):
    model = tiny_model()
    other = copy.deepcopy(model)
    before = model(tokens, stream="both")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    after = model(tokens, stream="both")
    assert torch.equal(before.clean, after.clean) and torch.equal(before.ablated, after.ablated)
    assert torch.equal(other.W_U, other.W_E.T)
