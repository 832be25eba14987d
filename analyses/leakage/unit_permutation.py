"""Units permuted: the masks' information kept to the bit, its meaning to the ablated stream lost.

One permutation of each layer's attention units and one of its neurons, the same at every position, turns every
mask into another that can be undone: all that a probe finds in them is still there. What the ablated stream can use
of them (the bits of `blank`) is gone, if it was agreed on by training. That makes the permuted masks a null with
exactly the information of the true ones, where random heads only have about as much.

Units that no mask ever chose (dead) can be permuted without any loss if masks are hard; `dead` says what it costs.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from analyses.leakage.blank import bits_of, blank_stream
from analyses.leakage.finding import Finding
from analyses.leakage.judged import MARGIN_BITS, information_spread, judged
from analyses.leakage.observed import Observed
from analyses.leakage.random_heads import CHUNK
from analyses.leakage.usable import continuations
from analyses.leakage.variants import Masks, own_masks, passes, story_means, target_bits
from analyses.texts import Stories


def unit_permutation(model: Any, stories: Stories, observed: Observed, *, n_draws: int = 3, seed: int = 0) -> Finding:
    """Bits that the mask alone tells of the next token (`blank`), against the same masks with their units permuted.

    Returns:
        `detail`: `loss_bits` of the ablated stream with its own masks, with permuted units (mean of draws), and with
        the dead units alone permuted; `dead`, the share of units that no mask chose.

    Cost: three clean passes and 2 x n_draws + 3 ablated ones.
    """
    draw = np.random.default_rng(seed)
    live = live_units(observed)
    orders = {f"permuted {i}": permutation(np.ones_like(live), observed.attn_width, draw) for i in range(n_draws)}
    permuted = {name: _permuted(observed, order) for name, order in orders.items()}
    masks = {"own": own_masks(observed), **permuted}
    after = continuations(observed)
    logp = passes(model, stories, masks, after.read, blank=blank_stream(model, stories))
    bits = {name: bits_of(observed, after, found, seed) for name, found in logp.items()}
    dead = _permuted(observed, permutation(~live, observed.attn_width, draw))
    loss = passes(model, stories, {**masks, "dead": dead}, target_bits(observed))
    means = {name: float(story_means(observed, values).mean()) for name, values in loss.items()}
    n = int((~np.isnan(bits["own"])).sum())
    return judged(
        "unit permutation",
        "bits that the mask alone tells of the next token, lost when units are permuted",
        story_means(observed, bits["own"]),
        [story_means(observed, bits[name]) for name in permuted],
        n=n,
        spread=information_spread(MARGIN_BITS, n),
        detail={
            "loss_bits": {
                "own": means["own"],
                "permuted": float(np.mean([means[name] for name in permuted])),
                "dead_permuted": means["dead"],
            },
            "dead": float((~live).mean()),
        },
    )


def live_units(observed: Observed) -> Bool[np.ndarray, "layer bit"]:
    """Units that at least one mask chose."""
    live = np.zeros((observed.n_layers, observed.width), dtype=bool)
    for rows in np.array_split(np.arange(observed.n), max(1, observed.n // CHUNK)):
        live |= observed.masks(rows).any(0)
    return live


def permutation(
    movable: Bool[np.ndarray, "layer bit"], attn_width: int, draw: np.random.Generator
) -> Int[np.ndarray, "layer bit"]:
    """Where each entry is taken from: the movable attention units of a layer change places, and its movable neurons."""
    order = np.tile(np.arange(movable.shape[1]), (len(movable), 1))
    for layer, may in enumerate(movable):
        for part in np.split(np.arange(len(may)), [attn_width]):
            chosen = part[may[part]]
            order[layer, chosen] = draw.permutation(chosen)
    return order


def _permuted(observed: Observed, order: Int[np.ndarray, "layer bit"]) -> Masks:
    return lambda rows: np.take_along_axis(observed.mask_values(rows), order[None], -1)
