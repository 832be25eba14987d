"""The blank stream: what does the ablated stream know when it has nothing but its mask?

It starts from the mean embedding and reads mean keys and mean values, so that every position begins alike; the
masks alone are true. What it then says of the next token it has from the mask. Bits carried: `usable`, the rate at
which the true mask tells the next token, beyond masks of other stories' positions with the same current token.

    masks of the token alone    every donor's mask is its own: 0
    random masks                tell nothing that could be used: 0
    untrained heads             tell a great deal that the stream cannot read: about 0, and that is the null

Source: own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from analyses.leakage.donors import donors
from analyses.leakage.finding import Finding
from analyses.leakage.interventions import Batch, batches
from analyses.leakage.judged import MARGIN_BITS, information_spread, judged
from analyses.leakage.observed import Observed
from analyses.leakage.usable import Continuations, continuations, rates, usable_bits
from analyses.leakage.variants import (
    donor_masks,
    own_masks,
    passes,
    story_means,
    where_matched,
)
from analyses.texts import Stories
from sat_lens.model import CleanStream

SHOWN = 8
"""Stories whose bits are kept token by token."""
SMOOTHING = 10.0
"""Weight of the unigram in the bigram, in sightings of the token."""


def blank(model: Any, stories: Stories, observed: Observed, controls: Sequence[Observed], *, seed: int = 0) -> Finding:
    """Bits a token that the mask alone tells of the next token, beyond the current token.

    Args:
        controls: the same positions with masks of random heads, a draw each.

    Returns:
        `detail`: loss (bits) of the blank stream under its own and under donors' masks, of the unigram and of the
        bigram of other stories; `bits_of_token`, mean bits and number of positions by current token; `bits_in_text`,
        those of each position of the first stories; `powers`, s of each half.

    Cost: two clean passes, and 2 + number of controls ablated ones.
    """
    after, still = continuations(observed), blank_stream(model, stories)
    found = donors(observed, "token", seed)
    masks = {"own": own_masks(observed), **{f"control {i}": own_masks(one) for i, one in enumerate(controls)}}
    logp = passes(model, stories, {**masks, "donor": donor_masks(observed, found)}, after.read, blank=still)
    bits, powers = usable_bits(observed, rates(observed, after, logp["own"]), seed)
    nulls = [bits_of(observed, after, logp[name], seed) for name in masks if name != "own"]
    start = np.r_[0, np.cumsum(after.n)[:-1]]
    own, given = (-logp[name][start + after.own] / np.log(2) for name in ("own", "donor"))
    unigram, bigram = ngram_bits(observed)
    losses = {"own": own, "donor": where_matched(given, found), "unigram": unigram, "bigram": bigram}
    n = int((~np.isnan(bits)).sum())
    return judged(
        "blank stream",
        "bits that the mask alone tells of the next token, beyond the current token",
        story_means(observed, bits),
        [story_means(observed, null) for null in nulls],
        n=n,
        spread=information_spread(MARGIN_BITS, n),
        detail={
            "loss_bits": {name: float(np.nanmean(story_means(observed, loss))) for name, loss in losses.items()},
            "powers": powers,
            "bits_of_token": by_token(observed, bits),
            "bits_in_text": [
                _or_none(bits[observed.story == story]) for story in range(min(SHOWN, observed.n_stories))
            ],
        },
    )


def bits_of(observed: Observed, after: Continuations, logp: np.ndarray, seed: int) -> np.ndarray:
    """Usable bits a position, the power fitted anew."""
    return usable_bits(observed, rates(observed, after, logp), seed)[0]


def _or_none(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def blank_stream(model: Any, stories: Stories) -> Callable[[Batch], CleanStream]:
    """The clean stream of a batch with the mean of all predicted positions everywhere: start, keys and values."""
    total: list[torch.Tensor] = []
    n = 0
    for batch in batches(model, stories):
        sums = [x[batch.keep].sum(0, dtype=torch.float64) for x in _read_by_ablated(batch.clean)]
        total = sums if not n else [one + more for one, more in zip(total, sums, strict=True)]
        n += int(batch.keep.sum())

    def of(batch: Batch) -> CleanStream:
        means = [
            (one / n).to(x.dtype).expand_as(x) for one, x in zip(total, _read_by_ablated(batch.clean), strict=True)
        ]
        layers = len(batch.clean.k)
        return batch.clean._replace(resid_pre=means[:1], k=means[1 : 1 + layers], v=means[1 + layers :])

    return of


def _read_by_ablated(clean: CleanStream) -> list[torch.Tensor]:
    return [clean.resid_pre[0], *clean.k, *clean.v]


def ngram_bits(observed: Observed) -> tuple[np.ndarray, np.ndarray]:
    """Loss of the next token under the unigram and the bigram of all other stories, bits a position.

    The unigram has one more sighting of each token of the vocabulary; the bigram is mixed with it: (sightings after
    the token + SMOOTHING x unigram) / (sightings of the token + SMOOTHING).
    """
    token, target = observed.token.astype(np.int64), observed.target.astype(np.int64)
    pair = token * observed.d_vocab + target
    seen_target, seen_token, seen_pair = (_in_other_stories(observed, key) for key in (target, token, pair))
    elsewhere = len(observed.story) - np.bincount(observed.story)[observed.story]
    unigram = (seen_target + 1) / (elsewhere + observed.d_vocab)
    return -np.log2(unigram), -np.log2((seen_pair + SMOOTHING * unigram) / (seen_token + SMOOTHING))


def _in_other_stories(observed: Observed, key: np.ndarray) -> np.ndarray:
    """How many rows of other stories have the row's key."""

    def counts(keys: np.ndarray) -> np.ndarray:
        _, at, n = np.unique(keys, return_inverse=True, return_counts=True)
        return n[at.ravel()]

    _, compact = np.unique(key, return_inverse=True)
    return counts(key) - counts(compact.ravel() * (int(observed.story.max()) + 1) + observed.story)


def by_token(observed: Observed, values: np.ndarray, fewest: int = 5) -> dict[str, Any]:
    """Mean and number of positions for every current token that has at least `fewest` measured ones."""
    known = ~np.isnan(values)
    n = np.bincount(observed.token[known], minlength=1)
    total = np.bincount(observed.token[known], values[known], minlength=1)
    return {str(i): [float(total[i] / n[i]), int(n[i])] for i in np.flatnonzero(n >= fewest)}
