"""Which pattern of tokens each unit's rule recognizes at each token: the longest one.

Of patterns of one length that fit the one that names more tokens is taken, then the one of the greater ids (any
order would do; this one does not depend on how the rule was written down). A list of patterns under this order is
the trie of Neuron2Graph, read from the firing token backwards, with its nodes for "any token" (null) and its ends.

Source: Foote et al. 2023, arXiv 2305.19911, section 3; differs: token ids in place of texts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

ANY = -1
_PAIRS = 2**22  # matches held at once: three int64 arrays of 32 MiB


class PatternMatcher:
    """The patterns of many units, matched together.

    Args:
        patterns: of each unit: [tokens, None for any one token]; the last is the token at which it fires.

    Attributes:
        unit, entry: of each pattern of each unit: whose it is, and which of its unit's patterns.
    """

    def __init__(self, patterns: Sequence[Sequence[Sequence[int | None]]]) -> None:
        self.n_units = len(patterns)
        owned = [
            (tuple(ANY if token is None else token for token in tokens), unit, entry)
            for unit, own in enumerate(patterns)
            for entry, tokens in enumerate(own)
        ]
        owned.sort(key=lambda one: (len(one[0]), sum(token != ANY for token in one[0]), one[0]))
        distinct = {tokens: None for tokens, _, _ in owned}
        self._distinct = np.full((len(distinct), max((len(t) for t in distinct), default=1)), ANY, dtype=np.int64)
        for i, tokens in enumerate(distinct):
            self._distinct[i, : len(tokens)] = tokens[::-1]
        self._length = np.array([len(tokens) for tokens in distinct], dtype=np.int64)
        number = {tokens: i for i, tokens in enumerate(distinct)}
        self._first = np.searchsorted([number[tokens] for tokens, _, _ in owned], np.arange(len(distinct) + 1))
        self.unit = np.array([unit for _, unit, _ in owned], dtype=np.int64)
        self.entry = np.array([entry for _, _, entry in owned], dtype=np.int64)

    def matches(self, tokens: Int[Tensor, "story pos"]) -> Int[Tensor, "story pos unit"]:
        """The pattern each unit recognizes at each token, as an index of `unit` and `entry`; -1: none.

        Cost: memory for the answer (int32) and the matches of as many patterns as give 4 million.
        """
        ids = tokens.cpu().numpy()
        found = np.full((ids.size, self.n_units), -1, dtype=np.int32)
        pattern, place = self._pairs(ids)
        owners = np.diff(self._first)[pattern]
        ends = owners.cumsum()
        start = 0
        while start < len(pattern):
            stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _PAIRS, "right")))
            chosen, n = pattern[start:stop], owners[start:stop]
            which = np.repeat(self._first[chosen], n) + _counted(n)
            found[np.repeat(place[start:stop], n), self.unit[which]] = which  # of repeated places the last, best, stays
            start = stop
        return torch.from_numpy(found.reshape(*ids.shape, self.n_units))

    def _pairs(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct patterns and the tokens (counted through all stories) they end at, by pattern, ascending."""
        flat, n_pos = ids.ravel(), ids.shape[1]
        order = np.argsort(flat, kind="stable")
        ordered = flat[order]
        begin, end = (np.searchsorted(ordered, self._distinct[:, 0], side) for side in ("left", "right"))
        n = end - begin
        pattern = np.repeat(np.arange(len(n)), n)
        place = order[np.repeat(begin, n) + _counted(n)]
        fits = self._length[pattern] <= place % n_pos + 1
        pattern, place = pattern[fits], place[fits]
        for back in range(1, self._distinct.shape[1]):
            wanted = self._distinct[pattern, back]
            fits = (wanted == ANY) | (flat[np.maximum(place - back, 0)] == wanted)
            pattern, place = pattern[fits], place[fits]
        return pattern, place


def entries_of(rule: dict[str, Any]) -> list[list[int | None]]:
    """The patterns of a rule of patterns."""
    return [tokens for tokens, _ in rule["entries"]]


def _counted(n: np.ndarray) -> np.ndarray:
    """0, 1, ... n_i - 1 for each i in turn."""
    return np.arange(n.sum()) - np.repeat(n.cumsum() - n, n)
