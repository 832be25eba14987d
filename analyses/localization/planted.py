"""Models whose circuit is known, because their weights were written down: does a method find it?

    planted("induction") -> Planted(name, description, model, task, edges)

`edges` is the whole circuit, each edge with the reason for which it must be there. It is the truth for
resampled edges and the logit difference, and says of every edge of the graph:

    an edge of the circuit, cut by itself, lowers the value
    any other edge, or all of the others together, cut, change nothing on any prompt
    no smaller part of the circuit is worth as much

so there is no redundancy. Queries and keys that read only positions, or tokens that prompt and
counterfactual share, are no edges of it: cutting them changes nothing.

Beside the circuit stand heads and MLPs that do other things, strongly. They read everything and move
between prompt and counterfactual, but write where only they and the logits of other tokens read, or to
all answers alike. Where there is a norm, what they write has the same length on prompt and
counterfactual, so that a cut leaves every norm's scale as it is, and the truth exact.
"""

import dataclasses
import random
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from analyses.localization import planted_weights as weights
from analyses.localization.graph import Graph, graph_of
from analyses.localization.planted_weights import BOS, END, NAMES, OFF, ON, OTHERS
from sat_lens.tasks import Task
from sat_lens.tasks.encoding import task_from_ids

Row = list[int]
Prompt = tuple[Row, Row, tuple[int, int]]
"""Prompt, counterfactual, (answer, wrong answer)."""


@dataclasses.dataclass(frozen=True)
class Planted:
    """A model, its task and the circuit that does it.

    Args:
        description: what the circuit does.
        edges: names of the circuit's edges, and why each is needed.
    """

    name: str
    description: str
    model: Any
    task: Task
    edges: dict[str, str]

    @cached_property
    def graph(self) -> Graph:
        return graph_of(self.model.cfg)

    @cached_property
    def members(self) -> Bool[np.ndarray, "source destination"]:
        """The circuit."""
        found = np.zeros_like(self.graph.possible)
        for name in self.edges:
            found[self.graph.edge(name)] = True
        return found


def planted(name: str, *, n: int = 12, seed: int = 0) -> Planted:
    """The model of that name and n prompts of its task.

    Args:
        name: one of PLANTED.
        seed: of the prompts, and of the weights of what is beside the circuit.

    Raises:
        ValueError: an unknown name, or fewer than 1 prompt.
    """
    if name not in PLANTED:
        raise ValueError(f"a planted model is {', '.join(PLANTED)}; got {name!r}")
    if n < 1:
        raise ValueError(f"a task needs at least 1 prompt; got {n}")
    build, prompt = PLANTED[name]
    built = build(torch.Generator().manual_seed(seed))
    draw = random.Random(seed)
    clean, corrupt, answers = zip(*(prompt(draw) for _ in range(n)), strict=True)
    task = task_from_ids(f"planted_{name}", clean, corrupt, answers, {}, [])
    return Planted(name, built.description, built.model, task, built.edges)


def _copy_prompt(draw: random.Random) -> Prompt:
    others = draw.sample(OTHERS, draw.choice((2, 3)))
    name, wrong = draw.sample(NAMES, 2)
    moved = [OTHERS[OTHERS.index(token) - 1] for token in others]
    return [BOS, *others, name, END], [BOS, *moved, wrong, END], (name, wrong)


def _induction_prompt(draw: random.Random) -> Prompt:
    """The counterfactual has other tokens and its pair in another place: query and key, cut together, find no B."""
    n = draw.choice((3, 4))
    places = draw.sample(range(n), 2)
    names = draw.sample(NAMES, 4)
    rows = []
    for place, (first, second) in zip(places, (names[:2], names[2:]), strict=True):
        others = draw.sample(OTHERS, n)
        rows.append([BOS, *others[:place], first, second, *others[place:], first])
    return rows[0], rows[1], (names[1], names[3])


def _name_mover_prompt(draw: random.Random) -> Prompt:
    """Either name first; three different names in the counterfactual, so that nothing is marked there."""
    io, subject, *three = draw.sample(NAMES, 5)
    first, second = draw.choice(((io, subject), (subject, io)))
    rows = []
    for a, b, c in ((first, second, subject), three):
        x, y, z = draw.sample(OTHERS, 3)
        rows.append([BOS, a, x, b, y, c, z, END])
    return rows[0], rows[1], (io, subject)


def _linear_prompt(draw: random.Random) -> Prompt:
    name, wrong = draw.sample(NAMES, 2)
    at = draw.randrange(5)
    rows = []
    for token in (name, wrong):
        others = draw.sample(OTHERS, 4)
        rows.append([BOS, *others[:at], token, *others[at:], END])
    return rows[0], rows[1], (name, wrong)


def _gate_prompt(draw: random.Random) -> Prompt:
    name, wrong = draw.sample(NAMES, 2)
    rows = [[flag, *draw.sample(OTHERS[2:], 2)] for flag in (ON, OFF)]
    return [BOS, *rows[0], name, END], [BOS, *rows[1], wrong, END], (name, wrong)


PLANTED: dict[str, tuple[Callable[[torch.Generator], weights.Built], Callable[[random.Random], Prompt]]] = {
    "copy": (weights.copy_model, _copy_prompt),
    "induction": (weights.induction_model, _induction_prompt),
    "name_mover": (weights.name_mover_model, _name_mover_prompt),
    "linear": (weights.linear_model, _linear_prompt),
    "gate": (weights.gate_model, _gate_prompt),
}
