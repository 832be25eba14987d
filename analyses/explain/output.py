"""`rules:output`: the tokens that a unit's output weights promote and suppress. For reading: it predicts no activation.

The direction that a unit writes, times the gain of the last norm (where one is kept apart) and the unembedding, less
the mean over the vocabulary. What the norm divides by, and what later layers do, is left out.

Source: Geva et al. 2022, arXiv 2203.14680.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from analyses.explain.explanation import Explanation
from analyses.explain.rendering import rule_text
from analyses.explain.rule import description_bits
from analyses.explain.vocabulary import Vocabulary

_NUMBERS = 2**24  # logits held at once


def output_explanations(
    directions: Float[Tensor, "unit d_model"], model: Any, vocabulary: Vocabulary, n: int = 10
) -> list[Explanation]:
    """One explanation a unit.

    Args:
        directions: that the units write into the residual stream, such as rows of `W_out`.
        model: whose unembedding reads them.
        n: tokens of each kind.

    Raises:
        ValueError: more tokens than the vocabulary has.
    """
    if not 1 <= n <= vocabulary.n:
        raise ValueError(f"n must be 1 to {vocabulary.n} tokens; got {n}")
    unembedding = model.W_U.detach()[:, : vocabulary.n]
    if (gain := getattr(getattr(model, "ln_final", None), "w", None)) is not None:
        unembedding = gain.detach()[:, None] * unembedding
    unembedding = unembedding - unembedding.mean(1, keepdim=True)
    found = []
    for part in directions.detach().to(unembedding.device).split(max(1, _NUMBERS // vocabulary.n)):
        logits = part @ unembedding
        sides = [logits.topk(n, largest=largest) for largest in (True, False)]
        for i in range(len(part)):
            promoted, suppressed = (
                [[token, value] for token, value in zip(s.indices[i].tolist(), s.values[i].tolist(), strict=True)]
                for s in sides
            )
            rule = {"kind": "output", "promoted": promoted, "suppressed": suppressed}
            text, bits = rule_text(rule, vocabulary), description_bits(rule, vocabulary.n)
            found.append(Explanation(len(found), "rules:output", text, rule, bits, ""))
    return found
