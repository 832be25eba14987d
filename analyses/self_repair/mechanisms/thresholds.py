"""Which tokens decide the answer? Self-repair of every component as the selection narrows to large direct effects.

`top`: at each component's tokens with the largest direct effect, a share of them all (1: all tokens); `beyond`: at its
tokens with a direct effect beyond a threshold, in logits, either way. Every component is ablated once, at all tokens;
the selections are made of what is found there. Means are over the selected tokens of a component; the ratio of a half
of the layers is the sum of self-repair over the sum of what is removed, of all its components.

Null of self-repair: what the final norm alone makes up when nothing later reacts.

Source: arXiv 2402.15390 (its thresholds and its filter of 2 %); differs: intervals, null, both kinds side by side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from analyses.result import Result
from analyses.self_repair.halves import halves
from analyses.self_repair.mechanisms.estimates import answered, entries, ratio
from analyses.texts import Stories
from sat_lens.repair.ablations import Resample
from sat_lens.repair.components import heads
from sat_lens.repair.effects import FIELDS
from sat_lens.repair.measure import self_repair
from sat_lens.repair.result import SelfRepairResult
from sat_lens.repair.selection import All

SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
LOGITS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
MEASURES = {
    "de": "mean direct effect",
    "removed": "mean direct effect that is taken out",
    "dlogit": "mean change of the logit",
    "self_repair": "mean self-repair; null: of the norm alone",
    "share": "self-repair over removed direct effect of a half of the layers, ratio of sums; null: of the norm alone",
}


def thresholds(
    model: Any,
    stories: Stories,
    *,
    components: Sequence[Any] | None = None,
    ablation: Any = None,
    target: Any = "next_token",
    shares: Sequence[float | int] = SHARES,
    logits: Sequence[float | int] = LOGITS,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Effects of each component (None: all heads) under each selection.

    Args:
        shares: of tokens, above 0 and at most 1.
        logits: thresholds of the direct effect.

    Returns:
        Rows by `measure`, `by` (top, beyond), `threshold` and `component`, or `half` of the layers. A component has no
        row where it has no token.

    Raises:
        ValueError: a share that is none.

    Cost: that of `self_repair` at all tokens; memory of 100 bytes a token and component.
    """
    if not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares of tokens must be above 0 and at most 1; got {list(shares)}")
    found = self_repair(
        model, stories.tokens, heads(model) if components is None else components,
        Resample(seed=seed) if ablation is None else ablation, lengths=stories.lengths, target=target, select=All(),
        batch_size=batch_size, progress=progress,
    )  # fmt: skip
    frames = []
    for by, steps in (("top", sorted(shares, reverse=True)), ("beyond", sorted(logits))):
        for step in steps:
            frames += _rows_of(found, by, step, model.cfg.n_layers)
    meta = {
        **{key: found.meta[key] for key in ("ablation", "target", "n_kept_tokens", "n_sequences")},
        "selection": "as the slider says",
        "component": [one.name for one in found.components],
        "null": "the final norm alone, nothing later reacting",
        "study_seed": seed,
    }
    return answered("self_repair_thresholds", frames, MEASURES, meta)


def chosen(de: Float[np.ndarray, " token"], by: str, step: float | int, n_kept: int) -> Bool[np.ndarray, " token"]:
    """The tokens of one component that a selection takes, as `TopDE` and `AbsDE` do; ties go to the first."""
    if by == "beyond":
        return np.abs(de) > step
    mask = np.zeros(len(de), dtype=bool)
    mask[(-de).argsort(kind="stable")[: max(1, int(step * n_kept))]] = True
    return mask


def _rows_of(found: SelfRepairResult, by: str, step: float | int, n_layers: int) -> list[pd.DataFrame]:
    """All components and both halves of the layers under one selection."""
    names = ("de", "removed", "dlogit", "self_repair", "ln_own", "n")
    sums = np.zeros((len(names), len(found.tokens), len(found.components)))
    for i, (row, values) in enumerate(_tokens(found)):
        mask = chosen(values["de"], by, step, found.meta["n_kept_tokens"])
        for number, name in enumerate(names):
            sums[number, :, i] = np.bincount(row[mask], values[name][mask], len(found.tokens))
    of = dict(zip(names, sums, strict=True))
    n = {"n_tokens": of["n"].sum(0), "n_stories": (of["n"] > 0).sum(0)}
    index = {"by": by, "threshold": step, "half": ""}
    where = {"component": [one.name for one in found.components], "layer": [one.layer for one in found.components]}
    frames = []
    for name in ("de", "removed", "dlogit", "self_repair"):
        null = ratio(of["ln_own"], of["n"]) if name == "self_repair" else None
        frame = entries(name, "logits", ratio(of[name], of["n"]), null, **index, **where, **n)
        frames.append(frame[frame.n_tokens > 0])
    for half, layers in halves(n_layers).items():
        mine = [i for i, one in enumerate(found.components) if one.layer in layers]
        whole, removed = (of[name][:, mine].sum(1) for name in ("n", "removed"))
        repair, null = (ratio(of[name][:, mine].sum(1), removed) for name in ("self_repair", "ln_own"))
        n_of = {"n_tokens": whole.sum(), "n_stories": (whole > 0).sum()}
        frames.append(
            entries("share", "ratio of sums", repair, null, **{**index, "half": half}, component="", layer=-1, **n_of)
        )
    return frames


def _tokens(found: SelfRepairResult) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """By component the story of each token, and its values, in the order of the texts."""
    assert found.places is not None and found.values is not None
    out = []
    for i in range(len(found.components)):
        mine = found.places[:, 1] == i
        values = dict(zip(FIELDS, found.values[mine, : len(FIELDS)].double().numpy().T, strict=True))
        values["removed"] = values["de"] - values["ade"]
        values["self_repair"], values["n"] = values["dlogit"] + values["removed"], np.ones(int(mine.sum()))
        out.append((found.places[mine, 2].long().numpy(), values))
    return out
