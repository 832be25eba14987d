"""Linear maps by oneDNN against PyTorch's."""

import pytest
import torch
import torch.nn.functional as F

from sat_lens.products import ACTIVATIONS, activated, by_onednn, linear, product


def normal(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 1), (64, 33, 130), (5, 128, 2)])
def test_values_and_gradients_are_those_of_doubles(dtype, error, shape):
    rows, d_in, d_out = shape
    x, w, b = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate([(2, rows, d_in), (d_out, d_in), (d_out,)]))
    exact = [t.double().requires_grad_() for t in (x, w, b)]
    ours = [t.requires_grad_() for t in (x, w, b)]
    upstream = normal(2, rows, d_out, seed=9, dtype=dtype)
    expected, found = F.linear(*exact), linear(*ours)
    expected.backward(upstream.double())
    found.backward(upstream)
    assert (found - expected).abs().max() <= error
    for a, b in zip(ours, exact, strict=True):
        assert a.grad.shape == b.grad.shape
        assert (a.grad - b.grad).abs().max() <= error * rows


def test_transposed_and_strided_factors_are_read_right():
    x, w = normal(6, 4, seed=0, dtype=torch.float32), normal(4, 9, seed=1, dtype=torch.float32)
    assert (product(x, w.T) - x @ w).abs().max() < 1e-5
    assert (product(x.T, w[:, :6]) - x.T @ w[:, :6].T).abs().max() < 1e-5
    assert (product(x[::2], w.T) - x[::2] @ w).abs().max() < 1e-5


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize("act", [*ACTIVATIONS.values(), torch.tanh])
def test_activations_taken_with_their_product_are_those_of_doubles(dtype, error, act):
    x, w, b = (normal(*s, seed=i, dtype=dtype) for i, s in enumerate([(70, 9), (33, 9), (33,)]))
    expected = act(F.linear(x.double(), w.double(), b.double()))
    assert (activated(x, w, b, act) - expected).abs().max() <= error
    assert (activated(x, w, 100 * b, act) - act(F.linear(x, w, 100 * b))).abs().max() <= 100 * error


def test_only_what_needs_a_gradient_gets_one():
    x, w, b = (torch.ones(2, 2), torch.ones(2, 2, requires_grad=True), torch.ones(2))
    linear(x, w, b).sum().backward()
    assert x.grad is None and b.grad is None and torch.equal(w.grad, torch.full((2, 2), 2.0))


def test_doubles_and_other_devices_go_another_way():
    assert not by_onednn(torch.zeros(1, dtype=torch.float64))
    assert not by_onednn(torch.zeros(1, device="meta"))
