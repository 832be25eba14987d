"""Targets of a story's world, known for the generator's stories alone: who has the object, who speaks.

Classes: the name that the story introduces `first`, the one that it introduces `second`, `other` for any third one
and for someone without a name.
"""

from typing import Any

import numpy as np

from analyses.labels.alignment import characters
from analyses.labels.target import Labels
from analyses.texts import Stories
from sat_lens.story_truth import StoryTruth

WHO: tuple[str, ...] = ("first", "second", "other")


def holder(stories: Stories, tokenizer: Any) -> Labels:
    """Who has the object that somebody was last said to get or have.

    The label begins with the token that completes the words which say so, and holds until another is said to
    have it or something else, or until the text leaves open who has it: none from there, as before the first
    object (`sat_lens.story_truth` has the rules).
    """
    _known("holder", stories)
    rows = []
    for truth in stories.truths:
        row = np.full(len(truth.text) + 1, -1)
        in_question = ""
        for event in truth.holdings:
            if event.holder:
                in_question = event.object
                row[event.at :] = _who(truth, event.holder)
            elif event.object in ("", in_question):
                row[event.at :] = -1
        rows.append(row)
    return Labels("holder", WHO, characters(stories, tokenizer).read_up_to(rows), "generator")


def speaker(stories: Stories, tokenizer: Any) -> Labels:
    """Who says the words between quotes; none outside. The text may name the speaker only afterwards."""
    _known("speaker", stories)
    rows = []
    for truth in stories.truths:
        row = np.full(len(truth.text), -1)
        for span in truth.spans:
            if span.role == "speech":
                row[span.start : span.end] = _who(truth, span.character)
        rows.append(row)
    return Labels("speaker", WHO, characters(stories, tokenizer).labelled(rows), "generator")


def _who(truth: StoryTruth, name: str) -> int:
    return min(truth.names.index(name), 2) if name in truth.names else 2


def _known(target: str, stories: Stories) -> None:
    if len(stories.truths) != stories.n:
        raise ValueError(
            f"{target} needs the truth of the embedded generator, as analyses.texts.stories(None, ...) gives it; these "
            f"{stories.n} stories have none"
        )
