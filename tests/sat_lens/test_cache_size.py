"""The size of a cache before it is made equals that of the cache that is made."""

import pytest
import torch

from sat_lens.cache_size import cache_bytes

HOSTS = {
    "the_papers": {},
    "rotary_gated_grouped": {
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "gated_mlp": True,
        "n_key_value_heads": 2,
        "normalization_type": "RMS",
        "final_rms": True,
        "act_fn": "silu",
    },
    "attention_only": {"attn_only": True, "d_mlp": None},
    "parallel": {"parallel_attn_mlp": True},
    "without_norms": {"normalization_type": None},
    "single": {"dtype": torch.float32},
}


@pytest.mark.parametrize("stream", ["clean", "both"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_whole_cache_has_the_size_that_was_foretold(host, stream, tiny_model, tokens):
    model = tiny_model(**HOSTS[host])
    _, cache = model.run_with_cache(tokens, **({} if stream == "clean" else {"stream": stream}))
    expected = sum(tensor.numel() * tensor.element_size() for tensor in cache.values())
    assert cache_bytes(model.cfg, batch=2, pos=9, stream=stream) == expected


def test_a_few_points_have_the_size_of_those_tensors(tiny_model, tokens):
    model = tiny_model()
    names = ["blocks.1.mlp.hook_post", "blocks.0.attn.hook_pattern", "blocks.1.attn.hook_mask"]
    _, cache = model.run_with_cache(tokens, stream="ablated", names_filter=names)
    expected = 8 * (2 * 9 * 24 + 2 * 4 * 9 * 9 + 2 * 9 * 16)
    assert sum(t.numel() * t.element_size() for t in cache.values()) == expected
    assert cache_bytes(model.cfg, names, batch=2, pos=9, stream="ablated") == expected


def test_no_points_are_nothing_and_an_unknown_one_is_refused(tiny_config):
    assert cache_bytes(tiny_config(), [], batch=2, pos=9) == 0
    with pytest.raises(ValueError, match="hook points of the clean stream; got 'blocks.1.attn.hook_mask'"):
        cache_bytes(tiny_config(), ["hook_embed", "blocks.1.attn.hook_mask"], batch=2, pos=9)
