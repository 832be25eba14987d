"""Backup heads: which heads take over when a known set of seeds is out?

| score | of head u |
| --- | --- |
| `completion` | E(change of the logits by u's removal with the seeds out) - E(the same with the seeds in) |
| `energy` | the second term alone: the single ablation that backups hide from |
| `energy_without` | the first term |
| `de_growth` | u's direct effect with the seeds out - with the seeds in, at the clean scale |

E is the energy of a change d of all logits in the Fisher metric of the clean prediction p: sum p d^2 - (sum p d)^2,
nats, twice the KL divergence to second order. One metric serves both terms, so that their difference is the head's
alone. With labels, each score is judged by its ROC-AUC (0.5: chance). Scores complete a set of known seeds; they do
not find one.

Null: in place of the seeds' removal a random direction of the same length; for an AUC labels dealt anew.

Source: arXiv 2607.01940 (completion score); arXiv 2402.15390 (growth of direct effects).
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from analyses.result import Result
from analyses.self_repair.mechanisms import ioi_heads, noise
from analyses.self_repair.mechanisms.estimates import Estimate, Sums, answered, divided, entries, estimate, ratio
from analyses.self_repair.mechanisms.mediation import described
from analyses.self_repair.mechanisms.scene import Scene, Take, capturing, replacing
from analyses.self_repair.mechanisms.tokens import one_component, selected
from analyses.texts import Stories
from sat_lens.repair.components import Component, Site, heads, joint
from sat_lens.repair.runner import Hooks
from sat_lens.repair.selection import Selection, TopDE

SCORES = {"completion": "nats", "energy": "nats", "energy_without": "nats", "de_growth": "logits"}
MEASURES = {
    "completion": "energy_without - energy",
    "energy": "Fisher energy of the head's removal with the seeds in",
    "energy_without": "Fisher energy of the head's removal with the seeds out",
    "de_growth": "change of the head's direct effect a token when the seeds are out",
    "auc": "ROC-AUC of a score for labelled backups among all scored heads; null: labels dealt anew, middle 95 %",
}


def backups(
    model: Any,
    stories: Stories,
    *,
    seeds: Collection[Any] | None = None,
    labels: Any = None,
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Scores of all heads but the seeds.

    Args:
        seeds: heads that are known to do the work; None: the main head before the last layer, or with labels
            `ioi` the name movers.
        labels: the backups, as pairs (layer, head) or names; `ioi`: those of GPT-2 small, for prompts of that task.

    Returns:
        Rows by `measure`, `head`, `layer` and `backup` (whether it is labelled so), and `score` of an AUC.

    Raises:
        ValueError: labels of which none, or all, are among the scored heads.

    Cost: for each head, batch and draw three runs of the layers behind it or the seeds, and their logits at the
        selected tokens.
    """
    if isinstance(labels, str):
        if labels != "ioi":
            raise ValueError(f"labels must be heads, or 'ioi'; got {labels!r}")
        seeds, labels = ioi_heads.NAME_MOVERS if seeds is None else seeds, ioi_heads.BACKUPS
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    select = TopDE() if select is None else select
    first = one_component(scene, None if seeds is None else tuple(seeds), range(max(1, scene.n_layers - 1)))
    taken = joint([first])
    out = {(site.layer, unit) for site, units in taken.writes for unit in units if site.name == "z"}
    scored = [one for one in heads(model) if (one.layer, one.head) not in out]
    known = _labelled(scored, labels)
    source = scene.fitted([taken, *scored])
    tokens = selected(scene, [taken], select, source)[0]
    sums = Sums(scene.n)
    for take in scene.takes(tokens):
        for draw in range(scene.ablation.draws):
            _measure(take, taken, scored, scene.replacements(take, [taken, *scored], source, draw), seed + draw, sums)
    count = tokens.sum(1).double().numpy()
    n = {"n_tokens": int(tokens.sum()), "n_stories": int(tokens.any(1).sum())}
    where = {
        "head": [one.name for one in scored],
        "layer": [one.layer for one in scored],
        "backup": [""] * len(scored) if known is None else np.where(known, "yes", "no"),
    }
    frames = []
    for name, unit in SCORES.items():
        null = ratio(sums[f"null {name}"], count) if name != "energy" else None
        frames.append(entries(name, unit, ratio(sums[name], count), null, score="", **where, **n))
    for name in SCORES if known is not None else ():
        found, null = area(sums[name], count, np.asarray(known), seed)
        of = {"head": "", "layer": -1, "backup": "", "score": name}
        frames.append(entries("auc", "ROC-AUC", found, null, **of, **n))
    meta = described(scene, taken, select, seed) | {"metric": "Fisher metric of the clean prediction"}
    return answered("self_repair_backups", frames, MEASURES, meta)


def fisher_energy(change: Float[Tensor, "token d_vocab"], p: Float[Tensor, "token d_vocab"]) -> Float[Tensor, " token"]:
    """Variance of the change under p."""
    mean = (p * change).sum(-1, keepdim=True)
    return (p * (change - mean).square()).sum(-1)


def area(
    scores: Float[np.ndarray, "story head"], count: Float[np.ndarray, " story"], positive: np.ndarray, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """ROC-AUC of mean scores, its interval over stories, and the middle 95 % of 9,999 deals of the labels."""
    n_yes, n_no = int(positive.sum()), int((~positive).sum())

    def of(ranks: np.ndarray, yes: np.ndarray) -> np.ndarray:
        return ((ranks * yes).sum(-1) - n_yes * (n_yes + 1) / 2) / (n_yes * n_no)

    def statistic(weights: np.ndarray) -> np.ndarray:
        means = divided(weights @ scores, (weights @ count)[:, None])
        return of(stats.rankdata(np.nan_to_num(means), axis=-1), positive)

    found = estimate(statistic, len(scores), seed=seed)
    ranks = stats.rankdata(scores.sum(0))
    dealt = np.random.default_rng(seed).permuted(np.tile(positive, (9999, 1)), axis=1)
    by_chance = of(ranks, dealt)
    low, high = np.quantile(by_chance, [0.025, 0.975])
    return found, Estimate(np.asarray(0.5), np.asarray(low), np.asarray(high))


def _labelled(scored: list[Component], labels: Any) -> np.ndarray | None:
    if labels is None:
        return None
    wanted = {name if isinstance(name, str) else "L{}H{}".format(*name) for name in labels}
    known = np.asarray([one.name in wanted for one in scored])
    if known.all() or not known.any():
        raise ValueError(
            f"labels must name some of the {len(scored)} scored heads, not none or all; got {sorted(wanted)[:8]}"
        )
    return known


def _measure(
    take: Take, taken: Component, scored: list[Component], values: Mapping[Site, Tensor], seed: int, sums: Sums
) -> None:
    """Every head's scores in a batch, with the seeds out and with a random direction in their place."""
    random, _ = noise.removal_like(take, taken, dict(values), seed)
    share = 1 / take.scene.ablation.draws
    worlds: dict[str, Hooks] = {"in": [], "out": replacing(taken, values), "random": random}
    base, effects = {}, {}
    for name, hooks in worlds.items():
        seen: dict[Any, Tensor] = {}
        watch = [h for one in scored for h in capturing(one.writes[0].site.hook, seen, one.writes[0].site)]
        base[name] = _logits(take, take.run(0, [*hooks, *watch]))
        effects[name] = seen
    p = base["in"].softmax(-1)
    energies: dict[str, list[Tensor]] = {name: [] for name in worlds}
    growth: dict[str, list[Tensor]] = {"out": [], "random": []}
    for one in scored:
        (site, units), mine = one.writes[0], replacing(one, values)
        for name, hooks in worlds.items():
            layer = one.layer if name == "in" else min(one.layer, taken.layer)
            change = _logits(take, take.run(layer, [*hooks, *mine])) - base[name]
            energies[name].append(fisher_energy(change, p))
            if name != "in":
                changed = take.unit_effects(site, effects[name][site] - take.value(site))[..., units[0]]
                behind = one.layer > taken.layer  # the others cannot grow; what shows of them is rounding
                growth[name].append(changed[take.keep] * behind)
    row = take.rows[take.keep.nonzero(as_tuple=True)[0].cpu()]
    stacked = {name: torch.stack(of, 1).double() for name, of in energies.items()}
    for prefix, name in (("", "out"), ("null ", "random")):
        sums.put(f"{prefix}completion", row, stacked[name] - stacked["in"], share)
        sums.put(f"{prefix}energy_without", row, stacked[name], share)
        sums.put(f"{prefix}de_growth", row, torch.stack(growth[name], 1), share)
    sums.put("energy", row, stacked["in"], share)


def _logits(take: Take, final: Tensor) -> Float[Tensor, "token d_vocab"]:
    """At the kept tokens."""
    return take.scene.readout.logits(final[take.keep])
