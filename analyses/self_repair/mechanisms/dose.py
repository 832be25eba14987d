"""Dose response: what later components do when a component is taken out in part.

The replacement is mixed in: clean + lambda (replacement - clean). The mean response of each later head and MLP, the
change of its direct effect, and that of the logit are regressed on lambda:

    E_r(lambda) = own_r + gamma_r lambda        over the lambdas and 0; affinity is the R2 of this line

own_r is the intercept, 0 where the response is truly affine, since nothing happens at lambda 0. `gamma_at_0` is the
slope without any ablation to speak of, by a central difference around 0: where it equals gamma, repair is not a
reaction to damage but a slope that the model has anyway.

Null: gamma of a random direction of the same length in place of what is taken out.

Source: arXiv 2610.02173 (dose law); the regression on means over tokens is ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyses.result import Result
from analyses.self_repair.mechanisms import columns, noise
from analyses.self_repair.mechanisms.estimates import Estimate, Sums, answered, divided, entries, estimate, ratio
from analyses.self_repair.mechanisms.mediation import described
from analyses.self_repair.mechanisms.scene import Scene, adding, replacing
from analyses.self_repair.mechanisms.tokens import one_component, selected
from analyses.texts import Stories
from sat_lens.repair.selection import Selection, TopDE

STEP = 1e-2
"""Of the central difference, in lambda."""
MEASURES = {
    "response": "change of a receiver's direct effect (`logit`: of the logit, the removal included) a token",
    "gamma": "slope of the response over lambda, logits a token for the whole removal",
    "own": "intercept of the same line",
    "affinity": "R2 of the same line",
    "gamma_at_0": "slope of the response at lambda 0, by a central difference",
}


def dose(
    model: Any,
    stories: Stories,
    *,
    component: Any = None,
    lambdas: Sequence[float | int] = (0.25, 0.5, 0.75, 1.0),
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """The response of every later head and MLP, and of the logit, to doses of a removal.

    Returns:
        Rows by `measure`, `receiver` and `lambda`.

    Raises:
        ValueError: fewer than 2 lambdas besides 0.

    Cost: for each batch, draw and dose two runs of the rest of the model.
    """
    doses = sorted({float(dose) for dose in lambdas} - {0.0})
    if len(doses) < 2:
        raise ValueError(f"a dose response needs at least 2 lambdas besides 0; got {list(lambdas)}")
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    select = TopDE() if select is None else select
    taken = one_component(scene, component)
    source = scene.fitted([taken])
    tokens = selected(scene, [taken], select, source)[0]
    sums, share = Sums(scene.n), 1 / scene.ablation.draws
    for take in scene.takes(tokens, [write.site for write in taken.writes]):
        clean = take.clean_values(taken)
        for draw in range(scene.ablation.draws):
            whole = scene.replacements(take, [taken], source, draw)
            changes = take.written(taken, {site: whole[site] - clean[site] for site in clean})
            random = {site: noise.like(take, change, seed + draw) for site, change in changes.items()}
            for strength in [*doses, -STEP, STEP]:
                mixed = {site: clean[site] + strength * (whole[site] - clean[site]) for site in clean}
                null = [
                    hook for site, what in random.items() for hook in adding(site.layer, site.name, strength * what)
                ]
                for kind, hooks in (("real", replacing(taken, mixed)), ("null", null)):
                    final, changed = columns.changes(take, taken.layer, hooks)
                    sums.add(f"{kind} {strength}", take.rows, changed, take.keep, share)
                    sums.add(f"{kind} logit {strength}", take.rows, take.dlogit(final)[..., None], take.keep, share)
    own, names = columns.of(scene, taken), np.asarray([*columns.names(scene), "logit"])
    first = columns.first_to_react(scene, taken)
    behind = [i for i in range(first, len(names) - 1) if i not in own]
    n = {"n_tokens": int(tokens.sum()), "n_stories": int(tokens.any(1).sum())}
    count, receivers = tokens.sum(1).double().numpy(), names[[*behind, len(names) - 1]]

    def of(kind: str, dose: float | int) -> np.ndarray:
        return np.concatenate([sums[f"{kind} {dose}"][:, behind], sums[f"{kind} logit {dose}"]], 1)

    frames = []
    for dose in doses:
        ends = (ratio(of(kind, dose), count) for kind in ("real", "null"))
        frames.append(entries("response", "logits", *ends, receiver=receivers, **{"lambda": dose}, **n))
    fits = {kind: _lines([of(kind, dose) for dose in doses], doses, count, seed) for kind in ("real", "null")}
    units = {"gamma": "logits", "own": "logits", "affinity": "R2"}
    for name, unit in units.items():
        frames.append(entries(name, unit, fits["real"][name], fits["null"][name], receiver=receivers, **n))
    ends = (ratio((of(kind, STEP) - of(kind, -STEP)) / (2 * STEP), count) for kind in ("real", "null"))
    frames.append(entries("gamma_at_0", "logits", *ends, receiver=receivers, **n))
    return answered("self_repair_dose", frames, MEASURES, described(scene, taken, select, seed) | {"lambdas": doses})


def _lines(responses: list[np.ndarray], doses: list[float], count: np.ndarray, seed: int) -> dict[str, Estimate]:
    """Lines of mean responses [story receiver], one array a dose, over the doses and 0."""
    x = np.asarray([0.0, *doses])
    stacked = np.stack([np.zeros_like(responses[0]), *responses], 1)
    centred = x - x.mean()

    def of(weights: np.ndarray) -> np.ndarray:
        y = (weights @ stacked.reshape(len(stacked), -1)).reshape(len(weights), *stacked.shape[1:])
        y = divided(y, (weights @ count)[:, None, None])
        gamma = np.einsum("x,rxc->rc", centred, y) / (centred**2).sum()
        own = y.mean(1) - gamma * x.mean()
        around = y - y.mean(1, keepdims=True)
        rest = ((around - gamma[:, None] * centred[:, None]) ** 2).sum(1)
        whole = (around**2).sum(1)
        return np.stack([gamma, own, 1 - divided(rest, np.where(whole > 1e-24, whole, 0.0))])

    found = estimate(lambda weights: np.moveaxis(of(weights), 0, 1), len(stacked), seed=seed)
    return {name: Estimate(*(ends[i] for ends in found)) for i, name in enumerate(("gamma", "own", "affinity"))}
