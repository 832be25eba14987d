"""What one test of leakage found, and how it is called.

A test measures a leak (larger is more) and what the same measure gives under its null: masks that cannot
tell, such as those of untrained heads or of other positions with the same token. What counts is the excess,
value minus null, with its interval over stories and over draws of the null:

    leaks          the interval of the excess lies above the margin, and p, corrected for all tests, is below 0.05
    no evidence    not so, and the interval ends below what would be relevant
    inconclusive   neither: more stories are needed

The margin keeps trifles, which enough tokens always make significant, from being called a leak; `smallest` says
what the test could have seen.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from analyses.statistics import holm

LEAKS, NOTHING, OPEN = "leaks", "no evidence", "inconclusive"
ALPHA = 0.05


@dataclasses.dataclass(frozen=True)
class Finding:
    """One test's number and everything needed to judge it.

    Args:
        test: short name, such as `decoder`.
        measure: what the number is, in a few words.
        value: the leak as measured.
        null: what the null gives, in the same unit.
        ci_low, ci_high: 95 % interval of value - null.
        p: one-sided, of value - null above the margin; NaN for a test with no chance in it.
        unit: of value, null and the interval: `bits`, `nats`, `probability`, ...
        margin: excess that is too small to be called a leak.
        relevant: excess that would matter.
        smallest: the smallest excess that would have been called a leak 4 times in 5, same unit.
        n: positions; n_stories: independent ones.
        detail: numbers that the figures need; plain JSON values.
    """

    test: str
    measure: str
    value: float
    null: float
    ci_low: float
    ci_high: float
    p: float
    unit: str
    margin: float = 0.0
    relevant: float = 0.25
    smallest: float = float("nan")
    n: int = 0
    n_stories: int = 0
    detail: dict[str, Any] = dataclasses.field(default_factory=dict)

    def verdict(self, p_corrected: float) -> str:
        """How the finding is called when its p-value, corrected for all tests, is this."""
        if self.ci_low > self.margin and (np.isnan(p_corrected) or p_corrected < ALPHA):
            return LEAKS
        return NOTHING if self.ci_high < self.relevant else OPEN


def excess(
    per_story: Float[np.ndarray, " story"], nulls: Float[np.ndarray, "draw story"], margin: float = 0.0
) -> dict[str, float]:
    """Mean excess over the null with its spread over stories and over draws of the null.

    The variance is that of the paired mean over stories plus that of one further draw of the null: with R draws of
    standard deviation s, s^2 (1 + 1/R). With one draw only the stories count.

    Args:
        per_story: the measure, a story each (weighted alike).
        nulls: the same under each draw of the null.
        margin: p is of an excess above it.

    Returns:
        `value, null, ci_low, ci_high, p, smallest`, to be passed to a Finding.
    """
    n, draws = len(per_story), len(nulls)
    difference = per_story - nulls.mean(0)
    parts = [(difference.var(ddof=1) / n, n - 1)]
    if draws > 1:
        parts.append((nulls.mean(1).var(ddof=1) * (1 + 1 / draws), draws - 1))
    means = {"value": float(per_story.mean()), "null": float(nulls.mean())}
    return {**means, **judged_mean(float(difference.mean()), parts, margin)}


def judged_mean(mean: float, parts: Sequence[tuple[float, int]], margin: float) -> dict[str, float]:
    """`ci_low, ci_high, p, smallest` of a mean whose variance is a sum of parts.

    Student's t; degrees of freedom by Welch and Satterthwaite.

    Args:
        parts: each part of the variance with its degrees of freedom.
        margin: p is one-sided, of a mean above it.
    """
    variance = float(sum(part for part, _ in parts))
    if variance == 0:
        return {"ci_low": mean, "ci_high": mean, "p": float(mean <= margin), "smallest": margin}
    spread, freedom = variance**0.5, variance**2 / sum(part**2 / df for part, df in parts)
    far = float(stats.t.ppf(1 - ALPHA / 2, freedom))
    return {
        "ci_low": mean - far * spread,
        "ci_high": mean + far * spread,
        "p": float(stats.t.sf((mean - margin) / spread, freedom)),
        "smallest": margin + spread * (far + float(stats.t.ppf(0.8, freedom))),
    }


def findings_table(findings: Sequence[Finding]) -> pd.DataFrame:
    """One row a finding with its corrected p-value and verdict; leaks first, the farthest above its margin on top."""
    corrected = holm([finding.p for finding in findings])
    rows = []
    for finding, p in zip(findings, corrected, strict=True):
        row = {field.name: getattr(finding, field.name) for field in dataclasses.fields(finding)}
        row.pop("detail")
        rows.append({**row, "p_holm": float(p), "verdict": finding.verdict(float(p))})
    table = pd.DataFrame(rows)
    rank = table.verdict.map({LEAKS: 0, OPEN: 1, NOTHING: 2})
    width = (table.ci_high - table.ci_low).replace(0, 1e-12)
    strength = (table.value - table.null - table.margin) / width
    order = np.lexsort((-strength, rank))
    return table.iloc[order].reset_index(drop=True)
