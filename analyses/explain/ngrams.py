"""`rules:token` and `rules:ngram`: the mean activation after each token, each two and each three tokens, backed off.

A rule lists contexts; the longest that fits predicts. `analyses.explain.context_tree` has the estimates and says
which contexts are worth their bits.
"""

import dataclasses

import torch

from analyses.explain.context_tree import backoff_means, listed_gains
from analyses.explain.contexts import ContextSums, context_sums
from analyses.explain.explanation import Explanation
from analyses.explain.material import Material
from analyses.explain.rule import entry_bits, levels, patterns, scaled, scales

_NUMBERS = 2**24  # float64 of one table of contexts x units that are held at once: 128 MiB


@dataclasses.dataclass(frozen=True)
class Ngrams:
    """The explainer.

    Args:
        order: tokens of the longest contexts: 1 gives `rules:token`, more `rules:ngram`.
        kappa: how many tokens' worth the parent's estimate counts.
        most: contexts a unit; where more pay, those that pay most at a price at which about as many do.
        price: of a bit of the list, in bits of error; more gives shorter explanations.
    """

    order: int = 3
    kappa: float | int = 1.0
    most: int = 64
    price: float | int = 1.0

    def __post_init__(self) -> None:
        if self.order < 1 or self.kappa < 0 or self.most < 1 or self.price <= 0:
            raise ValueError(f"order and most start at 1, kappa at 0, a price is above 0; got {self}")

    @property
    def name(self) -> str:
        """Of the explainer."""
        return "rules:token" if self.order == 1 else "rules:ngram"

    def explain(self, material: Material) -> list[Explanation]:
        """One explanation a unit. Cost: one pass over the source; memory: see `ContextSums`."""
        d_vocab = material.vocabulary.n
        sums = context_sums(material.source, material.stories.tokens, self.order, d_vocab)
        width = max(1, _NUMBERS // max(1, sum(map(len, sums.keys))))
        found = []
        for units in torch.arange(len(sums.mean)).split(width):
            found += self._rules(sums.of(units), d_vocab)
        return [material.explanation(unit, self.name, rule) for unit, rule in enumerate(found)]

    def _rules(self, sums: ContextSums, d_vocab: int) -> list[dict]:
        estimates = backoff_means(sums, self.kappa)
        scale = scales(torch.stack([e.abs().amax(0) for e in estimates if len(e)]).amax(0))
        estimates = [scaled(levels(e, scale), scale) for e in estimates]
        bits = [self.price * entry_bits([True] * o, d_vocab) for o in range(1, self.order + 1)]
        gain = torch.cat([sums.total_all.new_zeros(0, len(scale)), *listed_gains(sums, estimates, bits, self.most)])
        place = [(o, row) for o in range(1, self.order + 1) for row in range(len(sums.keys[o - 1]))]
        flat = torch.cat([estimates[0][:0], *estimates[1:]])
        best = gain.topk(min(self.most, len(gain)), 0)
        chosen = levels(flat.gather(0, best.indices), scale).long().T.tolist()
        default = levels(estimates[0][0], scale).long().tolist()
        rules = []
        for unit, (rows, gains) in enumerate(zip(best.indices.T.tolist(), best.values.T.tolist(), strict=True)):
            entries = [
                [sums.tokens(*place[row]), level]
                for row, level, worth in zip(rows, chosen[unit], gains, strict=True)
                if worth > 0
            ]
            rules.append(patterns(float(scale[unit]), default[unit], entries))
        return rules
