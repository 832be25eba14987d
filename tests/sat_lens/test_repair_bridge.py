"""A TransformerBridge by block replay against whole passes, and against a HookedTransformer with the same weights."""

import pandas as pd
import pytest
import torch

from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.repair import All, Resample, attn_layers, heads, joint, mlp_layers, neurons, self_repair
from sat_lens.repair.bridge_runner import BridgeRunner
from sat_lens.repair.runner import FullRunner, make_runner

SIZE = {"n_layers": 2, "d_model": 16, "n_heads": 4, "d_head": 4, "d_mlp": 24, "d_vocab": 29, "n_ctx": 16}
HF = {"vocab_size": 29, "attn_implementation": "eager", "initializer_range": 0.3}
WIDE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}


def gpt2():
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import GPT2Config, GPT2LMHeadModel

    cfg = GPT2Config(n_positions=16, n_embd=16, n_layer=2, n_head=4, n_inner=24, **HF)
    return GPT2LMHeadModel(cfg), convert_gpt2_weights, {"normalization_type": "LN", "act_fn": "gelu_new"}


def pythia():
    from transformer_lens.pretrained.weight_conversions import convert_neox_weights
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    cfg = GPTNeoXConfig(rotary_pct=0.5, **WIDE, **HF)
    changes = {
        "normalization_type": "LN",
        "act_fn": "gelu",
        "parallel_attn_mlp": True,
        "positional_embedding_type": "rotary",
        "rotary_dim": 2,
    }
    return GPTNeoXForCausalLM(cfg), convert_neox_weights, changes


def llama():
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg = LlamaConfig(num_key_value_heads=2, rms_norm_eps=1e-5, **WIDE, **HF)
    changes = {
        "normalization_type": "RMS",
        "act_fn": "silu",
        "gated_mlp": True,
        "n_key_value_heads": 2,
        "positional_embedding_type": "rotary",
        "rotary_dim": 4,
        "rotary_adjacent_pairs": False,
        "final_rms": True,
    }
    return LlamaForCausalLM(cfg), convert_llama_weights, changes


def built(make):
    """A random bridge, and the HookedTransformer of its weights."""
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    torch.manual_seed(0)
    hf, convert, changes = make()
    hf = hf.double().eval()
    for parameter in hf.parameters():
        if parameter.ndim == 1:  # norms and biases, which begin at 1 and 0
            parameter.data += 0.3 * torch.randn_like(parameter)
    cfg = HookedTransformerConfig(**SIZE, eps=1e-5, dtype=torch.float64, device="cpu", **changes)
    plain = hooked_transformer(cfg).eval()
    missing = plain.load_state_dict({k: v.clone() for k, v in convert(hf, cfg).items()}, strict=False).missing_keys
    assert set(missing) & {name for name, _ in plain.named_parameters()} <= {"unembed.b_U"}, "which is 0 in both"
    bridge = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, dtype=torch.float64, device="cpu")
    return bridge, plain


@pytest.mark.parametrize("make", [gpt2, pythia, llama])
def test_block_replay_is_as_whole_passes_and_as_the_hooked_transformer(make):
    bridge, plain = built(make)
    tokens = torch.randint(29, (4, 9), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(bridge(tokens), plain(tokens), rtol=1e-5, atol=1e-5)  # norms, rotations: float32 inside
    assert isinstance(make_runner(bridge), BridgeRunner)
    chosen = [*heads(plain), *attn_layers(plain), *mlp_layers(plain), *neurons(plain, 0, [3]), joint([(0, 1), (1, 2)])]
    knobs = {"lengths": torch.tensor([9, 6, 9, 7]), "select": All(), "downstream": "components", "batch_size": 3}
    replayed = self_repair(bridge, tokens, chosen, Resample(), **knobs)
    whole = self_repair(bridge, tokens, chosen, Resample(), runner=FullRunner(bridge), **knobs)
    hooked = self_repair(plain, tokens, chosen, Resample(), **knobs)
    for other in (whole, hooked):
        torch.testing.assert_close(replayed.sums, other.sums, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(replayed.matrix, other.matrix, rtol=1e-5, atol=1e-5)
    assert replayed.per_component().dlogit.abs().min() > 1e-5


def test_a_bridge_in_compatibility_mode_differs_in_what_a_head_s_constant_part_adds_alone():
    """It moves b_V into b_O, so that de and ade lose the same constant; everything else is that of the raw bridge."""
    bridge, _ = built(gpt2)
    tokens = torch.randint(29, (3, 7), generator=torch.Generator().manual_seed(1))
    raw = self_repair(bridge, tokens, [(0, 1), (1, 3)], Resample(), select=All()).per_component()
    bridge.enable_compatibility_mode(disable_warnings=True)
    compatible = self_repair(bridge, tokens, [(0, 1), (1, 3)], Resample(), select=All()).per_component()
    same = ["removed", "dlogit", "self_repair", "sr_heads", "sr_mlps", "sr_ln", "ln_own", "scale_ratio", "ci_low"]
    pd.testing.assert_frame_equal(raw[same], compatible[same], rtol=1e-5, atol=1e-8)
    assert (raw.de - compatible.de).abs().min() > 1e-3
