"""Arms compared: seeds are the observations, and three of them cannot give a small exact p-value."""

import numpy as np
import pandas as pd
import pytest

from analyses.arms import COLUMNS, arm_of, arms_table, difference, differences
from analyses.result import Result
from sat_lens.config import SelfAblation


def meta(mask="local", seed=0, checkpoint="a", **changes):
    changes = changes if mask == "none" else {"k_attn": 4, "k_mlp": 4, **changes}
    ablation = SelfAblation(mask=mask, **changes).to_dict()
    return {"checkpoint": checkpoint, "ablation": ablation, "training": {"seed": seed}}


def test_an_arm_is_named_after_what_sets_it_apart():
    assert arm_of(meta("none", 2)) == {"arm": "none", "mask": "none", "k": None, "seed": 2}
    assert arm_of(meta())["arm"] == "local k=4"
    soft = arm_of(meta("global", forward="soft", detach="scores", gap_floor=0.5, score_noise=1.0, k_mlp=8))
    assert soft["arm"] == "global k=4/8 soft detach scores gap floor 0.5 score noise 1" and soft["k"] == "4/8"
    assert arm_of({"checkpoint": "gpt2", "ablation": None, "training": {}})["arm"] == "gpt2"


def test_a_row_a_model_and_metric():
    results = [Result("x", pd.DataFrame(), {}, meta(seed=s, checkpoint=f"c{s}")) for s in (0, 1)]
    measured = {f"c{s}": [{"metric": "edges", "value": 10.0 + s, "n": 8}] for s in (0, 1)}
    table = arms_table(results, measured)
    assert tuple(table.columns) == COLUMNS
    assert table.value.tolist() == [10.0, 11.0] and table.seed.tolist() == [0, 1] and table.ci_low.isna().all()


def long(arms):
    rows = [(arm, "m", v, seed) for arm, values in arms.items() for seed, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["arm", "metric", "value", "seed"])


def test_three_seeds_against_three_by_hand():
    found = differences(long({"none": [1.0, 2.0, 3.0], "local": [4.0, 5.0, 6.0], "global": [1.0, 2.0, 3.0]}))
    local, same = (found[found.arm == arm].iloc[0] for arm in ("local", "global"))
    assert local.difference == pytest.approx(3) and local.p == pytest.approx(0.1) == local.smallest_p
    # both variances are 1: the standard error is sqrt(2/3), with 4 degrees of freedom t = 2.776445
    assert local.ci_low == pytest.approx(3 - 2.776445 * np.sqrt(2 / 3), abs=1e-5) and local.claim
    assert same.difference == 0 and same.p == 1 and not same.claim
    assert local.p_holm == pytest.approx(0.2)
    assert local.p_welch == pytest.approx(0.021312, 1e-3) and local.p_welch_holm == pytest.approx(0.042624, 1e-3)


def test_what_holds_alone_is_no_claim_among_many():
    arms = {"none": [1.0, 2.0, 3.0], "local": [4.0, 5.0, 6.0]}
    one = differences(long(arms))
    many = differences(pd.concat([long(arms), *(long(arms).assign(metric=name) for name in "abc")]))
    assert one.claim.all() and not many.claim.any() and (many.ci_low > 0).all()


def test_a_difference_without_any_spread_is_no_claim():
    found = differences(long({"none": [64.0] * 3, "local": [32.0] * 3, "global": [64.0] * 3}))
    local, same = (found[found.arm == arm].iloc[0] for arm in ("local", "global"))
    assert local.difference == -32 and np.isnan(local.p_welch) and not local.claim
    assert same.p_welch == 1 and not same.claim


def test_two_seeds_are_no_claim_and_one_has_no_interval():
    found = differences(long({"none": [1.0, 1.0], "local": [9.0, 9.0], "global": [9.0]}))
    two, one = (found[found.arm == arm].iloc[0] for arm in ("local", "global"))
    assert (two.ci_low, two.ci_high) == (8, 8) and not two.claim
    assert np.isnan(one.ci_low) and np.isnan(one.p) and not one.claim
    assert differences(long({"local": [1.0, 2.0]})).empty


def test_an_arm_whose_seeds_are_all_alike_is_compared_without_a_warning(recwarn):
    found = difference(np.array([1.0, 1.0, 1.0]), np.array([0.7, 0.8, 0.9]))
    assert not recwarn.list and found["ci_low"] < 0.2 < found["ci_high"] and found["difference"] == pytest.approx(0.2)
