"""The ways in which a set of parts is chosen, every one with the same signature: what it is shown, tau -> sets.

latents, one by one, greedy              of the autoencoder: the rule's, edited jointly or sequentially; re-measured
random, magnitude, swapped, shuffled     latents too, as many: drawn; matched in size; chosen with the tasks
                                         exchanged; with labels dealt at random
neurons, PCA, mean difference, units     other things than latents, by the same rule
masks, masks clean                       of a self-ablating model: units by their masks' use alone, closed in the
                                         ablated stream or in the clean one
"""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.untangling.bench import Bench, bench
from analyses.untangling.controls import dealt_labels, magnitude_matched, random_set
from analyses.untangling.importance import importance
from analyses.untangling.masks import in_clean_stream, mask_usage
from analyses.untangling.parts import (
    Directions,
    all_units,
    last_mlp,
    latents,
    mean_difference,
    neurons,
    principal_components,
)
from analyses.untangling.selection import greedy, tolerated
from sat_lens.toy.arithmetic import Problems
from sat_lens.toy.model import ToyModel, counted, states
from sat_lens.toy.runs import ToyRun

DRAWS = 5
CONTROLS = ("random", "magnitude", "swapped", "shuffled")

Choice = Callable[[Bool[Tensor, " example"], float], list[list[int]]]
"""From the examples that it may look at, and tau, to the sets that it draws (one, where it draws none)."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A way of choosing, what it chooses from, and how the set is taken out."""

    name: str
    bench: Bench
    choice: Choice
    order: str = "joint"


@dataclasses.dataclass(frozen=True)
class Direction:
    """Which examples are of the task to remove, and which of the one to keep."""

    target: Bool[Tensor, " example"]
    preserved: Bool[Tensor, " example"]

    def swapped(self) -> "Direction":
        return Direction(self.preserved, self.target)

    def means(
        self, values: Float[Tensor, "part example"], shown: Bool[Tensor, " example"]
    ) -> tuple[Float[Tensor, " part"], Float[Tensor, " part"]]:
        """Means over the shown examples of the two tasks."""
        return values[:, shown & self.target].mean(1), values[:, shown & self.preserved].mean(1)


def by_rule(values: Float[Tensor, "part example"], direction: Direction) -> Choice:
    """The source's rule on importances (or on anything that is larger for a part that a task needs)."""
    return lambda shown, tau: [tolerated(*direction.means(values, shown), tau)]


def methods(
    run: ToyRun, problems: Problems, target: str, preserved: str, *, fill: str = "zero", with_greedy: bool = True,
    with_units: bool = True, seed: int = 0, measured: dict[str, Tensor] | None = None,
) -> list[Method]:  # fmt: skip
    """Every method that the run's model has parts for.

    Args:
        problems: all examples that anything is chosen or judged on.
        fill: what takes the place of a latent.
        measured: importances by method's name, of the same run and examples; those that are missing are added. The
            other direction needs no new ones.

    Cost: `with_units`: a forward pass over the examples for each neuron and channel.
    """
    measured = {} if measured is None else measured
    found = []
    if run.sae is not None:
        found += latent_methods(run, problems, target, preserved, fill, with_greedy, seed)
    found += other_directions(run.toy, problems, target, preserved, run.config.d_mlp if with_units else 0, measured)
    if with_units:
        units = bench(run.toy, all_units(run.toy), problems)
        found.append(
            Method("units", units, by_rule(once(measured, "units", units), direction_of(units, target, preserved)))
        )
    if run.config.mask != "none":
        found += mask_methods(run, problems, target, preserved, with_units, measured)
    return found


def once(measured: dict[str, Tensor], name: str, judged: Bench) -> Float[Tensor, "part example"]:
    """Importances, measured the first time."""
    if name not in measured:
        measured[name] = importance(judged)
    return measured[name]


def direction_of(judged: Bench, target: str, preserved: str) -> Direction:
    return Direction(judged.of_task(target), judged.of_task(preserved))


def latent_methods(
    run: ToyRun, problems: Problems, target: str, preserved: str, fill: str, with_greedy: bool, seed: int
) -> list[Method]:
    """The autoencoder's latents, and their controls."""
    judged = bench(run.toy, latents(run.sae, run.toy.site), problems, fill=fill, seed=seed)
    direction, values = direction_of(judged, target, preserved), importance(judged)
    rule = by_rule(values, direction)

    def random(shown: Tensor, tau: float) -> list[list[int]]:
        alive = judged.subset(shown).magnitude() > 0
        generator = torch.Generator().manual_seed(seed)
        return [random_set(alive, len(rule(shown, tau)[0]), generator) for _ in range(DRAWS)]

    def magnitude(shown: Tensor, tau: float) -> list[list[int]]:
        return [magnitude_matched(judged.subset(shown).magnitude(), rule(shown, tau)[0])]

    def shuffled(shown: Tensor, tau: float) -> list[list[int]]:
        generator, sets = torch.Generator().manual_seed(seed), []
        for _ in range(DRAWS):
            labels = direction.target.clone()
            labels[shown] = dealt_labels(labels[shown], generator)
            sets += by_rule(values, Direction(labels, ~labels))(shown, tau)
        return sets

    def remeasured(shown: Tensor, tau: float) -> list[list[int]]:
        return [greedy(judged.subset(shown), direction.target[shown], direction.preserved[shown], tau)]

    found = {
        "latents": rule, "random": random, "magnitude": magnitude, "swapped": by_rule(values, direction.swapped()),
        "shuffled": shuffled, **({"greedy": remeasured} if with_greedy else {}),
    }  # fmt: skip
    one_by_one = Method("latents, one by one", judged, rule, "sequential")
    return [*(Method(name, judged, choice) for name, choice in found.items()), one_by_one]


def other_directions(
    toy: ToyModel, problems: Problems, target: str, preserved: str, d_mlp: int, measured: dict[str, Tensor]
) -> list[Method]:
    """Principal components and the difference of means at the last residual stream; neurons (d_mlp of them, or none).

    The components and means are those of all examples: they are a basis, nothing is chosen by them.
    """
    _, held = states(toy, problems, [toy.site])
    counts = counted(problems.answer)
    found = []
    components = bench(toy, principal_components(held[toy.site][counts], toy.site), problems)
    direction = direction_of(components, target, preserved)
    found.append(Method("PCA", components, by_rule(importance(components), direction)))
    means = [held[toy.site][counts & rows[:, None]] for rows in (direction.target, direction.preserved)]
    difference = bench(toy, mean_difference(means[0], means[1], toy.site), problems)
    found.append(Method("mean difference", difference, lambda shown, tau: [[0]]))
    if d_mlp:
        of_mlp = bench(toy, neurons(toy, d_mlp), problems)
        assert isinstance(of_mlp.parts, Directions) and of_mlp.parts.site == last_mlp(toy)
        found.append(Method("neurons", of_mlp, by_rule(once(measured, "neurons", of_mlp), direction)))
    return found


def mask_methods(
    run: ToyRun, problems: Problems, target: str, preserved: str, with_units: bool, measured: dict[str, Tensor]
) -> list[Method]:
    """Units named by the use of their masks; and, in the ablated stream, by ablation as in other models."""
    ablated = run.stream("ablated")
    units = all_units(ablated)
    gated = bench(ablated, units, problems)
    direction = direction_of(gated, target, preserved)
    by_use = by_rule(mask_usage(ablated, problems), direction)
    clean = bench(run.toy, in_clean_stream(units), problems)
    found = [Method("masks", gated, by_use), Method("masks clean", clean, by_use)]
    if with_units:
        found.append(Method("units ablated", gated, by_rule(once(measured, "units ablated", gated), direction)))
    return found
