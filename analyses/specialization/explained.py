"""Units with their explanations: what each explainer says of them, and how well that predicts stories it never saw.

Stories are dealt to three splits: explanations are made from the first, an explainer and a cut are chosen on the
second, and every number that is reported is of the third.

What is explained of a unit is its strength in the sense of `activity`, less the threshold, so that it is active above
0: the value itself for a neuron of an ordinary MLP, its negative tail included.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from analyses import needs
from analyses.explain import (
    Explainer,
    Explanation,
    Material,
    Neuron2Graph,
    Ngrams,
    RuleSimulator,
    Source,
    Splits,
    Tally,
    Trees,
    UnitSubject,
    Vocabulary,
    shuffled,
    story_splits,
    tally,
)
from analyses.explain.rule import says_something
from analyses.specialization.activity import Activity, activity_of
from analyses.specialization.chosen import DEFAULT_RULES, RULES
from analyses.texts import Stories
from analyses.unit_streams import UnitBatch, Units, unit_batches, units_of

FLOORS = ("shuffled", "random")
"""Each unit is given the explanation of another one of its layer; of another one of any layer."""
HELD = 2**29
"""Bytes of values that are kept between passes; where they take more, the model is run again for each."""


@dataclasses.dataclass(frozen=True)
class Scored:
    """One explainer's explanations and what they are worth on the held-out stories.

    Args:
        explanations: one a unit that was asked for.
        own: how well each predicts its unit; tallies of some units each, in order.
        floors: by name, the same where each unit has an explanation that is not its own.
        has_floor: whether there was another unit to take one from, by name.
        cut: bin of simulated activation from which a unit is called active; see `analyses.explain.score`.
        calibrate: the tally of the split to choose on; None where none was made.
        missing: why units have no explanation, by place; of explainers that may fail.
    """

    explanations: Sequence[Explanation]
    own: Sequence[Tally]
    floors: Mapping[str, Sequence[Tally]]
    has_floor: Mapping[str, Tensor]
    cut: Int[Tensor, " unit"]
    calibrate: Tally | None = None
    missing: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Explained:
    """Units of one kind, and what each explainer says of them.

    Args:
        units: all of the kind.
        chosen: places of those that were explained.
        activity: when they are active.
        parts: the splits.
        material: what explanations were made from.
        scored: by explainer.
    """

    units: Units
    chosen: Int[Tensor, " unit"]
    activity: Activity
    parts: Splits
    material: Material
    scored: Mapping[str, Scored]


@dataclasses.dataclass(frozen=True)
class Sources:
    """Batches of the three splits, of the units that are explained."""

    explain: Source
    calibrate: Source
    evaluate: Source


def explained_units(
    model: Any,
    stories: Stories,
    *,
    kind: str = "neuron",
    stream: str = "clean",
    rules: Sequence[str] = DEFAULT_RULES,
    n_examples: int = 10,
    seed: int = 0,
    batch: int = 16,
    progress: bool = False,
) -> Explained:
    """Every unit explained by rules.

    Args:
        model: a HookedTransformer, or one with two streams.
        stories: at least three different ones.
        kind, stream: see `analyses.unit_streams`.
        rules: some of `token`, `ngram`, `tree`, `n2g`.
        n_examples: of each list of a record.
        seed: of the splits, the examples and the floors.
        batch: stories a forward pass.
        progress: show a bar on stderr, when that is a terminal.

    Raises:
        ValueError: an unknown rule, kind or stream, or one that the model does not have.

    Cost: 1,024 neurons and 200 stories of 100 tokens take about two minutes on one core, and 100 MB for the values;
    `n2g` runs the model on some hundred short rows a unit beside that.
    """
    needs.require(model, "specialization")
    if unknown := [name for name in rules if name not in RULES]:
        raise ValueError(f"rules must be some of {', '.join(RULES)}; got {unknown[0]!r}")
    if not rules:
        raise ValueError(f"explanations need an explainer; rules are {', '.join(RULES)}")
    units = units_of(model, kind, stream)
    parts = story_splits(stories, seed=seed)
    sources, material, activity = prepared(model, stories, units, parts, n_examples=n_examples, seed=seed, batch=batch)
    layers = units.table.layer.tolist()
    scored = {}
    for name in tqdm(dict.fromkeys(rules), desc="explainers", leave=False, disable=None if progress else True):
        explainer = explainer_of(name, model, units, activity)
        scored[explainer.name] = scored_rules(explainer.explain(material), material, sources, layers, seed)
    return Explained(units, torch.arange(units.n), activity, parts, material, scored)


def prepared(
    model: Any, stories: Stories, units: Units, parts: Splits, *, n_examples: int, seed: int, batch: int,
    chosen: Int[Tensor, " unit"] | None = None,
) -> tuple[Sources, Material, Activity]:  # fmt: skip
    """Values of the three splits, and what explainers may see.

    Args:
        chosen: places of the units that are wanted; None: all.
    """
    activity = activity_of(model, stories.subset(parts.explain), units)
    n = units.n if chosen is None else len(chosen)
    fits = int(stories.lengths.sum()) * n * model.cfg.dtype.itemsize <= HELD
    sources = Sources(*(_source(model, stories, units, activity, rows, batch, chosen, fits) for rows in parts))
    vocabulary = Vocabulary.of(model.tokenizer, model.cfg.d_vocab)
    material = Material(sources.explain, stories, parts.explain, vocabulary, n_examples=n_examples, seed=seed)
    return sources, material, activity


def explainer_of(name: str, model: Any, units: Units, activity: Activity) -> Explainer:
    """The explainer by rules of this name, with its own settings.

    Raises:
        ValueError: `n2g` for units whose values are not explained as they are.
    """
    if name != "n2g":
        return Trees() if name == "tree" else Ngrams(order=1 if name == "token" else 3)
    if activity.rule != "positive" or bool((activity.threshold != 0).any()):
        raise ValueError(
            f"n2g asks the model for the values themselves, and of {units.kind}s ({units.stream} stream) magnitudes "
            "or weights above a threshold are explained; take token, ngram or tree"
        )
    return Neuron2Graph(UnitSubject(model, units))


def scored_rules(
    explanations: Sequence[Explanation], material: Material, sources: Sources, groups: Sequence[int], seed: int
) -> Scored:
    """Rules on held-out stories, with their floors. Cost: four simulations of the stories."""

    def of(some: Sequence[Explanation], source: Source) -> Tally:
        return tally(RuleSimulator(some, material.vocabulary), source, material.stories)

    calibrate = of(explanations, sources.calibrate)
    floors, has = {}, {}
    for name, own_groups in zip(FLOORS, (groups, [0] * len(groups)), strict=True):
        dealt, has[name] = dealt_out(explanations, own_groups, seed)
        floors[name] = [of(dealt, sources.evaluate)]
    return Scored(explanations, [of(explanations, sources.evaluate)], floors, has, calibrate.best_cut, calibrate)


def dealt_out(
    explanations: Sequence[Explanation], groups: Sequence[int], seed: int = 0
) -> tuple[list[Explanation], Tensor]:
    """Units that have an explanation are given another one's of their group.

    Returns:
        The explanations, and whether there was another one: a unit without (or without a word said of it) keeps its
        own. Constants are not dealt: they would make a floor too low.
    """
    speaks = [says_something(e.rule) for e in explanations]
    size: dict[int, int] = {}
    for group, says in zip(groups, speaks, strict=True):
        size[group] = size.get(group, 0) + says
    moved = [i for i, group in enumerate(groups) if speaks[i] and size[group] > 1]
    dealt = list(explanations)
    for i, other in zip(moved, shuffled([explanations[i] for i in moved], [groups[i] for i in moved], seed) if moved
                        else [], strict=True):  # fmt: skip
        dealt[i] = dataclasses.replace(other, unit=explanations[i].unit)
    has = torch.zeros(len(dealt), dtype=torch.bool)
    has[moved] = True
    return dealt, has | ~torch.tensor(speaks, dtype=torch.bool)


def _source(
    model: Any, stories: Stories, units: Units, activity: Activity, rows: Tensor, batch: int, chosen: Tensor | None,
    hold: bool,
) -> Source:  # fmt: skip
    def read() -> Iterator[UnitBatch]:
        for part in unit_batches(model, stories, units, batch, rows=rows.tolist()):
            values = above(part.values, activity)
            yield UnitBatch(part.rows, values if chosen is None else values[..., chosen].contiguous(), part.keep)

    kept: list[UnitBatch] = []

    def held() -> Sequence[UnitBatch]:
        if not kept:
            kept.extend(read())
        return kept

    return held if hold else read


def above(values: Float[Tensor, "*token unit"], activity: Activity) -> Float[Tensor, "*token unit"]:
    """Values, or their magnitudes where these are what counts, less the threshold."""
    values = values if activity.rule == "positive" else values.abs()
    return values - activity.threshold
