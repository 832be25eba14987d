"""MLP erasure at single tokens: the neuron that repairs most there, and how much of the layer's repair is how few.

Positive repair is above the layer's net repair by what other neurons take back, so ratios to the net are taken at
tokens where that is above 0; they are heavy-tailed, hence a median, and a mean of ratios that are capped as published.

Source: arXiv 2402.15390, section 5; differs: tokens are those of the head's selection, not those of the MLPs' repair.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analyses.self_repair.mechanisms.estimates import Estimate, Sums, entries, median, ratio

CAP, FEW, SHOWN = 3.0, 5, 600
"""Of a ratio; neurons; tokens that a Result holds."""
MEASURES = {
    "positive_over_net": "median of all positive repair over the layer's net repair, at tokens where that is above 0",
    "top5_share": "mean of the 5 largest repairs over the layer's net repair, capped at 3, at tokens where that is "
    "above 0",
    "token_clean": "clean direct effect of the neuron that repairs most at one token",
    "token_abl": "the same with the component taken out",
    "token_layer": "clean direct effect of all the layer's neurons at this token",
}


def of_tokens(
    de: Float[Tensor, "token neuron"], repair: Float[Tensor, "token neuron"]
) -> dict[str, Float[np.ndarray, " token"]]:
    """What is kept of each token."""
    de, repair = de.double(), repair.double()
    few = repair.topk(min(FEW, repair.shape[1]), dim=1)
    first = few.indices[:, :1]
    clean = de.gather(1, first)[:, 0]
    found = {
        "positive": repair.clamp(min=0).sum(1), "net": repair.sum(1), "few": few.values.sum(1),
        "neuron": first[:, 0].double(), "clean": clean, "abl": clean + few.values[:, 0], "layer": de.sum(1),
    }  # fmt: skip
    return {name: value.cpu().numpy() for name, value in found.items()}


def token_frames(kept: dict[str, list[dict[str, np.ndarray]]], rows: list[np.ndarray], n: int) -> list[pd.DataFrame]:
    """Rows of the study's table.

    Args:
        kept: what `of_tokens` gave by batch, of the removal (`real`) and of its null.
        rows: stories of the tokens, by batch.
        n: stories.
    """
    row = np.concatenate(rows)
    of = {kind: {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}
          for kind, parts in kept.items()}  # fmt: skip
    found = {kind: _ratios(values, row, n) for kind, values in of.items()}
    real = of["real"]
    where = {"n_tokens": int((real["net"] > 0).sum()), "n_stories": len(np.unique(row[real["net"] > 0]))}
    frames = [
        entries(name, unit, found["real"][name], found["null"][name], **where)
        for name, unit in (("positive_over_net", "median of ratios"), ("top5_share", "mean of ratios, capped at 3"))
    ]
    token = np.unique(np.linspace(0, len(row) - 1, min(len(row), SHOWN)).astype(int))
    for name in ("clean", "abl", "layer"):
        columns: dict[str, Any] = {"measure": f"token_{name}", "token": token, "neuron": real["neuron"][token]}
        columns |= dict.fromkeys(("ci_low", "ci_high", "null", "null_low", "null_high"), np.nan)
        frames.append(pd.DataFrame({**columns, "value": real[name][token], "unit": "logits", "n_tokens": 1,
                                    "n_stories": 1}))  # fmt: skip
    return frames


def _ratios(values: dict[str, np.ndarray], row: np.ndarray, n: int) -> dict[str, Estimate]:
    rises = values["net"] > 0
    net, story = values["net"][rises], row[rises]
    sums = Sums(n)
    sums.put("few", torch.from_numpy(story), torch.from_numpy(np.minimum(values["few"][rises] / net, CAP)))
    sums.put("n", torch.from_numpy(story), torch.ones(len(story)))
    return {
        "positive_over_net": median(values["positive"][rises] / net, story, n),
        "top5_share": ratio(sums["few"], sums["n"]),
    }
