"""Rewriting of models that predict differently well, compared on tokens which they predict equally well.

Each model's tokens fall into bins by its own loss of the token. A bin counts as much for every model: as much as the
fewest tokens that any of them has there.

    KL of a model = sum over bins of fewest(b) * mean KL(b) / sum of fewest(b)

Tokens of equal loss are no models of equal loss: at the same loss the weaker model stands on easier tokens. What is
left of the difference in loss, and the share of tokens that count, are told.

Source: coarsened exact matching (Iacus, King and Porro 2012), of tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analyses.result import Result
from sat_lens.coders import Substituted

EDGES = (0.0, 0.015, 0.04, 0.08, 0.15, 0.25, 0.4, 0.6, 0.9, 1.25, 1.7, 2.3, 3.0, 4.0, 5.5, 7.5)
"""Nats at which the bins begin; the last one has no end."""


def loss_bins(found: Substituted, edits: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Sums over tokens by story and bin of the base's loss: `n`, `loss` (nats), and KL of edits (nats).

    Args:
        edits: by name, the runs whose mean is taken.
    """
    loss = found.base.double().numpy()
    cell = found.story.numpy() * len(EDGES) + np.searchsorted(EDGES, loss, side="right").clip(1) - 1
    shape = (found.n_stories, len(EDGES))
    values = {"n": np.ones(len(loss)), "loss": loss}
    values |= {name: sum(found.kl[run].double().numpy() for run in runs) / len(runs) for name, runs in edits.items()}
    return {
        name: np.bincount(cell, of, shape[0] * shape[1]).reshape(shape).round(6).tolist() for name, of in values.items()
    }


def matched(results: Sequence[Result], weights: np.ndarray) -> dict[str, np.ndarray]:
    """KL of `rewritten`, `reconstruction` and `zero latents` on equal terms.

    Args:
        results: one a model, of the same stories.
        weights: how often each story counts, [resample story].

    Returns:
        The three, `loss` (nats a token) and `kept`, the share of the model's tokens that count, [resample model].
    """
    names = [name for name in results[0].meta["by_loss"] if name != "n"]
    sums = {name: np.array([r.meta["by_loss"][name] for r in results], dtype=np.float64) for name in (*names, "n")}
    drawn = {name: np.einsum("ws,msb->wmb", weights, of, optimize=True) for name, of in sums.items()}
    fewest = drawn["n"].min(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {name: np.where(fewest > 0, fewest * drawn[name] / drawn["n"], 0.0).sum(-1) for name in names}
        return {name: of / fewest.sum(-1) for name, of in found.items()} | {"kept": fewest.sum(-1) / drawn["n"].sum(-1)}
