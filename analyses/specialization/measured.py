"""One measure of all units: on all stories, without each group of them, and under its nulls."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from analyses.specialization import nulls
from analyses.specialization.logit_weights import LogitWeights
from analyses.specialization.measures import NONE, Key, measures
from analyses.specialization.modularity import communities, modularity
from analyses.specialization.observation import Observation
from analyses.specialization.tables import Sums, without

OF_BITS = ("kurtosis", "hoyer", "gini", "negative share")
"""What a mask's entries have by their usage alone, so that it is not said of them."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """One measure of all units of a kind.

    Args:
        value: on all stories.
        left_out: without each group of stories.
        null: by the null's name its draws, or one row where it is a number; empty where the measure has none.
    """

    value: Float[np.ndarray, " unit"]
    left_out: Float[np.ndarray, "group unit"]
    null: Mapping[str, Float[np.ndarray, "draw unit"]]


def measured_of(seen: Observation) -> dict[Key, Measured]:
    """Every measure on all stories, without each group, and of every draw of every null."""
    total, is_mask = seen.observed.total, seen.units.kind.startswith("mask")
    value = _arrays(total)
    left_out = _stacked([_arrays(without(total, part)) for part in seen.observed.slots()])
    null_of = {nulls.SHUFFLED: _stacked([_arrays(sums) for sums in seen.shuffled.slots()])}
    if seen.masked is not None:
        null_of[nulls.RANDOM_MASK] = _stacked([_arrays(sums) for sums in seen.masked.slots()])
    elif not is_mask and seen.units.kind != "head":
        null_of |= _shapes(value, seen)
    return {
        key: Measured(
            value[key], left_out[key],
            {name: draws[key] for name, draws in null_of.items() if key in draws},
        )
        for key in value
        if not (is_mask and key[0] in OF_BITS)
    }  # fmt: skip


def _shapes(value: Mapping[Key, np.ndarray], seen: Observation) -> dict[str, dict[Key, np.ndarray]]:
    """Kurtosis, Hoyer and Gini of a plain distribution of the same usage."""
    usage, n = value["usage", NONE], int(seen.observed.total["n"])
    if seen.activity.rule == "positive":
        return {nulls.RECTIFIED: {(name, NONE): x[None] for name, x in nulls.rectified_normal(usage, n).items()}}
    return {nulls.HALF_NORMAL: {(name, NONE): x[None] for name, x in nulls.half_normal(len(usage), n).items()}}


def _arrays(sums: Sums) -> dict[Key, np.ndarray]:
    return {key: value.numpy(force=True) for key, value in measures(sums).items()}


def _stacked(found: Sequence[Mapping[Key, np.ndarray]]) -> dict[Key, np.ndarray]:
    return {key: np.stack([one[key] for one in found]) for key in found[0]}


def of_weights(weights: LogitWeights) -> Measured:
    """The kurtosis of logit weights, which no story enters: its interval has no width."""
    value = weights.kurtosis
    draws = np.broadcast_to(weights.null[:, None], (len(weights.null), len(value)))
    return Measured(value, np.stack([value, value]), {nulls.DIRECTIONS: draws})


def modularities(seen: Observation) -> Measured | None:
    """Q of each layer, its communities kept when a group of stories is left out, found anew in each draw."""
    if seen.together is None:
        return None
    groups, draws = (one.double().numpy(force=True) for one in seen.together)
    total = groups.sum(0)
    found = [communities(layer) for layer in total]
    return Measured(
        np.array([modularity(layer, of) for layer, of in zip(total, found, strict=True)]),
        np.array([[modularity(a - b, of) for a, b, of in zip(total, group, found, strict=True)] for group in groups]),
        {nulls.SHUFFLED: np.array([[modularity(layer, communities(layer)) for layer in draw] for draw in draws])},
    )
