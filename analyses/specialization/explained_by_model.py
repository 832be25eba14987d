"""Units explained, and simulated, by a language model: a sample of units, on a few of the held-out stories.

An answer that cannot be read is a missing value, and a unit is scored where it has values; where it has none, it has no
score. A unit that the model gave no explanation of is scored as a constant (r = 0). Nothing is simulated to choose a
cut by: a unit is called active where at least half of the greatest activation is predicted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses import needs
from analyses.explain import Explanation, Source, Tally, story_splits, tally
from analyses.explain.chat import ChatBackend
from analyses.explain.llm_explainer import LlmExplainer
from analyses.explain.llm_simulator import LlmSimulator
from analyses.explain.rule import constant, says_something
from analyses.explain.score import BINS
from analyses.specialization.explained import FLOORS, Explained, Scored, dealt_out, prepared
from analyses.texts import Stories
from analyses.unit_streams import UnitBatch, Units, units_of


def explained_by_model(
    model: Any,
    stories: Stories,
    backend: ChatBackend,
    *,
    kind: str = "neuron",
    stream: str = "clean",
    per_layer: int = 8,
    n_scored: int = 10,
    mode: str = "all",
    seed: int = 0,
    batch: int = 16,
    progress: bool = False,
) -> Explained:
    """Some units of each layer, drawn at random, in the language model's words.

    Args:
        model: whose units.
        stories: at least three different ones.
        backend: the language model.
        kind, stream: see `analyses.unit_streams`.
        per_layer: units of each layer.
        n_scored: held-out stories to simulate.
        mode: of the simulator.
        seed: of the splits, the units and the floors.
        batch: stories a forward pass.
        progress: show a bar on stderr, when that is a terminal.

    Raises:
        ValueError: too few units or stories, or an unknown mode.
        ChatError: the model cannot be asked, or no more may be spent.

    Cost: a request a unit, and in mode `all` three (its own explanation and two floors) for each window of 32 tokens:
        about 4,000 requests for 32 units and 10 stories of 120 tokens. What is the same is asked once where the
        backend keeps its replies.
    """
    needs.require(model, "specialization")
    if per_layer < 1 or n_scored < 2:
        raise ValueError(f"at least 1 unit a layer and 2 stories to score on; got {per_layer} and {n_scored}")
    units = units_of(model, kind, stream)
    chosen = sampled(units, per_layer, seed)
    parts = story_splits(stories, seed=seed)
    parts = parts._replace(evaluate=parts.evaluate[:n_scored])
    sources, material, activity = prepared(
        model, stories, units, parts, n_examples=10, seed=seed, batch=batch, chosen=chosen
    )
    explainer = LlmExplainer(backend, progress=progress)
    found = explainer.explained(material)
    explanations = [
        explanation or material.explanation(i, explainer.name, constant(float(material.records.mean[i])))
        for i, explanation in enumerate(found.explanations)
    ]
    seen = whole(sources.evaluate, stories, parts.evaluate)
    scale = material.records.quantiles[-1].nan_to_num(0.0).clamp(min=0)

    def of(some: Sequence[Explanation]) -> list[Tally]:
        simulator = LlmSimulator(backend, some, material.vocabulary, scale, mode=mode, progress=progress)
        said = simulator.simulate(stories.tokens[seen.rows], stories.lengths[seen.rows], seen.keep)
        silent = torch.tensor([not says_something(e.rule) for e in some])
        return [tally(_Given(said.values.where(~silent, 0.0), scale.float()), lambda: [seen], stories)]

    layers = units.table.layer.to_numpy()[chosen.numpy()].tolist()
    floors, has = {}, {}
    own = of(explanations)
    for name, groups in zip(FLOORS, (layers, [0] * len(chosen)), strict=True):
        dealt, has[name] = dealt_out(explanations, groups, seed)
        floors[name] = of(dealt)
    cut = torch.full((len(chosen),), BINS // 2)
    scored = Scored(explanations, own, floors, has, cut, missing=found.missing)
    return Explained(units, chosen, activity, parts, material, {explainer.name: scored})


def sampled(units: Units, per_layer: int, seed: int = 0) -> Int[Tensor, " unit"]:
    """Places of `per_layer` units of each layer, ascending; all of a layer that has no more."""
    draw = np.random.default_rng(seed)
    layer_of = units.table.layer.to_numpy()
    of_layers = [np.flatnonzero(layer_of == layer) for layer in units.layers]
    chosen = [draw.choice(own, min(per_layer, len(own)), replace=False) for own in of_layers]
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def whole(source: Source, stories: Stories, rows: Int[Tensor, " story"]) -> UnitBatch:
    """These stories as one batch, as wide as `stories` is."""
    parts = list(source())
    n_pos, n_units = stories.tokens.shape[1], parts[0].values.shape[-1]
    values, keep = torch.zeros(len(rows), n_pos, n_units), torch.zeros(len(rows), n_pos, dtype=torch.bool)
    place = torch.full((stories.n,), -1)
    place[rows] = torch.arange(len(rows))
    for part in parts:
        at, pos = place[part.rows], part.values.shape[1]
        values[at, :pos], keep[at, :pos] = part.values.float().cpu(), part.keep.cpu()
    return UnitBatch(rows, values, keep)


class _Given:
    """A simulator that has its answer already, of the one batch that it will be asked for; NaN: a missing value."""

    def __init__(self, values: Float[Tensor, "story pos unit"], high: Float[Tensor, " unit"]) -> None:
        self.values, self.low, self.high = values, torch.zeros_like(high), high

    def __call__(
        self, tokens: Int[Tensor, "story pos"], lengths: Int[Tensor, " story"]
    ) -> Float[Tensor, "story pos unit"]:
        return self.values[:, : tokens.shape[1]]
