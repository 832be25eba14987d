"""k winners take all, by hand, by autograd of the written-out formula, and by properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sat_lens import k_winners
from sat_lens.winners import _largest

SCORES = torch.tensor([4.0, 1.0, 3.0, -2.0], dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def written_out(s: Tensor, k: int, temperature: float, estimator: str, forward: str, gap_floor: float) -> Tensor:
    """The formula as the paper's code writes it: sort, threshold, gap, normalise; hard - soft.detach() + soft."""
    ordered = s.sort(dim=-1, descending=True).values
    last, first_out = ordered[..., k - 1 : k], ordered[..., k : k + 1]
    gamma = (last + first_out) / 2
    tau = torch.clamp(last - first_out, min=gap_floor) * temperature
    scaled = (s - gamma) / (tau + 1e-12)
    if estimator == "sigmoid":
        soft = torch.sigmoid(scaled) * k / torch.sigmoid(scaled).sum(-1, keepdim=True)
    else:
        soft = torch.exp(scaled) / torch.exp(scaled).sum(-1, keepdim=True)
    hard = (s >= last).double()
    return soft if forward == "soft" else hard - soft.detach() + soft


def test_the_hard_mask_of_four_scores_marks_the_two_largest():
    assert k_winners(SCORES, 2).tolist() == [1, 0, 1, 0]


def test_the_soft_sigmoid_mask_has_the_values_worked_out_by_hand():
    # k = 2: x_k = 3, x_{k+1} = 1, so gamma = 2, tau = 2 T = 1 with T = 0.5; a = s - 2 = (2, -1, 1, -4)
    u = [sigmoid(2), sigmoid(-1), sigmoid(1), sigmoid(-4)]
    expected = [2 * x / sum(u) for x in u]
    found = k_winners(SCORES, 2, temperature=0.5, forward="soft")
    assert found.tolist() == pytest.approx(expected, rel=1e-11)


def test_the_soft_softmax_mask_has_the_values_worked_out_by_hand():
    # the same a = (2, -1, 1, -4); softmax of them
    e = [math.exp(2), math.exp(-1), math.exp(1), math.exp(-4)]
    found = k_winners(SCORES, 2, temperature=0.5, estimator="softmax", forward="soft")
    assert found.tolist() == pytest.approx([x / sum(e) for x in e], rel=1e-11)


def test_a_gap_floor_wider_than_the_gap_takes_its_place():
    # gap 2, floor 4, T = 1: a = (s - 2) / 4
    u = [sigmoid(0.5), sigmoid(-0.25), sigmoid(0.25), sigmoid(-1)]
    found = k_winners(SCORES, 2, forward="soft", gap_floor=4.0)
    assert found.tolist() == pytest.approx([2 * x / sum(u) for x in u], rel=1e-11)


def test_a_soft_weight_can_exceed_one_with_the_sigmoid_estimator():
    # k = 3, gamma 0.5, tau 1: u = (1, s(0.5), s(0.5), s(-0.5), 0), which sum to 2 + s(0.5) = 2.622; 3 / 2.622 = 1.144
    scores = torch.tensor([50.0, 1.0, 1.0, 0.0, -60.0], dtype=torch.float64)
    assert k_winners(scores, 3, forward="soft")[0].item() == pytest.approx(3 / (2 + sigmoid(0.5)))


rows = st.lists(st.lists(st.integers(-3, 3).map(float), min_size=6, max_size=6), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 6))
def test_every_row_has_exactly_k_ones_even_with_ties(values, k):
    scores = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    for mask in (k_winners(scores, k), k_winners(scores.detach(), k)):
        assert set(mask.unique().tolist()) <= {0.0, 1.0}
        assert mask.sum(-1).tolist() == [k] * len(values)
        for row, winners in zip(scores.tolist(), mask.tolist(), strict=True):
            chosen = sorted((s for s, m in zip(row, winners, strict=True) if m), reverse=True)
            assert chosen == sorted(row, reverse=True)[:k]


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 5), st.sampled_from([0.1, 1.0, 3.0]), st.sampled_from([0.0, 0.5]))
def test_sigmoid_rows_sum_to_k_and_softmax_rows_to_one(values, k, temperature, gap_floor):
    scores = torch.tensor(values, dtype=torch.float64)
    knobs = {"temperature": temperature, "forward": "soft", "gap_floor": gap_floor}
    torch.testing.assert_close(k_winners(scores, k, **knobs).sum(-1), torch.full((len(values),), float(k)).double())
    softmax = k_winners(scores, k, estimator="softmax", **knobs)
    torch.testing.assert_close(softmax.sum(-1), torch.ones(len(values)).double())


@pytest.mark.parametrize("forward", ["hard", "soft"])
def test_k_equal_to_the_width_gives_ones_and_no_gradient(forward):
    scores = torch.randn(2, 5, requires_grad=True)
    mask = k_winners(scores, 5, forward=forward)
    assert torch.equal(mask, torch.ones(2, 5)) and not mask.requires_grad


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_outside_the_row_is_refused_with_the_range_and_the_value(k):
    with pytest.raises(ValueError, match=f"between 1 and the 5 units of a row; got {k}"):
        k_winners(torch.zeros(5), k)


@pytest.mark.parametrize("gap_floor", [0.0, 0.4])
@pytest.mark.parametrize("forward", ["hard", "soft"])
@pytest.mark.parametrize("estimator", ["sigmoid", "softmax"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_closed_form_gradient_is_that_of_the_written_out_formula(k, estimator, forward, gap_floor):
    generator = torch.Generator().manual_seed(k)
    scores = torch.randn(4, 3, 11, generator=generator, dtype=torch.float64)
    weights = torch.randn(4, 3, 11, generator=generator, dtype=torch.float64)
    knobs = {"temperature": 0.7, "estimator": estimator, "forward": forward, "gap_floor": gap_floor}
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    mask, expected = k_winners(ours, k, **knobs), written_out(theirs, k, **knobs)
    torch.testing.assert_close(mask, expected, rtol=1e-9, atol=1e-12)
    (mask * weights).sum().backward()
    (expected * weights).sum().backward()
    assert theirs.grad.abs().max() > 1e-3
    assert (ours.grad - theirs.grad).abs().max() <= 1e-9 * theirs.grad.abs().max()


def test_moving_all_scores_together_moves_no_mask_so_gradients_of_a_row_sum_to_zero():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(5, 8, generator=generator, dtype=torch.float64).requires_grad_()
    (k_winners(scores, 3) * torch.randn(5, 8, generator=generator)).sum().backward()
    assert scores.grad.abs().max() > 0.1 and scores.grad.sum(-1).abs().max() <= 1e-12


def test_the_gap_floor_bounds_the_gradient_of_a_near_tie():
    def largest(gap_floor: float) -> float:
        scores = torch.tensor([2.0, 1.0, 1.0 - 1e-7, 1.0 - 3e-7], dtype=torch.float64, requires_grad=True)
        (k_winners(scores, 2, gap_floor=gap_floor) * torch.tensor([1.0, 2.0, -1.0, 3.0])).sum().backward()
        return scores.grad.abs().max().item()

    assert largest(0.0) > 1e6
    assert largest(0.1) < 100


@pytest.mark.parametrize("estimator", ["sigmoid", "softmax"])
def test_exact_ties_leave_the_gradient_finite(estimator):
    scores = torch.zeros(2, 6, requires_grad=True)
    mask = k_winners(scores, 2, estimator=estimator)
    (mask * torch.randn(2, 6)).sum().backward()
    assert mask.sum(-1).tolist() == [2, 2] and scores.grad.isfinite().all()


@pytest.mark.parametrize("forward", ["hard", "soft"])
def test_the_mask_is_the_same_with_and_without_a_gradient(forward):
    scores = torch.randn(7, 9, generator=torch.Generator().manual_seed(3), requires_grad=True)
    with_gradient = k_winners(scores, 4, forward=forward)
    with torch.no_grad():
        without = k_winners(scores, 4, forward=forward)
    assert with_gradient.requires_grad and not without.requires_grad
    assert torch.equal(with_gradient.detach(), without)


def test_the_hard_mask_keeps_the_dtype_of_its_scores():
    assert k_winners(torch.randn(3, 4, dtype=torch.bfloat16), 2).dtype == torch.bfloat16


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([128, 160, 256, 512]), st.integers(1, 8), st.booleans())
def test_the_largest_of_a_row_are_those_of_torch_topk_however_they_are_found(seed, width, n, ties):
    scores = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores = (scores * 2).round() if ties else scores
    values, places = _largest(scores, n)
    expected = scores.topk(n)
    assert torch.equal(values, expected.values) and torch.equal(scores.gather(-1, places), values)
    assert all(len(row.unique()) == n for row in places.flatten(0, 1))
    assert ties or torch.equal(places, expected.indices)
