"""Rankings of units against one circuit: the masks' usage, beside other rankings and nulls; see `mask_overlap`."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analyses.localization.overlap import (
    MEASURES,
    auroc,
    middle,
    overlaps,
    quantile_strata,
    shuffled,
    top_members,
    upper_p_value,
)
from analyses.localization.unit_circuit import Units
from analyses.statistics import bootstrap_weights

UNIT_OF = {"auroc": "AUROC", "average_precision": "precision", "jaccard": "share", "prompt_auroc": "AUROC"}
ENDS = ("ci_low", "ci_high")
DIFFERENCE = ("difference_low", "difference_high")
Weights = Float[np.ndarray, "resample n"]


@dataclasses.dataclass(frozen=True)
class Rows:
    """What is compared at one kind of positions, prompt by prompt, units in the order of `unit_circuit`.

    Args:
        usage: of the masks on the task.
        other: of the masks on the other text.
        magnitude: mean |activation| on the task.
        scores: of the units; one row where they are not known prompt by prompt.
    """

    usage: Float[np.ndarray, "n unit"]
    other: Float[np.ndarray, "n_other unit"]
    magnitude: Float[np.ndarray, "n unit"]
    scores: Float[np.ndarray, "one_or_n unit"]


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Rankings as scores of units.

    Args:
        whole: over all prompts, by name; `mask` is one of them.
        resampled: the same over resamples of the prompts.
        nulls: scores whose units are dealt anew.
    """

    whole: dict[str, Float[np.ndarray, "1 unit"]]
    resampled: dict[str, Float[np.ndarray, "resample unit"]]
    nulls: dict[str, Float[np.ndarray, "shuffle unit"]]


def strata_of(units: Units) -> Int[np.ndarray, " unit"]:
    """A number for each unit's layer and site."""
    found = np.empty(units.n, dtype=int)
    for i, (layer, site) in enumerate(units.sites):
        found[units.columns(layer, site)] = i
    return found


def overlap_table(
    rows: Rows, units: Units, size: int, absolute: bool, n_shuffles: int, n_bootstrap: int, seed: int
) -> pd.DataFrame:
    """One row a measure, ranking or null, and set of units.

    Intervals are over prompts, for the circuit as it is: it would drift apart from itself in resamples, by
    as much as the jaccard of `circuit` says.
    """
    weights = bootstrap_weights(len(rows.usage), n_bootstrap, seed)
    members = top_members(rows.scores.mean(0, keepdims=True), size, absolute)
    ranked = _ranked(rows, units, weights, n_shuffles, n_bootstrap, seed)
    at: dict[str, Any] = {"n": len(rows.usage)}
    found = _compared(ranked, members, slice(None), MEASURES, at | {"site": "all"}, seed)
    if units.d_mlp:
        halves = {"attn": slice(units.n_channels), "mlp": slice(units.n_channels, units.n)}
        for site, part in halves.items():
            found += _compared(ranked, members, part, MEASURES, at | {"site": site}, seed)
    mask = {"mask": ranked.whole["mask"]}, {"mask": ranked.resampled["mask"]}
    chance = Ranked(*mask, {"random": ranked.nulls["random"]})
    for layer, site in units.sites:
        part, here = units.columns(layer, site), at | {"site": site, "layer": layer}
        found += _compared(chance, members, part, ("auroc",), here, seed)
    for row in found:
        if (row["by"], row["site"], row["measure"]) == ("other_text", "all", "auroc"):
            row["p"] = _label_p_value(rows, members, n_shuffles, seed)
    if len(rows.scores) > 1:
        found += _by_prompt(rows, size, absolute, weights, n_shuffles, seed)
        drawn = top_members(weights @ rows.scores, size, absolute)
        alike = (drawn & members).sum(1) / (drawn | members).sum(1)
        interval = dict(zip(ENDS, middle(alike), strict=True))
        found.append({"measure": "jaccard", "by": "circuit", "value": alike.mean(), **interval, "unit": "share",
                      "site": "all", **at})  # fmt: skip
    return pd.DataFrame(found)


def _ranked(rows: Rows, units: Units, weights: Weights, n_shuffles: int, n_bootstrap: int, seed: int) -> Ranked:
    elsewhere = bootstrap_weights(len(rows.other), n_bootstrap, seed + 1)
    by = {
        "mask": (rows.usage, weights),
        "magnitude": (rows.magnitude, weights),
        "other_text": (rows.other, elsewhere),
    }
    whole = {name: scores.mean(0, keepdims=True) for name, (scores, _) in by.items()}
    strata, usage = strata_of(units), whole["mask"][0]
    alike = quantile_strata(whole["magnitude"][0], strata)
    nulls = {"random": shuffled(usage, strata, n_shuffles, seed), "matched": shuffled(usage, alike, n_shuffles, seed)}
    return Ranked(whole, {name: many @ scores for name, (scores, many) in by.items()}, nulls)


def _compared(
    ranked: Ranked,
    members: Bool[np.ndarray, "1 unit"],
    part: slice,
    measures: tuple[str, ...],
    at: dict[str, Any],
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of the rankings and nulls of some units."""
    inside = members[:, part]
    whole, resampled, nulls = (
        {name: overlaps(scores[:, part], inside, measures, seed) for name, scores in by.items()}
        for by in (ranked.whole, ranked.resampled, ranked.nulls)
    )
    found: list[dict[str, Any]] = []
    for measure in measures:
        mask, draws = float(whole["mask"][measure][0]), resampled["mask"][measure]
        for name in whole:
            value, mine = float(whole[name][measure][0]), resampled[name][measure]
            row = {"measure": measure, "by": name, "value": value, "unit": UNIT_OF[measure], **at}
            row |= dict(zip(ENDS, middle(mine), strict=True))
            if name != "mask":
                row |= {"difference": mask - value, **dict(zip(DIFFERENCE, middle(draws - mine), strict=True))}
            found.append(row)
        found += [_null_row(measure, name, mask, draws, null[measure], at) for name, null in nulls.items()]
    return found


def _null_row(
    measure: str,
    by: str,
    mask: float,
    draws: Float[np.ndarray, " resample"],
    null: Float[np.ndarray, " shuffle"],
    at: dict[str, Any],
) -> dict[str, Any]:
    """The null's mean and middle 95 %, and how far the mask is above it."""
    chance = float(null.mean())
    return {
        "measure": measure, "by": by, "value": chance, "unit": UNIT_OF[measure],
        **dict(zip(ENDS, middle(null), strict=True)),
        "difference": mask - chance, **dict(zip(DIFFERENCE, middle(draws - chance), strict=True)),
        "p": upper_p_value(mask, null), **at,
    }  # fmt: skip


def _label_p_value(rows: Rows, members: Bool[np.ndarray, "1 unit"], n: int, seed: int) -> float:
    """Of "masks on the task are those on the other text", by the difference of their auroc when rows swap labels."""
    pooled, n_task = np.concatenate([rows.usage, rows.other]), len(rows.usage)
    mine = np.arange(len(pooled)) < n_task
    dealt = np.random.default_rng(seed).permuted(np.broadcast_to(mine, (n, len(pooled))), axis=1)

    def of(labels: Bool[np.ndarray, "deal row"]) -> np.ndarray:
        means = (labels @ pooled) / labels.sum(1, keepdims=True)
        return auroc(means, np.broadcast_to(members, means.shape))

    observed = of(mine[None]) - of(~mine[None])
    return upper_p_value(float(observed[0]), of(dealt) - of(~dealt))


def _by_prompt(
    rows: Rows, size: int, absolute: bool, weights: Weights, n_shuffles: int, seed: int
) -> list[dict[str, Any]]:
    """Auroc of each prompt's mask for each prompt's circuit: the own ones, and those of prompts dealt anew."""
    members = top_members(rows.scores, size, absolute)
    pairs = np.stack([auroc(rows.usage, np.broadcast_to(row, members.shape)) for row in members])
    own, n = np.diag(pairs), len(pairs)
    draw = np.random.default_rng(seed)
    dealt = np.array([pairs[np.arange(n), draw.permutation(n)].mean() for _ in range(n_shuffles)])
    at: dict[str, Any] = {"site": "all", "n": n}
    mine = {"measure": "prompt_auroc", "by": "mask", "value": float(own.mean()), "unit": UNIT_OF["prompt_auroc"]}
    interval = dict(zip(ENDS, middle(weights @ own), strict=True))
    other = _null_row("prompt_auroc", "other_prompts", float(own.mean()), weights @ own, dealt, at)
    return [mine | interval | at, other]
