"""How well explanations predict latents, on stories they were not made from, beside what cannot be right.

| score | what | unit |
| --- | --- | --- |
| r | correlation of simulated and true activation over tokens | -1..1 |
| r2 | 1 - squared error / variance, nothing fitted | share |
| average_precision | of "active" ranked by simulated activation, over tokens | 0..1 |
| false_positives | called active and silent | a token |
| detection, fuzzing | balanced accuracy (see `detection`) | 0..1 |
| detection_ap, fuzzing_ap | average precision of the same | 0..1 |

Cuts (of false positives, detection, fuzzing) are chosen on the split to calibrate on. Means are over the latents that
have the score; their intervals are a jackknife over groups of stories (95 %).

Floors: `shuffled`, where each latent has the explanation of another one, and `random coder`, whose latents are
explained by the same explainer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from analyses.explain import Tally, tally
from analyses.result import Result
from analyses.rewriting.coverage import coverage_of
from analyses.rewriting.detection import GROUPS, Judged, judged
from analyses.rewriting.intervention import intervention
from analyses.rewriting.rewriter import Rewriter, Simulations
from analyses.rewriting.setting import Setting
from analyses.statistics import bootstrap_interval

SCORES = (
    "r", "r2", "average_precision", "false_positives", "detection", "detection_ap", "fuzzing", "fuzzing_ap",
)  # fmt: skip
OWN, SHUFFLED, RANDOM = "own", "shuffled", "random coder"
UNITS = {
    "latent": "index", "bits": "bits", "density": "share of tokens", "n_active": "tokens", "r": "correlation",
    "r2": "share of variance", "average_precision": "0..1", "base_rate": "share of tokens",
    "false_positives": "a token", "detection": "balanced accuracy", "detection_ap": "0..1",
    "fuzzing": "balanced accuracy", "fuzzing_ap": "0..1", "intervention": "nats", "intervention_floor": "nats",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scored:
    """Scores of each latent, and their means when some stories are left out.

    Args:
        by_latent: by score, [unit].
        without: by score, mean over latents without each group of stories in turn.
        base_rate: share of tokens at which each latent is active.
        n_active: tokens.
    """

    by_latent: dict[str, np.ndarray]
    without: dict[str, np.ndarray]
    base_rate: np.ndarray
    n_active: np.ndarray

    def mean(self, score: str) -> dict[str, float]:
        """Mean over the latents that have it, with its interval."""
        values = self.by_latent[score]
        there = np.isfinite(values)
        if not there.any():
            return {"value": float("nan"), "ci_low": float("nan"), "ci_high": float("nan"), "n": 0}
        value, left = float(values[there].mean()), self.without[score]
        left = left[np.isfinite(left)]
        apart = float("nan")
        if len(left) > 1:
            se = np.sqrt((len(left) - 1) / len(left) * np.square(left - left.mean()).sum())
            apart = float(stats.t.ppf(0.975, len(left) - 1) * se)
        return {"value": value, "ci_low": value - apart, "ci_high": value + apart, "n": int(there.sum())}


def scored(setting: Setting, rewriter: Rewriter) -> Scored:
    """Scores on the split to score on, with cuts of the split to calibrate on.

    Raises:
        ValueError: too little memory.

    Cost: a simulation of both splits.
    """
    simulations = {split: Simulations(rewriter, setting.stories, getattr(setting.splits, split)) for split in SPLITS}
    fit = judged(setting, rewriter, simulations["calibrate"], "calibrate").summed()
    cuts = {
        "tokens": fit.tokens.best_f1,
        "detection": fit.detection.best_balanced,
        "fuzzing": fit.fuzzing.best_balanced,
    }
    seen = judged(setting, rewriter, simulations["score"], "score")
    told = tally(_Given(simulations["score"], rewriter), setting.source("score", rewriter.latents), setting.stories)
    whole = _scores(seen.summed(), told, cuts)
    groups = np.arange(len(told.rows)) * min(GROUPS, len(told.rows)) // len(told.rows)
    n_groups = int(groups.max()) + 1
    left = [_scores(seen.summed(without=g), _without(told, groups != g), cuts) for g in range(n_groups) if n_groups > 1]
    there = {name: np.isfinite(values) for name, values in whole.items()}
    without = {
        name: np.array([_mean(one[name][there[name]]) for one in left]) if left else np.empty(0) for name in whole
    }
    total = seen.summed().tokens
    return Scored(whole, without, total.base_rate.numpy(), total.n_active.numpy())


SPLITS = ("score", "calibrate")


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _scores(seen: Judged, told: Tally, cuts: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    found = {
        "r": told.pearson,
        "r2": told.r2,
        "average_precision": seen.tokens.average_precision,
        "false_positives": seen.tokens.false_positives(cuts["tokens"]),
        "detection": seen.detection.balanced_accuracy(cuts["detection"]),
        "detection_ap": seen.detection.average_precision,
        "fuzzing": seen.fuzzing.balanced_accuracy(cuts["fuzzing"]),
        "fuzzing_ap": seen.fuzzing.average_precision,
    }
    silent = seen.tokens.n_active == 0  # of a latent that is never active here nothing can be said
    return {name: values.where(~silent, torch.nan).numpy() for name, values in found.items()}


def _without(told: Tally, kept: np.ndarray) -> Tally:
    at = torch.from_numpy(np.flatnonzero(kept))
    names = ("rows", "n", "mean_x", "mean_y", "xx", "yy", "xy")
    return dataclasses.replace(told, **{name: getattr(told, name)[at] for name in names})


class _Given:
    """A simulator that has its answers, of the rows that a pass over the split asks in turn."""

    def __init__(self, simulations: Simulations, rewriter: Rewriter) -> None:
        self.simulations, self.first = simulations, 0
        self.low, self.high = rewriter.simulator.low, rewriter.simulator.high

    def __call__(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        places = torch.arange(self.first, self.first + len(tokens))
        self.first += len(tokens)
        return self.simulations.at(places, tokens.shape[1])


def scores_result(
    setting: Setting,
    name: str,
    rewriters: Mapping[str, Rewriter],
    sets: Mapping[str, Scored],
    missing: Mapping[int, str],
) -> Result:
    """One row a latent and source of scores (`own` and the floors); the means stand in the meta.

    Args:
        name: of the explanations.
        rewriters, sets: by source.
        missing: why latents have no explanation, of those that were asked about.
    """
    rows, means = [], []
    effects = intervention(setting)
    for source, one in sets.items():
        explanations = rewriters[source].explanations
        latents = [e.unit for e in explanations]
        columns: dict[str, Any] = {
            "source": source, "explanations": name, "latent": latents, "bits": [e.bits for e in explanations],
            "density": one.base_rate, "n_active": one.n_active, **one.by_latent,
        }  # fmt: skip
        if source == OWN and effects is not None:
            means_of = {name: of.mean(0)[latents].numpy() for name, of in effects.items()}
            columns |= {"intervention": means_of["effect"], "intervention_floor": means_of["floor"]}
        rows.append(pd.DataFrame(columns))
        means += [{"source": source, "score": score, **one.mean(score)} for score in SCORES]
    means += _intervention_means(effects, setting.seed)
    table = pd.concat(rows, ignore_index=True)
    meta = {
        "explanations": name, "explainer": rewriters[OWN].explainer, "bits": rewriters[OWN].bits, "means": means,
        "coverage": coverage_of(setting, rewriters[OWN].explanations),
        "n_stories": len(setting.splits.score), "missing": {str(k): v for k, v in missing.items()},
    }  # fmt: skip
    return Result("rewriting scores", table, {k: v for k, v in UNITS.items() if k in table}, meta)


def _intervention_means(effects: Mapping[str, Tensor] | None, seed: int) -> list[dict[str, Any]]:
    """Means over latents; intervals are a bootstrap over contexts, one a story."""
    if effects is None:
        return []
    rows = []
    for source, name in ((OWN, "effect"), (SHUFFLED, "floor")):
        values = effects[name].numpy()
        live = np.isfinite(values).all(0)
        mean = values[:, live].mean(1) if live.any() else np.full(len(values), np.nan)
        low, high = bootstrap_interval(mean, seed=seed)
        rows.append({
            "source": source, "score": "intervention", "value": float(mean.mean()), "ci_low": float(low),
            "ci_high": float(high), "n": int(live.sum()),
        })  # fmt: skip
    return rows
