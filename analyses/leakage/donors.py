"""Whose mask is put in place of a position's own: rows of another story that match it in something.

    any                nothing need match
    pos                the same position in the story
    token              the same current token
    token_pos          both
    token_prediction   the same current token and the same prediction of the clean stream

A donor's own story is always another one, since positions of one story share its names and things.
"""

import numpy as np
from jaxtyping import Int

from analyses.leakage.observed import Observed

MATCHES: tuple[str, ...] = ("any", "pos", "token", "token_pos", "token_prediction")
NO_DONOR = -1


def donors(observed: Observed, match: str, seed: int) -> Int[np.ndarray, " position"]:
    """One donor a position, each of those that match equally likely; `NO_DONOR` where none does.

    Raises:
        ValueError: a `match` that is none of `MATCHES`.
    """
    keys = match_keys(observed, match)
    order = np.lexsort((observed.story, keys))
    key, story = keys[order], observed.story[order]
    new_key = np.r_[True, key[1:] != key[:-1]]
    first, end = _runs(new_key)
    own_first, own_end = _runs(new_key | np.r_[True, story[1:] != story[:-1]])
    others = (end - first) - (own_end - own_first)
    drawn = first + (np.random.default_rng(seed).random(len(order)) * others).astype(int)
    drawn += (drawn >= own_first) * (own_end - own_first)
    found = np.full(len(order), NO_DONOR)
    found[order] = np.where(others > 0, order[np.minimum(drawn, len(order) - 1)], NO_DONOR)
    return found


def match_keys(observed: Observed, match: str) -> Int[np.ndarray, " position"]:
    """Equal where two positions match."""
    if match not in MATCHES:
        raise ValueError(f"donors match in one of {', '.join(MATCHES)}; got {match!r}")
    token = observed.token.astype(np.int64)
    return {
        "any": lambda: np.zeros_like(token),
        "pos": lambda: observed.pos.astype(np.int64),
        "token": lambda: token,
        "token_pos": lambda: token * (int(observed.pos.max()) + 1) + observed.pos,
        "token_prediction": lambda: token * observed.d_vocab + observed.prediction,
    }[match]()


def or_own(found: Int[np.ndarray, " position"]) -> Int[np.ndarray, " position"]:
    """The donors, and a position's own row where it has none."""
    return np.where(found == NO_DONOR, np.arange(len(found)), found)


def _runs(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row and end of the run that each row is in, from where runs start."""
    first = np.flatnonzero(starts)
    run = np.cumsum(starts) - 1
    return first[run], np.r_[first[1:], len(starts)][run]
