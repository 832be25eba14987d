"""Mask swap: does a donor's mask make the recipient say what the donor would have said?

Donors have the recipient's current token, belong to another story, and their clean stream predicts something else
than the recipient's. Two measures, each with donors compared among themselves, so that a mask that holds nothing
beyond the token gives 0 whatever it does to the recipient:

    bits      rate at which the recipient's ablated stream tells which donor's mask it has, in its probability of the
              donor's prediction: mean log2 [ p_k(a_k)^s / mean over k' of p_k'(a_k)^s ], a_k what donor k predicts
              and p_k the recipient's ablated stream under k's mask; s as in `usable`; at most log2 of the donors
    hijack    P(top 1 under k's mask is a_k) - P(it is a_k', of another donor)

Relevance alone, with no message in it, leaves the recipient to its own context: it may say less, but not that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.labels.token_classes import CLASSES, token_classes
from analyses.leakage.donors import NO_DONOR, donors
from analyses.leakage.finding import Finding
from analyses.leakage.judged import MARGIN_BITS, information_spread, judged
from analyses.leakage.observed import Observed
from analyses.leakage.usable import POWERS, usable_bits
from analyses.leakage.variants import BITS, Masks, Read, donor_masks, own_masks, passes, story_means
from analyses.texts import Stories

MARGIN_SHARE = 0.02
RELEVANT_SHARE = 0.1


def swap(
    model: Any,
    stories: Stories,
    observed: Observed,
    controls: Sequence[Observed],
    *,
    n_donors: int = 8,
    n_stories: int = 80,
    seed: int = 0,
) -> list[Finding]:
    """Findings `swap` (bits) and `hijack` (probability), of recipients in the first `n_stories` stories.

    Args:
        controls: the same positions with masks of random heads, a draw each.
        n_donors: a recipient; the bits cannot exceed log2 of it.

    Returns:
        `detail` of swap: `log_odds_shift`, by which the odds of the donor's against the recipient's prediction rise
        when the donor's mask replaces the own one (bits), and after another donor's. Of hijack: `rate`, `base`, and
        `hijack` and `n`, matrices [recipient's prediction, donor's prediction] by class of token.

    Cost: one clean pass over n_stories and 1 + n_donors x (1 + number of controls) ablated ones.
    """
    part = stories.subset(torch.arange(min(n_stories, stories.n)))
    rows = np.arange(int(part.predicted.sum()))
    drawn = np.stack([donors(observed, "token", seed + i) for i in range(n_donors)])
    said = np.where(drawn == NO_DONOR, NO_DONOR, observed.prediction[drawn])[:, rows]
    valid = (said != NO_DONOR) & (said != observed.prediction[rows])
    results = []
    for one in (observed, *controls):
        masks: dict[str, Masks] = {f"donor {i}": donor_masks(one, found) for i, found in enumerate(drawn)}
        kept = passes(model, part, {"own": own_masks(one), **masks}, _reader(observed, said))
        own = kept.pop("own")
        results.append(_measured(observed, said, valid, own, np.stack(list(kept.values())), seed))
    first, nulls = results[0], results[1:]
    n = int((~np.isnan(first["bits"])).sum())
    return [
        judged(
            "swap",
            "bits by which a donor's mask makes the recipient say what the donor would",
            story_means(observed, first["bits"]),
            [story_means(observed, null["bits"]) for null in nulls],
            n=n,
            spread=information_spread(MARGIN_BITS, n),
            detail={
                "most": float(np.log2(n_donors)),
                "log_odds_shift": float(np.nanmean(first["shift"])),
                "log_odds_shift_of_others": float(np.nanmean(first["other_shift"])),
            },
        ),
        judged(
            "hijack",
            "share of swaps whose top token becomes the donor's prediction, beyond another donor's",
            story_means(observed, first["hijack"] - first["base"]),
            [story_means(observed, null["hijack"] - null["base"]) for null in nulls],
            n=n,
            unit="probability",
            margin=MARGIN_SHARE,
            relevant=RELEVANT_SHARE,
            detail={
                "rate": float(np.nanmean(first["hijack"])),
                "base": float(np.nanmean(first["base"])),
                **class_matrix(model.tokenizer, observed.prediction[rows], said, valid, first["pairs"]),
            },
        ),
    ]


def _reader(observed: Observed, said: Int[np.ndarray, "donor position"]) -> Read:
    """Of each row: log-probabilities (nats) of all donors' predictions and of its own, and the top token."""

    def read(rows: np.ndarray, logits: Tensor) -> np.ndarray:
        asked = np.concatenate([np.maximum(said[:, rows], 0), observed.prediction[None, rows]]).T
        logp = logits.log_softmax(-1).gather(-1, torch.from_numpy(asked).to(logits.device))
        return torch.cat([logp.double(), logits.argmax(-1, keepdim=True).double()], -1).numpy(force=True)

    return read


def _measured(
    observed: Observed,
    said: Int[np.ndarray, "donor position"],
    valid: Bool[np.ndarray, "donor position"],
    own: Float[np.ndarray, "position read"],
    kept: Float[np.ndarray, "donor position read"],
    seed: int,
) -> dict[str, np.ndarray]:
    """Measures of each position (means over its donors), NaN with fewer than two valid donors; `pairs` by donor."""
    n_donors = len(said)
    logp = np.moveaxis(kept[..., :n_donors], 1, 0)  # [position, whose mask, whose prediction]
    ok = valid.T
    both = ok[:, :, None] & ok[:, None, :]
    diagonal = np.eye(n_donors, dtype=bool)
    hits = (np.moveaxis(kept[..., -1:], 1, 0) == said.T[:, None, :]).astype(float)
    odds = logp - np.moveaxis(kept[..., n_donors : n_donors + 1], 1, 0)
    shift = (odds - (own[:, :n_donors] - own[:, n_donors : n_donors + 1])[:, None, :]) / BITS
    pairs = np.where(ok & (ok.sum(1, keepdims=True) > 1), np.diagonal(hits, axis1=1, axis2=2), np.nan)
    rates = np.stack([_rate(logp, ok, power) for power in POWERS])
    enough = ok.sum(1) > 1
    return {
        "bits": usable_bits(observed, np.where(enough, rates, np.nan), seed)[0],
        "hijack": _mean(hits, both & diagonal, enough),
        "base": _mean(hits, both & ~diagonal, enough),
        "shift": _mean(shift, both & diagonal, enough),
        "other_shift": _mean(shift, both & ~diagonal, enough),
        "pairs": pairs,
    }


def _rate(
    logp: Float[np.ndarray, "position donor donor"], ok: Bool[np.ndarray, "position donor"], power: float
) -> Float[np.ndarray, " position"]:
    """Mean over valid donors of log2 p_k(a_k)^s - log2 mean over valid k' of p_k'(a_k)^s."""
    scaled = np.where(ok[:, :, None], power * logp, -np.inf)
    top = np.where(ok.any(1)[:, None], scaled.max(1), 0.0)
    n = np.maximum(ok.sum(1), 1)
    mixture = top + np.log(np.maximum(np.exp(scaled - top[:, None]).sum(1), 1e-300) / n[:, None])
    own = power * np.diagonal(logp, axis1=1, axis2=2)
    return np.where(ok, own - mixture, 0.0).sum(1) / n / BITS


def _mean(values: np.ndarray, chosen: np.ndarray, enough: np.ndarray) -> np.ndarray:
    """Mean of a position's chosen pairs."""
    n = np.maximum(chosen.sum((1, 2)), 1)
    return np.where(enough, np.where(chosen, values, 0.0).sum((1, 2)) / n, np.nan)


def class_matrix(
    tokenizer: Any,
    recipients: Int[np.ndarray, " position"],
    said: Int[np.ndarray, "donor position"],
    valid: Bool[np.ndarray, "donor position"],
    pairs: Float[np.ndarray, "position donor"],
) -> dict[str, Any]:
    """Hijack rate and number of swaps by class of the recipient's (row) and the donor's (column) prediction."""
    classes = token_classes(tokenizer, int(max(recipients.max(), said.max())) + 1)
    used = valid & ~np.isnan(pairs.T)
    cell = (classes[recipients][None] * len(CLASSES) + classes[np.maximum(said, 0)])[used]
    size = len(CLASSES) ** 2
    n, hits = np.bincount(cell, minlength=size), np.bincount(cell, pairs.T[used], size)
    rate = [float(h / k) if k else None for h, k in zip(hits, n, strict=True)]
    side = len(CLASSES)
    return {
        "classes": list(CLASSES),
        "hijack": [rate[i : i + side] for i in range(0, size, side)],
        "n": n.reshape(side, side).tolist(),
    }
