"""What the current token alone tells: the baseline that a mask must beat to have told something.

Stories fall into two halves. What is fitted on one half is judged on the other, both ways, so that every position
is judged by what has not seen its story. A fifth of the half that is fitted is held back (`inner`) for every choice.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from analyses.leakage.donors import donors, or_own
from analyses.leakage.observed import Observed

N_CLASSES = 256
"""Most frequent values that are told apart; all others are one class, the last."""
STRENGTHS: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Weights of the unigram in the bigram, in sightings of the token; that which is best on `inner` is used."""


GROUPS = 5
"""Parts of the fitted stories; what is fitted on top of the bigram sees that of the other parts."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """One half of the stories fitted, the other judged.

    Args:
        fit, inner, judged: rows of `Observed`.
        label: class of every row.
        token: of every row, its place in `logp`.
        table: of every row, which bigram it is told by: for `fit` that without its group, else that of all `fit`.
        logp: smoothed bigrams, nats; the last is that of all rows `fit`.
        unigram: of the rows `fit`, nats.
        strength: of the smoothing.
    """

    fit: Int[np.ndarray, " fitted"]
    inner: Int[np.ndarray, " held_back"]
    judged: Int[np.ndarray, " judged_row"]
    label: Int[np.ndarray, " position"]
    token: Int[np.ndarray, " position"]
    table: Int[np.ndarray, " position"]
    logp: Float[np.ndarray, "table token class_"]
    unigram: Float[np.ndarray, " class_"]
    strength: float

    @property
    def n_classes(self) -> int:
        """Classes, the last of which is "any other"."""
        return len(self.unigram)

    @property
    def n_tokens(self) -> int:
        """Distinct current tokens."""
        return self.logp.shape[1]

    def offset(self, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, "row class_"]:
        """Log-probability of each class after the current token, nats."""
        return self.logp[self.table[rows], self.token[rows]]

    def bits(self, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
        """Loss of each row's class under the bigram."""
        return -self.logp[self.table[rows], self.token[rows], self.label[rows]].astype(np.float64) / np.log(2)

    def unigram_bits(self, rows: Int[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
        """Loss of each row's class under the unigram."""
        return -self.unigram[self.label[rows]] / np.log(2)


def folds(
    observed: Observed, values: Int[np.ndarray, " position"], *, seed: int = 0, n_classes: int = N_CLASSES
) -> list[Fold]:
    """The two folds for telling `values` (next tokens or predictions), with their bigrams.

    Raises:
        ValueError: fewer than 6 stories.
    """
    if observed.n_stories < 6:
        raise ValueError(
            f"a probe needs at least 6 stories, to fit on some and judge on others; got {observed.n_stories}"
        )
    halves = np.array_split(np.random.default_rng(seed).permutation(np.unique(observed.story)), 2)
    return [_fold(observed, values, half, other, n_classes) for half, other in (halves, halves[::-1])]


def _fold(observed: Observed, values: np.ndarray, half: np.ndarray, other: np.ndarray, n_classes: int) -> Fold:
    held_back = max(1, len(half) // 5)
    inner, fit, judged = (observed.of_stories(part) for part in (half[:held_back], half[held_back:], other))
    frequent, counts = np.unique(values[fit], return_counts=True)
    kept = np.sort(frequent[np.argsort(-counts, kind="stable")[:n_classes]])
    at = np.minimum(np.searchsorted(kept, values), len(kept) - 1)
    label = np.where(kept[at] == values, at, len(kept))
    n = len(kept) + 1
    token = np.unique(observed.token, return_inverse=True)[1].ravel()
    groups = min(GROUPS, len(half) - held_back)
    place = np.zeros(int(observed.story.max()) + 1, dtype=int)
    place[half[held_back:]] = np.arange(len(half) - held_back) % groups
    table = np.full(observed.n, groups)
    table[fit] = place[observed.story[fit]]
    pairs = np.zeros((groups + 1, int(token.max()) + 1, n))
    np.add.at(pairs, (table[fit], token[fit], label[fit]), 1)
    pairs[-1] = pairs[:-1].sum(0)
    pairs[:-1] = pairs[-1] - pairs[:-1]
    unigram = (pairs[-1].sum(0) + 1 / n) / (len(fit) + 1)
    smoothed = {strength: _smoothed(pairs, unigram, strength) for strength in STRENGTHS}
    best = max(STRENGTHS, key=lambda strength: smoothed[strength][-1, token[inner], label[inner]].mean())
    return Fold(fit, inner, judged, label, token, table, smoothed[best], np.log(unigram), best)


def _smoothed(pairs: np.ndarray, unigram: np.ndarray, strength: float) -> np.ndarray:
    share = (pairs + strength * unigram) / (pairs.sum(-1, keepdims=True) + strength)
    return np.log(share).astype(np.float32)


def shuffled(observed: Observed, seed: int) -> Observed:
    """Each position with the mask of another story's position with the same current token; its own where none is.

    What these tell beyond the bigram is no news of the position: they say how alike tokens are.
    """
    return observed.with_masks_of(or_own(donors(observed, "token", seed)))
