"""Through what does repair run? A component is taken out while a part of the model is held at its clean activations.

    blocked = self-repair with everything live - self-repair with the part frozen      logits; positive: it repairs
    share   = blocked over self-repair                                                  ratio of sums

Direct-effect changes say who writes the repair; freezing says who is needed for it: a head may repair only because an
MLP before it reacted. Shares of several parts need not sum to 1. Parts: `ln` (the final norm keeps its clean scale),
`heads`, `mlps`, `heads+mlps`, `all` (these and the norm: nothing can repair, its share is 1), and given sets. Frozen
are the units other than the component's own; with neurons ablated their own MLP layer stays live.

Null: a random direction of the same length in place of what is taken out, token by token.

Source: arXiv 2402.15390, section 4, and the spec's freeze runs; differs: definitions by intervention.
"""

from collections.abc import Mapping
from typing import Any

from analyses.result import Result
from analyses.self_repair.mechanisms import noise
from analyses.self_repair.mechanisms.estimates import Sums, answered, entries, ratio
from analyses.self_repair.mechanisms.scene import Scene, Take, replacing
from analyses.self_repair.mechanisms.tokens import one_component, selected, without
from analyses.texts import Stories
from sat_lens.repair.components import Component, as_components, heads, joint, mlp_layers
from sat_lens.repair.runner import Hooks
from sat_lens.repair.selection import Selection, TopDE

PARTS = ("ln", "heads", "mlps", "heads+mlps", "all")
MEASURES = {
    "repair": "self-repair a token",
    "blocked": "self-repair a token that is lost when the part is frozen",
    "share": "blocked over repair, ratio of sums; unstable where the interval of repair holds 0",
}


def mediation(
    model: Any,
    stories: Stories,
    *,
    component: Any = None,
    sets: Mapping[str, Any] | None = None,
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """The causal share of each part of the model in the repair of a component.

    Args:
        component: what is taken out; None: the main head.
        sets: further parts by name, each a component or a collection of them.
        ablation, select, target: as for `self_repair`; None: one resampling, the top 2 % of tokens.

    Returns:
        Rows by `measure` and `part`.

    Cost: for each batch and draw a run of the rest of the model for each part, twice (the null).
    """
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    select = TopDE() if select is None else select
    taken = one_component(scene, component)
    parts = frozen_parts(scene, taken, sets)
    source = scene.fitted([taken])
    tokens = selected(scene, [taken], select, source)[0]
    sums = Sums(scene.n)
    sites = [w.site for part in (taken, *filter(None, parts.values())) for w in part.writes]
    for take in scene.takes(tokens, sites):
        for draw in range(scene.ablation.draws):
            values = scene.replacements(take, [taken], source, draw)
            clean = take.clean_values(taken)
            own = take.own(taken, {site: values[site] - clean[site] for site in clean})
            random, random_own = noise.removal_like(take, taken, values, seed + draw)
            for kind, hooks, direct in (("real", replacing(taken, values), own), ("null", random, random_own)):
                _measure(take, taken, hooks, direct, kind, parts, sums, 1 / scene.ablation.draws)
    n = {"n_tokens": int(tokens.sum()), "n_stories": int(tokens.any(1).sum())}
    count = tokens.sum(1).double().numpy()
    frames = [
        entries("repair", "logits", ratio(sums["real"], count), ratio(sums["null"], count), part="everything live", **n)
    ]
    for part in parts:
        real, null = sums[f"real {part}"], sums[f"null {part}"]
        frames.append(entries("blocked", "logits", ratio(real, count), ratio(null, count), part=part, **n))
        shares = ratio(real, sums["real"]), ratio(null, sums["null"])
        frames.append(entries("share", "ratio of sums", *shares, part=part, **n))
    return answered("self_repair_mediation", frames, MEASURES, described(scene, taken, select, seed))


def frozen_parts(scene: Scene, taken: Component, sets: Mapping[str, Any] | None) -> dict[str, Component | None]:
    """Units of each part that can be frozen; None: none (the norm alone, or nothing but the component itself)."""
    later = range(taken.layer, scene.n_layers)
    every: list[Component] = heads(scene.model, later)
    found: dict[str, Component | None] = {"ln": None, "heads": without(joint(every, "heads"), taken)}
    if scene.has_mlp:
        mlps = mlp_layers(scene.model, later)
        found["mlps"] = without(joint(mlps, "mlps"), taken)
        found["heads+mlps"] = without(joint([*every, *mlps], "heads+mlps"), taken)
    found["all"] = found.get("heads+mlps", found["heads"])
    for name, given in (sets or {}).items():
        if name in PARTS:
            raise ValueError(f"a set needs a name other than {', '.join(PARTS)}; got {name!r}")
        found[name] = without(joint(as_components(scene.model, [given]), name), taken)
    return found


def freezing(take: Take, part: Component | None) -> Hooks:
    """Hooks that hold a part at its clean activations."""
    return [] if part is None else replacing(part, take.clean_values(part))


def described(scene: Scene, taken: Component, select: Any, seed: int) -> dict[str, Any]:
    """What every study's meta says of how it was done."""
    return {
        "component": taken.name,
        "ablation": scene.ablation.name,
        "selection": select.name,
        "target": scene.readout.name,
        "n_kept_tokens": int(scene.rows.keep.sum()),
        "n_sequences": scene.n,
        "null": "a random direction of the same length at every token in place of what is taken out",
        "study_seed": seed,
    }


def _measure(
    take: Take,
    taken: Component,
    hooks: Hooks,
    own: Any,
    kind: str,
    parts: Mapping[str, Component | None],
    sums: Sums,
    share: float,
) -> None:
    live = take.run(taken.layer, hooks)
    dlogit = take.dlogit(live)
    sums.add(kind, take.rows, dlogit - own, take.keep, share)
    for name, part in parts.items():
        final = live if part is None else take.run(taken.layer, [*hooks, *freezing(take, part)])
        held = name in ("ln", "all")
        frozen = (take.score(final) - take.f0) / take.s0 if held else take.dlogit(final)
        sums.add(f"{kind} {name}", take.rows, dlogit - frozen, take.keep, share)
