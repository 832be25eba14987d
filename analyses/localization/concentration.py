"""How few units hold the effect: Gini coefficient and the share of the largest, with intervals."""

from typing import Any

import numpy as np

from analyses.metrics import gini, top_share
from analyses.statistics import bootstrap_weights

TOP = (0.01, 0.05, 0.1)
_RESAMPLES = 64  # of all units, held at once


def concentration(kind: str, effects: np.ndarray, n_bootstrap: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Rows {kind, metric, value, ci_low, ci_high, n} for one kind of unit.

    `gini` (0 all equal .. 1 - 1/units one has all) and `top_1_percent`, ... (share of the total
    |effect| in that part of the units, at least one unit). Resampling prompts adds noise to every
    effect and so evens them out: an interval may lie below its value, and overlap of two intervals
    is a cautious test.

    Args:
        kind: of the units, as in the table.
        effects: effect of each unit on each prompt [unit prompt]; concentration is that of the means.
        n_bootstrap: resamples of prompts.
        seed: of the resamples; with one seed and n, all kinds see the same ones.
    """
    measures = {"gini": gini, **{f"top_{round(100 * share)}_percent": _top(share) for share in TOP}}
    weights = bootstrap_weights(effects.shape[1], n_bootstrap, seed)
    resampled: dict[str, list[np.ndarray]] = {metric: [] for metric in measures}
    for start in range(0, n_bootstrap, _RESAMPLES):
        means = weights[start : start + _RESAMPLES] @ effects.T
        for metric, measure in measures.items():
            resampled[metric].append(measure(means))
    rows = []
    for metric, measure in measures.items():
        low, high = np.quantile(np.concatenate(resampled[metric]), [0.025, 0.975])
        value = float(measure(effects.mean(1)))
        rows.append({"kind": kind, "metric": metric, "value": value, "ci_low": float(low), "ci_high": float(high),
                     "n": effects.shape[1]})  # fmt: skip
    return rows


def _top(share: float) -> Any:
    return lambda values: top_share(values, share)
