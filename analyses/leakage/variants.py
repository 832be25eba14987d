"""The ablated stream under many masks at once: one clean pass, and one ablated pass a variant.

A variant says which mask each row of `Observed` gets; `read` says what to keep of its logits. Masks are read
from `Observed`, so that those of other heads, of other rows or of no heads at all are used alike.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.leakage.donors import NO_DONOR, or_own
from analyses.leakage.interventions import Batch, batches, logits_under
from analyses.leakage.observed import Observed
from analyses.metrics import cross_entropy
from analyses.texts import Stories

Masks = Callable[[np.ndarray], np.ndarray]
"""Rows [position] to masks [position layer bit]."""
Read = Callable[[np.ndarray, Tensor], np.ndarray]
"""Rows [position] and their logits [position d_vocab] to what is kept, one entry a position first."""
BITS = float(np.log(2))
"""Nats of a bit."""


def own_masks(observed: Observed) -> Masks:
    """Each position with its own mask."""
    return observed.mask_values


def donor_masks(observed: Observed, found: Int[np.ndarray, " position"]) -> Masks:
    """Each position with its donor's mask; its own where it has no donor."""
    chosen = or_own(found)
    return lambda rows: observed.mask_values(chosen[rows])


def passes(
    model: Any,
    stories: Stories,
    masks: Mapping[str, Masks],
    read: Read | Mapping[str, Read],
    *,
    blank: Callable[[Batch], Any] | None = None,
    batch: int = 16,
) -> dict[str, np.ndarray]:
    """What `read` keeps, of every variant.

    Args:
        stories: those of `Observed`, or the first of them.
        masks: of each variant.
        read: for all variants, or for each.
        blank: what stands in for the clean stream of a batch.

    Cost: one clean pass and one ablated pass a variant.
    """
    kept: dict[str, list[np.ndarray]] = {name: [] for name in masks}
    for part in batches(model, stories, batch=batch):
        clean = None if blank is None else blank(part)
        for name, of_rows in masks.items():
            placed = part.masks.clone()
            placed[part.keep] = torch.from_numpy(of_rows(part.rows)).to(placed)
            logits = logits_under(model, part, placed, clean).float()
            kept[name].append((read if callable(read) else read[name])(part.rows, logits))
    return {name: np.concatenate(found) for name, found in kept.items()}


def target_bits(observed: Observed) -> Read:
    """Loss of the next token, bits."""

    def read(rows: np.ndarray, logits: Tensor) -> np.ndarray:
        targets = torch.from_numpy(observed.target[rows]).to(logits.device)
        return cross_entropy(logits, targets).double().numpy(force=True) / BITS

    return read


def where_matched(
    values: Float[np.ndarray, " position"], found: Int[np.ndarray, " position"]
) -> Float[np.ndarray, " position"]:
    """The values, NaN where there was no donor."""
    return np.where(found == NO_DONOR, np.nan, values)


def story_means(
    observed: Observed, values: Float[np.ndarray, " position"], story: Any = None
) -> Float[np.ndarray, " story"]:
    """Mean over the positions of each story that are not NaN; NaN for a story without any.

    Args:
        values: of the first rows of `observed`, or of those that `story` labels.
    """
    story = observed.story[: len(values)] if story is None else story
    known = ~np.isnan(values)
    sums = np.bincount(story[known], values[known], observed.n_stories)
    counts = np.bincount(story[known], minlength=observed.n_stories)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
