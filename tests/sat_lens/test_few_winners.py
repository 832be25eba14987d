"""Sums of the winners' rows against dense products with the mask of `k_winners`, gradients by autograd."""

import pytest
import torch
import torch.nn.functional as F

from sat_lens import SelfAblation, fast, few_winners, k_winners
from sat_lens.few_winners import are_few, channels_out, neurons_out
from sat_lens.winners import SoftMask

ROWS, UNITS, WIDTH = (3, 5), 32, 6


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def same(found: torch.Tensor, expected: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    upstream = normal(*expected.shape, seed=99).detach()
    ours, theirs = (torch.autograd.grad(x, inputs, upstream) for x in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert b.abs().max() > 1e-3
        assert (a - b).abs().max() <= 1e-9 * b.abs().max()


@pytest.mark.parametrize("block", [1, 7 * UNITS, 2**18])
@pytest.mark.parametrize("soft", [SoftMask(2, 1.0, "sigmoid", 0.0), SoftMask(1, 0.6, "softmax", 0.3)])
def test_channels_are_those_of_the_masked_product_gradients_included(monkeypatch, soft, block):
    monkeypatch.setattr(few_winners, "BLOCK", block)
    inputs = [normal(*ROWS, UNITS, seed=0), normal(*ROWS, UNITS, seed=1), normal(UNITS, WIDTH, seed=2)]
    inputs.append(normal(WIDTH, seed=3))
    z, scores, weight, bias = inputs
    same(channels_out(z, scores, weight, bias, soft), (z * k_winners(scores, **soft._asdict())) @ weight + bias, inputs)


@pytest.mark.parametrize("block", [1, 7 * UNITS, 2**18])
@pytest.mark.parametrize("act", [F.gelu, F.silu])
@pytest.mark.parametrize("k", [1, 3])
def test_neurons_are_those_of_the_masked_mlp_gradients_included(monkeypatch, act, k, block):
    monkeypatch.setattr(few_winners, "BLOCK", block)
    soft = SoftMask(k, 0.8, "sigmoid", 0.0)
    x, scores = normal(*ROWS, WIDTH, seed=0), normal(*ROWS, UNITS, seed=1)
    weights = [normal(WIDTH, UNITS, seed=2), normal(UNITS, seed=3), normal(UNITS, WIDTH, seed=4), normal(WIDTH, seed=5)]
    w_in, b_in, w_out, b_out = weights
    expected = (act(x @ w_in + b_in) * k_winners(scores, **soft._asdict())) @ w_out + b_out
    same(neurons_out(x, scores, *weights, act, soft), expected, [x, scores, *weights])


def test_scores_that_want_no_gradient_get_none_and_the_others_are_the_same():
    soft = SoftMask(2, 1.0, "sigmoid", 0.0)
    z, weight, bias = normal(*ROWS, UNITS, seed=0), normal(UNITS, WIDTH, seed=2), normal(WIDTH, seed=3)
    scores = normal(*ROWS, UNITS, seed=1).detach()
    expected = (z * k_winners(scores, **soft._asdict())) @ weight + bias
    same(channels_out(z, scores, weight, bias, soft), expected, [z, weight, bias])


@pytest.mark.parametrize(
    ("changes", "few"),
    [
        ({}, True),
        ({"mask": "global"}, True),
        ({"k_attn": 3}, False),
        ({"k_mlp": 5}, False),
        ({"forward": "soft"}, False),
        ({"unit": "head", "k_attn": 1}, False),
        ({"scope": "model"}, False),
    ],
)
def test_winners_are_few_when_each_layer_has_16_units_for_every_one(changes, few):
    assert are_few(SelfAblation(**{"k_attn": 2, "k_mlp": 4} | changes), "cpu", 32, 64) is few
    assert not are_few(SelfAblation(k_attn=2, k_mlp=4), "cuda", 32, 64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "ablation",
    [
        {},
        {"mask": "both", "w_reconstruction": 0.3, "temperature_mlp": 1.5},
        {"mask": "global", "estimator": "softmax"},
        {"detach": "scores"},
        {"detach": "trunk"},
    ],
)
def test_losses_and_gradients_are_those_of_the_hooked_path(tiny_model, tokens, monkeypatch, ablation, dtype):
    floor = {"gap_floor": 0.2 if dtype == torch.float32 else 0.0}  # float32 gradients of near ties differ
    model = tiny_model({"k_attn": 1, "k_mlp": 2} | floor | ablation, d_mlp=64, dtype=dtype)
    assert are_few(model.ablation, "cpu", model.cfg.n_heads * model.cfg.d_head, model.cfg.d_mlp)
    found = {}
    for path in ("fused", "hooked"):
        if path == "hooked":
            monkeypatch.setattr(fast, "applies", lambda model: False)
        model.zero_grad()
        losses = model.losses(tokens)
        losses.total.backward()
        found[path] = losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    (ours, our_gradients), (theirs, their_gradients) = found["fused"], found["hooked"]
    errors = {torch.float64: (1e-12, 1e-9), torch.float32: (1e-5, 1e-4)}[dtype]
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a - b) <= errors[0]
    assert our_gradients.keys() == their_gradients.keys()
    largest = max(g.abs().max() for g in their_gradients.values())
    for name, b in their_gradients.items():
        assert (our_gradients[name] - b).abs().max() <= errors[1] * max(b.abs().max(), 1e-3 * largest), name
