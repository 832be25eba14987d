"""The fused losses against the hooked path: the same numbers and the same gradients."""

import pytest
import torch
import torch.nn.functional as F

from sat_lens import fast
from sat_lens.fast import linear_cross_entropy

ABLATIONS = {
    "none": {"mask": "none"},
    "local": {},
    "global": {"mask": "global"},
    "both": {"mask": "both"},
    "soft": {"mask": "both", "forward": "soft", "temperature": 0.5, "temperature_mlp": 1.5},
    "softmax": {"estimator": "softmax"},
    "soft_softmax": {"estimator": "softmax", "forward": "soft"},
    "gap_floor": {"gap_floor": 0.3},
    "heads": {"unit": "head", "k_attn": 2},
    "whole_model": {"mask": "global", "scope": "model", "k_attn": 9, "k_mlp": 11},
    "detached_scores": {"detach": "scores"},
    "detached_trunk": {"mask": "both", "detach": "trunk"},
    "reconstruction": {"mask": "both", "w_reconstruction": 0.4, "w_clean": 0.3, "w_ablated": 0.9},
    "everything": {"k_attn": 16, "k_mlp": 24},
}
HOSTS = {
    "the_papers": {},
    "untied": {"tie_word_embeddings": False},
    "scaled": {"use_attn_scale": True, "act_fn": "gelu"},
    "relu": {"act_fn": "relu", "scale_attn_by_inverse_layer_idx": True},
    "silu": {"act_fn": "silu"},
}


def losses_and_gradients(model, tokens, monkeypatch, fused: bool):
    with monkeypatch.context() as patch:
        if not fused:
            patch.setattr("sat_lens.fast.applies", lambda model: False)
        else:
            assert fast.applies(model)
        model.zero_grad()
        losses = model.losses(tokens)
        losses.total.backward()
    zero = torch.zeros(())
    values = torch.stack([zero if x is None else x.detach().double() for x in losses])
    return values, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def compare(model, tokens, monkeypatch, loss_error: float, gradient_error: float) -> None:
    values, gradients = losses_and_gradients(model, tokens, monkeypatch, fused=True)
    expected_values, expected = losses_and_gradients(model, tokens, monkeypatch, fused=False)
    assert (values - expected_values).abs().max() <= loss_error
    largest = max(g.abs().max() for g in expected.values())
    assert largest > 1e-3
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).abs().max()
        scale = max(gradient.abs().max(), 1e-3 * largest)
        assert error <= gradient_error * scale, name


@pytest.mark.parametrize("ablation", sorted(ABLATIONS))
def test_losses_and_gradients_are_those_of_the_hooked_path(tiny_model, tokens, monkeypatch, ablation):
    compare(tiny_model(ABLATIONS[ablation]), tokens, monkeypatch, 1e-12, 1e-9)


@pytest.mark.parametrize("mask", ["local", "global", "both"])
def test_noisy_scores_are_drawn_alike_on_both_paths(tiny_model, tokens, monkeypatch, mask):
    model = tiny_model({"mask": mask, "score_noise": 0.7}).train()
    found = []
    for fused in (True, False):
        torch.manual_seed(1)
        found.append(losses_and_gradients(model, tokens, monkeypatch, fused=fused)[0])
    assert (found[0] - found[1]).abs().max() < 1e-12
    assert (found[0] - losses_and_gradients(model.eval(), tokens, monkeypatch, fused=True)[0]).abs().max() > 1e-6


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_every_host_of_the_family_agrees(tiny_model, tokens, monkeypatch, host):
    compare(tiny_model({"mask": "both", "w_reconstruction": 0.2}, **HOSTS[host]), tokens, monkeypatch, 1e-12, 1e-9)


@pytest.mark.parametrize("ablation", ["none", "local", "global", "soft"])
def test_single_precision_agrees_as_far_as_it_can(tiny_model, tokens, monkeypatch, ablation):
    # a floor on the gap, because float32 gradients through near ties differ between any two correct programs
    model = tiny_model(ABLATIONS[ablation] | {"gap_floor": 0.2}, dtype=torch.float32)
    compare(model, tokens, monkeypatch, 1e-5, 1e-4)


@pytest.mark.parametrize("length", [2, 3, 17])
def test_sequences_from_one_prediction_to_a_whole_context_agree(tiny_model, monkeypatch, length):
    tokens = torch.randint(29, (3, length), generator=torch.Generator().manual_seed(length))
    compare(tiny_model({"mask": "both"}), tokens, monkeypatch, 1e-12, 1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 15, 16, 17])
def test_where_the_chunks_of_the_unembedding_end_does_not_matter(tiny_model, tokens, monkeypatch, chunk):
    monkeypatch.setattr("sat_lens.fast.CHUNK", chunk)  # 16 predictions
    compare(tiny_model(), tokens, monkeypatch, 1e-12, 1e-9)


def test_without_gradients_the_losses_are_the_same(tiny_model, tokens):
    model = tiny_model({"w_reconstruction": 0.1})
    with_gradients = model.losses(tokens)
    with torch.no_grad():
        without = model.losses(tokens)
    torch.testing.assert_close(tuple(without), tuple(x.detach() for x in with_gradients), rtol=1e-14, atol=0)
    assert with_gradients.total.requires_grad and not without.total.requires_grad


def test_gradients_accumulate_over_calls_as_usual(tiny_model, tokens):
    model = tiny_model()
    model.losses(tokens).total.backward()
    once = model.blocks[0].mlp.W_in.grad.clone()
    model.losses(tokens).total.backward()
    torch.testing.assert_close(model.blocks[0].mlp.W_in.grad, 2 * once)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalization_type": "RMS"},
        {"normalization_type": "LNPre"},
        {"positional_embedding_type": "rotary", "rotary_dim": 4},
        {"parallel_attn_mlp": True},
        {"attn_only": True, "d_mlp": None},
        {"gated_mlp": True},
        {"n_key_value_heads": 2},
        {"use_local_attn": True, "window_size": 2, "attn_types": ["local", "local"]},
        {"post_embedding_ln": True},
        {"act_fn": "gelu_fast"},
    ],
)
def test_it_steps_aside_for_a_host_that_it_does_not_know(tiny_model, tokens, changes):
    model = tiny_model(**changes | {"tie_word_embeddings": False})
    assert not fast.applies(model)
    clean = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model.losses(tokens).clean, clean)


@pytest.mark.parametrize(
    "changes",
    [
        {"clip_qkv": 0.1},
        {"use_logn_attn": True, "train_seq_length": 4},
        {"attn_scores_soft_cap": 2.0},
        {"output_logits_soft_cap": 2.0},
        {"use_attention_sinks": True},
        {"post_embedding_ln": True},
        {"original_architecture": "Olmo2ForCausalLM"},
    ],
)
def test_the_loss_of_an_ungated_model_is_that_of_its_own_logits(tiny_model, tokens, changes):
    model = tiny_model({"mask": "none"}, **changes | {"tie_word_embeddings": False})
    clean = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model.losses(tokens).clean, clean)


def test_it_steps_aside_for_normalized_scores(tiny_model):
    assert not fast.applies(tiny_model({"score_input": "normalized"}))


def test_it_steps_aside_for_hooks_of_torch_too(tiny_model):
    model = tiny_model()
    for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        handle = getattr(model.blocks[1].mlp, register)(lambda *_: None)
        assert not fast.applies(model), register
        handle.remove()
        assert fast.applies(model)


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("n", [1, 255, 256, 257, 600])
def test_linear_cross_entropy_is_torch_s_with_its_three_gradients(n):
    x, weight, bias = normal(n, 8, seed=0), normal(8, 13, seed=1), normal(13, seed=2)
    targets = torch.randint(13, (n,), generator=torch.Generator().manual_seed(3))
    found, expected = linear_cross_entropy(x, weight, bias, targets), F.cross_entropy(x @ weight + bias, targets)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    ours, theirs = (torch.autograd.grad(3 * loss, (x, weight, bias)) for loss in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-13


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_linear_cross_entropy_gives_only_the_gradients_that_are_asked_for(wanted):
    tensors = [normal(5, 8, seed=0), normal(8, 13, seed=1), normal(13, seed=2)]
    for tensor, is_wanted in zip(tensors, wanted, strict=True):
        tensor.requires_grad_(is_wanted)
    linear_cross_entropy(*tensors, torch.arange(5)).backward()
    assert [tensor.grad is not None for tensor in tensors] == list(wanted)


def test_linear_cross_entropy_does_not_overflow_on_large_logits():
    x, weight, bias = torch.full((2, 1), 1e4), torch.tensor([[1.0, -1.0, 0.5]]), torch.zeros(3)
    loss = linear_cross_entropy(x, weight, bias, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(1e4)  # the mean of 0 and 2e4 nats


@pytest.mark.parametrize("mask", ["none", "local", "global"])
def test_under_autocast_losses_and_gradients_stay_near_and_masks_the_same(tiny_model, tokens, mask):
    model = tiny_model({"mask": mask, "gap_floor": 0.5}, dtype=torch.float32)
    exact = model.losses(tokens)
    exact.total.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        assert fast.applies(model)
        found = model.losses(tokens)
    assert found.total.dtype == torch.float32
    found.total.backward()
    assert 0 < abs(found.clean - exact.clean) < 0.02 * exact.clean
    assert abs(found.total - exact.total) < 0.03 * exact.total
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    reference = torch.cat([g.flatten() for g in expected.values()])
    assert F.cosine_similarity(gradient, reference, dim=0) > 0.98
