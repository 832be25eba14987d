"""What an explainer may see: the activations of the stories to explain from, and nothing of the others."""

import dataclasses
import hashlib
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.explain.explanation import Explanation
from analyses.explain.records import Records, records
from analyses.explain.rendering import rule_text
from analyses.explain.rule import description_bits
from analyses.explain.splits import Source
from analyses.explain.vocabulary import Vocabulary
from analyses.texts import Stories


@dataclasses.dataclass(frozen=True)
class Material:
    """The stories that explanations are made from.

    Args:
        source: batches of these stories alone (`analyses.explain.splits.restricted` cuts others off).
        stories: whose rows the batches name.
        rows: of the stories to explain from.
        vocabulary: texts of the tokens.
        threshold: what is greater is active; 0 suits rectified units and masks, GELU neurons too.
        n_examples: of each list of a record.
        seed: of the examples.
    """

    source: Source
    stories: Stories
    rows: Int[Tensor, " story"]
    vocabulary: Vocabulary
    threshold: float | int = 0.0
    n_examples: int = 10
    seed: int = 0

    @cached_property
    def records(self) -> Records:
        """Examples of all units; two passes over the source, when first asked for."""
        return records(self.source, self.stories, n=self.n_examples, threshold=self.threshold, seed=self.seed)

    @cached_property
    def train_rows(self) -> str:
        """Sha256 of the stories to explain from, whatever their order."""
        rows = torch.sort(self.rows).values
        texts = (self.stories.tokens[row, : int(self.stories.lengths[row])].tolist() for row in rows)
        return hashlib.sha256("\n".join(" ".join(map(str, text)) for text in texts).encode("ascii")).hexdigest()

    def explanation(self, unit: int, explainer: str, rule: dict[str, Any]) -> Explanation:
        """A rule as an explanation: in English, with its length and the stories it is made from."""
        text, bits = rule_text(rule, self.vocabulary), description_bits(rule, self.vocabulary.n)
        return Explanation(unit, explainer, text, rule, bits, self.train_rows)


@runtime_checkable
class Explainer(Protocol):
    """What all explainers are: settings, a name, and one explanation a unit, in the order of the units."""

    @property
    def name(self) -> str:
        """Such as `rules:token`."""
        ...

    def explain(self, material: Material) -> list[Explanation]:
        """An explanation of every unit; of one that nothing can be said of, a constant rule."""
        ...
