"""Does self-ablation make units more specialised? Means of models compared, by arm and seed.

Each measure is compared raw and beyond its null: a mask that lets few units through moves the raw numbers by itself.
Five measures of neurons, beyond their null, are the claim; they are corrected (Holm) together, and all others
together, as `other`.

Source of the claim: arXiv 2505.00509, abstract. Its own measure, explanations by a language model, is not this one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analyses.arms import arms_table, differences, few_seeds
from analyses.result import Result
from analyses.specialization.means import ALL_LAYERS
from analyses.specialization.measures import NONE
from analyses.statistics import holm

DIRECTION = {
    "mutual information": 1,
    "information share": 1,
    "variance explained": 1,
    "context entropy": -1,
    "effective contexts": -1,
    "kurtosis": 1,
    "hoyer": 1,
    "gini": 1,
    "logit kurtosis": 1,
    "modularity": 1,
}
"""Sign of "more specialised"; what is not here has none."""
CLAIM = (
    ("information share", "current_token"),
    ("information share", "role"),
    ("variance explained", "current_token"),
    ("context entropy", NONE),
    ("logit kurtosis", "logits"),
)
RAW, BEYOND = "raw", "beyond"


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model: each mean over live units and all layers, raw and beyond each null."""
    found: dict[str, dict[str, Any]] = {}
    for row in result.meta["means"]:
        if row["layer"] != ALL_LAYERS or row.get("value") is None:
            continue
        low, high = row.get("ci_low", np.nan), row.get("ci_high", np.nan)
        name = metric_name(row)
        found.setdefault(
            f"{name}, {RAW}",
            {"value": row["value"], "ci_low": low, "ci_high": high, "n": row["n_units"]},
        )
        if row.get("excess") is not None:
            found[f"{name}, {BEYOND} {row['against']}"] = {
                "value": row["excess"], "ci_low": low - row["null"], "ci_high": high - row["null"], "n": row["n_units"],
            }  # fmt: skip
    return [{"metric": name, **row} for name, row in found.items()]


def metric_name(row: Mapping[str, Any]) -> str:
    """`neuron clean: mutual information (role)`."""
    target = f" ({row['target']})" if row["target"] != NONE else ""
    return f"{row['kind']} {row['stream']}: {row['metric']}{target}"


def specialization_compared(results: Sequence[Result], baseline: str | None = None) -> Result:
    """One row a model and metric; the meta has the differences between arms and what they say of the claim.

    Args:
        results: of `unit_selectivity`, one a model, of the same stories, kinds and stream.
        baseline: the arm that others are compared with; None: that of the first.

    Returns:
        The table of `analyses.arms`; `n` counts the units that a mean is over. meta["differences"] has the columns of
        `analyses.arms.differences`, and `family` (`claim` or `other`, each corrected by itself), `paired`,
        `paired_low`, `paired_high`, `paired_p`, `n_pairs` (arm minus baseline at the same training seed, t over
        seeds; NaN where these agree exactly), `paired_p_holm` (corrected within the family), `d`
        (Cohen's, pooled standard deviation over seeds), `delta` (Cliff's, -1..1: every seed of the arm above every
        one of the baseline is 1) and `more_specialised` (whether the difference points that way; None where no way
        does). meta["verdicts"]: by arm, how many of the claim's measures went up.
    """
    knobs = results[0].meta["knobs"]
    if any(result.meta["knobs"] != knobs for result in results):
        raise ValueError("models are compared when they were asked alike: kinds, stream, stories, draws, seed differ")
    table = arms_table(results, {result.meta["checkpoint"]: measured(result) for result in results})
    baseline = str(table.arm.iloc[0]) if baseline is None else baseline
    found = compared(table, baseline)
    meta = {
        "knobs": knobs,
        "baseline": baseline,
        "models": {result.meta["checkpoint"]: {"summary": result.meta["summary"]} for result in results},
        "differences": found.to_dict(orient="records"),
        "verdicts": verdicts(found),
    }
    meta["summary"] = "\n".join(f"{arm}: {words}" for arm, words in meta["verdicts"].items())
    return Result("specialization", table, {"n": "units"}, meta)


def compared(table: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Differences of every arm to the baseline, the claim's measures first."""
    is_claim = table.metric.map(_is_claim)
    parts = []
    for family, rows in (("claim", table[is_claim]), ("other", table[~is_claim])):
        found = differences(rows, baseline)
        if len(found):
            of = [_effect(rows[rows.metric == row.metric], row.arm, baseline) for row in found.itertuples()]
            found = found.assign(family=family).join(pd.DataFrame(of))
            parts.append(found.assign(paired_p_holm=holm(found.paired_p)))
    if not parts:
        return pd.DataFrame()
    found = pd.concat(parts, ignore_index=True)
    sign = found.metric.map(_direction)
    found["more_specialised"] = [
        None if s == 0 else bool(s * d > 0) for s, d in zip(sign, found.difference, strict=True)
    ]
    return found


def verdicts(found: pd.DataFrame) -> dict[str, str]:
    """One line an arm on the claim "self-ablation increases neuron specialization"."""
    said = {}
    claim = found[found.family == "claim"] if len(found) else found
    for arm, rows in claim.groupby("arm", sort=False) if len(claim) else ():
        ways = {way: rows[rows.claim & (rows.more_specialised == way)] for way in (True, False)}
        held = {way: int((part.paired_p_holm < 0.05).sum()) for way, part in ways.items()}
        n = f"{int(rows.n_seeds.min())} against {int(rows.n_baseline.min())} seeds"
        said[str(arm)] = (
            f"neurons are more specialised than {rows.baseline.iloc[0]} by {len(ways[True])} of {len(rows)} measures "
            f"beyond their nulls and less by {len(ways[False])} (Welch over {n}, corrected); of these, paired by seed "
            f"and corrected too, {held[True]} and {held[False]}{few_seeds(rows)}"
        )
    return said


def _is_claim(metric: str) -> bool:
    of, _, kind = metric.rpartition(", ")
    names = [metric_name({"kind": "neuron", "stream": "clean", "metric": m, "target": t}) for m, t in CLAIM]
    return of in names and kind.startswith(BEYOND)


def _direction(metric: str) -> int:
    name = metric.partition(": ")[2].rpartition(", ")[0].partition(" (")[0]
    return DIRECTION.get(name, 0)


def _effect(rows: pd.DataFrame, arm: Any, baseline: str) -> dict[str, Any]:
    """Paired difference over shared seeds, and effect sizes."""
    a, b = (rows[rows.arm == name].dropna(subset=["value"]) for name in (arm, baseline))
    x, y = a.value.to_numpy(float), b.value.to_numpy(float)
    pairs = a.dropna(subset=["seed"]).merge(b.dropna(subset=["seed"]), on="seed", suffixes=("", "_base"))
    apart = (pairs.value - pairs.value_base).to_numpy(float)
    found: dict[str, Any] = dict.fromkeys(("paired", "paired_low", "paired_high", "paired_p"), np.nan)
    found["n_pairs"] = len(apart)
    if len(apart) > 1 and np.ptp(apart) > 0:
        test = stats.ttest_1samp(apart, 0.0)
        low, high = test.confidence_interval(0.95)
        found |= {"paired": apart.mean(), "paired_low": low, "paired_high": high, "paired_p": test.pvalue}
    return {**found, "d": cohens_d(x, y), "delta": cliffs_delta(x, y)}


def cohens_d(x: np.ndarray, y: np.ndarray) -> float:
    """Difference of means in pooled standard deviations; NaN without spread or with one value on either side."""
    if min(len(x), len(y)) < 2:
        return float("nan")
    pooled = ((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / (len(x) + len(y) - 2)
    return float((x.mean() - y.mean()) / np.sqrt(pooled)) if pooled > 0 else float("nan")


def cliffs_delta(x: np.ndarray, y: np.ndarray) -> float:
    """P(x > y) - P(x < y) over all pairs."""
    return float(np.sign(x[:, None] - y).mean()) if len(x) and len(y) else float("nan")
