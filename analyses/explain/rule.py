"""Rules: what a simulator reads, as plain JSON values, and how many bits each takes to state.

A rule is one of

    {"kind": "patterns", "scale": s, "default": level, "entries": [[[token or null, ..., token], level], ...]}
    {"kind": "tree", "scale": s, "root": node}
        node: level, or {"if": feature, "then": node, "else": node}; features: see `analyses.explain.features`
    {"kind": "output", "promoted": [[token, logit], ...], "suppressed": [[token, logit], ...]}

A level is an integer from -127 to 127; the activation it stands for is scale x level / 127. In a pattern the
last token is the one at which the unit fires, null stands for any one token, and the first is not null.
An `output` rule is for reading: it says nothing of where the unit fires.

Code length, in bits (`description_bits`): 32 for the scale; 8 a level; log2(vocabulary) a token; a count n or a
length in Elias' gamma code, 2 floor(log2 n) + 1; one bit for each place of a pattern but its last, whether it
names a token; in a tree one bit a node, whether it is a leaf, 3 for a feature's kind, 2 for a lag, 3 for a class,
8 for a threshold. Text without a rule: 8 bits a byte of UTF-8.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from analyses.explain.vocabulary import CLASSES

LEVELS = 127
SCALE_BITS = 32.0
LEVEL_BITS = 8.0
LONGEST_PATTERN = 32
MOST_ENTRIES = 4096
DEEPEST_TREE = 12
FEATURES = ("token", "class", "position", "since_sentence", "in_quote", "seen")
"""Kinds of features of a tree."""


def levels(values: Float[Tensor, "*axes"], scale: Float[Tensor, "..."]) -> Float[Tensor, "*axes"]:
    """The nearest level of each value, -127 to 127; 0 where the scale is 0."""
    safe = torch.where(scale > 0, scale, 1.0)
    return torch.where(scale > 0, (values / safe * LEVELS).round().clamp(-LEVELS, LEVELS), 0.0)


def scales(largest: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """The largest absolute values as scales that float32 states exactly."""
    return largest.float().double()


def constant(value: float) -> dict[str, Any]:
    """The rule of a unit of which nothing but its mean is said."""
    scale = float(torch.tensor(abs(value)).float())
    return patterns(scale, LEVELS * (value > 0) - LEVELS * (value < 0), [])


def patterns(scale: float, default: int, entries: list[list[Any]]) -> dict[str, Any]:
    """A rule of patterns; `entries` are [[tokens, null for any], level]."""
    return {"kind": "patterns", "scale": scale, "default": int(default), "entries": entries}


def says_something(rule: Mapping[str, Any] | None) -> bool:
    """Whether it is more than a constant."""
    if rule is None:
        return True
    if rule["kind"] == "patterns":
        return bool(rule["entries"])
    return rule["kind"] == "output" or isinstance(rule["root"], dict)


def description_bits(rule: Mapping[str, Any], d_vocab: int) -> float:
    """Bits that state the rule, in the code above."""
    if rule["kind"] == "patterns":
        entries = sum(entry_bits([token is not None for token in tokens], d_vocab) for tokens, _ in rule["entries"])
        return SCALE_BITS + LEVEL_BITS + gamma_bits(len(rule["entries"]) + 1) + entries
    if rule["kind"] == "tree":
        return SCALE_BITS + _node_bits(rule["root"], d_vocab)
    n = len(rule["promoted"]) + len(rule["suppressed"])
    return SCALE_BITS + gamma_bits(n + 1) + n * (math.log2(d_vocab) + LEVEL_BITS)


def entry_bits(named: list[bool], d_vocab: int) -> float:
    """Bits of one entry of which these places name a token."""
    return gamma_bits(len(named)) + len(named) - 1 + sum(named) * math.log2(d_vocab) + LEVEL_BITS


def feature_bits(kind: str, d_vocab: int) -> float:
    """Bits of one feature of a tree."""
    if kind not in FEATURES:
        raise ValueError(f"a feature must be one of {', '.join(FEATURES)}; got {kind!r}")
    return 3 + {"token": 2 + math.log2(d_vocab), "class": 5.0, "position": 8.0, "since_sentence": 8.0}.get(kind, 0.0)


def text_bits(text: str) -> float:
    """Bits of an explanation without a rule."""
    return 8.0 * len(text.encode("utf-8", "surrogatepass"))


def gamma_bits(n: int) -> int:
    """Length of Elias' gamma code of n, from 1 up."""
    return 2 * (n.bit_length() - 1) + 1


def _node_bits(node: Any, d_vocab: int) -> float:
    if isinstance(node, int):
        return 1 + LEVEL_BITS
    return 1 + feature_bits(node["if"][0], d_vocab) + sum(_node_bits(node[side], d_vocab) for side in ("then", "else"))


def checked_rule(rule: Any) -> dict[str, Any]:
    """The rule, when it is one.

    Raises:
        ValueError: anything else.
    """
    kind = rule.get("kind") if isinstance(rule, dict) else None
    if kind == "patterns":
        _require(set(rule) == {"kind", "scale", "default", "entries"}, "patterns have scale, default and entries")
        _require(_is_number(rule["scale"]) and rule["scale"] >= 0, "a scale is a number from 0 up")
        _require(_is_level(rule["default"]), "a default is a level")
        entries = rule["entries"]
        _require(isinstance(entries, list) and len(entries) <= MOST_ENTRIES, f"entries: at most {MOST_ENTRIES}")
        for entry in entries:
            _require(isinstance(entry, list) and len(entry) == 2 and _is_level(entry[1]), "an entry is [tokens, level]")
            _require(_is_pattern(entry[0]), f"a pattern has 1 to {LONGEST_PATTERN} tokens, the ends not null")
    elif kind == "tree":
        _require(set(rule) == {"kind", "scale", "root"}, "a tree has scale and root")
        _require(_is_number(rule["scale"]) and rule["scale"] >= 0, "a scale is a number from 0 up")
        _check_node(rule["root"], DEEPEST_TREE)
    elif kind == "output":
        _require(set(rule) == {"kind", "promoted", "suppressed"}, "an output has promoted and suppressed")
        for side in ("promoted", "suppressed"):
            _require(isinstance(rule[side], list) and len(rule[side]) <= MOST_ENTRIES, f"{side}: [[token, logit], ...]")
            for pair in rule[side]:
                good = isinstance(pair, list) and len(pair) == 2 and _is_id(pair[0]) and _is_number(pair[1])
                _require(good, f"{side}: [[token, logit], ...]")
    else:
        _require(False, "a kind is patterns, tree or output")
    return rule


def _check_node(node: Any, depth: int) -> None:
    if isinstance(node, int):
        return _require(_is_level(node), "a leaf is a level")
    _require(isinstance(node, dict) and set(node) == {"if", "then", "else"}, "a node is a level or has if, then, else")
    _require(depth > 0, f"a tree is at most {DEEPEST_TREE} deep")
    _require(_is_feature(node["if"]), f"a feature is one of {', '.join(FEATURES)} and what belongs to it")
    _check_node(node["then"], depth - 1)
    _check_node(node["else"], depth - 1)


def _is_feature(feature: Any) -> bool:
    match feature:
        case ["token", lag, token]:
            return _is_lag(lag) and _is_id(token)
        case ["class", lag, str(name)]:
            return _is_lag(lag) and name in CLASSES
        case ["position" | "since_sentence", n]:
            return _is_id(n)
        case ["in_quote"] | ["seen"]:
            return True
    return False


def _is_pattern(tokens: Any) -> bool:
    if not isinstance(tokens, list) or not 1 <= len(tokens) <= LONGEST_PATTERN:
        return False
    return all(token is None or _is_id(token) for token in tokens) and None not in (tokens[0], tokens[-1])


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_int(value) and 0 <= value < 2**31


def _is_lag(value: Any) -> bool:
    return _is_int(value) and 0 <= value < 4


def _is_level(value: Any) -> bool:
    return _is_int(value) and abs(value) <= LEVELS


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def scaled(level: Shaped[Tensor, "*axes"], scale: Shaped[Tensor, "..."]) -> Float[Tensor, "*axes"]:
    """The activations that levels stand for."""
    return scale.double() * level.double() / LEVELS
