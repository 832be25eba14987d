"""Arms of an experiment compared: how models were trained is the arm, a seed is one observation of it.

A comparison of models needs three seeds an arm or more. Two kinds of spread are kept apart: the interval of
one model's number is over prompts or stories (the question gives it), that of a difference between arms
is over seeds (Welch's t), since the claim is about the way of training and not about one model.

With 3 seeds against 3 there are 20 ways to deal them out: no exact permutation p-value is below 0.1. A claim therefore
rests on Welch's t (seeds taken for normal) after Holm's correction over all rows of a table; both p-values are given.
"""

import warnings
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analyses.result import Result
from analyses.statistics import holm, permutation_p_value

COLUMNS = ("arm", "mask", "k", "seed", "metric", "value", "ci_low", "ci_high", "n")
FEWEST_SEEDS = 3
LEVEL = 0.05
"""Of the corrected tests; intervals cover 1 - LEVEL."""


def arm_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """`arm`, `mask`, `k` and `seed` of a result's model, from the meta that `provenance` gives.

    An arm is named after what sets it apart: `none`, `local k=4`, `global k=4 soft`. A model that was not trained
    here is an arm of its own, named after its checkpoint.
    """
    ablation, training = meta.get("ablation"), meta.get("training") or {}
    seed = training.get("seed")
    if ablation is None or seed is None:
        return {"arm": str(meta.get("checkpoint", "unknown")), "mask": "none", "k": None, "seed": seed}
    mask = ablation["mask"]
    if mask == "none":
        return {"arm": "none", "mask": "none", "k": None, "seed": seed}
    k = ablation["k_mlp"] if ablation["k_attn"] == ablation["k_mlp"] else f"{ablation['k_attn']}/{ablation['k_mlp']}"
    apart = [ablation["forward"]] if ablation["forward"] != "hard" else []
    apart += [f"detach {ablation['detach']}"] if ablation["detach"] != "none" else []
    apart += [f"gap floor {ablation['gap_floor']:g}"] if ablation["gap_floor"] else []
    apart += [f"score noise {noise:g}"] if (noise := ablation.get("score_noise")) else []
    return {"arm": " ".join([mask, f"k={k}", *apart]), "mask": mask, "k": k, "seed": seed}


def few_seeds(rows: pd.DataFrame) -> str:
    """What stands behind a count of differences that could not hold: a claim needs three seeds an arm."""
    n = int(rows[["n_seeds", "n_baseline"]].to_numpy().min())
    return "" if n >= FEWEST_SEEDS else f"; no claim is made with fewer than {FEWEST_SEEDS} seeds an arm"


def arms_table(results: Sequence[Result], measured: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """One row a model and metric, with the columns of COLUMNS.

    Args:
        results: one a model, with provenance.
        measured: by checkpoint (as in the meta), rows with `metric`, `value`, `ci_low`, `ci_high`, `n`.
    """
    rows = [
        {**arm_of(result.meta), **{key: row.get(key, np.nan) for key in COLUMNS[4:]}}
        for result in results
        for row in measured[result.meta["checkpoint"]]
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def differences(table: pd.DataFrame, baseline: str = "none") -> pd.DataFrame:
    """Each arm against the baseline, by metric; arms with fewer than two seeds have no interval.

    Args:
        table: of `arms_table`.
        baseline: an arm's name.

    Returns:
        `metric, arm, baseline, difference` (mean over seeds, arm minus baseline, unit of the metric), `ci_low, ci_high`
        (95 %, Welch's t over seeds, of this row alone), `p_welch` (NaN where no side has any spread), `p_welch_holm`
        (corrected over all rows), `p` (exact permutation of seeds, two-sided), `smallest_p` that so many seeds can
        give, `p_holm`, `n_seeds`, `n_baseline`, `claim` (whether three seeds stand on both sides and `p_welch_holm` is
        below 0.05).
    """
    rows = []
    for metric, part in table.groupby("metric", sort=False):
        by_arm = {str(arm): rows_.value.dropna().to_numpy(float) for arm, rows_ in part.groupby("arm", sort=False)}
        base = by_arm.pop(baseline, np.empty(0))
        for arm, values in by_arm.items():
            if len(values) and len(base):
                rows.append({"metric": metric, "arm": arm, "baseline": baseline, **difference(values, base)})
    found = pd.DataFrame(rows)
    if len(found):
        found.insert(found.columns.get_loc("p_welch") + 1, "p_welch_holm", holm(found.p_welch))
        found.insert(found.columns.get_loc("smallest_p") + 1, "p_holm", holm(found.p))
        enough = found[["n_seeds", "n_baseline"]].min(axis=1) >= FEWEST_SEEDS
        found["claim"] = enough & (found.p_welch_holm < LEVEL)
    return found


def difference(values: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    """Mean of `values` minus mean of `base`, with Welch's interval and an exact permutation test over seeds."""
    n, m = len(values), len(base)
    low = high = welch = p = smallest = float("nan")
    if n > 1 and m > 1:
        if np.ptp(values) == 0 == np.ptp(base):  # no spread at all: Welch's t is 0/0
            low = high = float(values.mean() - base.mean())
            welch = 1.0 if low == 0 else float("nan")  # nothing to judge a difference by
        else:
            with warnings.catch_warnings():  # scipy minds a sample whose values are all equal; the other one is not
                warnings.simplefilter("ignore", RuntimeWarning)
                found = stats.ttest_ind(values, base, equal_var=False)
                interval = found.confidence_interval(1 - LEVEL)
            low, high, welch = float(interval.low), float(interval.high), float(found.pvalue)
        p = permutation_p_value(values, base)
        smallest = min(1.0, 2 / comb(n + m, n))
    return {
        "difference": float(values.mean() - base.mean()), "ci_low": low, "ci_high": high,
        "p_welch": welch, "p": p, "smallest_p": smallest, "n_seeds": n, "n_baseline": m,
    }  # fmt: skip
