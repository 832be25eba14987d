"""The ablated stream under masks that are not its own, and with nothing of its own to go by.

Everything here works on one batch of stories whose clean pass is kept, so that a variant costs one
ablated pass and no clean one. Masks of a variant are rows [batch pos layer bit], as `observed.unit_masks` has them.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.leakage.observed import Observed, layer_units, unit_masks
from analyses.metrics import cross_entropy
from analyses.texts import Stories
from sat_lens.activations import inference


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch of stories, run once.

    Args:
        rows: rows of `Observed` that are its predicted positions, in the order of `keep`.
        tokens, targets: padded on the right.
        keep: predicted positions.
        clean: the clean stream (`sat_lens.model.CleanStream`).
        masks: the model's own, as rows.
    """

    rows: Int[np.ndarray, " position"]
    tokens: Int[Tensor, "story pos"]
    targets: Int[Tensor, "story pos"]
    keep: Bool[Tensor, "story pos"]
    clean: Any
    masks: Float[Tensor, "story pos layer bit"]


def batches(model: Any, stories: Stories, *, batch: int = 16) -> Iterator[Batch]:
    """Stories, some at a time, with their clean pass; inference tensors."""
    first = 0
    for chosen in torch.arange(stories.n).split(batch):
        part = stories.subset(chosen)
        width = int(part.lengths.max())
        tokens, keep = part.tokens[:, :width].to(model.cfg.device), part.predicted[:, :width].to(model.cfg.device)
        with inference(model):
            clean = model.clean_stream(tokens)
            masks = unit_masks(model.masks_of(clean), model.ablation)
        rows = np.arange(first, first + int(keep.sum()))
        first += len(rows)
        yield Batch(rows, tokens, tokens.roll(-1, 1), keep, clean, masks)


def donated(
    batch: Batch, observed: Observed, donors: Int[np.ndarray, " position"]
) -> Float[Tensor, "story pos layer bit"]:
    """The batch's masks with those of other rows of `observed` at the predicted positions; one donor a position."""
    masks = batch.masks.clone()
    masks[batch.keep] = torch.as_tensor(observed.mask_values(donors)).to(masks)
    return masks


def logits_under(
    model: Any, batch: Batch, masks: Float[Tensor, "story pos layer bit"], blank: Any = None
) -> Float[Tensor, "position d_vocab"]:
    """Logits of the ablated stream at the predicted positions.

    Args:
        masks: at every position.
        blank: a clean stream that takes the place of the batch's own (`blank_stream`).
    """
    attn_width = model.cfg.n_heads * (model.cfg.d_head if model.ablation.unit == "channel" else 1)
    with inference(model):
        units = layer_units(masks, model, attn_width)
        return model.ablated_stream(batch.clean if blank is None else blank, units).logits[batch.keep]


def losses_under(
    model: Any, batch: Batch, masks: Float[Tensor, "story pos layer bit"], blank: Any = None
) -> Float[np.ndarray, " position"]:
    """Loss of the next token at the predicted positions, nats."""
    logits = logits_under(model, batch, masks, blank)
    return cross_entropy(logits.float(), batch.targets[batch.keep]).double().numpy(force=True)
