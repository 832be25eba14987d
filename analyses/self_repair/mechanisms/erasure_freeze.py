"""Neurons held at their clean activations while a component is out: is the repair theirs?"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.self_repair.mechanisms.estimates import Sums
from analyses.self_repair.mechanisms.scene import Scene, Take, capturing, replacing
from sat_lens.repair.ablations import Source
from sat_lens.repair.components import Component, Site
from sat_lens.repair.runner import Hooks


def frozen_sums(
    scene: Scene,
    taken: Component,
    mlp: Site,
    tokens: Bool[Tensor, "story pos"],
    source: Source,
    repair: Float[np.ndarray, "story neuron"],
    count: Float[np.ndarray, " story"],
    sizes: Sequence[int],
    seed: int,
) -> Sums:
    """Self-repair that is lost when neurons of a layer are frozen, by story.

    Args:
        repair, count: each story's sum of the neurons' repair, and its tokens, by which the neurons are ranked.
        sizes: of the sets; each is the top of the ranking on the other half of the stories.

    Returns:
        `self_repair`; `frozen top k` for each size, and `frozen anti_erasure` (at each token the neurons with DE < 0
        and r > 0); each with a `random ...` of as many neurons.
    """
    fold = _folds(count)
    draw = np.random.default_rng(seed)
    width = repair.shape[1]
    order = np.stack([(-repair[fold != half].sum(0)).argsort(kind="stable") for half in (0, 1)])
    shuffled = np.stack([draw.permutation(width) for _ in (0, 1)])
    exchange = torch.from_numpy(draw.permutation(width))
    sums, share = Sums(scene.n), 1 / scene.ablation.draws
    for take in scene.takes(tokens, [mlp, *(write.site for write in taken.writes)]):
        clean = take.value(mlp)
        sets = {}
        for size in sizes:
            for label, ranking in ((f"frozen top {size}", order), (f"random top {size}", shuffled)):
                sets[label] = _mask(ranking[:, :size], width)[fold[take.rows.numpy()]][:, None].to(clean.device)
        for step in range(scene.ablation.draws):
            values, before = scene.replacements(take, [taken], source, step), take.clean_values(taken)
            own = take.own(taken, {site: values[site] - before[site] for site in before})
            seen, hooks = {}, replacing(taken, values)
            dlogit = take.dlogit(take.run(taken.layer, [*hooks, *capturing(mlp.hook, seen, mlp)]))
            sums.add("self_repair", take.rows, dlogit - own, take.keep, share)
            de, change = take.unit_effects(mlp, clean), take.unit_effects(mlp, seen[mlp] - clean)
            anti = (de < 0) & (change > 0)
            each = {"frozen anti_erasure": anti, "random anti_erasure": anti[..., exchange.to(anti.device)]}
            for label, mask in (sets | each).items():
                frozen = take.dlogit(take.run(taken.layer, [*hooks, *_holding(take, mlp, mask)]))
                sums.add(label, take.rows, dlogit - frozen, take.keep, share)
    return sums


def _holding(take: Take, mlp: Site, mask: Bool[Tensor, "batch _ neuron"]) -> Hooks:
    clean = take.value(mlp)
    return [(mlp.hook, lambda value: torch.where(mask, clean, value))]


def _folds(count: np.ndarray) -> np.ndarray:
    """0 or 1 for each story; those with tokens in turn, so that both halves hold as many of them."""
    fold = np.zeros(len(count), dtype=int)
    known = np.flatnonzero(count > 0)
    fold[known] = np.arange(len(known)) % 2
    return fold


def _mask(ids: np.ndarray, width: int) -> Bool[Tensor, "half neuron"]:
    mask = torch.zeros(len(ids), width, dtype=torch.bool)
    return mask.scatter_(1, torch.from_numpy(np.ascontiguousarray(ids)), True)
