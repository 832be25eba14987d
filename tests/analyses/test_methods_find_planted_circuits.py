"""Every method on models whose circuit is known: who finds it, who cannot, and why."""

import numpy as np
import pytest

from analyses.localization.acdc import acdc
from analyses.localization.attribution import attribution_patching, eap, eap_ig, edges_from_nodes
from analyses.localization.auroc import auroc_table, edge_auroc, edge_average_precision
from analyses.localization.controls import magnitude, random_scores
from analyses.localization.edge_mask import edge_mask
from analyses.localization.exact import exact_patching
from analyses.localization.patching import activation_patching
from analyses.localization.planted import PLANTED, planted
from analyses.localization.setting import setting_of

FIND_ALL = {
    "exact": exact_patching,
    "acdc": lambda setting: acdc(setting, tau=0.1)[0].astype(float),
}
STEPS = 5
INTEGRATE = {
    "eap-ig, inputs": lambda setting: eap_ig(setting, steps=STEPS),
    "eap-ig, activations": lambda setting: eap_ig(setting, steps=STEPS, along="activations"),
}
NODES = {
    "patching": lambda setting: edges_from_nodes(setting.graph, activation_patching(setting)),
    "attribution": attribution_patching,
}
CONTROLS = {"magnitude": magnitude, "random": random_scores}


@pytest.fixture(scope="module")
def known():
    """`known(name, seed)`: the planted model and its setting, built once."""
    made = {}

    def build(name, seed=0):
        if (name, seed) not in made:
            one = planted(name, n=4, seed=seed)
            made[name, seed] = one, setting_of(one.model, one.task)
        return made[name, seed]

    return build


@pytest.fixture(scope="module")
def table():
    """Edge AUROC of every method on every planted model."""
    return auroc_table(FIND_ALL | INTEGRATE | {"eap": eap} | NODES | CONTROLS, n=4)


@pytest.mark.parametrize("method", FIND_ALL)
def test_exact_patching_and_acdc_find_every_circuit(table, method):
    assert (table[method] == 1.0).all()


@pytest.mark.parametrize("method", INTEGRATE)
def test_integrated_gradients_find_every_circuit_in_five_steps(table, method):
    assert (table[method] >= 0.95).all()


def test_a_gradient_at_a_saturated_gate_is_blind_and_its_integral_is_not(known, table):
    one, setting = known("gate")
    before_the_gate = [one.graph.edge(name) for name in one.edges if name != "m0->logits"]
    assert all(eap(setting)[edge] == 0 for edge in before_the_gate)
    assert all(eap_ig(setting, steps=STEPS)[edge] > 0.5 for edge in before_the_gate)
    assert table.loc["gate", "eap"] < 0.7 < 0.95 <= table.drop(index="gate")["eap"].min()


def test_no_control_and_no_score_of_nodes_names_a_circuit(table):
    assert (table[list(CONTROLS) + list(NODES)] < 1).all(axis=None)
    assert (table["random"] < 0.8).all()


@pytest.mark.parametrize("name", PLANTED)
def test_random_scores_are_at_chance(known, name):
    one, setting = known(name)
    draws = [random_scores(setting, seed=seed) for seed in range(100)]
    assert np.mean([edge_auroc(scores, one.members) for scores in draws]) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("tau", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("name", PLANTED)
def test_acdc_keeps_the_circuit_edge_for_edge(known, name, tau):
    one, setting = known(name)
    for order in ("ours", "reference"):
        members, costs = acdc(setting, tau=tau, order=order)
        assert np.array_equal(members, one.members)
        assert edge_auroc(costs, one.members) == 1.0


@pytest.mark.parametrize("name", PLANTED)
def test_other_prompts_and_other_distractors_change_no_verdict(known, name):
    one, setting = known(name, seed=1)
    assert np.array_equal(acdc(setting, tau=0.1)[0], one.members)
    assert edge_auroc(exact_patching(setting), one.members) == 1.0
    assert edge_auroc(eap_ig(setting, steps=STEPS), one.members) >= 0.95


def assert_learned(one, setting, steps):
    scores, members = edge_mask(setting, size=int(one.members.sum()), steps=steps)
    assert np.array_equal(members, one.members)
    assert edge_auroc(scores, one.members, absolute=False) == 1.0


@pytest.mark.parametrize("name", ["gate"])
def test_a_learned_mask_of_the_right_size_is_the_circuit(known, name):
    assert_learned(*known(name), steps=200)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_a_learned_mask_of_the_right_size_is_every_circuit(known, name):
    assert_learned(*known(name), steps=600)


def test_on_a_linear_model_attribution_is_exact(known):
    one, setting = known("linear")
    exact = exact_patching(setting)
    approximations = [eap(setting), eap(setting, at="other"), eap_ig(setting), eap_ig(setting, along="activations")]
    for scores in [*approximations, exact_patching(setting, direction="denoising")]:
        assert np.nanmax(np.abs(scores - exact)) < 1e-10
    assert np.nanmax(exact) > 1


@pytest.mark.parametrize("name", PLANTED)
def test_integrated_gradients_are_complete_as_steps_grow(known, name):
    """Edges that leave the input add up to the value's gap; so do those into the logits, with a linear read-out.

    The gate's gradient is a step, open on a sixth of the path: the error is up to 6 / steps.
    """
    _, setting = known(name)
    gap = (setting.intact_values - setting.other_values).mean()
    many_steps = 128 if name == "gate" else 32
    few, many = (abs(np.nansum(eap_ig(setting, steps=steps)[0]) - gap) / gap for steps in (4, many_steps))
    assert many < (6 / many_steps if name == "gate" else 1e-3) and many <= few + 1e-12
    if setting.parts.cfg.normalization_type is None:
        assert np.nansum(eap_ig(setting, steps=4)[:, -1]) == pytest.approx(gap, abs=1e-9)


def test_denoising_cannot_see_one_half_of_an_and(known):
    """One head's edge restored leaves the gate closed: sufficient alone is only what already has its partner."""
    one, setting = known("gate")
    scores = exact_patching(setting, direction="denoising")
    assert abs(scores[one.graph.edge("a0.h0->m0")]) < 1e-10 and abs(scores[one.graph.edge("a0.h2->m0")]) > 1
    assert edge_auroc(scores, one.members) < 1


def test_average_precision_says_what_auroc_hides(known):
    """A few wrong edges on top cost little AUROC among many edges."""
    for name in PLANTED:
        one, setting = known(name)
        scores = magnitude(setting)
        assert edge_average_precision(scores, one.members) < edge_auroc(scores, one.members) < 1
        assert edge_average_precision(exact_patching(setting), one.members) == 1.0
