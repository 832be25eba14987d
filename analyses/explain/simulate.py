"""What rules predict: the activation of each unit at each token, from the rule and the tokens alone."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.explain.explanation import Explanation
from analyses.explain.features import answers
from analyses.explain.patterns import PatternMatcher, entries_of
from analyses.explain.rule import LEVELS
from analyses.explain.vocabulary import Vocabulary


@runtime_checkable
class Simulator(Protocol):
    """Gives the activations that explanations predict; `low` and `high` bound them."""

    low: Float[Tensor, " unit"]
    high: Float[Tensor, " unit"]

    def __call__(
        self, tokens: Int[Tensor, "story pos"], lengths: Int[Tensor, " story"]
    ) -> Float[Tensor, "story pos unit"]:
        """Activations at each token; 0 behind the end of a story."""
        ...


class RuleSimulator:
    """Simulates explanations that have a rule, all units together.

    Args:
        explanations: one a unit, in the order of the answer's units.
        vocabulary: texts of the tokens, for trees.

    Raises:
        ValueError: an explanation that says nothing of where its unit fires.
    """

    def __init__(self, explanations: Sequence[Explanation], vocabulary: Vocabulary | None = None) -> None:
        rules = []
        for e in explanations:
            if e.rule is None or e.rule["kind"] == "output":
                raise ValueError(f"only rules of patterns and trees are simulated; unit {e.unit} has {e.explainer}")
            rules.append(e.rule)
        self.n_units, self.vocabulary = len(rules), vocabulary
        listed = [i for i, rule in enumerate(rules) if rule["kind"] == "patterns"]
        grown = [i for i, rule in enumerate(rules) if rule["kind"] == "tree"]
        self._patterns = _Patterns([rules[i] for i in listed])
        self._trees = _Trees([rules[i] for i in grown])
        self._listed, self._grown = torch.tensor(listed, dtype=torch.long), torch.tensor(grown, dtype=torch.long)
        ends = torch.tensor([_ends(rule) for rule in rules]).reshape(-1, 2)
        self.low, self.high = ends[:, 0], ends[:, 1]

    def __call__(
        self, tokens: Int[Tensor, "story pos"], lengths: Int[Tensor, " story"]
    ) -> Float[Tensor, "story pos unit"]:
        """Activations at each token; 0 behind the end of a story."""
        found = torch.zeros(*tokens.shape, self.n_units)
        if len(self._listed):
            found[..., self._listed] = self._patterns.values(tokens)
        if len(self._grown):
            found[..., self._grown] = self._trees.values(tokens, self.vocabulary)
        found[torch.arange(tokens.shape[1]) >= lengths[:, None]] = 0
        return found


def simulate(
    explanations: Sequence[Explanation],
    tokens: Int[Tensor, "story pos"],
    lengths: Int[Tensor, " story"],
    vocabulary: Vocabulary | None = None,
) -> Float[Tensor, "story pos unit"]:
    """What `RuleSimulator` gives, for tokens that all fit into memory."""
    return RuleSimulator(explanations, vocabulary)(tokens, lengths)


class _Patterns:
    def __init__(self, rules: Sequence[dict[str, Any]]) -> None:
        self.matcher = PatternMatcher([entries_of(rule) for rule in rules])
        level = torch.tensor([rule["scale"] * rule["default"] / LEVELS for rule in rules])
        self.default = level.float()
        worth = [[rule["scale"] * entry[1] / LEVELS for entry in rule["entries"]] for rule in rules]
        pairs = zip(self.matcher.unit.tolist(), self.matcher.entry.tolist(), strict=True)
        self.worth = torch.tensor([*(worth[unit][entry] for unit, entry in pairs), 0.0])

    def values(self, tokens: Tensor) -> Tensor:
        match = self.matcher.matches(tokens)
        return torch.where(match >= 0, self.worth[match], self.default)  # -1 reads the last, which is none


class _Trees:
    def __init__(self, rules: Sequence[dict[str, Any]]) -> None:
        self.features: list[Any] = []
        known: dict[str, int] = {}
        rows: list[list[tuple[int, int, int, float]]] = []
        for rule in rules:
            rows.append([])
            self._add(rule["root"], rule["scale"], rows[-1], known)
        width = max((len(own) for own in rows), default=1)
        padded = [own + [(-1, 0, 0, 0.0)] * (width - len(own)) for own in rows]
        self.feature, self.then, self.other = (
            torch.tensor([[node[i] for node in own] for own in padded]) for i in range(3)
        )
        self.leaf = torch.tensor([[node[3] for node in own] for own in padded])
        self.depth = max((_depth(rule["root"]) for rule in rules), default=0)

    def _add(self, node: Any, scale: float, own: list[tuple[int, int, int, float]], known: dict[str, int]) -> int:
        place = len(own)
        if isinstance(node, int):
            own.append((-1, place, place, scale * node / LEVELS))
            return place
        if (name := repr(node["if"])) not in known:
            known[name] = len(self.features)
            self.features.append(node["if"])
        own.append((-1, 0, 0, 0.0))
        then, other = self._add(node["then"], scale, own, known), self._add(node["else"], scale, own, known)
        own[place] = (known[name], then, other, 0.0)
        return place

    def values(self, tokens: Tensor, vocabulary: Vocabulary | None) -> Tensor:
        held = answers([*self.features, ["seen"]], tokens, vocabulary).flatten(0, 1)  # never without a column
        unit = torch.arange(len(self.feature))
        node = torch.zeros(len(held), len(unit), dtype=torch.long)
        for _ in range(self.depth):
            holds = held.gather(1, self.feature[unit, node].clamp(min=0))
            node = torch.where(holds, self.then[unit, node], self.other[unit, node])
        return self.leaf[unit, node].reshape(*tokens.shape, -1)


def _depth(node: Any) -> int:
    return 0 if isinstance(node, int) else 1 + max(_depth(node["then"]), _depth(node["else"]))


def _ends(rule: dict[str, Any]) -> tuple[float, float]:
    """The least and the greatest activation that the rule can give."""
    if rule["kind"] == "patterns":
        found = [rule["default"], *(level for _, level in rule["entries"])]
    else:
        found, open_ = [], [rule["root"]]
        while open_:
            node = open_.pop()
            if isinstance(node, int):
                found.append(node)
            else:
                open_ += [node["then"], node["else"]]
    return rule["scale"] * min(found) / LEVELS, rule["scale"] * max(found) / LEVELS
