"""A circuit from masks alone: counts of named units against the masks of a forward pass."""

import numpy as np
import pytest
import torch

from analyses.localization.mask_scores import mask_scores
from analyses.localization.setting import setting_of
from sat_lens.tasks.encoding import task_from_ids


@pytest.fixture
def task():
    draw = np.random.default_rng(0)
    rows = [[draw.integers(1, 29, n).tolist() for n in (7, 5, 7)] for _ in range(2)]
    return task_from_ids("made", *rows, [(i + 1, i + 9) for i in range(3)], {}, [])


@pytest.mark.parametrize("mask", ["local", "global", "both"])
@pytest.mark.parametrize("positions", ["all", "end"])
def test_an_edge_has_the_smaller_count_of_named_units_of_its_ends(tiny_model, task, mask, positions):
    model = tiny_model(ablation={"mask": mask, "k_attn": 3, "k_mlp": 5})
    setting = setting_of(model, task)
    found, graph = mask_scores(setting, positions=positions), setting.graph
    counts = np.zeros((3, 2, graph.n_heads))
    for row in range(3):
        with torch.no_grad():
            _, cache = model.run_with_cache(task.clean[row : row + 1, : task.lengths[row]], stream="both")
        for layer in range(2):
            named = cache[f"blocks.{layer}.attn.hook_mask"][0].sum(-1)
            counts[row, layer] = (named[-1] if positions == "end" else named.mean(0)).numpy()
    heads = counts.mean(0)
    assert heads.sum(1) == pytest.approx([3, 3])
    into = graph.destination_index["a1.h1<q>"]
    for head in range(graph.n_heads):
        score = found[graph.source_index[f"a0.h{head}"], into]
        assert score == pytest.approx(min(heads[0, head], heads[1, 1]))
    assert found[graph.source_index["m0"], -1] == pytest.approx(5)
    assert found[0, -1] == pytest.approx(max(5, heads.max()))
    assert np.isnan(found[~graph.possible]).all()


def test_a_model_without_masks_and_other_positions_are_refused(tiny_model, task):
    with pytest.raises(ValueError, match="model with masks"):
        mask_scores(setting_of(tiny_model(ablation={"mask": "none"}), task))
    with pytest.raises(ValueError, match="positions must be"):
        mask_scores(setting_of(tiny_model(ablation={"mask": "local"}), task), positions="first")
