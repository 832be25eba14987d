"""Explanations of some latents together with what simulates them, and the simulated activations of a split's stories.

Stories are simulated whole, and cut afterwards, so that a language model is asked the same whatever is edited. A value
that could not be had is NaN: it is left out of scores and fits, and tokens with one are not edited or measured
(`Rewriter.known`), if that is asked for; else nothing is measured. It never becomes the true one.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.explain import Explanation, RuleSimulator, Simulator, Vocabulary, shuffled
from analyses.texts import Stories
from sat_lens.memory import require

SIZE = 16
"""Stories that are simulated at once."""


@dataclasses.dataclass(frozen=True)
class Rewriter:
    """What can take the place of some latents.

    Args:
        name: of the explanations, such as `ngram` or `ngram.b256`.
        explanations: one a latent; `unit` is the latent, ascending.
        simulator: of these, in their order.
    """

    name: str
    explanations: Sequence[Explanation]
    simulator: Simulator

    @cached_property
    def latents(self) -> Int[Tensor, " latent"]:
        """Which latents are explained."""
        return torch.tensor([e.unit for e in self.explanations], dtype=torch.long)

    @property
    def explainer(self) -> str:
        """What made the explanations."""
        return self.explanations[0].explainer

    @property
    def bits(self) -> float:
        """Mean length of an explanation."""
        return sum(e.bits for e in self.explanations) / len(self.explanations)


def rule_rewriter(name: str, explanations: Sequence[Explanation], vocabulary: Vocabulary) -> Rewriter:
    """Of explanations that have a rule.

    Raises:
        ValueError: none, or one without a rule.
    """
    if not explanations:
        raise ValueError(f"{name}: there is no explanation to rewrite a latent by")
    return Rewriter(name, list(explanations), RuleSimulator(explanations, vocabulary))


def dealt_to_others(explanations: Sequence[Explanation], seed: int = 0) -> list[Explanation]:
    """The floor: each latent's explanation is another one's."""
    latents = [e.unit for e in explanations]
    pairs = zip(shuffled(explanations, seed=seed), latents, strict=True)
    return [dataclasses.replace(e, unit=latent) for e, latent in pairs]


class Simulations:
    """Simulated activations of some stories, made once.

    Args:
        rewriter: of whose latents.
        stories: of which rows are asked.
        rows: which.

    Raises:
        ValueError: too little memory; 4 bytes a token and latent are held.
    """

    def __init__(self, rewriter: Rewriter, stories: Stories, rows: Int[Tensor, " story"]) -> None:
        self.rows, n = rows, len(rewriter.explanations)
        width = int(stories.lengths[rows].max())
        require(4.0 * len(rows) * width * n, f"simulated activations of {n:,} latents in {len(rows):,} stories")
        self.values = torch.empty(len(rows), width, n)
        for part in torch.arange(len(rows)).split(SIZE):
            tokens, lengths = stories.tokens[rows[part], :width], stories.lengths[rows[part]]
            self.values[part] = rewriter.simulator(tokens, lengths).float()

    def known(self, keep: Bool[Tensor, "story pos"]) -> Bool[Tensor, "story pos"]:
        """Tokens that count and at which no latent's value is missing.

        Args:
            keep: of these rows.
        """
        known = keep.clone()
        known[:, : self.values.shape[1]] &= ~self.values.isnan().any(-1)
        return known

    def at(self, places: Int[Tensor, " row"], n_pos: int) -> Float[Tensor, "row pos unit"]:
        """Of some of the rows (by their place among them), as far as `n_pos` tokens; 0 behind the end of all."""
        found = torch.zeros(len(places), n_pos, self.values.shape[2])
        width = min(n_pos, self.values.shape[1])
        found[:, :width] = self.values[places, :width]
        return found
