"""Faithfulness by hand: curves, areas with their invariants, and the size that a circuit needs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analyses.localization.faithfulness import MIB_SIZES, SIGNS, Curve, Gap, area, circuits_of, cmd, cpr, curve, gap_of
from analyses.localization.matched_size import circuit_at_faithfulness, smallest
from analyses.localization.setting import setting_of
from sat_lens.tasks.encoding import task_from_ids

N = 46  # edges of two layers of two heads with MLPs


def sized(f, sizes=MIB_SIZES, n=2):
    """A curve of these faithfulnesses, the same on every prompt."""
    gap = Gap(np.ones(n), np.zeros(n), n_bootstrap=20)
    zeros = np.zeros(len(sizes), dtype=int)
    return Curve(np.array(sizes), zeros, zeros, np.tile(np.array(f, dtype=float)[:, None], n), gap, "absolute")


def test_f_is_a_ratio_of_means_resampled_together():
    gap = Gap(np.array([3.0, 1.0]), np.array([1.0, 0.0]))
    values = np.array([[2.0, 1.0]])
    assert gap.faithfulness(values)[0] == pytest.approx(2 / 3)  # (1 + 1) / (2 + 1); the mean of ratios is 3/4
    assert gap.interval(values)[:, 0] == pytest.approx([0.5, 1])  # each prompt twice: 1/2 and 1/1
    assert set(np.round(gap.resampled(values)[0], 6)) == {0.5, 0.666667, 1.0}


def test_without_a_gap_there_is_no_faithfulness_and_the_reason_is_given():
    none = Gap(np.array([2.0, 2.0]), np.array([2.0, 2.0]))
    assert np.isnan(none.faithfulness(np.ones((1, 2)))).all() and "same value" in none.note
    unsure = Gap(np.array([5.0, -4.0, 1.0]), np.zeros(3))
    assert unsure.faithfulness(np.array([[5.0, -4.0, 1.0]]))[0] == 1
    assert np.isnan(unsure.interval(np.zeros((1, 3)))).all() and "may be 0" in unsure.note
    worse = Gap(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    assert worse.faithfulness(np.array([[0.5, 1.0, 1.5]]))[0] == 0.5 and "worse than the other run, by 2" in worse.note


@pytest.mark.parametrize(
    ("f", "expected_cpr", "expected_cmd"),
    [([1.0] * 10, 0.999, 0.0), ([0.0] * 9 + [1.0], 0.25, 0.749), ([2.0] * 9 + [1.0], 1.748, 0.749)],
)
def test_areas_are_those_of_mib(f, expected_cpr, expected_cmd):
    found = [*cpr(sized(f)), *cmd(sized(f))]
    assert found == pytest.approx([expected_cpr] * 3 + [expected_cmd] * 3, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-3, 1), min_size=10, max_size=10))
def test_areas_add_up_where_nothing_overshoots(f):
    for axis, width in (("share", 0.999), ("log", 1.0)):
        assert cpr(sized(f), axis).value + cmd(sized(f), axis).value == pytest.approx(width, abs=1e-9)


def test_areas_on_a_log_axis_weigh_decades_alike():
    step = sized([0, 1, 1], sizes=(0.01, 0.1, 1.0))
    assert cpr(step, "log").value == pytest.approx(0.75)  # a ramp over the first decade, 1 over the second
    assert cpr(step).value == pytest.approx(0.09 / 2 + 0.9)


def test_areas_have_intervals_over_prompts():
    gap = Gap(np.array([3.0, 1.0]), np.array([1.0, 0.0]))
    zeros = np.zeros(2, dtype=int)
    flat = Curve(np.array([0.5, 1.0]), zeros, zeros, np.array([[2.0, 1.0]] * 2), gap, "absolute")
    assert cpr(flat) == pytest.approx((0.5 * 2 / 3, 0.5 * 0.5, 0.5 * 1))
    assert cmd(flat) == pytest.approx((0.5 / 3, 0, 0.25))


def test_curve_of_three_paths(three_paths):
    made = three_paths()
    shares = [k / N for k in (1, 3, 4, 5, 20, N)]
    found = {sign: curve(made.setting, made.scores(5, 4, 3, -2, 1), sizes=shares, sign=sign) for sign in SIGNS}
    table = found["absolute"].table
    assert table["n_edges"].tolist() == [1, 3, 4, 5, 20, N]
    assert table["n_edges_pruned"].tolist()[:4] == [0, 3, 4, 5]
    assert table["faithfulness"].to_numpy() == pytest.approx([0, 1, 0.5, 1, 1, 1], abs=1e-12)
    assert table["value"].to_numpy() == pytest.approx([-2, 2, 0, 2, 2, 2], abs=1e-12)
    assert (table["n"] == 3).all() and (table["note"] == "").all()
    assert found["signed"].faithfulness == pytest.approx([0, 1, 1.5, 1.5, 1.5, 1], abs=1e-12)
    # every prompt says the same: an interval of width 0
    assert table[["low", "high"]].to_numpy() == pytest.approx(np.repeat(table[["faithfulness"]].to_numpy(), 2, 1))


def test_kl_has_the_intact_model_at_zero(three_paths):
    made = three_paths(value="kl")
    found = curve(made.setting, made.scores(5, 4, 3, -2, 1), sizes=[1 / N, 3 / N, 4 / N, 1.0])
    assert found.gap.intact == pytest.approx(0, abs=1e-12) and found.gap.size > 0
    assert found.faithfulness[[0, 1, 3]] == pytest.approx([0, 1, 1], abs=1e-12)
    assert 0.5 < found.faithfulness[2] < 1  # KL is convex: half of the logits is more than half of the way


def test_a_task_that_the_counterfactual_does_as_well_has_no_curve(three_paths):
    made = three_paths()
    clean = made.task.clean.tolist()
    same = task_from_ids("same", clean, clean, [(27, 28)] * 3, {}, [])
    found = curve(setting_of(made.model, same), made.scores(5, 4, 3, 2, 1))
    assert found.table["faithfulness"].isna().all() and found.table["note"].str.contains("same value").all()
    assert np.isnan(cpr(found)).all() and np.isnan(cmd(found)).all()
    none = circuit_at_faithfulness(setting_of(made.model, same), made.scores(5, 4, 3, 2, 1))
    assert np.isnan(none.n_edges) and "same value" in none.note and not none.members.any()


@pytest.fixture
def random_setting(tiny_model):
    draw = np.random.default_rng(0)
    rows = [[draw.integers(1, 29, n).tolist() for n in (7, 5, 7, 5, 7)] for _ in range(2)]
    task = task_from_ids("made", *rows, [(i + 1, i + 9) for i in range(5)], {}, [])
    model = tiny_model(ablation={"mask": "none"})
    return lambda **knobs: setting_of(model, task, **knobs)


def test_dead_ends_change_nothing_but_where_constants_can_leave_them(random_setting):
    for ablation, alike in (("resample", True), ("mean", False)):
        setting = random_setting(ablation=ablation)
        scores = np.where(
            setting.graph.possible, np.random.default_rng(3).normal(size=setting.graph.possible.shape), np.nan
        )
        whole, pruned = (curve(setting, scores, prune=prune) for prune in (False, True))
        assert (whole.n_pruned < whole.n_edges)[3:7].any()
        assert (np.abs(whole.values - pruned.values).max() < 1e-10) == alike


@pytest.mark.parametrize("frozen", [False, True])
def test_no_edge_is_zero_and_every_edge_one_with_the_norm_frozen_too(random_setting, frozen):
    setting = random_setting(frozen_norm=frozen)
    gap = gap_of(setting)
    graph = setting.graph
    values = setting.values(np.stack([np.zeros_like(graph.possible), graph.possible]))
    assert gap.faithfulness(values) == pytest.approx([0, 1], abs=1e-9)
    assert np.abs(gap.intact - setting.intact_values).max() < 1e-10


def test_smallest_size_by_both_rules():
    holds = np.array([[0, 1, 0, 1, 1], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=bool).T
    assert smallest(holds).tolist() == [3, 4, 0, 4]  # the last size has all edges: it always is faithful
    assert smallest(holds, lasting=False).tolist() == [1, 1, 0, 4]


@pytest.mark.parametrize("step", [1.25, 4.0])
@pytest.mark.parametrize(
    ("knobs", "expected", "f"),
    [
        ({}, 5, 1),  # 0.5 at 4 edges
        ({"threshold": 0.4}, 3, 1),
        ({"sign": "signed"}, 3, 1),
        ({"sign": "signed", "two_sided": True}, N, 1),  # 1.5 until e4 comes last
    ],
)
def test_size_at_faithfulness_is_found_whatever_the_grid(three_paths, step, knobs, expected, f):
    made = three_paths()
    found = circuit_at_faithfulness(made.setting, made.scores(5, 4, 3, -2, 1), step=step, **knobs)
    assert (found.n_edges, found.low, found.high) == (expected,) * 3
    assert found.faithfulness == pytest.approx(f) and found.note == ""
    sign = knobs.get("sign", "absolute")
    members = circuits_of(made.setting, made.scores(5, 4, 3, -2, 1), np.array([expected]), sign)[1][0]
    assert (found.members == members).all() and found.n_edges_pruned == members.sum()


def test_the_first_faithful_size_may_come_before_the_lasting_one(three_paths):
    made = three_paths()
    found = circuit_at_faithfulness(made.setting, made.scores(5, 4, 3, -2, 1), lasting=False)
    assert found.n_edges == 3 and (found.members == made.circuit(1, 2, 3)).all()


def test_the_interval_of_the_size_is_over_prompts(three_paths):
    """f(e1 e2 e3) is the share of the prompts that are not direct, 1/2; with e5 it is 1 + half of that share.

    At 0.7 four edges are needed, but three where 6 or more of 8 drawn prompts are not direct: 14 % of resamples.
    """
    made = three_paths(values=(1.0,) * 4, direct=(1.0,) * 4)
    ask = {"threshold": 0.7, "sign": "signed"}
    found = circuit_at_faithfulness(made.setting, made.scores(5, 4, 3, -2, 1), **ask)
    assert (found.n_edges, found.low, found.high) == (4, 3, 4)
    # at 0.2 three are too many: f(e1 e2 e3) falls short where 0 or 1 of 8 are left, 3.5 % of resamples
    assert circuit_at_faithfulness(made.setting, made.scores(5, 4, 3, -2, 1), 0.2, sign="signed").high == 4


def test_what_makes_no_sense_is_refused(three_paths):
    made = three_paths()
    scores = made.scores(5, 4, 3, 2, 1)
    for call, said in (
        (lambda: curve(made.setting, scores, sign="both"), "sign must be"),
        (lambda: curve(made.setting, scores, sizes=[0.5, 0.1]), "ascending"),
        (lambda: curve(made.setting, scores, sizes=[0.0, 0.1]), "above 0"),
        (lambda: cpr(sized([1.0] * 10), "edges"), "axis must be"),
        (lambda: area(np.array([0.5]), np.array([1.0])), "at least 2"),
        (lambda: circuit_at_faithfulness(made.setting, scores, 1.0), "between 0 and 1"),
        (lambda: circuit_at_faithfulness(made.setting, scores, step=1.0), "above 1"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
