"""Masks as bits and back, and the ablated stream under masks given from outside."""

import numpy as np
import pytest
import torch

from analyses.leakage.interventions import batches, donated, losses_under
from analyses.leakage.observed import layer_units, observed, unit_masks
from analyses.metrics import cross_entropy
from analyses.texts import Stories

MODELS = {
    "local": {"mask": "local"},
    "global": {"mask": "global"},
    "heads": {"mask": "local", "unit": "head", "k_attn": 2},
    "whole_model": {"mask": "global", "scope": "model"},
    "soft": {"mask": "global", "forward": "soft"},
    "soft_whole_model": {"mask": "local", "forward": "soft", "scope": "model"},
}


@pytest.fixture
def texts():
    draw = torch.Generator().manual_seed(1)
    return Stories(torch.randint(1, 29, (5, 9), generator=draw), torch.tensor([9, 4, 7, 2, 9]))


def build(tiny_model, name):
    return tiny_model(ablation={"k_attn": 3, "k_mlp": 5, **MODELS[name]})


@pytest.mark.parametrize("name", sorted(MODELS))
def test_rows_are_the_predicted_positions_with_their_losses_and_masks(tiny_model, texts, name):
    model = build(tiny_model, name)
    found = observed(model, texts, batch=2)
    assert found.n == int((texts.lengths - 1).sum()) and found.n_stories == 5
    with torch.no_grad():
        both, cache = model.run_with_cache(texts.tokens, stream="both")
    for i in (0, 9, 13, found.n - 1):
        story, pos = int(found.story[i]), int(found.pos[i])
        target = texts.tokens[story, pos + 1]
        assert found.target[i] == target and found.token[i] == texts.tokens[story, pos]
        assert found.loss_clean[i] == pytest.approx(cross_entropy(both.clean[story, pos], target).item(), abs=1e-6)
        assert found.loss_ablated[i] == pytest.approx(cross_entropy(both.ablated[story, pos], target).item(), abs=1e-6)
        neurons = cache["blocks.1.mlp.hook_mask"][story, pos]
        bits = found.masks([i])[0]
        if name.startswith("soft"):
            assert torch.allclose(
                torch.tensor(found.mask_values([i])[0, 1, found.attn_width :]).double(), neurons, atol=1e-3
            )
            assert bits[:, : found.attn_width].sum() == (3 if "whole" in name else 3 * 2)
        else:
            assert np.array_equal(bits[1, found.attn_width :], neurons.bool().numpy())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_rows_of_units_go_back_to_the_masks_they_came_from(tiny_model, texts, name):
    model = build(tiny_model, name)
    with torch.no_grad():
        masks = model.masks_of(model.clean_stream(texts.tokens))
    attn_width = model.cfg.n_heads * (1 if name == "heads" else model.cfg.d_head)
    again = layer_units(unit_masks(masks, model.ablation), model, attn_width)
    for one, other in zip(masks, again, strict=True):
        assert torch.equal(one.attn, other.attn.expand_as(one.attn)) and torch.equal(one.mlp, other.mlp)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_own_masks_give_the_models_own_losses_and_others_do_not(tiny_model, texts, name):
    model = build(tiny_model, name)
    found = observed(model, texts)
    for batch in batches(model, texts, batch=2):
        own = losses_under(model, batch, batch.masks)
        assert np.allclose(own, found.loss_ablated[batch.rows], atol=1e-6)
        again = losses_under(model, batch, donated(batch, found, batch.rows))
        assert np.allclose(own, again, atol=2e-3 if found.soft is not None else 1e-12)
        other = losses_under(model, batch, donated(batch, found, (batch.rows + 5) % found.n))
        assert np.abs(own - other).max() > 1e-3


def test_a_model_without_masks_is_refused(tiny_model, texts):
    with pytest.raises(ValueError, match="model with masks"):
        observed(tiny_model(ablation={"mask": "none"}), texts)
