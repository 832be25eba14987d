"""Layer shift: do heads react to a lost head as they do to a lost layer? (Iterative inference would have them do so.)

Layer l + 1 is given the stream that layer l was given, as if layer l were not there. The change of the direct effect
of each head of layer l + 1 is compared with its change when only the main head of layer l is taken out. Only these
heads' outputs are read: the rest of such a run is a model without a layer.

The norm before the attention that is read keeps its clean scale (`hold_norm`), as does the final one: otherwise a
shorter stream alone makes all heads larger. Null: in place of what layer l wrote, a random direction of the same
length at every token. For the agreement of the two changes over heads: heads exchanged within their layer.

Source: arXiv 2402.15390, section 6 (iterative inference); differs: held norms, nulls.
"""

from typing import Any

import numpy as np
import torch

from analyses.result import Result
from analyses.self_repair.mechanisms import noise
from analyses.self_repair.mechanisms.estimates import Estimate, Sums, answered, divided, entries, estimate, ratio
from analyses.self_repair.mechanisms.mediation import described
from analyses.self_repair.mechanisms.scene import Scene, Take, capturing, clean_scale, holding_scale, replacing
from analyses.self_repair.mechanisms.tokens import main_head, selected
from analyses.texts import Stories
from sat_lens.repair.components import Site
from sat_lens.repair.runner import Hooks, Point
from sat_lens.repair.selection import Selection, TopDE

MEASURES = {
    "shift": "change of a head's direct effect a token when the layer before its own is skipped",
    "ablation": "the same when only the main head of the layer before is taken out",
    "agreement": "correlation of the two over heads, each layer's mean taken off; null: heads exchanged in their layer",
}


def layer_shift(
    model: Any,
    stories: Stories,
    *,
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    hold_norm: bool = True,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """How the heads of every layer but the first react to the layer before.

    Args:
        select: tokens of each layer's main head.
        hold_norm: the norm before the heads keeps its clean scale.

    Returns:
        Rows by `measure`, `layer` and `head` of the reacting head, and `removed`, the main head before it.

    Raises:
        ValueError: a model of a single layer.

    Cost: for each batch and layer four runs of the layers behind it.
    """
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    if scene.n_layers < 2:
        raise ValueError("a layer shift needs a model of at least 2 layers; this one has 1")
    select = TopDE() if select is None else select
    mains = [main_head(scene, [layer]) for layer in range(scene.n_layers - 1)]
    source = scene.fitted(mains)
    tokens = selected(scene, mains, select, source)
    sums, n_heads = Sums(scene.n), model.cfg.n_heads
    for take in scene.takes(tokens.any(0)):
        for layer, (main, mine) in enumerate(zip(mains, tokens, strict=True)):
            keep = mine[take.rows, : take.keep.shape[1]].to(take.keep.device)
            clean, site = take.clean.streams, Site(layer + 1, "z")
            held = holding_scale(layer + 1, clean_scale(take, layer + 1)) if hold_norm else []
            after, before = clean[Point(layer + 1)], clean[Point(layer)]
            random = after + noise.like(take, before - after, seed + layer)
            for name, x in (("shift", before), ("shift null", random)):
                sums.add(f"{name} {layer}", take.rows, _change(take, site, layer + 1, held, x), keep)
            for draw in range(scene.ablation.draws):
                values = scene.replacements(take, [main], source, draw)
                null, _ = noise.removal_like(take, main, values, seed + draw)
                for name, hooks in (("ablation", replacing(main, values)), ("ablation null", null)):
                    change = _change(take, site, layer, [*hooks, *held])
                    sums.add(f"{name} {layer}", take.rows, change, keep, 1 / scene.ablation.draws)
    frames, counts = [], tokens.sum(2).double().numpy()
    for layer, main in enumerate(mains):
        n = {"n_tokens": int(counts[layer].sum()), "n_stories": int((counts[layer] > 0).sum())}
        where = {"layer": layer + 1, "head": np.arange(n_heads), "removed": main.name}
        for name in ("shift", "ablation"):
            ends = (ratio(sums[f"{kind} {layer}"], counts[layer]) for kind in (name, f"{name} null"))
            frames.append(entries(name, "logits", *ends, **where, **n))
    n = {"n_tokens": int(counts.sum()), "n_stories": int((counts.sum(0) > 0).sum())}
    frames.append(entries("agreement", "correlation", *_agreement(sums, counts, n_heads, seed), **n))
    meta = described(scene, mains[0], select, seed) | {
        "component": [main.name for main in mains],
        "hold_norm": hold_norm,
    }
    return answered("self_repair_layer_shift", frames, MEASURES, meta)


def _change(take: Take, site: Site, layer: int, hooks: Hooks, x: Any = None) -> torch.Tensor:
    """Change of the direct effects of a layer's heads in a run from `layer` on."""
    seen: dict[Any, torch.Tensor] = {}
    take.run(layer, [*hooks, *capturing(site.hook, seen, site)], x)
    return take.unit_effects(site, seen[site] - take.value(site))


def _agreement(sums: Sums, counts: np.ndarray, n_heads: int, seed: int) -> tuple[Estimate, Estimate]:
    """Correlation over heads with its interval over stories, and the middle 95 % with heads exchanged."""
    n_layers = len(counts)
    stacked = {
        name: np.stack([sums[f"{name} {layer}"] for layer in range(n_layers)], 1) for name in ("shift", "ablation")
    }

    def means(weights: np.ndarray, name: str) -> np.ndarray:
        flat = stacked[name].reshape(len(weights.T), -1)
        found = (weights @ flat).reshape(-1, n_layers, n_heads)
        found = divided(found, (weights @ counts.T)[..., None])
        return found - found.mean(-1, keepdims=True)

    def correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        below = np.sqrt((x**2).sum((-1, -2)) * (y**2).sum((-1, -2)))
        return divided((x * y).sum((-1, -2)), below)

    found = estimate(lambda w: correlation(means(w, "shift"), means(w, "ablation")), counts.shape[1], seed=seed)
    whole = np.full((1, counts.shape[1]), 1.0)
    x, y = means(whole, "shift"), means(whole, "ablation")
    draw = np.random.default_rng(seed)
    order = draw.random((1000, n_layers, n_heads)).argsort(-1)
    exchanged = correlation(np.take_along_axis(np.broadcast_to(x, order.shape), order, -1), y)
    if not np.isfinite(exchanged).any():
        nothing = np.asarray(np.nan)
        return found, Estimate(nothing, nothing, nothing)
    low, high = np.nanquantile(exchanged, [0.025, 0.975])
    return found, Estimate(np.asarray(np.nanmean(exchanged)), np.asarray(low), np.asarray(high))
