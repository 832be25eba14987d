"""Signal: is it the answer in a head's output that later parts react to, or the rest of it?

What an ablation adds to a head's output, d (replacement less clean), is split at every token along its own answer
direction, the readout's v:

    answer = (d . v) v / |v|^2      only this is done: the head loses its word on the answer, and nothing else
    rest   = d - answer             only this is done: of the head nothing is left but its word on the answer

`answer` has all of the direct effect, `rest` has none, so that whatever `rest` does to the logit is self-repair. If
later parts erase or back up the answer itself, `answer` is repaired; if they read what goes along with it, `rest` moves
the logit by as much. The parts need not sum to the whole. A token without a target has no answer: all of d is its rest.

Null of each: a random direction of its length at every token.

Source: arXiv 2402.15390, sections 5 and 6; differs: every token's own direction, nulls.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.result import Result
from analyses.self_repair.mechanisms import columns, noise
from analyses.self_repair.mechanisms.estimates import Sums, answered, entries, ratio
from analyses.self_repair.mechanisms.mediation import described
from analyses.self_repair.mechanisms.scene import Scene, Take, adding, capturing
from analyses.self_repair.mechanisms.tokens import one_component, selected
from analyses.texts import Stories
from sat_lens.repair.components import Component, Site
from sat_lens.repair.selection import Selection, TopDE

PARTS = ("whole", "answer", "rest")
MEASURES = {
    "removed": "direct effect that is taken out, a token",
    "dlogit": "change of the target's centred logit",
    "self_repair": "dlogit + removed",
    "heads": "change of the direct effects of later heads, at the clean scale",
    "mlps": "change of the direct effects of MLPs behind, at the clean scale",
    "anti_erasure": "the part of mlps by neurons that lower the target (direct effect < 0) and then lower it less",
    "ln": "the final norm's part of self_repair, f1 (1/s1 - 1/s0)",
    "length": "length of what is done to the head's output, over that of the whole; ratio of sums",
    "frac_of_removed": "self_repair over the whole's removed direct effect, ratio of sums",
    "mlps_of_removed": "mlps over the whole's removed direct effect, ratio of sums",
}
SUMMED = ("removed", "dlogit", "self_repair", "heads", "mlps", "anti_erasure", "ln")


def signal(
    model: Any,
    stories: Stories,
    *,
    component: Any = None,
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Self-repair, and the MLPs' part of it, when a head's answer goes and when all else of it goes.

    Args:
        component: a head; None: the main one of those with something behind them.

    Returns:
        Rows by `measure` and `part` (PARTS).

    Raises:
        ValueError: a component that is no head.

    Cost: for each batch and draw six runs of the rest of the model; memory of one batch's activations, neurons of the
        MLPs behind included.
    """
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    select = TopDE() if select is None else select
    taken = one_component(scene, component)
    if taken.kind != "head":
        raise ValueError(f"the signal study is asked of a head; got {taken.name}")
    source = scene.fitted([taken])
    tokens = selected(scene, [taken], select, source)[0]
    sums, share = Sums(scene.n), 1 / scene.ablation.draws
    for take in scene.takes(tokens, neurons(scene, taken)):
        site = taken.writes[0].site
        for draw in range(scene.ablation.draws):
            values = scene.replacements(take, [taken], source, draw)
            change = take.written(taken, {site: values[site] - take.value(site)})[site]
            for number, (part, done) in enumerate(split(take, change).items()):
                random = noise.like(take, done, 7919 * (seed + draw) + number)
                for kind, what in (("real", done), ("null", random)):
                    for name, value in _reaction(take, taken, what).items():
                        sums.add(f"{kind} {part} {name}", take.rows, value, take.keep, share)
                sums.add(f"length {part}", take.rows, done.norm(dim=-1), take.keep, share)
    n = {"n_tokens": int(tokens.sum()), "n_stories": int(tokens.any(1).sum())}
    count, frames = tokens.sum(1).double().numpy(), []
    for part in PARTS:
        of = {name: [sums[f"{kind} {part} {name}"] for kind in ("real", "null")] for name in SUMMED}
        frames += [entries(name, "logits", *(ratio(one, count) for one in of[name]), part=part, **n) for name in SUMMED]
        for measure, name in (("frac_of_removed", "self_repair"), ("mlps_of_removed", "mlps")):
            ends = (ratio(one, sums["real whole removed"]) for one in of[name])
            frames.append(entries(measure, "ratio of sums", *ends, part=part, **n))
        length = ratio(sums[f"length {part}"], sums["length whole"])
        frames.append(entries("length", "ratio of sums", length, part=part, **n))
    meta = described(scene, taken, select, seed) | {
        "null": "a random direction of the same length at every token in place of each part"
    }
    return answered("self_repair_signal", frames, MEASURES, meta)


def split(take: Take, change: Float[Tensor, "batch pos d_model"]) -> dict[str, Float[Tensor, "batch pos d_model"]]:
    """PARTS of a change, by each token's direction of the readout."""
    ids = take.scene.rows.cut(take.rows).to(change.device)
    known = take.scene.readout.targets(take.rows, ids, take.clean.final) >= 0
    unit = take.v / take.v.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    answer = torch.einsum("btd,btd->bt", change, unit)[..., None] * unit * known[..., None]
    return {"whole": change, "answer": answer, "rest": change - answer}


def neurons(scene: Scene, taken: Component) -> list[Site]:
    """Of the MLPs that can react to the component."""
    sites = columns.sites(scene, taken.layer) if scene.has_mlp else []
    later = [site.layer for site in sites if site.name == "mlp_out"]
    return [Site(layer, "post") for layer in later if layer > taken.layer or scene.runner.sequential]


def _reaction(
    take: Take, taken: Component, change: Float[Tensor, "batch pos d_model"]
) -> dict[str, Float[Tensor, "batch pos"]]:
    """SUMMED, when this is added to what the head's layer writes."""
    seen: dict[Any, Tensor] = {}
    sites = neurons(take.scene, taken)
    watch = [hook for site in sites for hook in capturing(site.hook, seen, site)]
    final = take.run(taken.layer, [*adding(taken.layer, "z", change), *watch])
    own, zero = take.score(change) / take.s0, torch.zeros_like(take.s0)
    mlps, anti = zero, zero
    for site in sites:
        repair = take.unit_effects(site, seen[site] - take.value(site))
        erases = (take.unit_effects(site, take.value(site)) < 0) & (repair > 0)
        mlps, anti = mlps + repair.sum(-1), anti + (repair * erases).sum(-1)
    f1, s1 = take.score(final), take.scene.readout.norm.scale(final)
    dlogit = take.dlogit(final)
    heads = (f1 - take.f0) / take.s0 - own - mlps
    ln = f1 * (1 / s1 - 1 / take.s0)
    found = (-own, dlogit, dlogit - own, heads, mlps, anti, ln)
    return dict(zip(SUMMED, found, strict=True))
