"""The cost formulas against real models, PyTorch's flop counter, what autograd keeps, and by hand."""

import types

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sat_lens import SelfAblatingTransformer, SelfAblation, cost, fast, few_winners, tying
from sat_lens.presets import host_config

MASKS = ("none", "local", "global", "both")
HOSTS = {
    "the_papers": {},
    "untied": {"tie_word_embeddings": False},
    "tied_with_biases": {"original_architecture": "GPT2LMHeadModel"},
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
    "folded_norms": {"normalization_type": "LNPre"},
    "without_norms": {"normalization_type": None},
    "narrow_heads": {"d_head": 3},
    "parallel": {"parallel_attn_mlp": True},
}


def counted(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("host", HOSTS)
def test_parameters_are_those_of_the_real_model(host, mask, tiny_config):
    cfg, ablation = tiny_config(**HOSTS[host]), SelfAblation(mask=mask, k_attn=3, k_mlp=5)
    model = SelfAblatingTransformer(cfg, ablation=ablation)
    assert cost.parameters(model.cfg, ablation) == counted(model)


def test_gates_of_whole_heads_are_counted_once_a_head(tiny_config):
    ablation = SelfAblation(unit="head", k_attn=2, k_mlp=5)
    model = SelfAblatingTransformer(tiny_config(), ablation=ablation)
    assert cost.parameters(model.cfg, ablation) == counted(model)


@pytest.mark.parametrize(
    ("mask", "expected"), [("none", 8_049_024), ("local", 8_709_504), ("global", 8_709_504), ("both", 9_369_984)]
)
def test_the_published_size_has_the_published_parameters(mask, expected):
    assert cost.parameters(host_config("paper", 50_257), SelfAblation(mask=mask)) == expected


def test_no_model_and_no_library_is_needed_to_count(tiny_config):
    fields = (
        "n_layers d_model n_heads d_head d_mlp d_vocab d_vocab_out n_ctx n_key_value_heads attn_only gated_mlp "
        "normalization_type final_rms positional_embedding_type tie_word_embeddings original_architecture"
    )
    cfg = tiny_config()
    plain = types.SimpleNamespace(**{name: getattr(cfg, name) for name in fields.split()})
    assert cost.parameters(plain, SelfAblation()) == cost.parameters(cfg, SelfAblation())


def test_constants_shared_with_heavy_modules_are_the_same():
    assert (cost.CHUNK, cost.CHUNK_ON_ACCELERATOR) == (fast.CHUNK, fast.CHUNK_ON_ACCELERATOR)
    assert cost.FEW == few_winners.FEW
    assert cost.HOSTS_WITHOUT_BIAS == tying.ARCHITECTURES_WITHOUT_BIAS


def test_flops_by_hand(tiny_config):
    # d 16, 4 heads of 4, d_mlp 24, 29 ids, 2 layers, 9 keys: a layer's maps take 2*16*(4*16 + 2*24) = 3,584,
    # its attention 4*16*9 = 576, the unembedding 2*16*29 = 928: 2*(3,584 + 576) + 928 = 9,248
    cfg, plain = tiny_config(), SelfAblation(mask="none")
    assert cost.forward_flops(cfg, plain, 9, causal=False) == 9_248
    # a query sees 5 of the 9 keys on average: 4*16*5 = 320 in the place of 576
    assert cost.forward_flops(cfg, plain, 9) == 9_248 - 2 * (576 - 320)
    # the ablated stream again, gates 2 * 2*16*(16 + 24) = 2,560, the own key 2 * 2*16 = 64
    local = SelfAblation(k_attn=3, k_mlp=5)
    assert cost.forward_flops(cfg, local, 9, causal=False) == 2 * 9_248 + 2_560 + 64
    assert cost.forward_flops(cfg, local, 9, causal=False, stream="ablated") == 2 * 9_248 - 928 + 2_560 + 64
    assert cost.forward_flops(cfg, local, 9, causal=False, stream="clean") == 9_248


@pytest.mark.parametrize("host", ["the_papers", "rotary_gated_grouped", "attention_only", "narrow_heads"])
@pytest.mark.parametrize("mask", MASKS)
def test_flops_are_those_that_pytorch_counts_on_the_hooked_path(mask, host, tiny_model, tokens, no_fast_path):
    model = tiny_model({"mask": mask}, **HOSTS[host])
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with FlopCounterMode(display=False) as forward:
        loss = model.losses(inputs, targets).total
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    n, pos = inputs.numel(), inputs.shape[1]
    assert forward.get_total_flops() == n * cost.forward_flops(model.cfg, model.ablation, pos, causal=False)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == n * cost.training_flops(model.cfg, model.ablation, pos, causal=False)


@pytest.mark.parametrize("detach", ["scores", "trunk"])
def test_gates_that_are_cut_off_cost_less_backward(detach, tiny_model, tokens, no_fast_path):
    model = tiny_model({"mask": "both", "detach": detach})
    with FlopCounterMode(display=False) as counter:
        model.losses(tokens).total.backward()
    n, pos = tokens[:, 1:].numel(), tokens.shape[1] - 1
    assert counter.get_total_flops() == n * cost.training_flops(model.cfg, model.ablation, pos, causal=False)


def kept_by_autograd(model, tokens) -> int:
    """Bytes of distinct tensors saved for the backward pass; parameters are not counted."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    seen = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.losses(tokens).total
    assert loss.requires_grad
    return sum(nbytes for nbytes, _ in seen.values())


@pytest.mark.parametrize("mask", MASKS)
def test_activations_kept_by_the_fused_path_are_those_of_the_formula(mask):
    cfg = host_config("cpu", 64)
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask=mask))
    assert fast.applies(model)
    kept = kept_by_autograd(model, torch.randint(64, (8, cfg.n_ctx + 1)))
    expected = 4 * 8 * cfg.n_ctx * cost.kept_activations(cfg, model.ablation)
    assert kept == pytest.approx(expected, rel=0.05)


def test_memory_is_a_sum_of_weights_moments_activations_and_a_chunk_of_logits():
    cfg, ablation = host_config("cpu", 4096), SelfAblation()
    n = cost.parameters(cfg, ablation)
    memory = cost.training_memory(cfg, ablation, 16)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4 * n, 4 * n, 8 * n)
    assert memory.total == 16 * n + memory.activations + memory.logits
    larger = cost.training_memory(cfg, ablation, 32)
    assert larger.logits == memory.logits  # a chunk of them is
    assert 1.9 < larger.activations / memory.activations < 2


@pytest.mark.parametrize("precision, size", [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 2)])
def test_a_wider_number_takes_more_memory(precision, size, tiny_config):
    cfg = tiny_config(dtype=precision)
    assert cost.training_memory(cfg, SelfAblation(), 2).weights == size * cost.parameters(cfg, SelfAblation())


def test_whole_logits_dominate_a_forward_pass_with_many_ids():
    cfg = host_config("cpu", 50_257)
    one = cost.forward_memory(cfg, SelfAblation(), 8, stream="clean")
    both = cost.forward_memory(cfg, SelfAblation(), 8)
    assert one.logits == 4 * 8 * 128 * 50_257
    assert both.logits == 2 * one.logits
    assert both.total > one.total + one.logits
    assert (one.gradients, one.optimizer) == (0, 0)


def test_a_stream_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="without a mask has only stream='clean'; got 'both'"):
        cost.forward_flops(host_config("cpu", 64), SelfAblation(mask="none"), stream="both")
    with pytest.raises(ValueError, match="clean, ablated, both; got 'neither'"):
        cost.forward_memory(host_config("cpu", 64), SelfAblation(), 2, stream="neither")
