"""Can the mask be read from the residual stream?

A linear map (ridge, to all bits of a layer's mask at once, closed form) scores the units; the best-scored ones are
held against the units that won, as many as won. The answer is the share of winners found, 0..1, on stories that
were not fitted on; the penalty is chosen by validation. Null: the units that win most often, wherever they are
asked for. A local model's mask is a linear function of the stream that enters its layer, so that nearly all of it
should be found there; what is found earlier is what was known earlier.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.probing.scores import Estimate, mean_over_rows
from analyses.probing.split import Folds

PENALTIES: tuple[float, ...] = (1e-4, 1e-2)
"""Of the mean square, in units of the standardized features' variance."""


def found_share(scores: Float[Tensor, "row unit"], winners: Float[Tensor, "row unit"]) -> Float[Tensor, " row"]:
    """Share of each row's winners among as many best-scored units; 1 where a row has none to find."""
    n = winners.sum(1)
    place = scores.argsort(1, descending=True).argsort(1)
    found = ((place < n[:, None]) & (winners > 0)).sum(1)
    return torch.where(n > 0, found / n.clamp(min=1), 1.0)


def mask_readout(
    residuals: Mapping[str, Float[Tensor, "row _"]],
    masks: Mapping[str, Float[Tensor, "row _"]],
    folds: Folds,
    story: Int[Tensor, " row"],
    penalties: Sequence[float] = PENALTIES,
) -> list[dict]:
    """One row a mask and site it is read from.

    Args:
        residuals: standardized features by site.
        masks: by site; a unit wins where it is above 0.5.
        folds: of the rows.
        story: of each row.

    Returns:
        Rows with `target` (the mask's site), `site`, the share found with its interval, and that of the null.
    """
    bits = {name: (values > 0.5).float() for name, values in masks.items()}
    usual = {name: _usual(values, folds) for name, values in bits.items()}
    rows = []
    for site, x in residuals.items():
        maps = {name: torch.zeros(len(x)) for name in bits}
        for f in range(folds.n):
            train, validation, judged = folds.train(f), folds.validation(f), folds.judged(f)
            x1 = torch.cat([x, torch.ones_like(x[:, :1])], 1)
            gram = (x1[train].T @ x1[train]).double() / train.sum()
            for name, values in bits.items():
                shared = (x1[train].T @ values[train]).double() / train.sum()
                weights = [
                    torch.linalg.solve(gram + c * torch.eye(len(gram), dtype=torch.float64), shared).float()
                    for c in penalties
                ]
                best = max(weights, key=lambda w: float(found_share(x1[validation] @ w, values[validation]).mean()))
                maps[name][judged] = found_share(x1[judged] @ best, values[judged])
        for name, found in maps.items():
            share: Estimate = mean_over_rows(found.double().numpy(), story.numpy())
            rows.append({"target": name, "site": site, **share.columns("accuracy"), "majority": usual[name]})
    return rows


def _usual(values: Float[Tensor, "row unit"], folds: Folds) -> float:
    """The share that is found by always naming the units that win most often among the training rows."""
    found = np.zeros(len(values))
    for f in range(folds.n):
        train, judged = folds.train(f), folds.judged(f)
        scores = values[train].mean(0).expand(int(judged.sum()), -1)
        found[judged.numpy()] = found_share(scores, values[judged]).numpy()
    return float(found.mean())
