"""Mask swap on minimal pairs: two prompts that differ in who acts, so that the other name is the answer.

    "Tom and Lily went to the park. Tom gave a ball to" -> Lily        "... Lily gave a ball to" -> Tom

The recipient's last position is given the mask of its pair, or that of the pair of another prompt with the same last
token and other names. The measure is how much more the first moves the odds from the recipient's answer towards the
pair's, in bits of odds. A mask that only says which units matter where a name is asked for moves both alike: 0.

Source: arXiv 2211.00593 for the prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.leakage.donors import NO_DONOR
from analyses.leakage.finding import Finding
from analyses.leakage.judged import judged
from analyses.leakage.observed import Observed, observed
from analyses.leakage.variants import BITS, Masks, Read, own_masks, passes
from analyses.texts import Stories
from sat_lens.tasks.load import load_task
from sat_lens.tasks.task import Task, TaskError

MARGIN_ODDS, RELEVANT_ODDS = 0.5, 2.0
"""Bits of odds: models that solve the task prefer their answer by 10 and more, and a factor of 4 turns none of them."""


def minimal_pairs(model: Any, heads: Sequence[Any], *, n: int = 64, seed: int = 0) -> Finding | None:
    """Bits by which the pair's mask moves the odds towards the pair's answer; None where the tokenizer has no names.

    Args:
        heads: the model with random heads (`random_heads`), a draw each.
        n: prompts; they are the independent units.

    Returns:
        `detail`: `odds_bits` of the recipient's against the pair's answer, clean, and ablated under the own mask, the
        pair's and an unrelated one; `flips`, the share of prompts that prefer the pair's answer under each.

    Cost: 2 + 2 x number of heads passes of both streams, and 3 ablated ones for each, over n short prompts.
    """
    try:
        task = load_task("ioi", model.tokenizer, n=n, seed=seed, corrupt="swap")
    except TaskError:
        return None
    return _finding(model, heads, task, seed)


def _finding(model: Any, heads: Sequence[Any], task: Task, seed: int) -> Finding:
    recipients, pairs = (Stories(tokens, task.lengths + 1) for tokens in (task.clean, task.corrupt))
    others = unrelated(task, seed)
    moved, odds = [], {}
    for one in (model, *heads):
        a, b = observed(one, recipients), observed(one, pairs)
        ends = np.cumsum(task.lengths.numpy()) - 1
        masks: dict[str, Masks] = {
            "own": own_masks(a),
            "pair": _at_ends(a, b, ends, ends),
            "unrelated": _at_ends(a, b, ends, ends[np.where(others == NO_DONOR, np.arange(task.n), others)]),
        }
        found = passes(one, recipients, masks, _odds(task, a))
        found = {name: values[ends] for name, values in found.items()}
        odds = odds or found
        moved.append(np.where(others == NO_DONOR, np.nan, found["unrelated"] - found["pair"]))
    with torch.inference_mode():
        clean = task.logit_difference(model(task.clean.to(model.cfg.device)).cpu().float()).numpy() / BITS
    odds = {"clean": clean, **odds}
    return judged(
        "minimal pairs",
        "bits of odds that the mask of a prompt with the other answer moves towards that answer",
        moved[0],
        moved[1:],
        n=task.n,
        unit="bits of odds",
        margin=MARGIN_ODDS,
        relevant=RELEVANT_ODDS,
        detail={
            "odds_bits": {name: float(values.mean()) for name, values in odds.items()},
            "flips": {name: float((values < 0).mean()) for name, values in odds.items()},
        },
    )


def unrelated(task: Task, seed: int) -> Int[np.ndarray, " n"]:
    """For each prompt another one with the same last token and neither of its names; `NO_DONOR` where there is none."""
    last = task.clean.gather(1, task.positions["end"][:, None])[:, 0].numpy()
    names = np.stack([task.answers.numpy(), task.wrong_answers.numpy()], 1)
    shared = (names[:, None, :, None] == names[None, :, None, :]).any((2, 3))
    possible = (last[:, None] == last[None]) & ~shared
    lots = np.where(possible, np.random.default_rng(seed).random(possible.shape), -1.0)
    return np.where(possible.any(1), lots.argmax(1), NO_DONOR)


def _at_ends(own: Observed, donor: Observed, ends: np.ndarray, given: np.ndarray) -> Masks:
    """Own masks, and at the prompts' ends those of these rows of the donor."""
    prompt = np.full(own.n, NO_DONOR)
    prompt[ends] = np.arange(len(ends))

    def masks(rows: np.ndarray) -> np.ndarray:
        values, at = own.mask_values(rows), prompt[rows]
        values[at != NO_DONOR] = donor.mask_values(given[at[at != NO_DONOR]])
        return values

    return masks


def _odds(task: Task, recipients: Observed) -> Read:
    """Odds of the recipient's answer against its pair's, bits."""

    def read(rows: np.ndarray, logits: Tensor) -> np.ndarray:
        prompt = torch.from_numpy(recipients.story[rows])
        right, wrong = (
            logits.cpu().gather(1, ids[prompt][:, None])[:, 0] for ids in (task.answers, task.wrong_answers)
        )
        return (right - wrong).double().numpy() / BITS

    return read
