"""Sums that every measure is made of: one pass over the tokens fills them for all units at once.

A table has a slot for each group of stories (observed), or for each draw of a null. Sums add, so that the sums of
all stories but one group are the total less that group's: what a jackknife needs.

| sum | axes after the slot | of |
| --- | --- | --- |
| `labelled/T` | class | tokens of each class of target T; the last class is "no label" |
| `active/T`, `values/T` | class unit | tokens at which the unit is active; values (less the unit's mean) |
| `squares/T` | unit | squared values of labelled tokens |
| `strength` | class unit | strength, by current token |
| `n`, `n_active` | -, unit | tokens; active ones |
| `negative`, `magnitude` | unit | max(-value, 0); |value| |
| `powers` | 4 unit | strength to the powers 1 to 4 |
| `bins` | 2 bin unit | tokens and strength in bins of strength, for the Gini coefficient |

Strength, `negative` and `magnitude` are in units of the unit's scale. Memory: 2 x classes x units
numbers a slot and target.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.specialization.activity import Seen

N_BINS, LOWEST, HIGHEST = 128, -12.0, 6.0
"""Bins of log2(strength / scale): equal width, 10 % of strength each; what lies outside goes to the outer ones."""

Sums = Mapping[str, Tensor]


class Tables:
    """The sums of some slots.

    Args:
        n_slots: groups or draws.
        n_units: units.
        classes: of each target, how many.
        context: the target by which strength is summed; None: not.
        whole: whether the sums that know no label are wanted (from `n` on in the module's table).
        like: a tensor of the device and type that the label sums have.
    """

    def __init__(
        self, n_slots: int, n_units: int, classes: Mapping[str, int], context: str | None, *, whole: bool, like: Tensor
    ) -> None:
        exact = like.dtype if like.device.type == "mps" else torch.float64  # mps has no float64
        self.n_slots, self.classes, self.context, self.whole = n_slots, dict(classes), context, whole
        sums = {}
        for name, n in classes.items():
            sums[f"labelled/{name}"] = like.new_zeros(n_slots, n + 1, dtype=exact)
            sums[f"active/{name}"] = like.new_zeros(n_slots, n + 1, n_units)
            sums[f"values/{name}"] = like.new_zeros(n_slots, n + 1, n_units)
            sums[f"squares/{name}"] = like.new_zeros(n_slots, n_units, dtype=exact)
        if context is not None:
            sums["strength"] = like.new_zeros(n_slots, classes[context] + 1, n_units)
        if whole:
            sums["n"] = like.new_zeros(n_slots, dtype=exact)
            sums["n_active"] = like.new_zeros(n_slots, n_units, dtype=exact)
            sums["negative"] = like.new_zeros(n_slots, n_units, dtype=exact)
            sums["magnitude"] = like.new_zeros(n_slots, n_units, dtype=exact)
            sums["powers"] = like.new_zeros(n_slots, 4, n_units, dtype=exact)
            sums["bins"] = like.new_zeros(n_slots, 2, N_BINS, n_units, dtype=exact)
        self.sums = sums

    def add(self, slot: int, seen: Seen, labels: Mapping[str, Int[Tensor, " token"]]) -> None:
        """Take some tokens into a slot.

        Args:
            seen: what the units did.
            labels: by target, the class of each token, -1 where it has none.
        """
        active = seen.active.to(seen.values.dtype)
        squares = seen.values.square()
        for name, n in self.classes.items():
            label = labels[name]
            rows = label.where(label >= 0, n)
            self.sums[f"labelled/{name}"][slot] += rows.bincount(minlength=n + 1)
            self.sums[f"active/{name}"][slot].index_add_(0, rows, active)
            self.sums[f"values/{name}"][slot].index_add_(0, rows, seen.values)
            self.sums[f"squares/{name}"][slot] += (label >= 0).to(squares.dtype) @ squares
            if name == self.context:
                self.sums["strength"][slot].index_add_(0, rows, seen.strength)
        if self.whole:
            self._add_whole(slot, seen, active)

    def _add_whole(self, slot: int, seen: Seen, active: Float[Tensor, "token unit"]) -> None:
        sums, strength = self.sums, seen.strength
        sums["n"][slot] += len(active)
        sums["n_active"][slot] += active.sum(0)
        sums["negative"][slot] += seen.negative.sum(0)
        sums["magnitude"][slot] += seen.magnitude.sum(0)
        power = strength.to(sums["powers"].dtype)
        square = power.square()
        for i, raised in enumerate((power, square, square * power, square.square())):
            sums["powers"][slot, i] += raised.sum(0)
        width = (HIGHEST - LOWEST) / (N_BINS - 2)
        bins = ((strength.log2() - LOWEST) / width + 1).clamp(0, N_BINS - 1).long()  # log2(0) is -inf, the first bin
        place = bins * strength.shape[1] + torch.arange(strength.shape[1], device=bins.device)
        counts, totals = sums["bins"][slot]
        counts += place.flatten().bincount(minlength=counts.numel()).view_as(counts)
        totals += place.flatten().bincount(power.flatten(), minlength=counts.numel()).view_as(counts)

    @property
    def total(self) -> dict[str, Tensor]:
        """Sums over all slots."""
        return {name: value.sum(0) for name, value in self.sums.items()}

    def slots(self) -> Iterator[dict[str, Tensor]]:
        """The sums of each slot."""
        return ({name: value[slot] for name, value in self.sums.items()} for slot in range(self.n_slots))


def without(total: Sums, part: Sums) -> dict[str, Tensor]:
    """The sums of all but a part."""
    return {name: total[name] - part[name] for name in total}


def table_bytes(n_slots: int, n_units: int, classes: Mapping[str, int], itemsize: int) -> int:
    """About what the label sums of so many slots take."""
    return n_slots * n_units * itemsize * sum(2 * (n + 2) for n in classes.values())
