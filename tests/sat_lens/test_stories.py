"""The embedded generator: reproducible, balanced, and silent about held-out pairs of names."""

import hashlib
import re
from collections import Counter
from itertools import combinations, islice

import pytest

from sat_lens.stories import IOI_TEMPLATES, NAMES, OBJECTS, PLACES, is_held_out_pair, pronoun, stories

_WORD = re.compile(r"[A-Z][a-z]+")
_NAME = "|".join(NAMES)


def _pattern(template: str) -> re.Pattern[str]:
    """A template as a pattern; {S} is matched as any name, so that the test can judge who it is."""
    text = re.escape(template + " ")
    for slot in "ABS":
        first, *later = text.split(rf"\{{{slot}\}}")
        text = first + "".join(
            (rf"(?P<{slot}>{_NAME})" if i == 0 else rf"(?P={slot})") + x for i, x in enumerate(later)
        )
    text = text.replace(r"\{PLACE\}", rf"(?:{'|'.join(PLACES)})").replace(r"\{OBJECT\}", rf"(?:{'|'.join(OBJECTS)})")
    return re.compile(text + rf"(?P<IO>{_NAME})\b(?P<after>\W+\w*)")


_PATTERNS = [_pattern(template) for template in IOI_TEMPLATES]


def _indirect_objects(texts: list[str]) -> list[re.Match[str]]:
    """All of them; of those that end at the same place, as "Then, A and B ..." and "A and B ..." do, one."""
    found = []
    for text in texts:
        at = {match.start("IO"): match for pattern in reversed(_PATTERNS) for match in pattern.finditer(text)}
        found += at.values()
    return found


def _names_in(text: str) -> set[str]:
    return set(_WORD.findall(text)) & set(NAMES)


def test_the_same_seed_gives_the_same_text_on_every_machine():
    text = "\n\n".join(islice(stories(0), 200))
    assert text == "\n\n".join(islice(stories(0), 200))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "32133eb25fff828b49f3864e8e81e3e05498d45e10e0781e9ecddbea65e5a2e4"
    )


def test_another_seed_gives_other_stories():
    assert not set(islice(stories(0), 100)) & set(islice(stories(1), 100))


def test_there_are_a_hundred_names_each_with_a_pronoun():
    assert len(NAMES) == len(set(NAMES)) == 100
    assert pronoun("Lily") == "she" and pronoun("Tom") == "he"
    assert 40 <= sum(pronoun(name) == "she" for name in NAMES) <= 60


def test_the_words_of_the_published_prompts_are_known():
    assert set("restaurant office house hospital school garden store station".split()) <= set(PLACES)
    assert set("bone necklace basketball drink computer ring kiss snack".split()) <= set(OBJECTS)
    assert not [word for word in OBJECTS if word[0] in "aeiou"]  # the templates say "a"


def test_about_one_pair_in_ten_is_held_out_in_either_order():
    pairs = list(combinations(NAMES, 2))
    held_out = sum(is_held_out_pair(a, b) for a, b in pairs)
    assert 0.07 < held_out / len(pairs) < 0.13
    assert all(is_held_out_pair(a, b) == is_held_out_pair(b, a) for a, b in pairs)
    assert not any(is_held_out_pair(name, name) for name in NAMES)


@pytest.mark.parametrize("drills", [0.0, 1.0])
def test_names_of_a_held_out_pair_never_meet_in_a_story(drills):
    casts = [_names_in(text) for text in islice(stories(3, drills=drills), 2000)]
    assert max(len(cast) for cast in casts) >= 3
    assert not [pair for cast in casts for pair in combinations(cast, 2) if is_held_out_pair(*pair)]


def test_no_name_is_rare_though_names_with_few_held_out_partners_fit_more_casts():
    counts = Counter(name for text in islice(stories(4), 3000) for name in _names_in(text))
    mean = sum(counts.values()) / 100
    assert all(0.5 * mean < counts[name] < 1.8 * mean for name in NAMES)


def test_the_answer_is_always_the_one_who_does_not_act():
    found = _indirect_objects(list(islice(stories(5), 500)))
    assert len(found) > 1000
    assert all({match["S"], match["IO"]} == {match["A"], match["B"]} for match in found)


def test_name_order_and_actor_are_fair_coins():
    found = _indirect_objects(list(islice(stories(6), 4000)))
    first_acts = sum(match["S"] == match["A"] for match in found) / len(found)
    alphabetical = sum(match["A"] < match["B"] for match in found) / len(found)
    # Some 15,000 coins: a standard deviation of 0.004.
    assert abs(first_acts - 0.5) < 0.016 and abs(alphabetical - 0.5) < 0.016


def test_each_template_occurs_and_no_continuation_gives_the_answer_away():
    found = _indirect_objects(list(islice(stories(7), 1000)))
    assert len({match.re.pattern for match in found}) == len(IOI_TEMPLATES)
    _, most = Counter(match["after"] for match in found).most_common(1)[0]
    assert most / len(found) < 0.3


def test_drills_are_chains_of_four_to_ten_indirect_objects():
    for text in islice(stories(8, drills=1.0), 100):
        assert 4 <= len(_indirect_objects([text])) <= 10


def test_without_drills_and_ioi_no_story_past_its_first_sentence_asks_for_an_indirect_object():
    texts = list(islice(stories(9, ioi=0.0, drills=0.0), 500))
    counts = Counter(len(_indirect_objects([text])) for text in texts)
    assert set(counts) == {0, 1}  # three tales in ten open with one


@pytest.mark.parametrize("shares", [{"ioi": -0.1}, {"drills": 1.5}, {"ioi": float("nan")}])
def test_a_share_outside_0_and_1_is_refused(shares):
    with pytest.raises(ValueError, match="share between 0 and 1"):
        stories(0, **shares)


def test_stories_are_clean_paragraphs():
    for text in islice(stories(10), 500):
        assert text.isascii() and "\n\n" not in text and text == text.strip()
        assert not re.search(r"[{}]|  ", text) and text[-1] in '.!"?'
