"""Loss inversion: does the ablated stream tell the next token better than the clean one?

It has fewer units, so that it could only by what its mask tells it. Clean minus ablated loss of the same token, in
bits, over all positions and over each class of current tokens (`token_classes`). An inversion is a sign of a leak; that
there is none is no sign that there is no leak.

A clean stream that is surer than it has reason to be, such as an untrained one, is beaten by anything that says less.
So the null is what masks of random heads make of it, where that is an inversion, too, and 0 where it is none.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from analyses.labels.token_classes import CLASSES
from analyses.leakage.finding import ALPHA, Finding
from analyses.leakage.judged import judged
from analyses.leakage.observed import Observed
from analyses.leakage.variants import BITS, story_means
from analyses.statistics import bootstrap_interval, holm

FEWEST = 8
"""Stories that a class must occur in to be judged."""
RESAMPLES = 4000


def losses(
    observed: Observed,
    classes: Int[np.ndarray, " token"] | None = None,
    controls: Sequence[Observed] = (),
    *,
    seed: int = 0,
) -> list[Finding]:
    """Bits by which the ablated stream is better than the clean one: on average, and in its best class of tokens.

    Args:
        classes: of each token id, its place in `CLASSES`; None: no finding by class.
        controls: the same positions with masks of random heads, a draw each.

    Returns:
        One finding, or two: that of the class with the least p, corrected by Bonferroni for the classes, interval
        and all. Intervals resample stories. `detail`: `classes`, of each: mean, interval, p corrected by Holm and
        stories; `clean`, `ablated`, mean losses in bits.
    """
    better = np.stack([(one.loss_clean.astype(np.float64) - one.loss_ablated) / BITS for one in (observed, *controls)])
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
        if (~np.isnan(story_means(observed, values[0]))).sum() >= FEWEST:
            of_class[name] = values
    table = _by_class(observed, of_class, seed)
    whole = dataclasses.replace(whole, detail={**whole.detail, **means, "classes": table})
    if not table:
        return [whole]
    best = min(table, key=lambda name: (table[name]["p"], -table[name]["mean"]))
    measure = f"the same after the class of tokens that is best ({best})"
    found = _finding("loss inversion by class", measure, observed, of_class[best], seed, len(table))
    return [whole, dataclasses.replace(found, detail={**found.detail, "class": best})]


def _finding(
    test: str, measure: str, observed: Observed, better: Float[np.ndarray, "masks position"], seed: int, n_tests: int
) -> Finding:
    """With an interval over resampled stories (and, where there is a null, draws of it), corrected for `n_tests`."""
    per_story, *nulls = (story_means(observed, values) for values in better)
    inverted = [null if np.nanmean(null) > 0 else np.where(np.isnan(null), np.nan, 0.0) for null in nulls]
    found = judged(test, measure, per_story, inverted, n=int((~np.isnan(better[0])).sum()))
    known = per_story[~np.isnan(per_story)]
    ends = stats.norm.ppf(1 - ALPHA / 2 / n_tests), stats.norm.ppf(1 - ALPHA / 2)
    if any(np.nanmean(null) > 0 for null in inverted):
        far, middle = (found.ci_high - found.ci_low) / 2, (found.ci_high + found.ci_low) / 2
        low, high = middle - far * ends[0] / ends[1], middle + far * ends[0] / ends[1]
        more = float((ends[0] - ends[1]) * far / ends[1])
    else:
        interval = bootstrap_interval(known, confidence=1 - ALPHA / n_tests, n_resamples=RESAMPLES, seed=seed)
        low, high = interval[0], interval[1]
        more = float(ends[0] - ends[1]) * float(known.std(ddof=1)) / np.sqrt(len(known))
    return dataclasses.replace(
        found,
        ci_low=float(low),
        ci_high=float(high),
        p=min(1.0, n_tests * found.p),
        smallest=float(found.smallest + more),
    )


def _by_class(observed: Observed, of_class: dict[str, np.ndarray], seed: int) -> dict[str, dict[str, Any]]:
    found = {name: _finding("class", name, observed, values, seed, 1) for name, values in of_class.items()}
    return {
        name: {"mean": one.value, "ci_low": one.ci_low, "ci_high": one.ci_high, "p": float(p), "stories": one.n_stories}
        for (name, one), p in zip(found.items(), holm([one.p for one in found.values()]), strict=True)
    }
