"""Is a simulated activation what the true one is on the average? By calibration, on stories it was not fitted on.

Values are shares of a latent's 99 % quantile over active tokens of the split to calibrate on, so that latents can be
put together; those below 0 are in the first part, those above 1 in the last.
"""

from collections.abc import Mapping
from typing import Any

import torch

from analyses.rewriting.calibration import Calibration
from analyses.rewriting.rewriter import Rewriter, Simulations
from analyses.rewriting.setting import Setting, high

PARTS = 12


def reliability(
    setting: Setting, rewriter: Rewriter, simulations: Simulations, calibrations: Mapping[str, Calibration]
) -> list[dict[str, Any]]:
    """One row a calibration and part of the range that has values: means of both, and their number.

    Args:
        simulations: of the stories to evaluate on.
    """
    rows = setting.splits.evaluate
    place = torch.full((setting.stories.n,), -1)
    place[rows] = torch.arange(len(rows))
    top = high(setting.of("calibrate"))[rewriter.latents]
    top = top.where(top > 0, torch.nan)
    sums = {kind: torch.zeros(3, PARTS, dtype=torch.float64) for kind in calibrations}
    for batch in setting.source("evaluate", rewriter.latents)():
        raw = simulations.at(place[batch.rows], batch.keep.shape[1])
        true = (batch.values / top)[batch.keep]
        for kind, calibrated in calibrations.items():
            said = (calibrated(raw) / top)[batch.keep]
            there = ~(said.isnan() | true.isnan())
            part = (said[there] * PARTS).floor().clamp(0, PARTS - 1).long()
            for total, values in zip(sums[kind], (torch.ones_like(said[there]), said[there], true[there]), strict=True):
                total += torch.bincount(part, values.double(), PARTS)
    return [
        {
            "calibration": kind, "part": i, "n": int(n[i]), "simulated": float(said[i] / n[i]),
            "true": float(true[i] / n[i]),
        }
        for kind, (n, said, true) in sums.items()
        for i in n.nonzero()[:, 0].tolist()
    ]  # fmt: skip
