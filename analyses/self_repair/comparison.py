"""Does self-ablation training reduce self-repair? Models of several arms compared, a training seed being one of each.

Primary: self-repair over removed direct effect, in the second half of the layers, on the same stories. It is compared
twice, both two-sided: Welch's t over seeds with an exact permutation (`analyses.arms`), and a bootstrap of seeds and,
within it, of stories, which are the same for all models. Three seeds bootstrapped are too sure of themselves, so a
claim takes both: three seeds, both intervals off 0.

Models of different loss differ in self-repair for other reasons, too. Losses stand beside, and models of two arms whose
losses are within `MATCHED` bits are compared as pairs; where there are none the answer says that arm and loss cannot
be told apart. The control for masks as such: the same ratio under masks dealt from other positions.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses.arms import FEWEST_SEEDS, arm_of, arms_table, differences
from analyses.result import Result
from analyses.self_repair.halves import SHARES

PRIMARY = "self-repair / removed, second half"
MATCHED = 0.05
"""Bits a token within which losses count as equal."""
RESAMPLES = 2000
NAMES = dict(zip(SHARES, ("heads", "MLPs", "norm", "own", "masks"), strict=True))


def measured(result: Result) -> list[dict[str, Any]]:
    """What is compared of one model."""
    meta = result.meta
    second, first = meta["halves"]["second"], meta["halves"]["first"]
    rows = [{"metric": PRIMARY, **second["self_repair"], "n": second["n"]}]
    rows += [
        {"metric": f"share of {name}, second half", **second[key], "n": second["n"]} for key, name in NAMES.items()
    ]
    rows.append({"metric": "self-repair / removed, first half", **first["self_repair"], "n": first["n"]})
    if "control" in meta:
        of = meta["control"]
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
    table = arms_table(results, {result.meta["checkpoint"]: measured(result) for result in results})
    baseline = str(table.arm.iloc[0]) if baseline is None else baseline
    between = differences(table, baseline)
    drawn = [bootstrap(results, arm, baseline) for arm in dict.fromkeys(table.arm) if arm != baseline]
    pairs = matched_pairs(results, baseline)
    meta = {
        "knobs": knobs,
        "baseline": baseline,
        "models": {result.meta["checkpoint"]: {"summary": result.meta["summary"]} for result in results},
        "differences": between.to_dict(orient="records"),
        "bootstrap": drawn,
        "matched": pairs,
    }
    meta["summary"] = "\n".join(answer_of(one, between, pairs) for one in drawn) or "one arm only: nothing to compare"
    return Result("self_repair", table, {"value": "ratio of sums, or as the metric says", "n": "tokens"}, meta)


def bootstrap(results: Sequence[Result], arm: str, baseline: str, seed: int = 0) -> dict[str, Any]:
    """Difference of the primary measure, arm minus baseline, resampling seeds and then stories.

    Stories are drawn once a resample for all models, which saw the same ones.

    Returns:
        `arm`, `baseline`, `difference`, `ci_low`, `ci_high` (95 %), `p` (two-sided), `n_seeds`, `n_baseline`,
        `n_stories`.
    """
    draw = np.random.default_rng(seed)
    sides = [_sums([r for r in results if arm_of(r.meta)["arm"] == name]) for name in (arm, baseline)]
    n = sides[0][0].shape[1]
    weights = draw.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    means, values = [], []
    for repair, removed in sides:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (weights @ repair.T) / (weights @ removed.T)  # [resample, model]
            values.append(float(np.mean(repair.sum(1) / removed.sum(1))))
        picked = draw.integers(len(repair), size=(RESAMPLES, len(repair)))
        means.append(np.take_along_axis(ratio, picked, 1).mean(1))
    apart = means[0] - means[1]
    apart = apart[np.isfinite(apart)]
    below = float((apart < 0).mean() + (apart == 0).mean() / 2) if len(apart) else float("nan")
    low, high = np.quantile(apart, [0.025, 0.975]) if len(apart) else (np.nan, np.nan)
    return {
        "arm": arm, "baseline": baseline, "difference": values[0] - values[1], "ci_low": float(low),
        "ci_high": float(high), "p": max(2 * min(below, 1 - below), 1 / RESAMPLES), "n_seeds": len(sides[0][0]),
        "n_baseline": len(sides[1][0]), "n_stories": n,
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


def answer_of(drawn: dict[str, Any], between: pd.DataFrame, pairs: Sequence[dict[str, Any]]) -> str:
    """One line an arm: less, more, or not told apart; by how much; and what the loss has to do with it."""
    arm = drawn["arm"]
    rows = between[(between.metric == PRIMARY) & (between.arm == arm)]
    losses = between[(between.metric == "clean loss (bits)") & (between.arm == arm)]
    enough = min(drawn["n_seeds"], drawn["n_baseline"]) >= FEWEST_SEEDS
    off = enough and drawn["ci_low"] * drawn["ci_high"] > 0 and bool(len(rows)) and bool(rows.claim.iloc[0])
    found = ("less" if drawn["difference"] < 0 else "more") if off else "no difference held up in"
    welch = f"; over seeds [{100 * rows.ci_low.iloc[0]:.0f}, {100 * rows.ci_high.iloc[0]:.0f}]" if len(rows) else ""
    mine = [pair for pair in pairs if pair["arm"] == arm]
    if mine:
        apart = np.mean([pair["difference"] for pair in mine])
        loss = f"at equal loss (within {MATCHED} bits, {len(mine)} pairs) {100 * apart:+.0f} points"
    else:
        apart = losses.difference.iloc[0] if len(losses) else float("nan")
        loss = f"no models of equal loss (the arm's is {apart:+.2f} bits off), so arm and loss cannot be told apart"
    few = "" if enough else f"; fewer than {FEWEST_SEEDS} seeds, no claim"
    return (
        f"{arm} against {drawn['baseline']}: {found} self-repair, {100 * drawn['difference']:+.0f} points of the "
        f"removed direct effect (seeds and stories [{100 * drawn['ci_low']:.0f}, {100 * drawn['ci_high']:.0f}], "
        f"p {drawn['p']:.2g}{welch}); {loss}; {drawn['n_seeds']} against {drawn['n_baseline']} seeds{few}"
    )


def _sums(results: Sequence[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Self-repair and removed direct effect of the second half, [model, story]."""
    repair, removed = (
        np.array([result.meta["by_story"][name] for result in results], dtype=np.float64)
        for name in ("self_repair", "removed")
    )
    return repair, removed
