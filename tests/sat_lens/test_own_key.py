"""Fused attention of the ablated stream against the written-out form."""

import pytest
import torch

from sat_lens import own_key
from sat_lens.attention import mixed_values, own_key_pattern
from sat_lens.own_key import OwnKeyAttention, kernel_is_right


def normal(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("length", [1, 2, 6, 33])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_own_key_attention_is_the_written_out_one_gradients_included(length, scale):
    tensors = [normal(2, 3, length, 4, seed=seed) for seed in range(5)]
    weights = normal(2, 3, length, 4, seed=9).detach()

    def written_out(q, k, v, own_k, own_v):
        q, k, v, own_k, own_v = (x.transpose(1, 2) for x in (q, k, v, own_k, own_v))
        return mixed_values(own_key_pattern(q, k, own_k, 1 / scale), v, own_v).transpose(1, 2)

    found, expected = OwnKeyAttention.apply(*tensors, scale), written_out(*tensors)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    ours = torch.autograd.grad((found * weights).sum(), tensors, allow_unused=True)
    theirs = torch.autograd.grad((expected * weights).sum(), tensors, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        a, b = (torch.zeros(()) if x is None else x for x in (a, b))
        assert (a - b).abs().max() <= 1e-11


def test_own_key_attention_survives_an_own_key_that_takes_everything():
    tensors = [normal(1, 1, 5, 4, seed=seed) for seed in range(5)]
    with torch.no_grad():
        tensors[3].copy_(tensors[0] * 1e4)  # own keys along the queries: the past gets weight 0
    z = OwnKeyAttention.apply(*tensors, 1.0)
    torch.testing.assert_close(z, tensors[4])
    z.sum().backward()
    assert all(x.grad.isfinite().all() for x in tensors)
    torch.testing.assert_close(tensors[4].grad, torch.ones_like(tensors[4]))


@pytest.fixture
def fresh_check():
    """The check forgets what it found, before and after."""
    own_key._kernel_is_right.cache_clear()
    yield
    own_key._kernel_is_right.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_of_this_build_is_right(fresh_check, dtype):
    assert kernel_is_right("cpu", dtype)
    with torch.inference_mode():
        assert kernel_is_right("cpu", dtype)


def test_a_kernel_that_changed_its_gradient_is_found_out_and_left(fresh_check, monkeypatch, tiny_model, tokens):
    right = own_key._causal_backward
    monkeypatch.setattr(own_key, "_causal_backward", lambda *a, **k: (right(*a, **k)[0] * 1.01, *right(*a, **k)[1:]))
    assert not kernel_is_right("cpu", torch.float64)
    from sat_lens import fast

    model = tiny_model()
    assert not fast.applies(model)
    with torch.inference_mode():
        assert model(tokens, stream="ablated").isfinite().all()


@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_a_build_without_the_kernel_writes_it_out(fresh_check, monkeypatch, error):
    def missing(*args, **kwargs):
        raise error("no such operator")

    monkeypatch.setattr(own_key, "_causal", missing)
    assert not kernel_is_right("cpu", torch.float32)


@pytest.mark.parametrize(("device", "dtype"), [("meta", torch.float32), ("cpu", torch.float16)])
def test_devices_and_types_that_were_never_tried_are_left_alone(device, dtype):
    assert not kernel_is_right(device, dtype)
