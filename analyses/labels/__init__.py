"""Labels of tokens: the targets that questions share, from known truth or from documented rules.

labels("role", stories, model.tokenizer)  ->  Labels(name, classes, values[story pos], source)
"""

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analyses.labels.labelled import labels as labels
    from analyses.labels.target import Labels as Labels

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


def known_target(name: str) -> str:
    """The name, if it is one of `TARGETS`; nothing heavy is imported to know.

    Raises:
        ValueError: it is not.
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=3, cutoff=0.4) or TARGETS
        raise ValueError(f"no target {name!r}; nearest: {', '.join(near)}")
    return name


def __getattr__(name: str) -> Any:
    homes = {"labels": "labelled", "Labels": "target"}
    if name not in homes:
        raise AttributeError(f"module 'analyses.labels' has no attribute {name!r}")
    return getattr(import_module(f"analyses.labels.{homes[name]}"), name)


__all__ = ["TARGETS", "Labels", "known_target", "labels"]
