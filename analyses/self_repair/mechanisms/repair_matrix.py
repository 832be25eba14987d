"""Who repairs what: rows ablated, columns later heads and MLPs, change of their direct effect a token.

`SelfRepairResult.repair_matrix` with an interval and a null for every cell, and how many components share the repair:
the participation ratio of a row's repairs, (sum r)^2 / sum r^2 over the columns with r > 0; 1: one column does it all.

Null: a random direction of the same length in place of what is taken out.

Source: arXiv 2402.15390 (direct-effect changes).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyses.result import Result
from analyses.self_repair.mechanisms import columns, noise
from analyses.self_repair.mechanisms.estimates import Sums, answered, divided, entries, estimate, ratio
from analyses.self_repair.mechanisms.mediation import described
from analyses.self_repair.mechanisms.scene import Scene, replacing
from analyses.self_repair.mechanisms.tokens import selected
from analyses.texts import Stories
from sat_lens.memory import require
from sat_lens.repair.components import as_components, heads
from sat_lens.repair.selection import Selection, TopDE

MEASURES = {
    "repair": "change of the repairing component's direct effect a token, at the clean scale; its own columns are 0",
    "participation": "(sum r)^2 / sum r^2 over the columns that repair (r > 0) when `ablated` is taken out",
}


def repair_matrix(
    model: Any,
    stories: Stories,
    *,
    components: Sequence[Any] | None = None,
    ablation: Any = None,
    select: Selection | None = None,
    target: Any = "next_token",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """The repair matrix of these components (None: all heads).

    Returns:
        Rows by `measure`, `ablated` and `repairing`.

    Cost: for each component, batch and draw two runs of the layers behind it; sums of 16 bytes for each cell and
        story.
    """
    scene = Scene(model, stories, ablation=ablation, target=target, batch_size=batch_size, progress=progress)
    select = TopDE() if select is None else select
    taken = as_components(model, heads(model) if components is None else components)
    names = columns.names(scene)
    require(16 * len(taken) * len(names) * scene.n, "sums by cell and story", "cpu", "take fewer components or stories")
    source = scene.fitted(taken)
    tokens = selected(scene, taken, select, source)
    sums, share = Sums(scene.n), 1 / scene.ablation.draws
    for take in scene.takes(tokens.any(0), [write.site for one in taken for write in one.writes]):
        for one, mine in zip(taken, tokens, strict=True):
            keep = mine[take.rows, : take.keep.shape[1]].to(take.keep.device)
            if not keep.any():
                continue
            own = columns.of(scene, one)
            for draw in range(scene.ablation.draws):
                values = scene.replacements(take, [one], source, draw)
                random, _ = noise.removal_like(take, one, values, seed + draw)
                for kind, hooks in (("real", replacing(one, values)), ("null", random)):
                    _, changed = columns.changes(take, one.layer, hooks)
                    changed[..., own] = 0
                    sums.add(f"{kind} {one.name}", take.rows, changed, keep, share)
    frames = []
    for one, mine in zip(taken, tokens, strict=True):
        n = {"n_tokens": int(mine.sum()), "n_stories": int(mine.any(1).sum()), "ablated": one.name}
        count = mine.sum(1).double().numpy()
        real, null = sums[f"real {one.name}"], sums[f"null {one.name}"]
        frames.append(entries("repair", "logits", ratio(real, count), ratio(null, count), repairing=names, **n))
        spread = estimate(lambda w, r=real: _participation(w @ r), scene.n)
        by_chance = estimate(lambda w, r=null: _participation(w @ r), scene.n)
        frames.append(entries("participation", "components", spread, by_chance, repairing="", **n))
    meta = described(scene, taken[0], select, seed) | {"component": [one.name for one in taken]}
    return answered("self_repair_matrix", frames, MEASURES, meta)


def _participation(row: np.ndarray) -> np.ndarray:
    positive = np.clip(row, 0, None)
    return divided(positive.sum(-1) ** 2, (positive**2).sum(-1))
