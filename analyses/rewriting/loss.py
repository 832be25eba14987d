"""What a model loses when latents are rewritten: KL(base || edited) first, since a simulator knows what follows what.

A simulator is a language model, and may bring the loss below the model's own without being right of its latents; KL
cannot be lowered so. Every number is a mean over tokens of the split to evaluate on, its interval a bootstrap over
stories (95 %), the same resamples for all rows, so that differences are paired.

| column | what | unit |
| --- | --- | --- |
| kl | KL(base or edited) | nats a token |
| d_loss | loss less that of the model itself | nats a token |
| kl_minus_zero, d_loss_minus_zero | less that of no latents (skip connection and bias kept): below 0 is a gain | nats |
| recovered_kl, recovered_loss | (zero latents - row) / (zero latents - reconstruction): 1: as the coder | share |
| top1 | tokens whose top prediction stays | share |
| fvu | squared error at the site / variance there | share |

A random order is the mean of several draws.

Source: arXiv 2501.18838; differs: KL, all positions, intervals, and the faults that `faults` names.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.result import Result
from analyses.rewriting.baselines import BASELINES, RECONSTRUCTION, ZERO
from analyses.rewriting.calibration import bins, calibration, pairs
from analyses.rewriting.choices import MISSING
from analyses.rewriting.counts import Counts
from analyses.rewriting.equal_loss import loss_bins
from analyses.rewriting.faults import FAULTS
from analyses.rewriting.measures import UNITS, Errors, measured
from analyses.rewriting.plans import Plan
from analyses.rewriting.reliability import reliability
from analyses.rewriting.rewriter import Rewriter, Simulations
from analyses.rewriting.runs import prepared
from analyses.rewriting.setting import Setting
from analyses.rewriting.teller import Teller
from sat_lens.coders import substituted
from sat_lens.coders.substitute import POSITIONS

FEWEST_BEFORE = 33
"""Tokens before the one that is edited, where positions is `last` and the story has as many."""


def rewriting_loss(
    setting: Setting,
    rewriters: Mapping[str, Rewriter],
    plans: Sequence[Plan],
    scores: Mapping[str, Float[Tensor, " unit"]] | None = None,
    *,
    positions: str = "all",
    missing: str = "refuse",
    draws: int = 3,
    main: Plan | None = None,
    progress: bool = False,
) -> Result:
    """One row a baseline, and one a plan.

    Args:
        rewriters: by name; plans name them.
        plans: what is measured beside the baselines.
        scores: of each rewriter's latents, by which they are rewritten, greatest first.
        positions: `all`, or `last`: one token a story, at a random position, with the story cut behind it.
        missing: what is done where simulated values are missing: `refuse`, or `mask`: such tokens are left out of
            every row.
        draws: of a random order.
        main: the plan by which models are compared; None: the first of the greatest fraction.

    Raises:
        ValueError: a plan of explanations or scores that are not there, missing values, too little memory.

    Cost: a pass to the site, and the layers above it once for each baseline, plan and draw.
    """
    _check(rewriters, plans, scores or {}, positions, missing, draws)
    rows = setting.splits.evaluate
    lengths = setting.stories.lengths[rows]
    used = {name: rewriter for name, rewriter in rewriters.items() if any(p.explanations == name for p in plans)}
    simulations = {name: Simulations(rewriter, setting.stories, rows) for name, rewriter in used.items()}
    keep = setting.keep[rows]
    for said in simulations.values() if missing == "mask" else ():
        keep = said.known(keep)
    tellers, fits = {}, {}
    for name, rewriter in used.items():
        kinds = {"none", *(plan.calibration for plan in plans if plan.explanations == name)}
        tellers[name], fits[name] = _fitted(setting, rewriter, simulations[name], kinds)
    runs = prepared(setting, used, tellers, plans, scores or {}, draws)
    errors = Errors(len(rows))
    found = substituted(
        setting.model, setting.coder.cfg, setting.stories.tokens[rows],
        {name: errors.around(name, edit) for name, edit in runs.edits.items()},
        lengths=_cut(lengths, setting.seed) if positions == "last" else lengths, keep=keep, positions=positions,
        progress=progress,
    )  # fmt: skip
    table = measured(found, errors, runs.labels, runs.names, setting.seed)
    chosen = main or max(plans, key=lambda plan: plan.fraction) if plans else None
    which = {"rewritten": runs.names[len(BASELINES) + list(plans).index(chosen)]} if chosen else {}
    meta = {
        "knobs": {
            "positions": positions, "missing": missing, "draws": draws, "n_latents": setting.n_latents,
            "coder": dataclasses.asdict(setting.coder.cfg), "n_masked": int((setting.keep[rows] & ~keep).sum()),
            "splits": {name: len(part) for name, part in zip(setting.splits._fields, setting.splits, strict=True)},
        },
        "base_loss": float(found.base.double().mean()),
        "main": dataclasses.asdict(chosen) if chosen else None,
        "by_loss": loss_bins(found, {RECONSTRUCTION: [RECONSTRUCTION], ZERO: [ZERO], **which}),
        "reliability": fits, "faults": FAULTS, "summary": summary(table),
    }  # fmt: skip
    return Result("rewriting", table, {name: unit for name, unit in UNITS.items() if name in table}, meta)


def _check(
    rewriters: Mapping[str, Rewriter], plans: Sequence[Plan], scores: Mapping[str, Tensor], positions: str,
    missing: str, draws: int,
) -> None:  # fmt: skip
    if positions not in POSITIONS:
        raise ValueError(f"positions must be one of {', '.join(POSITIONS)}; got {positions!r}")
    if missing not in MISSING:
        raise ValueError(f"missing must be one of {', '.join(MISSING)}; got {missing!r}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1; got {draws}")
    for plan in plans:
        if plan.explanations not in rewriters:
            raise ValueError(f"there are no explanations {plan.explanations!r}; there are {', '.join(rewriters)}")
        rewriter = rewriters[plan.explanations]
        if plan.order == "score" and 0 < plan.fraction < 1 and rewriter.name not in scores:
            raise ValueError(f"best first needs scores of {plan.explanations}; score them, or take a random order")


def _cut(lengths: Int[Tensor, " story"], seed: int) -> Int[Tensor, " story"]:
    """Lengths whose last but one token is at a random position, FEWEST_BEFORE tokens in where there are as many."""
    draw = torch.rand(len(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first = torch.minimum(torch.full_like(lengths, FEWEST_BEFORE), lengths - 2).clamp(min=1)
    return torch.minimum(first + (draw * (lengths - 1 - first).clamp(min=1)).long() + 2, lengths)


def _fitted(
    setting: Setting, rewriter: Rewriter, simulations: Simulations, kinds: set[str]
) -> tuple[Teller, list[dict[str, Any]]]:
    """What tells the run, and how well each calibration fits, on the split that it is not fitted on."""
    seen = pairs(setting, rewriter, Simulations(rewriter, setting.stories, setting.splits.calibrate))
    known = ~seen.y.isnan()
    cut = Counts.of(bins(seen.y, seen.low, seen.high), seen.x > 0, known).best_f1
    made = {kind: calibration(kind, seen) for kind in sorted(kinds)}
    return Teller(simulations, made, cut), reliability(setting, rewriter, simulations, made)


def summary(table: pd.DataFrame) -> str:
    """One line: what rewriting everything costs, between the coder alone and no latents."""
    by = table[table.part == "baseline"].set_index("name")
    plans = table[table.part == "plan"]
    if not len(plans):
        return f"KL (nats a token): coder alone {by.kl[RECONSTRUCTION]:.4f}, no latents {by.kl[ZERO]:.4f}"
    row = plans.loc[plans.fraction.idxmax()]
    share = f"{row.recovered_kl:.0%} [{row.recovered_kl_low:.0%}, {row.recovered_kl_high:.0%}] of the way recovered"
    if by.kl_minus_zero_high[RECONSTRUCTION] >= 0:
        share = "too few tokens to tell a share recovered, since no latents may cost no more than the coder alone"
    told = f"{row.explainer} ({row['bits']:,.0f} bits each), {row.fraction:.0%} of explained latents"
    return (
        f"KL (nats a token) of latents rewritten by {told}: {row.kl:.4f} [{row.kl_low:.4f}, {row.kl_high:.4f}]; "
        f"coder alone {by.kl[RECONSTRUCTION]:.4f}, no latents {by.kl[ZERO]:.4f}; "
        f"{share}"
    )
