"""The mask-only decoder: what do masks tell a probe of the next token, beyond the current token?

Bits a token = loss of the bigram - loss of the bigram with the mask (`softmax_probe`), fitted on some stories and
judged on others. The probe is no part of the model: it finds what masks hold, whether or not the ablated stream
reads it. Even untrained heads hash the stream that they score, so the null is what masks of random heads tell.
Local masks hold what their layer's stream holds; only a global mask can tell what that layer cannot know (`depth`).

Classes are the 256 most frequent values and the rest as one, so that what would tell rare tokens apart is not counted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from analyses.leakage.conditional import N_CLASSES, Fold, folds, shuffled
from analyses.leakage.finding import Finding
from analyses.leakage.judged import MARGIN_BITS, information_spread, judged
from analyses.leakage.observed import Observed
from analyses.leakage.softmax_probe import EPOCHS, RANKS, RIDGE, mask_features, probe_bits
from analyses.leakage.variants import story_means

OF: tuple[str, ...] = ("target", "prediction")


def decoder(
    observed: Observed, controls: Sequence[Observed], *, of: str = "target", by_layer: bool = True, seed: int = 0
) -> Finding:
    """Bits a token that the mask tells a probe, beyond the current token.

    Args:
        controls: the same positions with masks of random heads, a draw each.
        of: `target`, the next token, or `prediction`, the clean stream's.
        by_layer: also of each layer's mask, and of those of layers 0 to l.

    Returns:
        `detail`: `loss_bits` of the unigram, the bigram and the probe; `shuffled`, bits that masks of other stories'
        positions with the same token tell (0 but for chance and for tokens that are alike); `beats_shuffled`, by
        more than the margin;
        `layer` and `cumulated`, bits; `share_of_rest`, of judged values that are in the class of the rest;
        `probe`, ranks and how it was fitted.

    Raises:
        ValueError: an `of` that is none of `OF`, or fewer than 6 stories.

    Cost: two fits, one a half of the stories, for the model, each control, the shuffled masks and each layer twice.
    """
    if of not in OF:
        raise ValueError(f"a decoder tells one of {', '.join(OF)}; got {of!r}")
    found = folds(observed, observed.target if of == "target" else observed.prediction, seed=seed)
    gains, ranks = gained(mask_features(observed), found, seed)
    nulls = [gained(mask_features(one), found, seed)[0] for one in controls]
    mixed, _ = gained(mask_features(shuffled(observed, seed)), found, seed)
    bigram = np.empty(observed.n)
    unigram = np.empty(observed.n)
    for fold in found:
        bigram[fold.judged], unigram[fold.judged] = fold.bits(fold.judged), fold.unigram_bits(fold.judged)
    losses = {"unigram": unigram, "bigram": bigram, "probe": bigram - gains}
    beyond = story_means(observed, gains - mixed)
    layers = range(observed.n_layers if by_layer else 0)
    alone = {layer: _mean(observed, mask_features(observed, [layer]), found, seed) for layer in layers}
    upto = {layer: _mean(observed, mask_features(observed, range(layer + 1)), found, seed) for layer in layers[1:-1]}
    upto |= {0: alone[0], observed.n_layers - 1: float(story_means(observed, gains).mean())} if by_layer else {}
    beats = bool(beyond.mean() > MARGIN_BITS + 2 * beyond.std(ddof=1) / np.sqrt(len(beyond)))
    what = "next token" if of == "target" else "prediction"
    measure = f"bits of the {what} that a probe of masks gains over the bigram"
    return judged(
        "decoder" if of == "target" else "decoder of prediction",
        measure if beats else f"{measure}; no more than from masks of other positions with the same token",
        story_means(observed, gains),
        [story_means(observed, null) for null in nulls],
        n=observed.n,
        spread=information_spread(MARGIN_BITS, observed.n),
        detail={
            "loss_bits": {name: float(story_means(observed, loss).mean()) for name, loss in losses.items()},
            "shuffled": float(story_means(observed, mixed).mean()),
            "beats_shuffled": beats,
            "layer": [alone[layer] for layer in layers],
            "cumulated": [upto[layer] for layer in layers],
            "share_of_rest": float(np.mean(np.concatenate([f.label[f.judged] == f.n_classes - 1 for f in found]))),
            "probe": {
                "classes": N_CLASSES,
                "ranks": ranks,
                "most_rank": RANKS[-1],
                "ridge": RIDGE,
                "epochs": EPOCHS,
                "smoothing": [fold.strength for fold in found],
            },
        },
    )


def gained(x: Any, found: Sequence[Fold], seed: int) -> tuple[Float[np.ndarray, " position"], list[int]]:
    """Bits that a probe of features gains over the bigram at every position, and its rank in each fold."""
    gains, ranks = np.empty(x.shape[0]), []
    for fold in found:
        loss, rank = probe_bits(x, fold, seed)
        gains[fold.judged] = fold.bits(fold.judged) - loss
        ranks.append(rank)
    return gains, ranks


def _mean(observed: Observed, x: Any, found: Sequence[Fold], seed: int) -> float:
    return float(story_means(observed, gained(x, found, seed)[0]).mean())
