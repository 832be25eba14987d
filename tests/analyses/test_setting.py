"""A task taken apart: prompts in their order, values with their sign."""

import numpy as np
import pytest
import torch

from analyses.localization.setting import setting_of
from sat_lens.tasks.encoding import task_from_ids


@pytest.fixture
def task():
    draw = np.random.default_rng(0)
    lengths = [7, 5, 7, 5, 7, 7]
    rows = [[draw.integers(1, 29, n).tolist() for n in lengths] for _ in range(2)]
    answers = [(i + 1, i + 9) for i in range(len(lengths))]
    return task_from_ids("made", *rows, answers, {}, [])


@pytest.fixture
def model(tiny_model):
    return tiny_model(ablation={"mask": "none"})


def test_every_edge_is_the_model_and_no_edge_the_counterfactual(model, task):
    setting = setting_of(model, task, batch=3)
    graph = setting.graph
    found = setting.values(np.stack([graph.possible, np.zeros_like(graph.possible)]))
    with torch.no_grad():
        expected = [task.logit_difference(model(tokens)).numpy() for tokens in (task.clean, task.corrupt)]
    assert np.abs(found - np.stack(expected)).max() < 1e-10
    assert np.abs(setting.intact_values - expected[0]).max() < 1e-10
    assert np.abs(setting.other_values - expected[1]).max() < 1e-10
    assert setting.n == 6 and setting.unit == "logits"


def test_kl_is_zero_for_the_model_and_negative_for_anything_else(model, task):
    setting = setting_of(model, task, value="kl", ablation="zero")
    assert np.allclose(setting.intact_values, 0, atol=1e-12) and (setting.other_values < 0).all()
    assert setting.unit == "nats"


def test_means_are_over_a_length_whatever_the_batch(model, task):
    small, large = (setting_of(model, task, ablation="positional_mean", batch=b) for b in (1, 64))
    assert len(small.groups) == 6 and len(large.groups) == 2
    assert np.allclose(small.other_values, large.other_values, atol=1e-12)


@pytest.mark.parametrize(("knobs", "said"), [({"value": "loss"}, "value must"), ({"ablation": "none"}, "kind must")])
def test_what_is_unknown_is_refused(model, task, knobs, said):
    with pytest.raises(ValueError, match=said):
        setting_of(model, task, **knobs)


def test_a_frozen_norm_is_that_of_the_intact_run_for_the_other_run_too(model, task):
    setting = setting_of(model, task, frozen_norm=True)
    none = setting.values(np.zeros((1, *setting.graph.possible.shape), dtype=bool))[0]
    assert np.allclose(setting.other_values, none, atol=1e-10)
    assert np.abs(none - setting_of(model, task).other_values).max() > 1e-4
