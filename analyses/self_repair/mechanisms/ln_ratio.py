"""The final norm under several ablations: how does its scale change when a component is replaced, by what replaces it?

    ratio = scale of the final norm, clean / ablated     above 1 it falls, and all that is left in the stream is raised

The same tokens under each ablation, for the kinds give different answers: a zero or a mean moves an activation off its
usual range. `own_ratio` is the ratio if only the removal were taken from the last stream and nothing reacted.

Null: a random direction of the same length, token by token, in place of what is taken out.

Source: arXiv 2402.15390, section 4 (the norm, and its comparison of mean, zero and resample); differs: null, intervals.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.result import Result
from analyses.self_repair.mechanisms import noise
from analyses.self_repair.mechanisms.estimates import Sums, answered, entries, median, ratio
from analyses.self_repair.mechanisms.mediation import described
from analyses.self_repair.mechanisms.scene import Scene, Take, replacing
from analyses.self_repair.mechanisms.tokens import one_component, selected
from analyses.texts import Stories
from sat_lens.repair.ablations import Mean, Resample, Zero
from sat_lens.repair.components import Component
from sat_lens.repair.selection import Selection, TopDE

BINS, SHOWN = (12, 48), 600
"""Of the histograms, fewest and most; tokens whose place in the plane a Result holds."""
MEASURES = {
    "ratio": "mean scale of the final norm, clean / ablated",
    "median": "median of the same over tokens",
    "above_1": "share of tokens at which the ablation lowers the scale",
    "own_ratio": "mean ratio if only the removal were taken out and nothing reacted",
    "histogram": "share of tokens with a ratio from `low` to `high`; the outermost bins hold what is beyond them",
    "removed": "mean direct effect that is taken out",
    "dlogit": "mean change of the logit",
    "self_repair": "mean self-repair",
    "norm": "mean share of the final norm in it, at the clean scale",
    "token_de": "clean direct effect at one token",
    "token_dlogit": "change of the logit at one token",
}


def ln_ratio(
    model: Any,
    stories: Stories,
    *,
    component: Any = None,
    ablations: Sequence[Any] | None = None,
    select: Selection | None = None,
    target: Any = "next_token",
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Clean over ablated scale of the final norm, and what it goes with, under each ablation.

    Args:
        component: what is taken out; None: the main head.
        ablations: of `sat_lens.repair.ablations`; None: one resampling, the mean, zero.
        select: of tokens that every ablation can replace; by removed effect, that of the first one.

    Returns:
        Rows by `measure` and `replaced_by`, and `low` and `high` of a bin, or `token`.

    Raises:
        ValueError: no ablation, or two of one name.

    Cost: for each ablation, batch and draw two runs of the layers behind the component, beside what the ablation needs.
    """
    kinds = [Resample(seed=seed), Mean(), Zero()] if ablations is None else list(ablations)
    names = [one.name for one in kinds]
    if not kinds or len(set(names)) < len(names):
        raise ValueError(f"the norm's ratio needs at least 1 ablation, each once; got {names}")
    scenes = [
        Scene(model, stories, ablation=one, target=target, batch_size=batch_size, progress=progress) for one in kinds
    ]
    keep = torch.stack([scene.rows.keep for scene in scenes]).all(0)
    for scene in scenes:
        scene.rows = replace(scene.rows, keep=keep)
    select = TopDE() if select is None else select
    taken = one_component(scenes[0], component)
    sources = [scene.fitted([taken]) for scene in scenes]
    tokens = selected(scenes[0], [taken], select, sources[0])[0]
    seen = [measured(scene, taken, tokens, source, seed) for scene, source in zip(scenes, sources, strict=True)]
    frames = _frames(names, seen, stories.n, edges_of(seen))
    meta = described(scenes[0], taken, select, seed) | {"ablation": "; ".join(names), "ablations": names}
    return answered("self_repair_ln_ratio", frames, MEASURES, meta)


Seen = dict[str, np.ndarray]
"""A number a selected token and draw: `row`, `share` (1 / draws), `ratio`, `null_ratio`, `own_ratio`, `de`, ..."""


def measured(scene: Scene, taken: Component, tokens: Any, source: Any, seed: int) -> Seen:
    """What one ablation does at these tokens; draws one after another, tokens in the same order in all of them."""
    found: dict[str, list[np.ndarray]] = {}
    for draw in range(scene.ablation.draws):
        for take in scene.takes(tokens, [write.site for write in taken.writes]):
            for name, value in _at_tokens(scene, take, taken, source, draw, seed).items():
                found.setdefault(name, []).append(value[take.keep].double().cpu().numpy())
            found.setdefault("row", []).append(take.rows[take.keep.nonzero()[:, 0].cpu()].numpy())
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    return joined | {"share": np.full(len(joined["row"]), 1 / scene.ablation.draws)}


def _at_tokens(
    scene: Scene, take: Take, taken: Component, source: Any, draw: int, seed: int
) -> dict[str, Float[Tensor, "batch pos"]]:
    values, clean, norm = scene.replacements(take, [taken], source, draw), take.clean_values(taken), scene.readout.norm
    change = {site: values[site] - clean[site] for site in clean}
    own = take.own(taken, change)
    random, random_own = noise.removal_like(take, taken, values, seed + draw)
    removed = sum(take.written(taken, change).values(), torch.zeros_like(take.clean.final))
    found = {
        "de": take.own(taken, clean), "removed": -own, "null_removed": -random_own,
        "own_ratio": take.s0 / norm.scale(take.clean.final + removed),
    }  # fmt: skip
    for prefix, hooks, direct in (("", replacing(taken, values), own), ("null_", random, random_own)):
        final = take.run(taken.layer, hooks)
        scale, dlogit = norm.scale(final), take.dlogit(final)
        found[f"{prefix}ratio"], found[f"{prefix}dlogit"] = take.s0 / scale, dlogit
        found[f"{prefix}self_repair"] = dlogit - direct
        found[f"{prefix}norm"] = take.score(final) * (1 / scale - 1 / take.s0)
    return found


def edges_of(seen: Sequence[Seen]) -> np.ndarray:
    """Bins for all ablations and their nulls, between the 0.5 % and the 99.5 % quantile of the ratios and around 1."""
    every = np.concatenate([one[name] for one in seen for name in ("ratio", "null_ratio")])
    low, high = np.quantile(every, [0.005, 0.995])
    fewest, most = BINS
    n = int(np.clip(3 * np.sqrt(len(seen[0]["ratio"])), fewest, most))
    return np.linspace(min(low, 0.99), max(high, 1.01), n + 1)


def shares_by_bin(values: np.ndarray, weights: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Share of the weight in each bin, what is beyond the edges in the outermost ones."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges, weights=weights)
    return counts / weights.sum()


def _frames(names: Sequence[str], seen: Sequence[Seen], n: int, edges: np.ndarray) -> list[pd.DataFrame]:
    frames = []
    for name, one in zip(names, seen, strict=True):
        row, share = one["row"], one["share"]
        sums = Sums(n)
        for key in (*_MEANS, *(f"null_{key}" for key in _MEANS if f"null_{key}" in one)):
            sums.put(key, torch.from_numpy(row), torch.from_numpy(one[key] * share))
        for key, of in (("above_1", "ratio"), ("null_above_1", "null_ratio")):
            sums.put(key, torch.from_numpy(row), torch.from_numpy((one[of] > 1) * share))
        sums.put("n", torch.from_numpy(row), torch.from_numpy(share))
        where = {"n_tokens": round(share.sum()), "n_stories": len(np.unique(row)), "replaced_by": name}
        for key, unit in {**_MEANS, "above_1": "share of tokens"}.items():
            null = ratio(sums[f"null_{key}"], sums["n"]) if f"null_{key}" in sums else None
            frames.append(entries(key, unit, ratio(sums[key], sums["n"]), null, **where))
        medians = (median(one[key], row, n) for key in ("ratio", "null_ratio"))
        frames.append(entries("median", "clean / ablated", *medians, **where))
        frames.append(_rows("histogram", "share of tokens", where, low=edges[:-1], high=edges[1:],
                            value=shares_by_bin(one["ratio"], share, edges),
                            null=shares_by_bin(one["null_ratio"], share, edges)))  # fmt: skip
        first = int(round(share.sum()))  # those of the first draw
        token = np.unique(np.linspace(0, first - 1, min(first, SHOWN)).astype(int))
        for key, of in (("token_de", "de"), ("token_dlogit", "dlogit")):
            frames.append(_rows(key, "logits", where | {"n_tokens": 1, "n_stories": 1}, token=token,
                                value=one[of][token], null=np.full(len(token), np.nan)))  # fmt: skip
    return frames


_MEANS = {
    "ratio": "clean / ablated", "own_ratio": "clean / ablated", "removed": "logits", "dlogit": "logits",
    "self_repair": "logits", "norm": "logits",
}  # fmt: skip


def _rows(measure: str, unit: str, where: dict[str, Any], **columns: Any) -> pd.DataFrame:
    nothing = dict.fromkeys(("ci_low", "ci_high", "null_low", "null_high"), np.nan)
    return pd.DataFrame({"measure": measure, **columns, **nothing, "unit": unit, **where})
