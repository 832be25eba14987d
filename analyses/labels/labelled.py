"""The classes of tokens, target by target."""

from collections.abc import Callable, Mapping
from typing import Any

from analyses.labels import known_target, roles, tokens, world
from analyses.labels.target import Labels
from analyses.texts import Stories

_MADE_BY: Mapping[str, Callable[[Stories, Any], Labels]] = {
    "current_token": tokens.current_token,
    "previous_token": tokens.previous_token,
    "next_token": tokens.next_token,
    "token_class": tokens.token_class,
    "part_of_speech": roles.part_of_speech,
    "role": roles.role,
    "position": tokens.position,
    "n_names": roles.n_names,
    "holder": world.holder,
    "speaker": world.speaker,
    "sentence_distance": roles.sentence_distance,
}


def labels(target: str, stories: Stories, tokenizer: Any, at_least: int = 1) -> Labels:
    """The class of each token.

    Args:
        target: a key of `TARGETS`.
        stories: with their texts, but for the token targets, `token_class` and `position`.
        tokenizer: that made their tokens.
        at_least: tokens that a class must have; those of rarer classes get -1.

    Raises:
        ValueError: an unknown target, stories without what the target needs, or another tokenizer.
    """
    if at_least < 1:
        raise ValueError(f"at_least must be 1 token or more; got {at_least}")
    made = _MADE_BY[known_target(target)](stories, tokenizer)
    return made.frequent(at_least) if at_least > 1 else made
