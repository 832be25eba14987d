"""Which explainer's explanation each unit keeps, and how much of the units' activity has one at all."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from analyses.explain.explanation import Explanation
from analyses.explain.records import Records
from analyses.explain.rule import says_something
from analyses.explain.score import Tally


def selected(
    candidates: Mapping[str, Sequence[Explanation]], calibrate: Mapping[str, Tally], penalty: float | int = 1e-5
) -> list[Explanation]:
    """Of each unit, the explanation of the greatest r - penalty x bits on the stories to calibrate on.

    An r that is none (a constant unit) counts as 0; of equals the first explainer's is taken.

    Args:
        candidates: explanations of all units, by explainer.
        calibrate: their tallies; the scores to report are of yet other stories.
        penalty: correlation that a bit must be worth.
    """
    if not candidates or set(candidates) != set(calibrate):
        raise ValueError(f"each of {', '.join(candidates) or 'the explainers'} needs a tally; got {list(calibrate)}")
    names = list(candidates)
    bits = torch.tensor([[e.bits for e in candidates[name]] for name in names], dtype=torch.float64)
    worth = torch.stack([calibrate[name].pearson.nan_to_num(0.0) for name in names]) - penalty * bits
    best = torch.arange(len(names))[:, None].where(worth == worth.amax(0), len(names)).amin(0)
    return [candidates[names[i]][unit] for unit, i in enumerate(best.tolist())]


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How much is explained at all.

    Args:
        n_units: all of them.
        dead: units that are never active in the stories explained from.
        silent: live units whose explanation is no more than a constant.
        by_count: share of all units that have more. 0..1.
        by_mass: share of all activation above the threshold that is these units'. 0..1; NaN without any.
    """

    n_units: int
    dead: tuple[int, ...]
    silent: tuple[int, ...]
    by_count: float
    by_mass: float


def coverage(explanations: Sequence[Explanation], found: Records) -> Coverage:
    """Count units and activation that have an explanation.

    Args:
        found: of the stories explained from.
    """
    return covered(explanations, found.n_active, found.mass)


def covered(
    explanations: Sequence[Explanation], n_active: Shaped[Tensor, " unit"], mass: Float[Tensor, " unit"]
) -> Coverage:
    """The same from counts.

    Args:
        n_active: tokens at which each unit is active, of the stories explained from.
        mass: its activation above the threshold, summed over them.
    """
    live = n_active > 0
    says = torch.tensor([says_something(e.rule) for e in explanations])
    says_of_live = live & says
    total = float(mass.sum())
    return Coverage(
        len(explanations),
        tuple((~live).nonzero()[:, 0].tolist()),
        tuple((live & ~says).nonzero()[:, 0].tolist()),
        float(says_of_live.double().mean()),
        float(mass[says_of_live].sum()) / total if total else float("nan"),
    )
