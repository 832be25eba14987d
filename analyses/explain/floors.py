"""What scores are worth: the same scores of explanations that cannot be right.

| floor | what it rules out |
| --- | --- |
| `shuffled` | "any explanation of this layer fits any of its units": each unit gets another's, of its own group |
| `shuffled` over one group | the same for a random unit of any layer |
| `random_tokens` | "any list of this length and of these values fits" (rules of patterns) |
| `constant_explanations` | "the mean is enough" (r = 0, R2 = 0 but for the split) |
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.explain.contexts import context_sums
from analyses.explain.explanation import Explanation
from analyses.explain.material import Material
from analyses.explain.rule import constant, patterns


def shuffled(
    explanations: Sequence[Explanation], groups: Sequence[int] | None = None, seed: int = 0
) -> list[Explanation]:
    """Each unit's explanation dealt to another unit of its group, none to its own.

    Args:
        groups: of each unit, such as its layer; None: all are of one.

    Raises:
        ValueError: a group of one unit, which has no other.
    """
    label = np.zeros(len(explanations), dtype=np.int64) if groups is None else np.asarray(groups)
    if len(label) != len(explanations):
        raise ValueError(f"groups must name one of each of {len(explanations)} units; got {len(label)}")
    draw = np.random.default_rng(seed)
    giver = np.arange(len(explanations))
    for group in np.unique(label):
        units = draw.permutation(np.flatnonzero(label == group))
        if len(units) < 2:
            raise ValueError(f"explanations are dealt to other units of a group; group {group} has 1 unit")
        giver[units] = np.roll(units, 1)
    return [dataclasses.replace(explanations[i], unit=unit) for unit, i in enumerate(giver.tolist())]


def random_tokens(explanations: Sequence[Explanation], material: Material, seed: int = 0) -> list[Explanation]:
    """Rules of patterns with the same values and lengths, each token drawn from those of the stories explained from.

    Raises:
        ValueError: a rule of another kind.
    """
    pool = _tokens(material)
    draw = np.random.default_rng(seed)
    found = []
    for e in explanations:
        if e.rule is None or e.rule["kind"] != "patterns":
            raise ValueError(f"random tokens take the place of patterns' alone; unit {e.unit} has {e.explainer}")
        entries = [
            [[None if token is None else int(pool[draw.integers(len(pool))]) for token in tokens], level]
            for tokens, level in e.rule["entries"]
        ]
        rule = patterns(e.rule["scale"], e.rule["default"], entries)
        found.append(material.explanation(e.unit, "rules:random", rule))
    return found


def constant_explanations(material: Material) -> list[Explanation]:
    """The mean of every unit. Cost: one pass."""
    means = context_sums(material.source, material.stories.tokens, 1, material.vocabulary.n).mean.tolist()
    return [material.explanation(unit, "rules:constant", constant(mean)) for unit, mean in enumerate(means)]


def _tokens(material: Material) -> Int[Tensor, " token"]:
    rows = material.rows
    real = torch.arange(material.stories.tokens.shape[1]) < material.stories.lengths[rows][:, None]
    return material.stories.tokens[rows][real]
