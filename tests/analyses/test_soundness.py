"""Completeness, minimality, knock-outs and restoration, on three paths whose answers are worked out by hand.

f = [e1 e2 e3] - [e1 e4]/2 + [e5]/2: the whole has f = 1, and so have e1 e2 e3 by themselves, which are neither
complete nor robust.
"""

import numpy as np
import pytest

from analyses.localization.circuit import Circuit
from analyses.localization.faithfulness import gap_of
from analyses.localization.knockouts import same_under_knockouts
from analyses.localization.nulls import random_circuits
from analyses.localization.restoration import adversarial_restoration, stochastic_restoration
from analyses.localization.setting import setting_of
from analyses.localization.soundness import completeness, minimality
from sat_lens.tasks.encoding import task_from_ids


@pytest.fixture
def made(three_paths):
    found = three_paths()
    found.gap = gap_of(found.setting)
    found.f = lambda *e: {1, 2, 3}.issubset(e) - {1, 4}.issubset(e) / 2 + (5 in e) / 2
    found.whole, found.part = found.circuit(1, 2, 3, 4, 5), found.circuit(1, 2, 3)
    return found


@pytest.fixture
def random_setting(tiny_model):
    draw = np.random.default_rng(0)
    rows = [[draw.integers(1, 29, n).tolist() for n in (7, 5, 7, 5, 7)] for _ in range(2)]
    task = task_from_ids("made", *rows, [(i + 1, i + 9) for i in range(5)], {}, [])
    return setting_of(tiny_model(ablation={"mask": "none"}), task)


def test_the_true_circuit_is_complete(made):
    found = completeness(made.setting, made.whole, made.gap)
    assert [found.complement, found.low, found.high] == pytest.approx([0, 0, 0], abs=1e-12)
    assert found.incompleteness_max == pytest.approx(0, abs=1e-12)
    others = random_circuits(made.setting.graph, 5, 19, like=made.whole)
    rest = [made.f(*(edge for edge in range(1, 6) if not (one & made.circuit(edge)).any())) for one in others]
    assert found.complement_random == pytest.approx(np.mean(rest))
    assert found.p_value == pytest.approx((1 + rest.count(0)) / 20)  # without e2 alone, f is 0 too
    assert found.incompleteness_p_value == 1 / 20
    assert found.complement_random > 0.3 and found.incompleteness_random > 0.3


def test_a_faithful_circuit_need_not_be_complete(made):
    """Without e1 e2 e3 the model still has e5, f = 1/2, as it has without K where e1 is in K."""
    found = completeness(made.setting, made.part, made.gap, n_random=0)
    assert [found.complement, found.incompleteness_max] == pytest.approx([0.5, 0.5], abs=1e-12)
    assert 0 < found.incompleteness_mean < 0.5 and np.isnan(found.p_value)


def test_minimality_names_what_each_edge_does(made):
    idle = random_circuits(made.setting.graph, 6, 1, seed=2)[0] & ~made.whole
    table = minimality(made.setting, made.whole | idle, made.gap).set_index("edge")
    assert table.loc[list(made.names), "fall"].to_numpy() == pytest.approx([0.5, 1, 1, -0.5, 0.5], abs=1e-12)
    assert table.loc[list(made.names), ["low", "high"]].to_numpy() == pytest.approx(
        np.repeat([[0.5], [1], [1], [-0.5], [0.5]], 2, 1), abs=1e-12
    )
    assert len(table) == 5 + idle.sum() and set(table.index[table["idle"]]) == set(table.index) - set(made.names)
    able = [
        edge for edge in np.argwhere(made.setting.graph.possible & ~(made.whole | idle)) if on_a_path(made, idle, edge)
    ]
    assert table.loc[list(made.names), "p_value"].to_numpy() == pytest.approx(1 / (1 + len(able))) and len(able) > 3
    assert (table.loc[table["idle"], "p_value"] == 1).all()


def on_a_path(made, idle, edge):
    members = made.whole | idle
    members[tuple(edge)] = True
    return Circuit(made.setting.graph, made.scores(0, 0, 0, 0, 0), members).pruned().members[tuple(edge)]


def test_minimality_after_a_set_and_of_nodes(made):
    after = minimality(made.setting, made.whole, made.gap, without=made.circuit(4, 5)).set_index("edge")
    assert after["fall"].loc[list(made.names[:3])].to_numpy() == pytest.approx([1, 1, 1]) and len(after) == 3
    nodes = minimality(made.setting, made.whole, made.gap, unit="node").set_index("node")
    assert nodes["fall"].to_dict() == pytest.approx({"m0": 0.5, "m1": 1.0})
    assert nodes["p_value"].isna().all()


def test_edges_are_held_against_those_outside_that_could_do_something(made):
    """Beside e1 e2 e3, worth 1 each, input->m1 does nothing, e4 and e5 a half; beside e1 e4 there is e5 alone."""
    strong = minimality(made.setting, made.part, made.gap)
    assert strong["fall"].to_numpy() == pytest.approx([1, 1, 1]) and (strong["p_value"] == 1 / 4).all()
    weak = minimality(made.setting, made.circuit(1, 4), made.gap)
    assert weak["fall"].to_numpy() == pytest.approx([-0.5, -0.5]) and (weak["p_value"] == 1).all()


def test_the_true_circuit_breaks_as_the_model_does(made):
    found = same_under_knockouts(made.setting, made.whole, shares=(0.0, 0.2, 0.5))
    assert found["difference"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert found["correlation"].to_numpy() == pytest.approx(1)
    assert (found["difference_p_value"] == 1 / 20).all() and (found["unit"] == "logits").all()


def test_a_faithful_circuit_need_not_break_as_the_model_does(made):
    """M - K and C - K differ by |[e1 e4] - [e5]|/2 of 2x, x = 2 on average: at half of the edges 1/2 of the sets."""
    found = same_under_knockouts(made.setting, made.part, shares=(0.0, 0.5), n_sets=600, n_random=0)
    assert found["difference"][0] == pytest.approx(0, abs=1e-12) and found["correlation"][0] == pytest.approx(1)
    assert found["difference"][1] == pytest.approx(1, abs=4 * 1 / np.sqrt(600)) and found["correlation"][1] < 0.95


def test_the_true_circuit_stays_faithful_when_the_rest_is_put_back(made):
    found = stochastic_restoration(made.setting, made.whole, made.gap, n_sets=10)
    assert found[["faithfulness", "low", "high", "worst"]].to_numpy() == pytest.approx(1)
    assert found["distance"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert (found["p_value"] <= 2 / 20).all() and (found["random_distance"] > 0.05).all()
    assert adversarial_restoration(made.setting, made.whole, made.gap, steps=3).faithfulness == pytest.approx(1)


def test_a_faithful_circuit_need_not_stay_so(made):
    """e4 put back takes 1/2, e5 gives 1/2: with one of both, half of the sets at a share of 1/2, f is 1/2 or 3/2."""
    found = stochastic_restoration(made.setting, made.part, made.gap, shares=(0.5,), n_sets=600, n_random=0).iloc[0]
    assert found["distance"] == pytest.approx(0.25, abs=4 * 0.25 / np.sqrt(600))
    assert abs(1 - found["worst"]) == pytest.approx(0.5) and (found["low"], found["high"]) == pytest.approx((0.5, 1.5))
    worst = adversarial_restoration(made.setting, made.part, made.gap, steps=10)
    assert abs(1 - worst.faithfulness) == pytest.approx(0.5)
    assert not (worst.restored & made.part).any()


def test_the_adversary_finds_worse_than_chance_and_says_where(random_setting):
    gap = gap_of(random_setting)
    members = random_circuits(random_setting.graph, 60, 1)[0]
    for seed in range(4):
        found = adversarial_restoration(random_setting, members, gap, steps=15, width=4, seed=seed)
        again = gap.faithfulness(random_setting.values((members | found.restored)[None]))[0]
        assert again == pytest.approx(found.faithfulness) and found.trace[-1] == found.faithfulness
        distances = np.abs(1 - np.array(found.trace))
        assert (np.diff(distances) >= 0).all() and distances[-1] > distances[0] and len(distances) == 16


def test_what_makes_no_sense_is_refused(made):
    with pytest.raises(ValueError, match="unit must be"):
        minimality(made.setting, made.whole, made.gap, unit="head")
    with pytest.raises(ValueError, match="width at least 1"):
        adversarial_restoration(made.setting, made.whole, made.gap, width=0)
