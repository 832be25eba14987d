"""Optimal constants: planted and worked-out optima are met, and no fit is worse than the mean."""

import numpy as np
import pytest
import torch

from analyses.localization import optimal
from analyses.localization.optimal import circuit_loss, constant_setting, fitted_constants, optimal_setting
from analyses.localization.runner import end_logits
from analyses.localization.setting import setting_of
from sat_lens.tasks.encoding import task_from_ids
from tests.cases.architectures import HOSTS


@pytest.fixture
def setting(tiny_model):
    """`setting(host)` of a tiny model: five prompts of two lengths."""

    def build(host="the_papers", **knobs):
        draw = np.random.default_rng(0)
        rows = [[draw.integers(1, 29, n).tolist() for n in (6, 4, 6, 4, 6)] for _ in range(2)]
        task = task_from_ids("made", *rows, [(i + 1, i + 9) for i in range(5)], {}, [])
        return setting_of(tiny_model(ablation={"mask": "none"}, **HOSTS[host]), task, **knobs)

    return build


@pytest.fixture
def linear(tiny_model):
    """A model of zeros without norms, whose embedding alone reaches the logits: logits = (W_E[t] + W_pos[p]) W_U."""
    changes = {"normalization_type": None, "tie_word_embeddings": False, "d_model": 8, "n_heads": 1, "d_vocab": 6}
    model = tiny_model(ablation={"mask": "none", "k_attn": 2}, attn_only=True, d_mlp=None, n_layers=1, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def circuits(made, n=12, seed=99):
    return optimal.random_circuits(made, n, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_a_few_steps_lower_the_loss_of_circuits_that_were_not_trained_on(setting, host):
    made = setting(host)
    mean, fitted = (fitted_constants(made, steps=steps, circuits_a_step=2) for steps in (0, 15))
    others = torch.cat([group.contrast.other.flatten(1, 2) for group in made.groups], 1)
    assert torch.allclose(mean, others.mean(1), rtol=0, atol=1e-12)
    unseen = circuits(made, 32)
    before, after = (circuit_loss(made, constants, unseen) for constants in (mean, fitted))
    assert after < 0.95 * before


def test_the_optimum_of_a_linear_readout_predicts_the_mean_distribution(linear):
    """Without its edge the circuit says one distribution q on all prompts; KL to it is least where q is their mean.

    The mean of the activations says the softmax of the mean logits instead, which is another one.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        linear.embed.W_E[:] = 2 * torch.randn(6, 8, generator=generator, dtype=torch.float64)
        linear.unembed.W_U[:] = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    ids = [[1], [2], [3], [4]]
    made = setting_of(linear, task_from_ids("read", ids, ids[::-1], [(1, 2)] * 4, {}, []))
    found = optimal_setting(made, steps=300, lr=0.1)
    best = torch.cat([group.intact.softmax(-1) for group in made.groups]).mean(0)
    mean = made.groups[0].other.mean(0).softmax(-1)
    assert (mean - best).abs().max() > 0.05
    assert (found.groups[0].other[0].softmax(-1) - best).abs().max() < 1e-3


def test_what_is_constant_where_it_counts_is_kept(linear):
    """The last position always writes 3 u, which the logits read; the others write noise that nothing reads.

    Over positions the mean is a third of it, so that the cut edge would lose 2 u; the optimum loses nothing.
    """
    with torch.no_grad():
        linear.pos_embed.W_pos[2, 0] = 3.0
        linear.unembed.W_U[0, 5] = 1.0
        linear.embed.W_E[:, 1] = torch.tensor([5.0, -5, 4, -4, 3, -3], dtype=torch.float64)
    ids = [[1, 2, 3], [3, 1, 4], [2, 5, 1], [4, 4, 2]]
    made = setting_of(linear, task_from_ids("pos", ids, ids[::-1], [(5, 1)] * 4, {}, []))
    mean = setting_of(linear, task_from_ids("pos", ids, ids[::-1], [(5, 1)] * 4, {}, []), ablation="mean")
    assert np.allclose(made.intact_values, 3) and np.allclose(mean.other_values, 1)
    found = optimal_setting(made, steps=100, lr=0.2, circuits_a_step=2)
    nothing = torch.zeros(1, *made.graph.possible.shape, dtype=torch.bool)
    lost = [circuit_loss(made, s.groups[0].contrast.other[:, 0, 0], nothing) for s in (mean, found)]
    assert lost[0] > 0.2 and lost[1] < 1e-4
    assert np.allclose(found.other_values, 3, atol=0.03)


def test_gradients_reach_the_constants_through_a_circuit(setting):
    """Against differences: the derivative of the logits along a direction."""
    made = setting("rms_rotary_gated")
    group, some = made.groups[0], circuits(made, 3)
    generator = torch.Generator().manual_seed(2)
    at, along = torch.randn(2, *group.contrast.clean.shape[::3], generator=generator, dtype=torch.float64)
    at.requires_grad_()

    def total(constants):
        logits = end_logits(optimal._with(group.contrast, constants), some)
        return (logits * torch.arange(29)).sum()

    (gradient,) = torch.autograd.grad(total(at), at)
    with torch.no_grad():
        difference = (total(at + 1e-5 * along) - total(at - 1e-5 * along)) / 2e-5
    assert abs((gradient * along).sum() / difference - 1) < 1e-6


def test_gradients_of_one_circuit_at_a_time_add_up(setting, monkeypatch):
    made = setting()
    expected = fitted_constants(made, steps=3)
    monkeypatch.setattr(optimal, "BYTES", 1)
    assert torch.allclose(fitted_constants(made, steps=3), expected, rtol=0, atol=1e-10)


def test_the_same_seed_gives_the_same_constants_and_nothing_else_is_touched(setting):
    made = setting("attention_only", value="kl")
    state = torch.get_rng_state()
    first, again, other = (fitted_constants(made, steps=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in made.parts.model.parameters())
    assert not first.requires_grad


def test_a_fit_that_fails_gives_the_mean(setting):
    made = setting()
    assert torch.equal(fitted_constants(made, steps=5, lr=1e4), fitted_constants(made, steps=0))


def test_the_setting_keeps_prompts_and_value_and_cuts_edges_to_constants(setting):
    made = setting(value="kl", frozen_norm=True)
    found = optimal_setting(made, steps=4)
    assert (found.ablation, found.value, found.frozen_norm, found.n) == ("optimal", "kl", True, 5)
    assert np.array_equal(found.intact_values, made.intact_values)
    for group in found.groups:
        other = group.contrast.other
        assert torch.equal(other, other[:, :1, :1].expand_as(other)) and not other.requires_grad
    constants, some = fitted_constants(made, steps=4), circuits(made)
    assert abs(circuit_loss(made, constants, some) + found.values(some).mean()) < 1e-12
    assert np.array_equal(constant_setting(made, constants, "optimal").other_values, found.other_values)


def test_a_task_can_be_taken_apart_with_optimal_constants_at_once(setting, monkeypatch):
    short = lambda made: optimal_setting(made, steps=2)  # noqa: E731
    expected = short(setting()).other_values
    monkeypatch.setattr(optimal, "optimal_setting", short)
    found = setting(ablation="optimal")
    assert found.ablation == "optimal" and np.array_equal(found.other_values, expected)


@pytest.mark.parametrize(
    "knobs", [{"steps": -1}, {"lr": 0.0}, {"lr": float("nan")}, {"circuits_a_step": 0}, {"prompts_a_step": 0}]
)
def test_knobs_out_of_range_are_refused(setting, knobs):
    with pytest.raises(ValueError, match="optimal constants need steps"):
        fitted_constants(setting(), **knobs)


def test_a_setting_without_gradients_is_refused(setting):
    with torch.inference_mode():
        made = setting()
    with pytest.raises(ValueError, match=r"outside torch\.inference_mode"):
        fitted_constants(made, steps=1)
