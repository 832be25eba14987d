"""Resampled prompts, circuits found again, and one circuit under several ablations."""

import numpy as np
import pytest

from analyses.localization.faithfulness import gap_of
from analyses.localization.setting import setting_of
from analyses.localization.stability import bootstrap_inclusion, resampled, sensitivity
from sat_lens.tasks.encoding import task_from_ids


@pytest.fixture
def task():
    draw = np.random.default_rng(0)
    rows = [[draw.integers(1, 29, n).tolist() for n in (7, 5, 7, 5, 7)] for _ in range(2)]
    return task_from_ids("made", *rows, [(i + 1, i + 9) for i in range(5)], {}, [])


@pytest.fixture
def model(tiny_model):
    return tiny_model(ablation={"mask": "none"})


@pytest.mark.parametrize("rows", [[4, 0, 0, 3, 3, 3, 1], [2], [1, 3, 1]])
@pytest.mark.parametrize("value", ["logit_diff", "kl"])
def test_resampled_prompts_have_the_values_they_had(model, task, rows, value):
    setting = setting_of(model, task, batch=2, value=value, ablation="positional_mean")
    part = resampled(setting, np.array(rows))
    members = np.random.default_rng(1).random((3, *setting.graph.possible.shape)) < 0.7
    assert part.n == len(rows)
    assert np.abs(part.values(members) - setting.values(members)[:, rows]).max() < 1e-10
    assert np.array_equal(part.intact_values, setting.intact_values[rows])
    assert np.array_equal(part.other_values, setting.other_values[rows])


def falls(made):
    """The fall of the value when one of the five edges is cut; the others' is 0."""

    def method(setting):
        cuts = np.stack([made.circuit(edge) for edge in range(1, 6)])
        values = setting.values(np.concatenate([setting.graph.possible[None], setting.graph.possible & ~cuts])).mean(1)
        return made.scores(*(values[0] - values[1:]))

    return method


def test_inclusion_is_the_chance_that_an_edge_is_found_again(three_paths):
    """Of 8 prompts a are not direct. e2 is worth 2a/8 and e5 2 - a/8: e5 comes first where a < 6, 86 % of resamples."""
    made = three_paths(values=(1.0,) * 4, direct=(1.0,) * 4)
    found = bootstrap_inclusion(made.setting, falls(made), n_edges=1, n_bootstrap=100)
    table = found.table().set_index("edge")
    assert set(table.index) == {"input->logits", "m0->m1"} and table["in_circuit"].tolist() == [True, False]
    share = table["inclusion"]["input->logits"]
    assert share == pytest.approx(0.8555, abs=4 * 0.035) and share + table["inclusion"]["m0->m1"] == pytest.approx(1)
    pairs = 100 * 99 / 2
    k = round(share * 100)
    assert found.jaccard == pytest.approx((k * (k - 1) / 2 + (100 - k) * (99 - k) / 2) / pairs)
    assert found.expected_jaccard == pytest.approx(1 / 46)
    assert np.isnan(found.share[~made.setting.graph.possible]).all()
    again = bootstrap_inclusion(made.setting, falls(made), n_edges=1, n_bootstrap=5)
    assert np.array_equal(again.found, found.found[:5])


def test_a_circuit_that_every_prompt_agrees_on_is_always_found(three_paths):
    made = three_paths()
    found = bootstrap_inclusion(made.setting, lambda setting: falls(made)(setting) > 0.1, n_bootstrap=5)
    assert (found.members == made.circuit(1, 2, 3, 5)).all()
    assert found.jaccard == 1 and (found.table()["inclusion"] == 1).all()


def test_a_linear_circuit_is_as_faithful_under_every_ablation(three_paths):
    made = three_paths()
    for edges, f in (((1, 2, 3), 1), ((1, 4), -0.5), ((1, 2, 3, 5), 1.5)):
        table = sensitivity(made.model, made.task, made.circuit(*edges))
        assert len(table) == 8 and table["faithfulness"].to_numpy() == pytest.approx(f)
        assert table.groupby("ablation")["gap"].nunique().max() == 1


def test_sensitivity_is_the_faithfulness_of_each_setting(model, task):
    setting = setting_of(model, task)
    members = setting.graph.possible & (np.random.default_rng(1).random(setting.graph.possible.shape) < 0.8)
    table = sensitivity(model, task, members, ablations=("mean", "zero"))
    for row in table.itertuples():
        now = setting_of(model, task, ablation=row.ablation, frozen_norm=row.frozen_norm)
        gap = gap_of(now)
        assert row.faithfulness == pytest.approx(gap.faithfulness(now.values(members[None]))[0], nan_ok=True)
        assert row.gap == pytest.approx(gap.size) and row.n == 5 and row.unit == "logits"
    assert table["faithfulness"].nunique() == 4


def test_what_makes_no_sense_is_refused(three_paths):
    made = three_paths()
    for call, said in (
        (lambda: resampled(made.setting, np.array([3])), "0 to 2"),
        (lambda: resampled(made.setting, np.array([], dtype=int)), "0 rows"),
        (lambda: bootstrap_inclusion(made.setting, falls(made), n_bootstrap=1), "n_edges is for"),
        (lambda: bootstrap_inclusion(made.setting, falls(made), n_edges=1, sign="both"), "sign must be"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
