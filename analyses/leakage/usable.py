"""Bits about the next token that the ablated stream can use from its mask: the rate of a mismatched decoder.

For a position with token x, mask m and next token y, and the masks m' of positions with the same x in other stories:

    bits(s) = mean log2 [ p(y | m)^s / mean over stories of p(y | m')^s ],    s >= 0

p(y | m) is what the ablated stream says under mask m. Every story that has x counts once in the denominator: the own
one by m, another one by the mean over its m', since positions of one story are alike. A lower bound of
I(mask; y | x) for every s, and never more than log2 of the stories that have x; masks that tell nothing beyond the
token give at most 0. The power s makes it
indifferent to how sure of itself the ablated stream is, which off its distribution means little: s is fitted on one
half of the stories and used on the other, both ways, so that it cannot flatter.

Source: the generalised mutual information of mismatched decoding (Kaplan and Shamai 1993) with the sampled
denominator of arXiv 1807.03748.
"""

import dataclasses

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.leakage.observed import Observed
from analyses.leakage.variants import BITS, story_means

POWERS: tuple[float, ...] = (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclasses.dataclass(frozen=True)
class Continuations:
    """The next tokens that were seen after each token, and which of them each row needs.

    Args:
        targets: of all tokens, one after the other, ascending within a token.
        first, n: of each row's token: where its next tokens start in `targets`, and how many they are.
        own: of each row: which of them is its own.
    """

    targets: Int[np.ndarray, " pair"]
    first: Int[np.ndarray, " position"]
    n: Int[np.ndarray, " position"]
    own: Int[np.ndarray, " position"]

    def read(self, rows: np.ndarray, logits: Tensor) -> np.ndarray:
        """Log-probabilities (nats) of each row's next tokens, row after row."""
        row = np.repeat(np.arange(len(rows)), self.n[rows])
        column = self.targets[self.first[rows][row] + _within(self.n[rows])]
        logp = logits.log_softmax(-1)
        return logp[torch.from_numpy(row), torch.from_numpy(column)].numpy(force=True)


def continuations(observed: Observed) -> Continuations:
    """Those of a set of rows; memory is the pairs of rows and next tokens: about 100 a row in small stories."""
    pairs, place = np.unique(observed.token.astype(np.int64) * observed.d_vocab + observed.target, return_inverse=True)
    token = pairs // observed.d_vocab
    first, end = np.searchsorted(token, observed.token), np.searchsorted(token, observed.token, side="right")
    return Continuations(pairs % observed.d_vocab, first, end - first, place.ravel() - first)


def rates(observed: Observed, after: Continuations, logp: np.ndarray) -> Float[np.ndarray, "power position"]:
    """bits(s) of every position for every s of `POWERS`; NaN where no other story has the token.

    Args:
        logp: of `after.read`, for all rows of `observed`.
    """
    start = np.r_[0, np.cumsum(after.n)[:-1]]
    found = np.full((len(POWERS), observed.n), np.nan)
    order = np.argsort(observed.token, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(observed.token[order])) + 1):
        table = logp[start[rows][:, None] + np.arange(after.n[rows[0]])].astype(np.float64)
        found[:, rows] = _group_rates(table, after.own[rows], observed.story[rows])
    return found


def _group_rates(
    logp: Float[np.ndarray, "row target"], own: Int[np.ndarray, " row"], story: Int[np.ndarray, " row"]
) -> Float[np.ndarray, "power row"]:
    """Those of the rows of one token, which are sorted by story."""
    stories, at = np.unique(story, return_inverse=True)
    if len(stories) == 1:
        return np.full((len(POWERS), len(own)), np.nan)
    starts, row = np.searchsorted(at, np.arange(len(stories))), np.arange(len(own))
    rows_of_story = np.diff(np.r_[starts, len(own)])[:, None]
    found = []
    for power in POWERS:
        weight = np.exp(power * (logp - logp.max(0)))
        of_story = np.add.reduceat(weight, starts, axis=0) / rows_of_story
        mine = weight[row, own]
        others = np.maximum((of_story.sum(0) - of_story[at])[row, own], 0)
        found.append((power * (logp - logp.max(0))[row, own] - np.log((mine + others) / len(stories))) / BITS)
    return np.stack(found)


def usable_bits(
    observed: Observed, bits: Float[np.ndarray, "power position"], seed: int
) -> tuple[Float[np.ndarray, " position"], list[float]]:
    """bits(s) with the s that was best on the other half of the stories, and the two s.

    Args:
        bits: of the first rows of `observed`.
    """
    story = observed.story[: bits.shape[1]]
    half = np.random.default_rng(seed).permutation(observed.n_stories) % 2
    means = np.stack([story_means(observed, of_power) for of_power in bits])
    chosen = [_best(means[:, half != side]) for side in (0, 1)]
    return np.where(half[story] == 0, bits[chosen[0]], bits[chosen[1]]), [POWERS[i] for i in chosen]


def _best(means: Float[np.ndarray, "power story"]) -> int:
    known = means[:, ~np.isnan(means).any(0)]
    return int(known.mean(1).argmax()) if known.size else 0


def _within(counts: Int[np.ndarray, " row"]) -> Int[np.ndarray, " entry"]:
    """0, 1, ... up to each count, one run after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)
