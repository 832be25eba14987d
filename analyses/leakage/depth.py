"""Depth: does the mask of a layer tell more of the prediction than the stream that enters the layer?

Probes of mask_l and of resid_pre_l, both beside the bigram (`softmax_probe`), are fitted on some stories and judged
on others; look-ahead is the difference of what they gain, in bits. A local mask is a function of resid_pre_l and can
look ahead by no more than what a linear probe misses in the stream; a global mask is chosen at the end, and at
layer 0, where the stream knows a token and a place, nearly all that it tells is look-ahead. So layer 0 is judged.

Untrained global heads look ahead, too: their draws are the null, and `ahead` has the bits themselves.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyses.leakage.conditional import folds
from analyses.leakage.decoder import gained
from analyses.leakage.finding import Finding
from analyses.leakage.interventions import batches
from analyses.leakage.judged import MARGIN_BITS, information_spread, judged
from analyses.leakage.observed import Observed
from analyses.leakage.softmax_probe import mask_features, standardized
from analyses.leakage.variants import story_means
from analyses.texts import Stories


def depth(model: Any, stories: Stories, observed: Observed, controls: Sequence[Observed], *, seed: int = 0) -> Finding:
    """Bits of the prediction that the mask of layer 0 tells beyond what the stream entering layer 0 does.

    Args:
        controls: the same positions with masks of random heads, a draw each.

    Returns:
        `detail`: of each layer, `mask` and `resid_pre`, bits gained over the bigram; `ahead`, their difference;
        `ahead_interval`, 95 % over stories (normal).

    Cost: one clean pass; two fits a layer and stream, and two a control.
    """
    found = folds(observed, observed.prediction, seed=seed)
    streams = _resid_pre(model, stories, observed)
    known = [gained(standardized(stream), found, seed)[0] for stream in streams]
    told = [gained(mask_features(observed, [layer]), found, seed)[0] for layer in range(observed.n_layers)]
    nulls = [gained(mask_features(one, [0]), found, seed)[0] for one in controls]
    ahead = [story_means(observed, mask - stream) for mask, stream in zip(told, known, strict=True)]
    far = [1.96 * float(one.std(ddof=1)) / np.sqrt(len(one)) for one in ahead]
    return judged(
        "depth",
        "bits of the prediction that the mask of layer 0 tells beyond the stream that enters it",
        ahead[0],
        [story_means(observed, null - known[0]) for null in nulls],
        n=observed.n,
        spread=information_spread(MARGIN_BITS, observed.n),
        detail={
            "mask": [float(story_means(observed, one).mean()) for one in told],
            "resid_pre": [float(story_means(observed, one).mean()) for one in known],
            "ahead": [float(one.mean()) for one in ahead],
            "ahead_interval": [[float(a.mean() - f), float(a.mean() + f)] for a, f in zip(ahead, far, strict=True)],
        },
    )


def _resid_pre(model: Any, stories: Stories, observed: Observed) -> list[np.ndarray]:
    """Of each layer, at the predicted positions: [position d_model]."""
    found: list[np.ndarray] = []
    for batch in batches(model, stories):
        for layer in range(observed.n_layers):
            rows = batch.clean.resid_pre[layer][batch.keep].float().numpy(force=True)
            if layer == len(found):
                found.append(np.empty((observed.n, rows.shape[1]), dtype=np.float32))
            found[layer][batch.rows] = rows
    return found
