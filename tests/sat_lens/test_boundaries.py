"""Where stories of plain text begin: by marker and by opening."""

import pytest

from sat_lens.boundaries import blocks, marked_stories, opened_stories, opens_story
from sat_lens.corpora import read_stories

_WHOLE = "Lily had a red ball. She played with it every day. " * 10


def test_a_marker_ends_a_story_on_a_line_of_its_own_or_within_one():
    lines = ["One.", "Two.", "<|endoftext|>", "Three.<|endoftext|>Four.", "<|endoftext|>"]
    assert list(marked_stories(lines)) == ["One.\nTwo.", "Three.", "Four."]


@pytest.mark.parametrize("end", ["She was glad.", 'He said "yes!"', "Why?", "The end.\u201d"])
def test_a_last_story_without_marker_is_kept_when_it_ends_like_a_sentence(end):
    assert list(marked_stories(["One.", "<|endoftext|>", end])) == ["One.", end]


@pytest.mark.parametrize("end", ["She said it was", "He had a,", "Then"])
def test_a_last_story_that_was_cut_is_left_out(end):
    assert list(marked_stories(["One.", "<|endoftext|>", end])) == ["One."]


def test_blocks_stand_between_empty_lines():
    assert list(blocks(["", "a", "b", "", "  ", "c"])) == ["a\nb", "c"]


@pytest.mark.parametrize("opening", ["Once upon a time, there was a cat.", "Once there was a dog.", "Long ago, a king"])
def test_once_upon_a_time_opens_a_story_after_anything(opening):
    assert opens_story(opening, "Short.")


@pytest.mark.parametrize("opening", ["One day, a boy went out.", "There was a fox.", "Tom and Mia are friends.",
                                     "It was a sunny day.", "Max liked to run.", "Lily liked to swim."])  # fmt: skip
def test_weak_openings_open_a_story_only_after_a_whole_one(opening):
    assert opens_story(opening, _WHOLE)
    assert not opens_story(opening, "Lily had a ball.")


@pytest.mark.parametrize("going_on", ["She was happy.", "Lily went home.", "They are friends.", '"No," said Tom.',
                                      "The next day, Lily was sad."])  # fmt: skip
def test_other_paragraphs_go_on_with_the_story(going_on):
    assert not opens_story(going_on, _WHOLE)


def test_paragraphs_are_put_together_to_stories():
    paragraphs = ["Once upon a time, a.", "Then b.", "Once upon a time, c."]
    assert list(opened_stories(paragraphs)) == ["Once upon a time, a.\nThen b.", "Once upon a time, c."]


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "n_stories"), [("train_a.txt", 2316), ("train_b.json", 3000)])
def test_openings_find_the_boundaries_that_markers_tell(real_data, name, n_stories):
    true = [story.split("\n") for story in read_stories(str(real_data / "tinystories" / name))]
    assert len(true) == n_stories
    found = [story.split("\n") for story in opened_stories(paragraph for story in true for paragraph in story)]
    assert found_share(true, found) > 0.93 and found_share(found, true) > 0.96


def found_share(wanted: list[list[str]], given: list[list[str]]) -> float:
    """Share of the ends of `wanted` stories, counted in paragraphs, that are ends in `given`."""
    ends = []
    for texts in (wanted, given):
        n_paragraphs, at = 0, set()
        for text in texts:
            n_paragraphs += len(text)
            at.add(n_paragraphs)
        ends.append(at)
    return len(ends[0] & ends[1]) / len(ends[0])
