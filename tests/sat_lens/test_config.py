"""SelfAblation: validated, frozen, and the same after a round trip."""

import dataclasses

import pytest

from sat_lens import SelfAblation

WIDTHS = {"n_layers": 3, "n_heads": 4, "d_head": 8, "d_mlp": 50}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mask", "sideways", "mask must be one of none, local, global, both; got 'sideways'"),
        ("estimator", "relu", "estimator must be one of sigmoid, softmax; got 'relu'"),
        ("forward", "medium", "forward must be one of hard, soft; got 'medium'"),
        ("unit", "layer", "unit must be one of channel, head; got 'layer'"),
        ("scope", "head", "scope must be one of layer, model; got 'head'"),
        ("score_input", "cooked", "score_input must be one of raw, normalized; got 'cooked'"),
        ("detach", "all", "detach must be one of none, scores, trunk; got 'all'"),
        ("detach", None, "detach must be one of none, scores, trunk; got None"),
        ("k_attn", 0, "k_attn must be a whole number of at least 1; got 0"),
        ("k_attn", True, "k_attn must be a whole number of at least 1; got True"),
        ("k_mlp", 2.5, "k_mlp must be a whole number of at least 1; got 2.5"),
        ("k_mlp", "4", "k_mlp must be a whole number of at least 1; got '4'"),
        ("temperature", 0.0, "temperature must be a number above 0; got 0.0"),
        ("temperature", None, "temperature must be a number above 0; got None"),
        ("temperature", float("nan"), "temperature must be a number above 0; got nan"),
        ("temperature", float("inf"), "temperature must be a number above 0; got inf"),
        ("temperature_mlp", -1.0, "temperature_mlp must be a number above 0; got -1.0"),
        ("gap_floor", -0.1, "gap_floor must be a finite number of at least 0; got -0.1"),
        ("score_noise", float("inf"), "score_noise must be a finite number of at least 0; got inf"),
        ("w_clean", -1.0, "w_clean must be a finite number of at least 0; got -1.0"),
        ("w_ablated", float("inf"), "w_ablated must be a finite number of at least 0; got inf"),
        ("w_reconstruction", "x", "w_reconstruction must be a finite number of at least 0; got 'x'"),
    ],
)
def test_a_field_out_of_range_is_refused_with_the_range_and_the_value(field, value, message):
    config = object.__new__(SelfAblation)  # the type hook of the tests would refuse wrong types before the check
    for name, content in (SelfAblation().to_dict() | {field: value}).items():
        object.__setattr__(config, name, content)
    with pytest.raises(ValueError) as refusal:
        config.__post_init__()
    assert str(refusal.value) == message


def test_a_refusal_reaches_the_caller_of_the_constructor():
    with pytest.raises(ValueError, match="k_attn must be a whole number of at least 1; got 0"):
        SelfAblation(k_attn=0)


def test_zero_weights_and_a_zero_gap_floor_are_fine():
    SelfAblation(gap_floor=0.0, w_clean=0.0, w_ablated=0.0, w_reconstruction=0.0)


def test_the_default_is_the_published_configuration():
    default = SelfAblation()
    assert (default.mask, default.forward, default.estimator) == ("local", "hard", "sigmoid")
    assert (default.temperature, default.gap_floor, default.detach) == (1.0, 0.0, "none")
    assert (default.w_clean, default.w_ablated, default.w_reconstruction) == (0.5, 0.5, 0.0)


def test_a_configuration_survives_to_dict_and_from_dict():
    chosen = SelfAblation(
        mask="both", k_attn=2, k_mlp=7, temperature=0.1, temperature_mlp=0.3, estimator="softmax", forward="soft",
        gap_floor=1e-3, score_noise=0.5, unit="head", scope="model", score_input="normalized", detach="trunk",
        w_clean=1.0, w_ablated=0.1, w_reconstruction=0.1,
    )  # fmt: skip
    fields = chosen.to_dict()
    assert SelfAblation.from_dict(fields) == chosen
    defaults = SelfAblation().to_dict()
    assert all(fields[name] != defaults[name] for name in defaults), "every field should be tried"


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match="unknown self-ablation field 'kappa'; known are detach, "):
        SelfAblation.from_dict({"mask": "local", "kappa": 4})


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SelfAblation().k_attn = 5


@pytest.mark.parametrize(
    ("fields", "width_attn", "width_mlp"),
    [
        ({}, 32, 50),
        ({"unit": "head"}, 4, 50),
        ({"scope": "model"}, 96, 150),
        ({"unit": "head", "scope": "model"}, 12, 150),
    ],
)
def test_k_may_be_as_large_as_the_units_it_chooses_from_and_no_larger(fields, width_attn, width_mlp):
    widest = {"k_attn": width_attn, "k_mlp": width_mlp}
    assert SelfAblation(**widest, **fields).fit(**WIDTHS).k_attn == width_attn
    for name, width in widest.items():
        expected = f"{name} must be between 1 and the {width} units it chooses from; got {width + 1}"
        with pytest.raises(ValueError, match=expected):
            SelfAblation(**widest | {name: width + 1}, **fields).fit(**WIDTHS)


def test_k_is_not_checked_where_nothing_is_chosen():
    SelfAblation(mask="none", k_attn=10_000, k_mlp=10_000).fit(**WIDTHS)
    SelfAblation(k_mlp=10_000).fit(n_layers=3, n_heads=4, d_head=8, d_mlp=0)  # a model without MLPs
