"""The edits that a measurement consists of: baselines, plans, and several draws of a plan in random order."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.rewriting.baselines import BASELINES, baselines
from analyses.rewriting.plans import Plan, plan_edit, ranked_latents
from analyses.rewriting.rewriter import Rewriter
from analyses.rewriting.setting import Setting, mass, n_active
from analyses.rewriting.teller import Teller
from sat_lens.coders.substitute import Edit


class Runs(NamedTuple):
    """What is run, and what it is of.

    Args:
        edits: by name.
        labels: what begins each row of the table.
        names: of each row's edits, whose mean it is.
    """

    edits: dict[str, Edit]
    labels: list[dict[str, Any]]
    names: list[list[str]]


def prepared(
    setting: Setting,
    rewriters: Mapping[str, Rewriter],
    tellers: Mapping[str, Teller],
    plans: Sequence[Plan],
    scores: Mapping[str, Float[Tensor, " unit"]],
    draws: int,
) -> Runs:
    """The baselines, then the plans in their order."""
    runs = Runs(dict(baselines(setting)), [{"part": "baseline", "name": name} for name in BASELINES], [])
    runs.names.extend([name] for name in BASELINES)
    weight, active = mass(setting.of("evaluate")), n_active(setting.of("explain"))
    for number, plan in enumerate(plans):
        rewriter = rewriters[plan.explanations]
        said = tellers[plan.explanations].by(plan.calibration)
        own = active[rewriter.latents].double() if plan.order == "density" else scores.get(rewriter.name)
        orders = _orders(plan, rewriter, own, draws, setting.seed)
        names = [f"plan {number} draw {draw}" for draw in range(len(orders))]
        for name, ranked in zip(names, orders, strict=True):
            runs.edits[name] = plan_edit(setting.coder, plan, rewriter.latents, ranked, said)
        n = round(plan.fraction * len(rewriter.latents))
        parts = [float(weight[rewriter.latents[ranked[:n]]].sum()) for ranked in orders]
        share = sum(parts) / len(parts) / max(float(weight.sum()), 1e-300)
        runs.names.append(names)
        runs.labels.append(_label(plan, rewriter) | {"n_rewritten": n, "mass_rewritten": share})
    return runs


def _orders(plan: Plan, rewriter: Rewriter, scores: Tensor | None, draws: int, seed: int) -> list[Int[Tensor, " unit"]]:
    """In which latents are rewritten; several where the order is random and matters."""
    own = torch.zeros(len(rewriter.latents)) if scores is None else scores
    n = draws if plan.order == "random" and 0 < plan.fraction < 1 else 1
    return [ranked_latents(rewriter.latents, own, plan.order, seed * 101 + draw) for draw in range(n)]


def _label(plan: Plan, rewriter: Rewriter) -> dict[str, Any]:
    """What sets a row apart; `skip` and `bias` are 1 or 0, since baselines have neither."""
    knobs = {name: value for name, value in dataclasses.asdict(plan).items() if name != "explanations"}
    return {
        "part": "plan", "name": plan.explanations, "explainer": rewriter.explainer, "bits": rewriter.bits,
        **knobs, "skip": float(plan.skip), "bias": float(plan.bias),
    }  # fmt: skip
