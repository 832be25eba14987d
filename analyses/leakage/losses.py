"""Loss inversion: does the ablated stream tell the next token better than the clean one?

It has fewer units, so that it could only by what its mask tells it. Clean minus ablated loss of the same token, in
bits, over all positions and over each class of current tokens (`token_classes`). An inversion is a sign of a leak; that
there is none is no sign that there is no leak.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int
from scipy import stats

from analyses.leakage.finding import ALPHA, Finding
from analyses.leakage.judged import MARGIN_BITS, judged
from analyses.leakage.observed import Observed
from analyses.leakage.token_classes import CLASSES
from analyses.leakage.variants import BITS, story_means
from analyses.statistics import bootstrap_interval, holm

FEWEST = 8
"""Stories that a class must occur in to be judged."""
RESAMPLES = 4000


def losses(observed: Observed, classes: Int[np.ndarray, " token"] | None = None, *, seed: int = 0) -> list[Finding]:
    """Bits by which the ablated stream is better than the clean one: on average, and in its best class of tokens.

    Args:
        classes: of each token id, its place in `CLASSES`; None: no finding by class.

    Returns:
        One finding, or two: that of the class with the least p, corrected by Bonferroni for the classes, interval
        and all. Intervals resample stories. `detail`: `classes`, of each: mean, interval, p corrected by Holm and
        stories; `clean`, `ablated`, mean losses in bits.
    """
    better = (observed.loss_clean.astype(np.float64) - observed.loss_ablated) / BITS
    means = {
        "clean": float(story_means(observed, observed.loss_clean.astype(np.float64)).mean() / BITS),
        "ablated": float(story_means(observed, observed.loss_ablated.astype(np.float64)).mean() / BITS),
    }
    whole = _finding(
        "loss inversion", "bits by which the ablated stream beats the clean one", observed, better, seed, 1
    )
    if classes is None:
        return [dataclasses.replace(whole, detail={**whole.detail, **means})]
    of_class = {}
    for i, name in enumerate(CLASSES):
        values = np.where(classes[observed.token] == i, better, np.nan)
        if (~np.isnan(story_means(observed, values))).sum() >= FEWEST:
            of_class[name] = values
    table = _by_class(observed, of_class, seed)
    whole = dataclasses.replace(whole, detail={**whole.detail, **means, "classes": table})
    if not table:
        return [whole]
    best = min(table, key=lambda name: (table[name]["p"], -table[name]["mean"]))
    measure = f"the same after the class of tokens that is best ({best})"
    found = _finding("loss inversion by class", measure, observed, of_class[best], seed, len(table))
    return [whole, dataclasses.replace(found, detail={**found.detail, "class": best})]


def _finding(test: str, measure: str, observed: Observed, better: np.ndarray, seed: int, n_tests: int) -> Finding:
    """With an interval over resampled stories, and p and interval corrected for `n_tests`."""
    per_story = story_means(observed, better)
    found = judged(test, measure, per_story, [], n=int((~np.isnan(better)).sum()))
    low, high = _interval(per_story, seed, n_tests)
    wider = float(stats.norm.ppf(1 - ALPHA / 2 / n_tests) - stats.norm.ppf(1 - ALPHA / 2))
    known = per_story[~np.isnan(per_story)]
    more = wider * float(known.std(ddof=1)) / np.sqrt(len(known))
    return dataclasses.replace(
        found, ci_low=low, ci_high=high, p=min(1.0, n_tests * found.p), smallest=float(found.smallest + more)
    )


def _interval(per_story: np.ndarray, seed: int, n_tests: int = 1) -> tuple[float, float]:
    known = per_story[~np.isnan(per_story)]
    ends = bootstrap_interval(known, confidence=1 - ALPHA / n_tests, n_resamples=RESAMPLES, seed=seed)
    return float(ends[0]), float(ends[1])


def _by_class(observed: Observed, of_class: dict[str, np.ndarray], seed: int) -> dict[str, dict[str, Any]]:
    rows = {}
    for name, values in of_class.items():
        per_story = story_means(observed, values)
        low, high = _interval(per_story, seed)
        found = judged("class", name, per_story, [], n=int((~np.isnan(values)).sum()), margin=MARGIN_BITS)
        rows[name] = {"mean": found.value, "ci_low": low, "ci_high": high, "p": found.p, "stories": found.n_stories}
    for name, p in zip(rows, holm([row["p"] for row in rows.values()]), strict=True):
        rows[name]["p"] = float(p)
    return rows
