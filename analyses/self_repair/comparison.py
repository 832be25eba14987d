"""Does self-ablation training reduce self-repair? Models of several arms compared, a training seed being one of each.

Primary: self-repair over removed direct effect, in the second half of the layers, on the same stories. It is compared
twice, both two-sided: Welch's t over seeds with an exact permutation (`analyses.arms`), and a bootstrap of seeds and,
within it, of stories, which are the same for all models. Three seeds bootstrapped are too sure of themselves, so a
claim takes both: three seeds, Welch's p below 0.05 after correction, the bootstrap's interval off 0.

Models of different loss differ in self-repair for other reasons, too. So the whole is asked once more on tokens of
equal loss (`equal_loss`), with the same two tests. Losses stand beside, and models of two arms whose losses are within
`MATCHED` bits are compared as pairs, where there are any.

Controls for masks as such, in the streams that have masks: the same ratio under masks dealt from other positions, and
under random ones. For masks in training: an arm whose masks were not learned (`--detach scores`), given as further
checkpoints.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.arms import FEWEST_SEEDS, arm_of, arms_table, differences
from analyses.result import Result
from analyses.self_repair.equal_loss import matched, matched_rows
from analyses.self_repair.halves import SHARES

PRIMARY = "self-repair / removed, second half"
MATCHED = 0.05
"""Bits a token within which losses count as equal."""
RESAMPLES = 2000
NAMES = dict(zip(SHARES, ("heads", "MLPs", "norm", "own", "masks"), strict=True))
EQUAL = "tokens of equal loss"
EQUAL_PRIMARY = f"{PRIMARY}, {EQUAL}"
HYPOTHESES = (PRIMARY, EQUAL_PRIMARY)
"""What the question asks: a family of its own when p-values are corrected. All else describes."""
EQUAL_NAMES = {
    "self_repair": EQUAL_PRIMARY,
    **{key: f"share of {name}, second half, {EQUAL}" for key, name in NAMES.items()},
    "loss": f"loss (bits), {EQUAL}",
    "kept": f"tokens that count, {EQUAL}",
}


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model."""
    meta = result.meta
    second, first = meta["halves"]["second"], meta["halves"]["first"]
    rows = [{"metric": PRIMARY, **second["self_repair"], "n": second["n"]}]
    rows += [
        {"metric": f"share of {name}, second half", **second[key], "n": second["n"]} for key, name in NAMES.items()
    ]
    rows.append({"metric": "self-repair / removed, first half", **first["self_repair"], "n": first["n"]})
    for of in meta.get("controls", ()):
        rows.append({"metric": f"{PRIMARY}, masks {of['masks']}", **of["self_repair"], "n": of["n"]})
    rows.append({"metric": "gini of direct effects", "value": meta["gini_of_direct_effects"], "n": len(result.table)})
    if "repairers" in meta:
        rows.append({"metric": "components that share a repair", "value": meta["repairers"], "n": len(result.table)})
    n = meta["knobs"]["n_tokens"]
    rows += [{"metric": f"{name} loss (bits)", "value": loss, "n": n} for name, loss in meta["losses"].items()]
    return rows


def self_repair_compared(results: Sequence[Result], baseline: str | None = None) -> Result:
    """One row a model and metric; the meta has the differences, the bootstrap, the matched pairs, and the answer.

    Args:
        results: of `story_self_repair`, one a model, asked alike.
        baseline: the arm that others are compared with; None: that of the first.

    Raises:
        ValueError: models that were not asked alike.
    """
    knobs = results[0].meta["knobs"]
    for result in results:
        apart = {key for key in knobs if key != "masks" and result.meta["knobs"][key] != knobs[key]}
        if apart:
            raise ValueError(f"models are compared when they were asked alike; {', '.join(sorted(apart))} differ")
    equal = matched_rows(results, EQUAL_NAMES)
    rows = {result.meta["checkpoint"]: measured(result) + equal[i] for i, result in enumerate(results)}
    table = arms_table(results, rows)
    baseline = str(table.arm.iloc[0]) if baseline is None else baseline
    asked = table.metric.isin(HYPOTHESES)
    between = pd.concat([differences(table[of], baseline) for of in (asked, ~asked)], ignore_index=True)
    arms = [arm for arm in dict.fromkeys(table.arm) if arm != baseline]
    drawn, drawn_equal = ([bootstrap(results, arm, baseline, of) for arm in arms] for of in (ratios, equal_ratios))
    pairs = matched_pairs(results, baseline)
    meta = {
        "knobs": knobs,
        "baseline": baseline,
        "models": {result.meta["checkpoint"]: of_model(result) for result in results},
        "differences": between.to_dict(orient="records"),
        "bootstrap": drawn,
        "bootstrap_equal_loss": drawn_equal,
        "matched": pairs,
    }
    answers = [answer_of(one, of, between, pairs) for one, of in zip(drawn, drawn_equal, strict=True)]
    meta["summary"] = "\n".join(answers) or "one arm only: nothing to compare"
    return Result("self_repair", table, {"value": "ratio of sums, or as the metric says", "n": "tokens"}, meta)


def of_model(result: Result) -> dict[str, Any]:
    """What a figure of several models shows of one."""
    table = result.table[result.table.n_tokens > 0]
    columns = {name: table[name].tolist() for name in ("component", "depth", "self_repair")}
    return {"summary": result.meta["summary"], "arm": arm_of(result.meta)["arm"], "components": columns}


Ratios = Callable[[Sequence[Result], np.ndarray], np.ndarray]
"""(results, how often each story counts [resample story]) -> the primary measure [resample model]."""


def ratios(results: Sequence[Result], weights: np.ndarray) -> np.ndarray:
    """Self-repair over removed direct effect of the second half, of all selected tokens."""
    repair, removed = (
        np.array([result.meta["by_story"][name] for result in results], dtype=np.float64)
        for name in ("self_repair", "removed")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        return (weights @ repair.T) / (weights @ removed.T)


def equal_ratios(results: Sequence[Result], weights: np.ndarray) -> np.ndarray:
    """The same of tokens of equal loss."""
    return matched(results, weights)["self_repair"]


def bootstrap(results: Sequence[Result], arm: str, baseline: str, of: Ratios = ratios, seed: int = 0) -> dict[str, Any]:
    """Difference of the primary measure, arm minus baseline, resampling seeds and then stories.

    Stories are drawn once a resample for all models, which saw the same ones.

    Returns:
        `arm`, `baseline`, `difference`, `ci_low`, `ci_high` (95 %), `p` (two-sided), `n_seeds`, `n_baseline`,
        `n_stories`.
    """
    draw = np.random.default_rng(seed)
    n = len(results[0].meta["by_story"]["removed"])
    weights = draw.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    whole, drawn = of(results, np.ones((1, n)))[0], of(results, weights)
    means, values, counts = [], [], []
    for name in (arm, baseline):
        models = np.array([i for i, result in enumerate(results) if arm_of(result.meta)["arm"] == name])
        picked = models[draw.integers(len(models), size=(RESAMPLES, len(models)))]
        means.append(np.take_along_axis(drawn, picked, 1).mean(1))
        values.append(float(whole[models].mean()))
        counts.append(len(models))
    apart = means[0] - means[1]
    apart = apart[np.isfinite(apart)]
    below = float((apart < 0).mean() + (apart == 0).mean() / 2) if len(apart) else float("nan")
    low, high = np.quantile(apart, [0.025, 0.975]) if len(apart) else (np.nan, np.nan)
    return {
        "arm": arm, "baseline": baseline, "difference": values[0] - values[1], "ci_low": float(low),
        "ci_high": float(high), "p": max(2 * min(below, 1 - below), 1 / RESAMPLES), "n_seeds": counts[0],
        "n_baseline": counts[1], "n_stories": n,
    }  # fmt: skip


def matched_pairs(results: Sequence[Result], baseline: str) -> list[dict[str, Any]]:
    """Each model and the baseline's model of the nearest clean loss, where that is within MATCHED bits."""
    rows = [
        {
            **arm_of(result.meta), "loss": result.meta["losses"]["clean"], "name": result.meta["checkpoint"],
            "value": result.meta["halves"]["second"]["self_repair"]["value"],
        }
        for result in results
    ]  # fmt: skip
    base, pairs = [row for row in rows if row["arm"] == baseline], []
    for row in (row for row in rows if row["arm"] != baseline):
        near = min(base, key=lambda other: abs(other["loss"] - row["loss"]))
        apart = row["loss"] - near["loss"]
        if abs(apart) <= MATCHED and None not in (row["value"], near["value"]):
            pairs.append(
                {
                    "arm": row["arm"], "model": row["name"], "with": near["name"], "loss_difference": apart,
                    "difference": row["value"] - near["value"],
                }
            )  # fmt: skip
    return pairs


def answer_of(
    drawn: dict[str, Any], equal: dict[str, Any], between: pd.DataFrame, pairs: Sequence[dict[str, Any]]
) -> str:
    """One line an arm: less, more, or not told apart; by how much; and what the loss has to do with it."""
    arm = drawn["arm"]
    of_arm = between[between.arm == arm].set_index("metric")
    apart = of_arm.difference.get("clean loss (bits)", np.nan)
    mine = [pair["difference"] for pair in pairs if pair["arm"] == arm]
    loss = f"no models of equal loss (the arm's is {apart:+.2f} bits off)"
    if mine:
        loss = f"models of equal loss (within {MATCHED} bits, {len(mine)} pairs) {100 * np.mean(mine):+.0f} points"
    few = "" if min(drawn["n_seeds"], drawn["n_baseline"]) >= FEWEST_SEEDS else ", fewer than 3: no claim"
    return (
        f"{arm} against {drawn['baseline']}: {verdict(drawn, of_arm, PRIMARY)} of the removed direct effect; at tokens "
        f"of equal loss {verdict(equal, of_arm, EQUAL_PRIMARY)}; {loss}; {drawn['n_seeds']} against "
        f"{drawn['n_baseline']} seeds{few}"
    )


def verdict(drawn: dict[str, Any], between: pd.DataFrame, metric: str) -> str:
    """Less or more, where both tests say so, in points of the removed effect."""
    row = between.loc[metric] if metric in between.index else None
    enough = min(drawn["n_seeds"], drawn["n_baseline"]) >= FEWEST_SEEDS
    off = enough and drawn["ci_low"] * drawn["ci_high"] > 0 and row is not None and bool(row.claim)
    found = ("less" if drawn["difference"] < 0 else "more") if off else "no difference held up in"
    is_known = row is not None and math.isfinite(row.ci_low)
    welch = f"; over seeds [{100 * row.ci_low:.0f}, {100 * row.ci_high:.0f}]" if is_known else ""
    return (
        f"{found} self-repair, {100 * drawn['difference']:+.0f} points (seeds and stories "
        f"[{100 * drawn['ci_low']:.0f}, {100 * drawn['ci_high']:.0f}], p {drawn['p']:.2g}{welch})"
    )
