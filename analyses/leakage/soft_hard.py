"""Soft and hard: do the weights of soft masks tell more than which units they favour?

The same weights are run with soft masks, with masks rounded to b bits an entry, and with hard ones. A gap between
soft and hard alone is no leak: a stream trained on soft masks is out of its depth with hard ones, whatever they say.
The finding is a difference of differences, in bits:

    [loss under a same-token donor's mask - loss under the own one], soft  -  the same with the winners alone

that is, what magnitudes add to what the own mask is worth beyond the current token. Masks that are hard have no
magnitudes: exactly 0.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from analyses.leakage.donors import donors
from analyses.leakage.finding import Finding
from analyses.leakage.judged import judged
from analyses.leakage.observed import Observed
from analyses.leakage.observed import observed as observe
from analyses.leakage.random_heads import with_forward
from analyses.leakage.variants import Masks, donor_masks, own_masks, passes, story_means, target_bits, where_matched
from analyses.texts import Stories

DEPTHS: tuple[int, ...] = (1, 2, 3, 4, 6, 8)
"""Bits an entry that masks are rounded to."""


def soft_hard(
    model: Any, stories: Stories, observed: Observed, controls: Sequence[Observed], *, seed: int = 0
) -> Finding:
    """Bits that the magnitudes of a mask tell beyond its winners.

    Args:
        controls: the same positions with masks of random heads, a draw each.

    Returns:
        `detail`: `forward`, how the model was trained; `loss_bits` of the ablated stream under `hard`, `soft` and
        masks of `depths` bits (`rounded`); `gap`, hard minus soft.

    Cost: one clean pass and 8 ablated ones; a pass of both streams more where masks are hard, and 4 ablated ones for
    the model and for each control where they are soft.
    """
    found = donors(observed, "token", seed)
    soft = observed if observed.soft is not None else observe(with_forward(model, "soft"), stories)
    largest = float(max(part.max() for part in np.array_split(soft.soft, 32) if part.size))
    masks = {"soft": own_masks(soft), "hard": own_masks(winners_of(observed))}
    masks |= {f"{depth} bits": _rounded(soft, depth, largest) for depth in DEPTHS}
    all_of = [observed, *controls] if observed.soft is not None else []
    for i, one in enumerate(all_of):
        masks |= {
            f"soft {i}": own_masks(one),
            f"hard {i}": own_masks(winners_of(one)),
            f"soft donor {i}": donor_masks(one, found),
            f"hard donor {i}": donor_masks(winners_of(one), found),
        }
    loss = passes(model, stories, masks, target_bits(observed))
    added = [
        (loss[f"soft donor {i}"] - loss[f"soft {i}"]) - (loss[f"hard donor {i}"] - loss[f"hard {i}"])
        for i in range(len(all_of))
    ] or [np.zeros(observed.n)] * (1 + len(controls))
    falls = [story_means(observed, where_matched(one, found)) for one in added]
    means = {name: float(story_means(observed, loss[name]).mean()) for name in masks}
    return judged(
        "soft and hard",
        "bits that the magnitudes of a mask are worth beyond its winners",
        falls[0],
        falls[1:],
        n=int((~np.isnan(where_matched(added[0], found))).sum()),
        detail={
            "forward": model.ablation.forward,
            "depths": list(DEPTHS),
            "loss_bits": {
                "hard": means["hard"],
                "soft": means["soft"],
                "rounded": [means[f"{depth} bits"] for depth in DEPTHS],
            },
            "gap": means["hard"] - means["soft"],
        },
    )


def winners_of(observed: Observed) -> Observed:
    """The same positions with 1 for each winner and 0 for the rest."""
    return dataclasses.replace(observed, soft=None)


def rounded(
    values: Float[np.ndarray, "position layer bit"], depth: int, largest: float
) -> Float[np.ndarray, "position layer bit"]:
    """Rounded to the nearest of 2^depth equally spaced levels from 0 to `largest`."""
    step = largest / (2**depth - 1)
    return np.round(np.minimum(values, largest) / step).astype(np.float32) * np.float32(step)


def _rounded(observed: Observed, depth: int, largest: float) -> Masks:
    return lambda rows: rounded(observed.mask_values(rows), depth, largest)
