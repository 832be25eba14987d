"""Rules in English, for people; no simulator reads this."""

from typing import Any

from analyses.explain.rule import LEVELS, says_something
from analyses.explain.vocabulary import Vocabulary

SHOWN = 12
"""Patterns that are written out, those of the greatest activations."""
_LAGS = ("the token", "the token before", "the token 2 before", "the token 3 before")


def rule_text(rule: dict[str, Any], vocabulary: Vocabulary) -> str:
    """Of any rule."""
    if rule["kind"] == "patterns":
        return patterns_text(rule, vocabulary)
    if rule["kind"] == "tree":
        return tree_text(rule, vocabulary)
    up, down = (", ".join(vocabulary.quoted(token) for token, _ in rule[side]) for side in ("promoted", "suppressed"))
    return f"Promotes {up}; suppresses {down}."


def patterns_text(rule: dict[str, Any], vocabulary: Vocabulary) -> str:
    """Of a rule of patterns."""
    otherwise = rule["scale"] * rule["default"] / LEVELS
    if not says_something(rule):
        return f"Nothing is known of it but its mean: {otherwise:.3g} everywhere."
    ordered = sorted(rule["entries"], key=lambda entry: -abs(entry[1] - rule["default"]))
    listed = [f"{pattern_text(tokens, vocabulary)} ({rule['scale'] * level / LEVELS:.3g})" for tokens, level in ordered]
    more = f"; and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return f"Activation on {'; '.join(listed[:SHOWN])}{more}; otherwise {otherwise:.3g}."


def pattern_text(tokens: list[int | None], vocabulary: Vocabulary) -> str:
    """Such as `" Sara" after " to" *`: the firing token, then what stands before it; * is any one token."""
    before = " ".join("*" if token is None else vocabulary.quoted(token) for token in tokens[:-1])
    return f"{vocabulary.quoted(tokens[-1])} after {before}" if before else vocabulary.quoted(tokens[-1])


def tree_text(rule: dict[str, Any], vocabulary: Vocabulary) -> str:
    """Of a tree: every leaf and what leads there."""

    def branches(node: Any, conditions: list[str]) -> list[tuple[int, str]]:
        if isinstance(node, int):
            return [(node, " and ".join(conditions))]
        yes, no = feature_text(node["if"], vocabulary), feature_text(node["if"], vocabulary, holds=False)
        return branches(node["then"], [*conditions, yes]) + branches(node["else"], [*conditions, no])

    leaves = branches(rule["root"], [])
    if len(leaves) == 1:
        return f"Nothing is known of it but its mean: {rule['scale'] * leaves[0][0] / LEVELS:.3g} everywhere."
    leaves.sort(key=lambda leaf: -abs(leaf[0]))
    return (
        "Activation "
        + "; ".join(f"{rule['scale'] * level / LEVELS:.3g} where {where}" for level, where in leaves)
        + "."
    )


def feature_text(feature: list[Any], vocabulary: Vocabulary, holds: bool = True) -> str:
    """A condition, or its opposite."""
    verb = "is" if holds else "is not"
    match feature:
        case ["token", lag, token]:
            return f"{_LAGS[lag]} {verb} {vocabulary.quoted(token)}"
        case ["class", lag, name]:
            return f"{_LAGS[lag]} {verb} a {name}"
        case ["position", n]:
            return f"the position is {'below' if holds else 'at least'} {n}"
        case ["since_sentence", n]:
            return f"the sentence began {'fewer than' if holds else 'at least'} {n} tokens ago"
        case ["in_quote"]:
            return f"it {verb} inside quotation marks"
    return f"the token {'has' if holds else 'has not'} occurred in the story before"
