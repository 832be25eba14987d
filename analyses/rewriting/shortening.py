"""Explanations of at most so many bits: how much of an explanation does it take?

A list of patterns is cut behind the last one that fits: explainers state the one that tells most first. A tree is grown
again at rising prices of a bit until it fits. What cannot be cut down further is the constant that a rule begins with,
of 41 bits; a language model's text is not cut.

Source: the paper's closing remark that "more detailed explanations are needed" (arXiv 2501.18838); the curve is ours.
"""

from collections.abc import Callable, Sequence

from analyses.explain import Explanation, Vocabulary
from analyses.explain.rendering import rule_text
from analyses.explain.rule import description_bits, entry_bits, gamma_bits, patterns

PRICES = (4.0, 16.0, 64.0, 256.0, 1024.0)
"""Of a bit of a tree, in bits of error."""


def shortened(explanation: Explanation, most: float | int, vocabulary: Vocabulary) -> Explanation:
    """The first patterns of the list that fit.

    Raises:
        ValueError: an explanation that is no list of patterns.
    """
    rule = explanation.rule
    if rule is None or rule["kind"] != "patterns":
        raise ValueError(f"only lists of patterns are cut; latent {explanation.unit} has {explanation.explainer}")
    if explanation.bits <= most:
        return explanation
    n = vocabulary.n
    spent, kept = description_bits(patterns(rule["scale"], rule["default"], []), n) - gamma_bits(1), 0
    for tokens, _ in rule["entries"]:
        spent += entry_bits([token is not None for token in tokens], n)
        if spent + gamma_bits(kept + 2) > most:
            break
        kept += 1
    rule = patterns(rule["scale"], rule["default"], rule["entries"][:kept])
    return Explanation(
        explanation.unit, explanation.explainer, rule_text(rule, vocabulary), rule, description_bits(rule, n),
        explanation.train_rows,
    )  # fmt: skip


def fitting(
    explanations: Sequence[Explanation], most: float | int, again: Callable[[float], Sequence[Explanation]]
) -> list[Explanation]:
    """Of each latent the longest that fits, of those at rising prices; the shortest of them where none does.

    Args:
        explanations: at price 1.
        again: the explanations of all latents at another price. Called until all fit.
    """
    found = list(explanations)
    for price in PRICES:
        if all(e.bits <= most for e in found):
            break
        other = again(price)
        found = [e if e.bits <= most else shorter for e, shorter in zip(found, other, strict=True)]
    return found
