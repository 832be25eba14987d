"""One pass over stories: what the units did, and what they would have done under each null."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from analyses.labels import Labels
from analyses.specialization.activity import Activity
from analyses.specialization.modularity import measurable, together
from analyses.specialization.nulls import shuffled_order, shuffled_units
from analyses.specialization.tables import Tables, table_bytes
from analyses.texts import Stories
from analyses.unit_streams import GATED, UnitBatch, Units, unit_batches
from sat_lens.distributed import dealt, sum_over_ranks
from sat_lens.memory import require

MOST_CLASSES = 4096
"""Classes of a target that are told apart; tokens of rarer ones count as not labelled."""
CONTEXT = "current_token"
N_MODULARITY_DRAWS = 4


@dataclasses.dataclass(frozen=True)
class Target:
    """Labels whose classes all occur, numbered by frequency.

    Args:
        name: of the target.
        classes: their names.
        values: class of each token, -1 where it has none or is not kept.
        source: of the labels.
        n: labelled tokens.
    """

    name: str
    classes: tuple[str, ...]
    values: Int[Tensor, "story pos"]
    source: str
    n: int


@dataclasses.dataclass(frozen=True)
class Observation:
    """What was summed of units of one kind.

    Args:
        units: which.
        activity: when they count as active.
        observed: sums of each group of stories.
        shuffled: sums of each draw of labels dealt out anew.
        masked: sums of each draw of the masks of other tokens; None where units have no mask.
        live: stories in which each unit is active at least once.
        together: co-activation; None where layers are too narrow or too wide.
    """

    units: Units
    activity: Activity
    observed: Tables
    shuffled: Tables
    masked: Tables | None
    live: Int[Tensor, " unit"]
    together: "CoActivation | None"


class CoActivation(NamedTuple):
    """Tokens at which two units of a layer are both active: of each group of stories, and of each draw."""

    groups: Float[Tensor, "group layer unit_a unit_b"]
    draws: Float[Tensor, "draw layer unit_a unit_b"]


def target_of(labels: Labels, keep: Bool[Tensor, "story pos"]) -> Target:
    """Labels as counted: of kept tokens, the most frequent classes, of equal ones the first.

    Raises:
        ValueError: no token has a label, or labels of other stories.
    """
    if labels.values.shape != keep.shape:
        raise ValueError(
            f"labels must be of the stories, {tuple(keep.shape)}; {labels.name} has {tuple(labels.values.shape)}"
        )
    values = labels.values.cpu().masked_fill(~keep, -1)
    counts = values[values >= 0].bincount(minlength=len(labels.classes))
    chosen = counts.argsort(descending=True, stable=True)[: min(int((counts > 0).sum()), MOST_CLASSES)]
    if not len(chosen):
        raise ValueError(f"no token of these stories has a label of {labels.name}; take another target or more stories")
    number = torch.full((len(counts) + 1,), -1)
    number[chosen] = torch.arange(len(chosen))  # the last entry, which -1 reads, stays -1
    names = tuple(labels.classes[i] for i in chosen.tolist())
    return Target(labels.name, names, number[values], labels.source, int(counts[chosen].sum()))


def observation(
    model: Any,
    stories: Stories,
    units: Units,
    activity: Activity,
    targets: Sequence[Target],
    *,
    n_groups: int,
    n_draws: int,
    n_mask_draws: int,
    seed: int,
    batch: int,
    progress: bool,
) -> Observation:
    """Fill the tables; the parameters are those of `unit_selectivity`. Under torchrun ranks share the groups."""
    classes = {target.name: len(target.classes) for target in targets}
    gated = units.stream == "ablated" and units.kind in GATED
    slots = n_groups + n_draws + (n_mask_draws if gated else 0)
    require(1.2 * table_bytes(slots, units.n, classes, model.cfg.dtype.itemsize), f"sums of {units.n:,} units",
            str(model.cfg.device), "take fewer kinds, layers, targets or draws")  # fmt: skip
    context = CONTEXT if CONTEXT in classes else None

    def tables(n_slots: int, whole: bool) -> Tables:
        return Tables(n_slots, units.n, classes, context, whole=whole, like=activity.mean)

    found = Observation(
        units,
        activity,
        tables(n_groups, True),
        tables(n_draws, False),
        tables(n_mask_draws, True) if gated else None,
        torch.zeros(units.n, dtype=torch.int64, device=activity.mean.device),
        _co_activation(units, n_groups, activity.mean) if measurable(units.width) else None,
    )
    groups = [part.tolist() for part in np.array_split(np.arange(stories.n), n_groups)]
    values = {target.name: target.values for target in targets}
    with tqdm(
        total=n_groups, desc=f"{units.kind}s", unit="group", leave=False, disable=None if progress else True
    ) as bar:
        for group in dealt(range(n_groups)):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + group)
            for part in unit_batches(model, stories, units, batch, rows=groups[group], gates=gated):
                _take(found, group, part, values, generator)
            bar.update()
    for summed in _all_sums(found):
        summed.copy_(sum_over_ranks(summed))
    return found


def _co_activation(units: Units, n_groups: int, like: Tensor) -> CoActivation:
    square = (len(units.layers), units.width, units.width)
    return CoActivation(like.new_zeros(n_groups, *square), like.new_zeros(N_MODULARITY_DRAWS, *square))


def _take(
    found: Observation, group: int, part: UnitBatch, values: Mapping[str, Tensor], generator: torch.Generator
) -> None:
    """One batch into the observed sums and into those of every draw."""
    keep, activity = part.keep, found.activity
    labels = {name: value[part.rows][:, : keep.shape[1]].to(keep.device) for name, value in values.items()}
    kept = {name: value[keep] for name, value in labels.items()}
    seen = activity.seen(part.values[keep])
    found.observed.add(group, seen, kept)
    active = torch.zeros(part.values.shape, dtype=torch.bool, device=keep.device)
    active[keep] = seen.active
    found.live.add_(active.any(1).sum(0))
    for draw in range(found.shuffled.n_slots):
        order = shuffled_order(keep, generator)
        found.shuffled.add(draw, seen, {name: value.gather(1, order)[keep] for name, value in labels.items()})
    if found.masked is not None and part.ungated is not None and part.masks is not None:
        for draw in range(found.masked.n_slots):
            order = shuffled_order(keep, generator)
            other = part.masks.gather(1, order[:, :, None].expand_as(part.masks))
            found.masked.add(draw, activity.seen((part.ungated * other)[keep]), kept)
    if found.together is not None:
        n_layers = len(found.units.layers)
        found.together.groups[group] += together(seen.active, n_layers)
        for draws in found.together.draws:
            draws += together(shuffled_units(active, keep, generator)[keep], n_layers)


def _all_sums(found: Observation) -> Iterator[Tensor]:
    for tables in (found.observed, found.shuffled, found.masked):
        if tables is not None:
            yield from tables.sums.values()
    yield found.live
    yield from found.together or ()
