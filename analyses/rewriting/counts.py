"""Counts of what is and is not active by simulated activation, and the scores that follow from them.

A cut is a part of the range of simulated activation: what lies in it or above is called active. Cuts are chosen on
other stories than those that are scored.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.explain.score import BINS


@dataclasses.dataclass(frozen=True)
class Counts:
    """Things (tokens, windows) by part of the range of simulated activation.

    Args:
        active, inactive: how many of each.
    """

    active: Float[Tensor, "*groups bin unit"]
    inactive: Float[Tensor, "*groups bin unit"]

    @staticmethod
    def of(
        at: Int[Tensor, "thing unit"], active: Bool[Tensor, "thing unit"], known: Bool[Tensor, "thing unit"]
    ) -> "Counts":
        """Of things at these parts of the range, those that are known."""
        n_units = at.shape[1]
        place = at * n_units + torch.arange(n_units)
        return Counts(
            *(
                place[which & known].bincount(minlength=BINS * n_units).reshape(BINS, -1).double()
                for which in (active, ~active)
            )
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.active + other.active, self.inactive + other.inactive)

    @property
    def n_active(self) -> Float[Tensor, "*groups unit"]:
        """Active ones."""
        return self.active.sum(-2)

    @property
    def base_rate(self) -> Float[Tensor, "*groups unit"]:
        """Share of all that are active: average precision by chance."""
        return self.n_active / (self.n_active + self.inactive.sum(-2))

    @property
    def average_precision(self) -> Float[Tensor, "*groups unit"]:
        """Sum over cuts of precision x the recall that the cut adds. 0..1; NaN without anything active."""
        hits, called = self._called()
        precision = hits / called.clamp(min=1)
        gained = self.active.flip(-2)
        n = self.n_active
        return (precision.flip(-2) * gained).sum(-2) / n.where(n > 0, torch.nan)

    @property
    def best_f1(self) -> Int[Tensor, "*groups unit"]:
        """The cut of the best F1, the greatest of equals."""
        hits, called = self._called()
        return _last_best(2 * hits / (called + self.n_active[..., None, :]).clamp(min=1))

    @property
    def best_balanced(self) -> Int[Tensor, "*groups unit"]:
        """The cut of the best balanced accuracy, the greatest of equals."""
        hits, called = self._called()
        n, rest = self.n_active[..., None, :], self.inactive.sum(-2, keepdim=True)
        return _last_best(hits / n.clamp(min=1) - (called - hits) / rest.clamp(min=1))

    def balanced_accuracy(self, cut: Int[Tensor, "*groups unit"]) -> Float[Tensor, "*groups unit"]:
        """Mean of recall and of the share of inactive ones that are not called. 0..1; NaN where there are no such."""
        hits, called = (_at(of, cut) for of in self._called())
        n, rest = self.n_active, self.inactive.sum(-2)
        recall = hits / n.where(n > 0, torch.nan)
        return (recall + 1 - (called - hits) / rest.where(rest > 0, torch.nan)) / 2

    def false_positives(self, cut: Int[Tensor, "*groups unit"]) -> Float[Tensor, "*groups unit"]:
        """Called and not active, of all."""
        hits, called = (_at(of, cut) for of in self._called())
        total = self.n_active + self.inactive.sum(-2)
        return (called - hits) / total.where(total > 0, torch.nan)

    def _called(self) -> tuple[Tensor, Tensor]:
        """Active ones, and all, from each part of the range on."""
        active, inactive = (of.flip(-2).cumsum(-2).flip(-2) for of in (self.active, self.inactive))
        return active, active + inactive


def _at(values: Tensor, cut: Tensor) -> Tensor:
    return values.gather(-2, cut.expand(*values.shape[:-2], values.shape[-1])[..., None, :])[..., 0, :]


def _last_best(values: Tensor) -> Tensor:
    return values.shape[-2] - 1 - values.flip(-2).argmax(-2)
