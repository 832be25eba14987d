"""The ablated stream's attention against loops over positions, written from its definition."""

import math

import pytest
import torch

from sat_lens.attention import mixed_values, own_key_pattern

SHAPE = (2, 7, 3, 4)  # batch, pos, n_heads, d_head


def normal(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Q, K_CLEAN, K_OWN, V_CLEAN, V_OWN = (normal(seed) for seed in range(5))


def naive(scale: float, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Pattern and z, one query, one head at a time."""
    batch, n, n_heads, _ = SHAPE
    pattern, z = torch.zeros(batch, n_heads, n, n, dtype=torch.float64), torch.zeros(SHAPE, dtype=torch.float64)
    for b in range(batch):
        for h in range(n_heads):
            for t in range(n):
                first = 0 if window is None else max(0, t - window + 1)
                keys = [K_CLEAN[b, j, h] for j in range(first, t)] + [K_OWN[b, t, h]]
                values = [V_CLEAN[b, j, h] for j in range(first, t)] + [V_OWN[b, t, h]]
                weights = [math.exp(float(Q[b, t, h] @ key) / scale) for key in keys]
                for j, weight, value in zip(range(first, t + 1), weights, values, strict=True):
                    pattern[b, h, t, j] = weight / sum(weights)
                    z[b, t, h] += pattern[b, h, t, j] * value
    return pattern, z


@pytest.mark.parametrize("window", [None, 1, 3, 7, 50])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_pattern_and_values_are_those_of_naive_loops(scale, window):
    expected_pattern, expected_z = naive(scale, window)
    pattern = own_key_pattern(Q, K_CLEAN, K_OWN, scale, window)
    torch.testing.assert_close(pattern, expected_pattern, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(mixed_values(pattern, V_CLEAN, V_OWN), expected_z, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("window", [None, 2])
def test_every_row_sums_to_one_over_what_it_may_see(window):
    pattern = own_key_pattern(Q, K_CLEAN, K_OWN, 1.0, window)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))
    assert pattern.triu(1).abs().max() == 0
    if window == 2:
        assert pattern.tril(-2).abs().max() == 0


def test_position_0_sees_its_own_value_alone():
    pattern = own_key_pattern(Q, K_CLEAN, K_OWN, 1.0)
    assert torch.equal(pattern[:, :, 0, 0], torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(mixed_values(pattern, V_CLEAN, V_OWN)[:, 0], V_OWN[:, 0])


def test_the_clean_key_and_value_of_the_present_are_never_read():
    pattern = own_key_pattern(Q, K_CLEAN, K_OWN, 1.0)
    moved_k, moved_v = K_CLEAN.clone(), V_CLEAN.clone()
    moved_k[:, -1] += 100  # seen by no strictly later query
    moved_v[:, -1] += 100
    assert torch.equal(own_key_pattern(Q, moved_k, K_OWN, 1.0), pattern)
    torch.testing.assert_close(mixed_values(pattern, moved_v, V_OWN), mixed_values(pattern, V_CLEAN, V_OWN))


def test_equal_streams_give_ordinary_causal_attention():
    ours = mixed_values(own_key_pattern(Q, K_CLEAN, K_CLEAN, 2.0), V_CLEAN, V_CLEAN)
    q, k, v = (x.transpose(1, 2) for x in (Q, K_CLEAN, V_CLEAN))
    ordinary = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    torch.testing.assert_close(ours, ordinary.transpose(1, 2), rtol=1e-12, atol=1e-14)
