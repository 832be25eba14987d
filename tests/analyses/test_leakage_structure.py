"""Is the ablated stream wired as it is defined? Models that are, of every kind, and models broken by hand."""

import itertools
import types

import numpy as np
import pytest
import torch

from analyses.leakage.finding import LEAKS, NOTHING, findings_table
from analyses.leakage.observed import observed
from analyses.leakage.random_heads import random_heads
from analyses.leakage.structure import TOLERANCE, structure
from analyses.texts import Stories
from sat_lens.gates import LayerUnits
from sat_lens.model import SelfAblatingTransformer
from tests.cases.architectures import HOSTS

MASKS = {
    "local": {"mask": "local"},
    "global": {"mask": "global"},
    "both": {"mask": "both"},
    "soft": {"mask": "local", "forward": "soft"},
    "heads": {"mask": "local", "unit": "head", "k_attn": 2},
    "whole_model": {"mask": "local", "scope": "model"},
    "of_normalized": {"mask": "local", "score_input": "normalized"},
}
TESTS = {"counterfactual", "future tokens", "future tokens, masks", "later layers"}
OF_MASKS = "later layers, masks"


@pytest.fixture
def texts():
    draw = torch.Generator().manual_seed(1)
    return Stories(torch.randint(29, (5, 9), generator=draw), torch.tensor([9, 4, 7, 2, 9]))


def findings_of(model, texts, **knobs):
    return {finding.test: finding for finding in structure(model, texts, observed(model, texts), **knobs)}


def leaks(found):
    return {name for name, finding in found.items() if finding.verdict(finding.p) == LEAKS}


@pytest.mark.parametrize(
    ("host", "mask"),
    [
        *itertools.product(sorted(HOSTS), ("local", "global")),
        *itertools.product(("the_papers", "rms_rotary_gated"), sorted(set(MASKS) - {"local", "global"})),
    ],
)
def test_what_is_wired_as_defined_deviates_by_rounding_alone(tiny_model, texts, host, mask):
    model = tiny_model(MASKS[mask], **HOSTS[host])
    found = findings_of(model, texts)
    asked = MASKS[mask]["mask"] == "local" and mask != "whole_model"
    assert set(found) == TESTS | ({OF_MASKS} if asked else set())
    for finding in found.values():
        assert finding.value < 0.01 * TOLERANCE and finding.verdict(finding.p) == NOTHING
        assert np.isnan(finding.p) and finding.n > 0 and finding.n_stories == 4
    if MASKS[mask]["mask"] != "local":
        assert found["later layers"].detail["masks_moved"] > 0.5, "global masks are chosen from what comes last"
    elif asked:
        assert found["later layers"].detail["masks_moved"] == 0


@pytest.mark.parametrize("mask", ["global", "soft"])
def test_models_of_single_precision_are_checked_in_double_and_stay_as_they_were(tiny_model, texts, mask):
    model = tiny_model(MASKS[mask], dtype=torch.float32, n_layers=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    found = findings_of(model, texts, n_stories=2)
    assert all(finding.value < 0.01 * TOLERANCE and finding.n_stories == 2 for finding in found.values())
    assert torch.equal(state, torch.get_rng_state()) and model.cfg.dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_random_heads_on_the_same_trunk_are_wired_alike(tiny_model, texts):
    found = findings_of(random_heads(tiny_model(MASKS["global"]), 5), texts)
    assert not leaks(found)


def peeking(self, clean):
    """Each position gets the mask of the next."""
    return [
        LayerUnits(*(None if x is None else x.roll(-1, 1) for x in layer))
        for layer in SelfAblatingTransformer.masks_of(self, clean)
    ]


def of_the_block_itself(self, clean):
    """Local heads read the stream that leaves their block."""
    return SelfAblatingTransformer.masks_of(self, clean._replace(resid_pre=clean.resid_post))


def after_the_block(self, clean, masks):
    """Keys and values of the past come from the clean stream that leaves the block."""
    keys, values = [], []
    for block, x in zip(self.blocks, clean.resid_post, strict=True):
        normed = block.ln1(x)
        keys.append(torch.einsum("bpm,hmd->bphd", normed, block.attn.W_K) + block.attn.b_K)
        values.append(torch.einsum("bpm,hmd->bphd", normed, block.attn.W_V) + block.attn.b_V)
    return SelfAblatingTransformer.ablated_stream(self, clean._replace(k=keys, v=values), masks)


def with_all_neurons(self, clean, masks):
    """The masks of neurons are forgotten."""
    kept = [layer._replace(mlp=torch.ones_like(layer.mlp)) for layer in masks]
    return SelfAblatingTransformer.ablated_stream(self, clean, kept)


def hearing_the_next_token(self, clean, masks):
    """A thousandth of the embedding of the next token is added to the ablated stream's start."""
    start = clean.resid_pre[0] + 1e-3 * clean.resid_pre[0].roll(-1, 1)
    clean = clean._replace(resid_pre=[start, *clean.resid_pre[1:]])
    return SelfAblatingTransformer.ablated_stream(self, clean, masks)


BROKEN = {
    "peeking": ("masks_of", peeking, {"future tokens", "future tokens, masks"}),
    "of_the_block_itself": ("masks_of", of_the_block_itself, {OF_MASKS}),
    "after_the_block": ("ablated_stream", after_the_block, {"counterfactual", "later layers"}),
    "with_all_neurons": ("ablated_stream", with_all_neurons, {"counterfactual"}),
    "hearing_the_next_token": ("ablated_stream", hearing_the_next_token, {"counterfactual", "future tokens"}),
}


@pytest.mark.parametrize("name", sorted(BROKEN))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_broken_by_hand_are_called_by_the_tests_that_must_see_it_and_no_others(tiny_model, texts, name, dtype):
    method, broken, expected = BROKEN[name]
    model = tiny_model(MASKS["local"], dtype=dtype)
    setattr(model, method, types.MethodType(broken, model))
    found = findings_of(model, texts)
    assert leaks(found) == expected
    for test in expected:
        assert found[test].value > 1e4 * TOLERANCE
    table = findings_table(list(found.values()))
    assert set(table.test[: len(expected)]) == expected and set(table.verdict[len(expected) :]) == {NOTHING}


def test_deviations_that_are_no_number_are_no_evidence_of_anything(tiny_model, texts):
    model = tiny_model(MASKS["local"])
    with torch.no_grad():
        model.blocks[1].mlp.b_out[0] = float("nan")
    found = findings_of(model, texts)
    assert found["counterfactual"].verdict(float("nan")) not in (LEAKS, NOTHING)


def test_an_error_of_known_size_is_measured(tiny_model, texts):
    model = tiny_model(MASKS["local"], normalization_type=None)

    def shifted(self, clean, masks):
        found = SelfAblatingTransformer.ablated_stream(self, clean, masks)
        return found._replace(logits=found.logits + 0.25)

    model.ablated_stream = types.MethodType(shifted, model)
    finding = findings_of(model, texts)["counterfactual"]
    assert finding.value * finding.detail["largest"] == pytest.approx(0.25, rel=1e-9)
