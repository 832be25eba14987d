"""From story means to a Finding: the measure, its null, and what counts as too small."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from analyses.leakage.finding import Finding, excess

MARGIN_BITS = 0.05
RELEVANT_BITS = 0.25
DETECTED = float(stats.norm.ppf(0.975) + stats.norm.ppf(0.8))
"""Standard errors above the margin at which an excess is called a leak 4 times in 5."""


def information_spread(bits: float, n: int) -> float:
    """Standard error (bits) of the mean information of n tokens that each tell `bits`.

    The log-likelihood ratio of two near distributions with mean I nats has variance 2 I.
    """
    nats = bits * np.log(2)
    return float(np.sqrt(2 * nats / max(n, 1)) / np.log(2))


def judged(
    test: str,
    measure: str,
    own: Float[np.ndarray, " story"],
    nulls: Sequence[Float[np.ndarray, " story"]],
    *,
    n: int,
    spread: float = 0.0,
    unit: str = "bits",
    margin: float = MARGIN_BITS,
    relevant: float = RELEVANT_BITS,
    detail: dict[str, Any] | None = None,
) -> Finding:
    """The finding of a measure that is 0 where the mask is no message.

    A null whose mean is below 0 is raised to 0: that others do worse than nothing is no leak of this model. The
    spread of its draws stays.

    Args:
        own: the measure of each story; NaN for one that has none, which is left out everywhere.
        nulls: the same, under each draw of the null; none: the null is 0.
        n: positions that were measured.
        spread: the least standard error that the measure has where there is a leak of the margin's size; that which
            is seen may be 0 where there is none.

    Raises:
        ValueError: fewer than two stories.
    """
    drawn = np.stack(nulls) if len(nulls) else np.zeros((1, len(own)))
    known = ~np.isnan(own) & ~np.isnan(drawn).any(0)
    if known.sum() < 2:
        raise ValueError(f"{test} needs at least 2 stories in which positions have donors; {known.sum()} have; raise n")
    own, drawn = own[known], drawn[:, known]
    found = excess(own, drawn - min(float(drawn.mean()), 0.0), margin)
    found["smallest"] = max(found["smallest"], margin + DETECTED * spread)
    return Finding(
        test,
        measure,
        unit=unit,
        margin=margin,
        relevant=relevant,
        n=n,
        n_stories=int(known.sum()),
        detail={"nulls": drawn.mean(1).tolist(), **(detail or {})},
        **found,
    )
