"""Self-repression: does a head say less when its own output is in the stream already?

At one token, k times the head's output is added to the stream before its layer, and its direct effect there is read
again. Iterative inference predicts a line of new against old with a slope below 1. Every measured token has a copy of
its text to itself, for keys and values of a changed token would change what later tokens read.

Controls, token by token of the same length: the output of another head of the layer, and a random direction. They
matter more than the head: a longer stream alone, made shorter by the norm, says less. So the norm before the head's
layer keeps its clean scale (`hold_norm`), and what counts is the slope less the random direction's.

Source: arXiv 2402.15390, section 6; differs: controls for each token, held norms.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.result import Result
from analyses.self_repair.mechanisms import noise
from analyses.self_repair.mechanisms.estimates import Sums, answered, divided, entries, estimate, line, moments, ratio
from analyses.self_repair.mechanisms.mediation import described
from analyses.self_repair.mechanisms.scene import Scene, Take, capturing, clean_scale, holding_scale
from analyses.self_repair.mechanisms.tokens import one_component, selected
from analyses.texts import Stories
from sat_lens.repair.components import Component, Site
from sat_lens.repair.runner import Point
from sat_lens.repair.selection import Selection, TopDE

ADDED = ("own", "other head", "random")
MEASURES = {
    "old": "mean direct effect before",
    "new": "mean direct effect after",
    "slope": "of new on old through the origin; null: the random direction's",
    "line_slope": "of new on old with an intercept; null: the random direction's",
    "below_random": "slope less the random direction's; below 0: repression beyond what any change of this size does",
}


def self_repression(
    model: Any,
    stories: Stories,
    *,
    component: Any = None,
    times: Sequence[float | int] = (1, 3, 5),
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    hold_norm: bool = True,
    most: int = 512,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """The slope of a head's direct effect when its output is added before its layer.

    Args:
        component: a head; None: the main one of the layers from 1 on.
        times: k.
        ablation: tells which tokens can be measured, nothing else.
        most: selected tokens, a random sample of them where there are more.

    Returns:
        Rows by `measure`, `added` and `times`.

    Raises:
        ValueError: a component that is no head.

    Cost: for each token, k and kind of addition one run of the head's layer and those behind it, on its whole text.
    """
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    select = TopDE() if select is None else select
    head = one_component(scene, component, range(min(1, scene.n_layers - 1), scene.n_layers))
    if head.kind != "head":
        raise ValueError(f"self-repression is asked of a head; got {head.name}")
    tokens = selected(scene, [head], select, scene.fitted([head]))[0]
    places = tokens.flatten().nonzero().flatten()
    if len(places) > most:
        chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))[:most]
        tokens = torch.zeros_like(tokens).flatten().index_fill_(0, places[chosen], True).view(tokens.shape)
    sums = Sums(scene.n)
    for take in scene.takes(tokens):
        _measure(take, head, times, hold_norm, seed, sums)
    n = {"n_tokens": int(tokens.sum()), "n_stories": int(tokens.any(1).sum())}
    count = tokens.sum(1).double().numpy()
    frames = []
    for k in times:
        null = line(sums[f"random {k}"], seed=seed)
        for added in ADDED:
            if f"{added} {k}" not in sums:
                continue
            of = sums[f"{added} {k}"]
            index = {"added": added, "times": k, **n}
            frames += [entries("old", "logits", ratio(of[:, 1], count), **index)]
            after = ratio(of[:, 2], count), ratio(sums[f"random {k}"][:, 2], count)
            frames += [entries("new", "logits", *after, **index)]
            mine = line(of, seed=seed)
            frames += [entries("slope", "ratio", mine["through_origin"], null["through_origin"], **index)]
            frames += [entries("line_slope", "ratio", mine["slope"], null["slope"], **index)]
            if added != "random":
                less = _less(of, sums[f"random {k}"], seed)
                frames += [entries("below_random", "difference of ratios", less, **index)]
    meta = described(scene, head, select, seed) | {
        "hold_norm": hold_norm,
        "null": "a random direction of the same length, at every token",
        "ablation": "none: output is added",
    }
    return answered("self_repair_self_repression", frames, MEASURES, meta)


def _less(mine: Any, random: Any, seed: int) -> Any:
    """Slope through the origin less the random direction's, on the same resamples."""
    return estimate(
        lambda w: divided((w @ mine)[:, 4], (w @ mine)[:, 3]) - divided((w @ random)[:, 4], (w @ random)[:, 3]),
        len(mine),
        seed=seed,
    )


def _measure(take: Take, head: Component, times: Sequence[float | int], hold_norm: bool, seed: int, sums: Sums) -> None:
    site, index = head.writes[0].site, head.writes[0].units[0]
    layer, z = site.layer, take.value(site)
    outputs = torch.einsum("bphd,hdm->bphm", z, take.scene.model.blocks[layer].attn.W_O)
    own = outputs[:, :, index]
    others = [h for h in range(outputs.shape[2]) if h != index]
    added = {"own": own, "random": noise.like(take, own, seed)}
    if others:
        which = noise.choices(take.rows, take.scene.rows.tokens.shape[1], len(others), seed)[:, : own.shape[1]]
        which = torch.tensor(others, device=own.device)[which.to(own.device)]
        other = outputs.gather(2, which[..., None, None].expand(-1, -1, 1, own.shape[-1]))[:, :, 0]
        added["other head"] = noise.scaled(other, own)
    scale = clean_scale(take, layer) if hold_norm else None
    old = take.unit_effects(site, z)[..., index]
    row, pos = take.keep.nonzero(as_tuple=True)
    copies_at_once = max(1, 4096 // z.shape[1])
    for name, what in added.items():
        for k in times:
            new = torch.zeros_like(old)
            for some in torch.arange(len(row), device=row.device).split(copies_at_once):
                new[row[some], pos[some]] = _again(take, site, index, row[some], pos[some], k * what, scale)
            sums.add(f"{name} {k}", take.rows, moments(old, new), take.keep)


def _again(
    take: Take,
    site: Site,
    index: int,
    row: Int[Tensor, " copy"],
    pos: Int[Tensor, " copy"],
    added: Float[Tensor, "batch pos d_model"],
    scale: Tensor | None,
) -> Float[Tensor, " copy"]:
    """The head's direct effect at each copy's own token, once something is added to the stream there."""
    copy = torch.arange(len(row), device=row.device)
    x = take.clean.streams[Point(site.layer)][row].clone()
    x[copy, pos] += added[row, pos]
    seen: dict[Any, Tensor] = {}
    held = holding_scale(site.layer, None if scale is None else scale[row])
    take.run(site.layer, [*held, *capturing(site.hook, seen, site)], x, row)
    read = take.scene.weights(site).read(site, take.v[row, pos][:, None])[:, 0, index]
    return torch.einsum("cd,cd->c", seen[site][copy, pos, index], read) / take.s0[row, pos]
