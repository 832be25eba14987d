"""Which classes each unit prefers: log2 of P(active | class) / P(active), for the units that a target tells most of."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from analyses.specialization.measured import Measured
from analyses.specialization.observation import Observation, Target

MOST_UNITS, MOST_CLASSES, STEEPEST = 120, 24, 6.0
"""Units and classes that are kept, and the log2 at which preferences are cut: never active is -6."""


def preferences(
    seen: Observation, targets: Sequence[Target], measured: dict[tuple[str, str], Measured]
) -> list[dict[str, Any]]:
    """`kind, stream, target, classes, units, log2_lift` [unit class] of every target of at most 24 classes."""
    total, found = seen.observed.total, []
    for target in targets:
        if len(target.classes) > MOST_CLASSES:
            continue
        active, labelled = (total[f"{of}/{target.name}"][:-1].double() for of in ("active", "labelled"))
        one = measured["mutual information", target.name]
        excess = one.value - next(iter(one.null.values())).mean(0)
        chosen = np.argsort(-excess, kind="stable")[: min(MOST_UNITS, int((seen.live > 0).sum()))]
        counts = active[:, torch.from_numpy(chosen).to(active.device)]
        lift = counts / labelled[:, None] / (counts.sum(0) / labelled.sum())
        steep = lift.clamp(min=2**-STEEPEST).log2().clamp(max=STEEPEST).nan_to_num(0.0)
        found.append({
            "kind": seen.units.kind, "stream": seen.units.stream, "target": target.name,
            "classes": list(target.classes), "units": seen.units.table.unit.iloc[chosen].tolist(),
            "log2_lift": np.round(steep.T.numpy(force=True), 2).tolist(),
        })  # fmt: skip
    return found
