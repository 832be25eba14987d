"""Labels of tokens: the targets that questions share, from known truth or from documented rules.

labels("role", stories, model.tokenizer)  ->  Labels(name, classes, values[story pos], source)
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from analyses.labels import roles, tokens, world
from analyses.labels.target import Labels
from analyses.texts import Stories

TARGETS: Mapping[str, str] = {
    "current_token": "the token itself",
    "previous_token": "the token before",
    "next_token": "the token after",
    "token_class": "kind of token by its text: name, pronoun, function word, word, word piece, punctuation, other",
    "part_of_speech": "part of speech of the token's word, by rules",
    "role": "role in the story: name, object, place, speech, pronoun, other",
    "position": "tokens before this one, in bins",
    "n_names": "distinct names so far: 0 to 4, 5+",
    "holder": "who has the object last given: the first or second name of the story, or another (generator only)",
    "speaker": "who says the quoted words, in the same classes (generator only)",
    "sentence_distance": "tokens since the start of the sentence, in bins",
}
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
    if target not in TARGETS:
        near = difflib.get_close_matches(target, TARGETS, n=3, cutoff=0.4) or TARGETS
        raise ValueError(f"no target {target!r}; nearest: {', '.join(near)}")
    if at_least < 1:
        raise ValueError(f"at_least must be 1 token or more; got {at_least}")
    made = _MADE_BY[target](stories, tokenizer)
    return made.frequent(at_least) if at_least > 1 else made


__all__ = ["TARGETS", "Labels", "labels"]
