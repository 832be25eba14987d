"""What is said of a probe's answers, with intervals over stories.

Accuracy is the share of rows that are right. Balanced accuracy is the mean over classes of the share that is right
(chance: 1 / classes); its answers are those of the same probe with the training shares of the classes taken out of its
probabilities, so that rare classes count as much as frequent ones.

Source of the second: logit adjustment, Menon et al., arXiv 2007.07314.
"""

import dataclasses
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from analyses.statistics import bootstrap_weights

RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Judged:
    """One probe's answers, each row by the probe of its fold.

    Args:
        label: class of each row.
        answer: the most likely class.
        balanced_answer: the most likely class if all were equally frequent.
        loss: of the label, nats.
    """

    label: Int[np.ndarray, " row"]
    answer: Int[np.ndarray, " row"]
    balanced_answer: Int[np.ndarray, " row"]
    loss: Float[np.ndarray, " row"]

    @property
    def right(self) -> Float[np.ndarray, " row"]:
        """1 where the answer is right."""
        return (self.answer == self.label).astype(float)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its interval of 95 % over stories."""

    value: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, float]:
        """As `name`, `name_low`, `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def mean_over_rows(values: Float[np.ndarray, " row"], story: Int[np.ndarray, " row"]) -> Estimate:
    """The mean over rows; stories are resampled whole."""
    return ratio(_by_story(values, story), _by_story(np.ones(len(story)), story))


def ratio(sums: Float[np.ndarray, " story"], counts: Float[np.ndarray, " story"]) -> Estimate:
    """The sum of all stories over their count, such as nats a token."""
    weights = _weights(len(sums))
    return _estimate(float(sums.sum() / counts.sum()), (weights @ sums) / (weights @ counts))


def balanced_accuracy(judged: Judged, story: Int[np.ndarray, " row"], n_classes: int) -> Estimate:
    """The mean of the recalls of all classes; in a resample, of those that it has."""
    of_class = np.eye(n_classes)[judged.label]
    right = _by_story(of_class * (judged.balanced_answer == judged.label)[:, None], story)
    counts = _by_story(of_class, story)
    weights = np.concatenate([np.ones((1, len(right))), _weights(len(right))])
    n = weights @ counts
    recall = np.divide(weights @ right, n, out=np.full(n.shape, np.nan), where=n > 0)
    means = np.nanmean(recall, axis=1)
    return _estimate(float(means[0]), means[1:])


def _estimate(value: float, resampled: Float[np.ndarray, " resample"]) -> Estimate:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def _by_story(values: np.ndarray, story: Int[np.ndarray, " row"]) -> np.ndarray:
    names, place = np.unique(story, return_inverse=True)
    sums = np.zeros((len(names), *values.shape[1:]))
    np.add.at(sums, place, values)
    return sums


@lru_cache(maxsize=8)
def _weights(n: int) -> np.ndarray:
    return bootstrap_weights(n, RESAMPLES, seed=0)
