"""What a tree may ask of a token: yes-or-no questions that the tokens read so far answer.

| feature, as in JSON | holds where |
| --- | --- |
| `["token", lag, id]` | the token `lag` places back (0: the token itself) is this one |
| `["class", lag, name]` | it is of this class (`analyses.explain.vocabulary.CLASSES`) |
| `["position", n]` | the position is below n |
| `["since_sentence", n]` | fewer than n tokens stand between it and the first of its sentence |
| `["in_quote"]` | an odd number of quotation marks stand in its line up to and with it |
| `["seen"]` | the token has occurred in the story before |
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from analyses.explain.vocabulary import CLASSES, Vocabulary

LAGS = (0, 1, 2)
BELOW = {"position": (2, 4, 8, 16, 32, 64, 128, 256), "since_sentence": (1, 2, 3, 4, 6, 8, 12)}


def candidate_features(tokens: Int[Tensor, " token"], n_tokens: int = 64) -> list[list[Any]]:
    """The questions for a tree to choose from.

    Args:
        tokens: of the stories to explain from, without padding.
        n_tokens: how many of the most frequent ids are asked for, at each lag.
    """
    ids, count = tokens.unique(return_counts=True)
    frequent = ids[count.argsort(stable=True, descending=True)[:n_tokens]].sort().values.tolist()
    asked: list[list[Any]] = [["token", lag, token] for lag in LAGS for token in frequent]
    asked += [["class", lag, name] for lag in LAGS for name in CLASSES]
    asked += [[kind, n] for kind, bounds in BELOW.items() for n in bounds]
    return [*asked, ["in_quote"], ["seen"]]


def answers(
    features: Sequence[Sequence[Any]], tokens: Int[Tensor, "story pos"], vocabulary: Vocabulary | None
) -> Bool[Tensor, "story pos feature"]:
    """Whether each holds at each token.

    Args:
        vocabulary: texts of the tokens; None will do for features of ids and positions.

    Raises:
        ValueError: a feature of texts, and no vocabulary.
    """
    if vocabulary is None and any(f[0] in ("class", "since_sentence", "in_quote") for f in features):
        raise ValueError("a tree that asks for classes, sentences or quotation marks needs the vocabulary")
    known: dict[Any, Tensor] = {}
    found = torch.zeros(*tokens.shape, len(features), dtype=torch.bool)
    for i, (kind, *rest) in enumerate(features):
        if kind in ("token", "class"):
            lag, wanted = rest
            if (kind, lag) not in known:
                whole = tokens if kind == "token" else vocabulary.classes[tokens]
                known[kind, lag] = torch.full_like(whole, -1)
                known[kind, lag][:, lag:] = whole[:, : tokens.shape[1] - lag]
            found[..., i] = known[kind, lag] == (wanted if kind == "token" else CLASSES.index(wanted))
        else:
            if kind not in known:
                known[kind] = _COUNTED[kind](tokens, vocabulary)
            found[..., i] = known[kind] < rest[0] if rest else known[kind]
    return found


def since_sentence(tokens: Int[Tensor, "story pos"], vocabulary: Vocabulary) -> Int[Tensor, "story pos"]:
    """Tokens between each token and the first of its sentence, which begins after the end of another."""
    first = torch.ones_like(tokens, dtype=torch.bool)
    first[:, 1:] = vocabulary.sentence_end[tokens[:, :-1]]
    return _since(first)


def in_quote(tokens: Int[Tensor, "story pos"], vocabulary: Vocabulary) -> Bool[Tensor, "story pos"]:
    """Whether an odd number of quotation marks has been read in the line."""
    marks = vocabulary.quotes[tokens].cumsum(1)
    ended = vocabulary.newline[tokens]
    before = torch.where(ended, marks, 0).cummax(1).values  # marks up to the last end of a line, which none is across
    return (marks - before) % 2 == 1


def seen_before(tokens: Int[Tensor, "story pos"]) -> Bool[Tensor, "story pos"]:
    """Whether the token occurred earlier in its row."""
    order = tokens.argsort(stable=True, dim=1)
    ordered = tokens.gather(1, order)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return torch.zeros_like(again).scatter(1, order, again)


def _since(first: Bool[Tensor, "story pos"]) -> Int[Tensor, "story pos"]:
    place = torch.arange(first.shape[1]).expand_as(first)
    return place - place.where(first, 0).cummax(1).values


_COUNTED: dict[str, Any] = {
    "position": lambda tokens, vocabulary: torch.arange(tokens.shape[1]).expand_as(tokens),
    "since_sentence": since_sentence,
    "in_quote": in_quote,
    "seen": lambda tokens, vocabulary: seen_before(tokens),
}
