"""How much of a component's repair does a given set of later components carry? (Copy suppression: 39 % in IOI.)

Two answers: `sum`, the change of the set's direct effects at the clean scale over self-repair; and `freeze`, the part
of self-repair that is gone when the set keeps its clean activations. The first says who writes it, the second who is
needed for it.

Null: random sets of as many heads and MLPs from all others behind the component; the middle 95 % of them.

Source: arXiv 2310.04625 (the question); arXiv 2402.15390 (self-repair).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from analyses.result import Result
from analyses.self_repair.mechanisms import columns
from analyses.self_repair.mechanisms.estimates import Estimate, Sums, answered, divided, entries, ratio
from analyses.self_repair.mechanisms.mediation import described, freezing
from analyses.self_repair.mechanisms.scene import Scene, replacing
from analyses.self_repair.mechanisms.tokens import one_component, selected, without
from analyses.texts import Stories
from sat_lens.repair.components import Component, as_components, head, heads, joint, mlp_layers
from sat_lens.repair.selection import Selection, TopDE

MODES = ("sum", "freeze", "both")
MEASURES = {
    "repair": "self-repair a token",
    "sum": "change of the set's direct effects a token, at the clean scale",
    "sum_share": "the same over self-repair, ratio of sums",
    "freeze": "self-repair a token that is lost when the set is frozen",
    "freeze_share": "the same over self-repair, ratio of sums",
}


def share_of_repair(
    model: Any,
    stories: Stories,
    *,
    component: Any = None,
    carriers: Any = None,
    mode: str = "both",
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    n_null: int = 8,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """The share of a component's self-repair that a set carries.

    Args:
        component: what is taken out; None: the main head of the first half.
        carriers: the set; None: the two later heads with the lowest mean direct effect on all kept tokens, which
            suppress what others promote.
        mode: `sum`, `freeze` or `both`.
        n_null: random sets; `freeze` runs the rest of the model for each.

    Returns:
        Rows by `measure` and `set`.

    Raises:
        ValueError: an unknown mode, or a set without a unit behind the component.
    """
    if mode not in MODES:
        raise ValueError(f"a mode must be one of {', '.join(MODES)}; got {mode!r}")
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    select = TopDE() if select is None else select
    taken = one_component(scene, component, range(max(1, scene.n_layers // 2)))
    carried = _carriers(scene, taken, carriers)
    others = random_sets(scene, taken, carried, n_null, seed)
    source = scene.fitted([taken])
    tokens = selected(scene, [taken], select, source)[0]
    sums = Sums(scene.n)
    for take in scene.takes(tokens, [write.site for write in (*taken.writes, *carried.writes)]):
        for draw in range(scene.ablation.draws):
            values, clean = scene.replacements(take, [taken], source, draw), take.clean_values(taken)
            own = take.own(taken, {site: values[site] - clean[site] for site in clean})
            hooks, share = replacing(taken, values), 1 / scene.ablation.draws
            final, changed = columns.changes(take, taken.layer, hooks)
            dlogit = take.dlogit(final)
            sums.add("repair", take.rows, dlogit - own, take.keep, share)
            sums.add("changes", take.rows, changed, take.keep, share)
            for number, part in enumerate([carried, *others] if mode != "sum" else []):
                frozen = take.dlogit(take.run(taken.layer, [*hooks, *freezing(take, part)]))
                sums.add(f"frozen {number}", take.rows, dlogit - frozen, take.keep, share)
    n = {"n_tokens": int(tokens.sum()), "n_stories": int(tokens.any(1).sum())}
    count = tokens.sum(1).double().numpy()
    frames = [entries("repair", "logits", ratio(sums["repair"], count), set="everything live", **n)]
    carries = {"sum": [sums["changes"][:, columns.of(scene, part)].sum(1) for part in (carried, *others)]}
    if mode != "sum":
        carries["freeze"] = [sums[f"frozen {number}"] for number in range(1 + len(others))]
    for name, found in carries.items():
        if mode not in (name, "both"):
            continue
        for measure, unit, below in ((name, "logits", count), (f"{name}_share", "ratio of sums", sums["repair"])):
            null = _spread([divided(one.sum(), below.sum()) for one in found[1:]])
            frames.append(entries(measure, unit, ratio(found[0], below), null, set=carried.name, **n))
    meta = described(scene, taken, select, seed) | {
        "set": carried.name,
        "null": f"{len(others)} random sets of as many heads and MLPs behind the component; middle 95 % of them",
    }
    return answered("self_repair_share", frames, MEASURES, meta)


def random_sets(scene: Scene, taken: Component, like: Component, n: int, seed: int) -> list[Component]:
    """Sets of as many heads and MLP layers as `like`, from what is behind the component and in neither.

    Fewer where there are not enough units; none where `like` holds neurons.
    """
    wanted = {"z": 0, "mlp_out": 0, "post": 0}
    for site, units in like.writes:
        wanted[site.name] += len(units)
    behind = range(taken.layer, scene.n_layers)
    pools = {"z": heads(scene.model, behind), "mlp_out": mlp_layers(scene.model, behind) if scene.has_mlp else []}
    known = set(columns.of(scene, like)) | set(columns.of(scene, taken))
    same = {("z", taken.layer)} if taken.writes[0].site.name == "z" else set()  # its neighbours cannot react
    pools = {
        kind: [c for c in pool if columns.of(scene, c)[0] not in known and (kind, c.layer) not in same]
        for kind, pool in pools.items()
    }
    if wanted["post"] or any(len(pools[kind]) < wanted[kind] for kind in pools):
        return []
    draw = np.random.default_rng(seed)
    found = []
    for number in range(n):
        parts = [
            pool[i]
            for kind, pool in pools.items()
            for i in draw.choice(len(pool), wanted[kind], replace=False).tolist()
        ]
        found.append(joint(parts, f"random {number}"))
    return found


def _carriers(scene: Scene, taken: Component, given: Any) -> Component:
    if given is None:
        behind = list(range(taken.layer + 1, scene.n_layers))
        if not behind:
            raise ValueError(f"there is no head behind {taken.name} that could carry its repair")
        totals = sum(columns.effects(take)[take.keep].double().sum(0) for take in scene.takes())
        per = columns.stride(scene)
        mine = [(layer, h) for layer in behind for h in range(scene.model.cfg.n_heads)]
        order = torch.tensor([float(totals[layer * per + h]) for layer, h in mine]).argsort()[:2].tolist()
        return joint([head(*mine[i]) for i in order])
    found = without(joint(as_components(scene.model, [given])), taken)
    if found is None:
        raise ValueError(f"a set that carries repair needs a unit besides {taken.name}")
    return found


def _spread(values: Sequence[Any]) -> Estimate | None:
    """Mean and middle 95 % of the random sets."""
    if not len(values):
        return None
    low, high = np.nanquantile(np.asarray(values, dtype=float), [0.025, 0.975])
    return Estimate(np.asarray(np.nanmean(values)), np.asarray(low), np.asarray(high))
