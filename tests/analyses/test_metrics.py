import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from analyses import metrics

VALUES = arrays(np.float64, st.integers(1, 30), elements=st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-6))


def test_logit_difference_and_accuracy_by_hand():
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 5.0]])
    difference = metrics.logit_difference(logits, torch.tensor([0, 0]), torch.tensor([1, 1]))
    assert difference.tolist() == [2.0, -2.0]
    assert metrics.accuracy(difference) == 0.5
    assert metrics.top_1_accuracy(logits, torch.tensor([0, 1])) == 0.5  # row 1 prefers id 2


def test_an_even_logit_difference_is_not_right():
    assert metrics.accuracy(torch.tensor([0.0])) == 0.0


def test_cross_entropy_is_torchs_and_ln_2_for_a_coin():
    assert metrics.cross_entropy(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(math.log(2))
    logits, targets = torch.randn(4, 3, 9), torch.randint(0, 9, (4, 3))
    other = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    assert torch.allclose(metrics.cross_entropy(logits, targets).flatten(), other, atol=1e-5)


def test_kl_divergence_is_torchs_and_has_a_direction():
    a, b = torch.randn(5, 7).double(), torch.randn(5, 7).double()
    p, q = (torch.distributions.Categorical(logits=x) for x in (a, b))
    assert torch.allclose(metrics.kl_divergence(a, b), torch.distributions.kl_divergence(p, q))
    assert not torch.allclose(metrics.kl_divergence(a, b), metrics.kl_divergence(b, a))
    assert metrics.kl_divergence(a, a + 3).abs().max() < 1e-12


def test_kl_divergence_ignores_what_cannot_happen():
    logits = torch.tensor([[0.0, -torch.inf]])
    assert metrics.kl_divergence(logits, torch.zeros(1, 2)).item() == pytest.approx(math.log(2))


def test_loss_recovered_is_1_at_the_intact_and_0_at_the_ablated_loss():
    recovered = [metrics.loss_recovered(loss, intact=2.0, ablated=6.0) for loss in (2.0, 3.0, 6.0, 8.0)]
    assert recovered == [1.0, 0.75, 0.0, -0.5]
    assert math.isnan(metrics.loss_recovered(1.0, 2.0, 2.0))


def test_gini_by_hand():
    # ascending 1, 2, 3: ((2-4)*1 + (4-4)*2 + (6-4)*3) / (3 * 6) = 4 / 18
    assert metrics.gini([3.0, -1.0, 2.0]) == pytest.approx(4 / 18)
    assert metrics.gini([5.0, 5.0]) == 0.0
    assert metrics.gini([0.0, 0.0, 0.0, 7.0]) == pytest.approx(1 - 1 / 4)
    assert metrics.gini([0.0, 0.0]) == 0.0


def test_gini_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1 value"):
        metrics.gini([])


@given(VALUES)
def test_gini_is_half_the_mean_absolute_difference_over_the_mean(values):
    x = np.abs(values)
    naive = np.abs(x[:, None] - x[None]).mean() / (2 * x.mean()) if x.any() else 0.0
    assert metrics.gini(values) == pytest.approx(naive, abs=1e-9)
    assert 0 <= metrics.gini(values) + 1e-12 and metrics.gini(values) <= 1 - 1 / len(values) + 1e-12


@given(VALUES)
def test_the_concentration_curve_rises_to_1_and_twice_its_area_over_the_diagonal_is_the_gini(values):
    x, y = metrics.concentration_curve(values)
    assert (x[0], y[0]) == (0, 0) and x[-1] == 1 and y[-1] == pytest.approx(1)
    assert (np.diff(y) >= -1e-12).all()
    assert 2 * np.trapezoid(y, x) - 1 == pytest.approx(metrics.gini(values), abs=1e-9)


def test_top_share_counts_at_least_one_unit():
    values = [6.0, -3.0, 1.0, 0.0]
    assert metrics.top_share(values, 0.01) == 0.6
    assert metrics.top_share(values, 0.5) == 0.9
    assert metrics.top_share([0.0, 0.0], 0.5) == 0.5


def test_gini_and_top_share_work_along_an_axis():
    rows = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 4.0]])
    assert metrics.gini(rows).tolist() == pytest.approx([4 / 18, 2 / 3])
    assert metrics.top_share(rows, 0.3).tolist() == [0.5, 1.0]
