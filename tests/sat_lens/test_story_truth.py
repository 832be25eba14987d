"""What is true in a story of the generator, against hand-written plans and against the final text."""

import hashlib
import re
from itertools import islice

import pytest

from sat_lens import stories as generator
from sat_lens.stories import NAMES, OBJECTS, PLACES, pronoun, stories
from sat_lens.story_truth import ROLES, Holding, Span, labelled_stories, plan_truth

_NAME = rf"\b(?:{'|'.join(NAMES)})\b"
_OBJECT = rf"\b(?:{'|'.join(OBJECTS)})\b"
_COLOR = r"(?:red|blue|green|yellow|pink|white|black|brown|purple|shiny)"
_X_IS_TOM = {
    "X": "Tom", "Y": "Lily", "C": "Ben", "x_He": "He", "x_he": "he", "x_him": "him", "x_his": "his", "x_His": "His",
    "y_he": "she", "y_him": "her", "y_his": "her", "obj": "kite", "color": "red", "feeling": "sad", "food": "cake",
    "animal": "dog", "place": "park", "thing": "box", "adj": "big", "x_child": "boy",
}  # fmt: skip
_TOM_GIVES = {"A": "Lily", "B": "Tom", "S": "Tom", "IO": "Lily", "PLACE": "zoo", "OBJECT": "ball", "s_he": "he"} | {
    "io_he": "she", "io_him": "her", "obj": "ball", "animal": "dog"
}  # fmt: skip
ALL_TEMPLATES = [
    *generator._OPENINGS,
    *generator._MIDDLES,
    *generator._THIRD,
    *generator._ENDINGS,
    *(
        f"{start} {{IO}}{after}"
        for start in generator.IOI_TEMPLATES
        for after in (generator._AFTER_SAID if start.endswith("said to") else generator._AFTER_ANY)
    ),
]


@pytest.fixture(scope="module")
def truths():
    return list(islice(labelled_stories(3), 500))


def alone(template, words):
    """The truth of a story of one template, with what each span covers."""
    truth = plan_truth([("", template, words)])
    return truth, [(truth.text[span.start : span.end], span.role, span.character) for span in truth.spans]


@pytest.mark.parametrize(
    ("seed", "shares", "digest"),
    [
        (0, {}, "3cbc2709b4e056ce2b89c6cc"),
        (7, {"ioi": 0.0, "drills": 0.0}, "bf5ab612ea2b482c1b5eb2ac"),
        (8, {"ioi": 1.0, "drills": 0.5}, "3b85b6cb7c05d1c665158c84"),
        (9, {"drills": 1.0}, "7abda8f702022521baafb377"),
    ],
)
def test_the_texts_are_those_of_the_first_release_of_the_generator(seed, shares, digest):
    text = "\n\n".join(islice(stories(seed, **shares), 1000))
    assert hashlib.sha256(text.encode()).hexdigest()[:24] == digest


@pytest.mark.parametrize("shares", [{}, {"ioi": 1.0, "drills": 0.0}, {"drills": 1.0}])
def test_labelled_stories_are_the_same_stories(shares):
    assert [truth.text for truth in islice(labelled_stories(11, **shares), 300)] == list(
        islice(stories(11, **shares), 300)
    )


def test_a_share_outside_0_and_1_is_refused_at_once():
    with pytest.raises(ValueError, match="ioi must be a share between 0 and 1; got 2"):
        labelled_stories(0, ioi=2.0)


def test_every_span_holds_what_its_role_says(truths):
    for truth in truths:
        for span in truth.spans:
            text = truth.text[span.start : span.end]
            match span.role:
                case "name":
                    assert text in NAMES and span.character == text
                case "object":
                    assert text in OBJECTS
                case "place":
                    assert text in PLACES
                case "speech":
                    assert truth.text[span.start - 1] == truth.text[span.end] == '"' and '"' not in text
                    assert span.character in ("", *truth.names)
                case "pronoun":
                    assert text.lower() in "i you it they them their my me us he she him his her".split()
                    if text.lower() in ("he", "him", "his", "she", "her"):
                        assert (pronoun(span.character) == "she") == text.lower().endswith(("she", "her"))
                case other:
                    assert other == "other" and span.slot
    assert {span.role for truth in truths for span in truth.spans} == set(ROLES)


def test_no_name_quote_or_pronoun_of_the_text_is_missed(truths):
    for truth in truths:
        for role, pattern in (
            ("name", rf"({_NAME})"),
            ("speech", r'"([^"]*)"'),
            ("pronoun", r"\b(I|[Yy]ou|[Ii]t|[Tt]hey|them|their|my|me|us|[Ss]he|[Hh]e|him|[Hh]is|[Hh]er)\b"),
        ):
            covered = [(span.start, span.end) for span in truth.spans if span.role == role]
            assert covered == [match.span(1) for match in re.finditer(pattern, truth.text)], truth.text


def test_names_are_in_the_order_of_the_text(truths):
    for truth in truths:
        assert truth.names == tuple(dict.fromkeys(re.findall(_NAME, truth.text)))


@pytest.mark.parametrize(
    ("template", "words", "said", "who"),
    [
        ('"I am {feeling}," said {X}.', _X_IS_TOM, "I am sad,", "Tom"),
        ('{X} asked {Y}, "Where is my {obj}?"', _X_IS_TOM, "Where is my kite?", "Tom"),
        ('{Y} said, "Do not be sad, {X}. I will help you."', _X_IS_TOM, "Do not be sad, Tom. I will help you.", "Lily"),
        ('"Look, {Y}! There is a {animal} under the tree," said {X}.', _X_IS_TOM,
         "Look, Lily! There is a dog under the tree,", "Tom"),
        ('"Can I play with you?" asked {X}.', _X_IS_TOM, "Can I play with you?", "Tom"),
        ('"Yes, you can," said {Y}.', _X_IS_TOM, "Yes, you can,", "Lily"),
        ('{X} hugged {Y} and said, "You are my best friend."', _X_IS_TOM, "You are my best friend.", "Tom"),
        ('{x_His} dad said, "Be careful, {X}."', _X_IS_TOM, "Be careful, Tom.", ""),
        ('"Hello," said {C}.', _X_IS_TOM, "Hello,", "Ben"),
        ('{A} and {B} sat down. {S} said to {IO}, "I like you, {IO}."', _TOM_GIVES, "I like you, Lily.", "Tom"),
        ('{A} met {B} at the {PLACE}. {S} said to {IO} with a smile, "Hello!"', _TOM_GIVES, "Hello!", "Tom"),
        ('{A} and {B} had a {OBJECT}. {S} said sorry and gave it to {IO}. {IO} said, "Thank you, {S}!"', _TOM_GIVES,
         "Thank you, Tom!", "Lily"),
    ],
)  # fmt: skip
def test_who_says_what(template, words, said, who):
    assert template in ALL_TEMPLATES
    truth, spans = alone(template, words)
    assert [span for span in spans if span[1] == "speech"] == [(said, "speech", who)]
    for text, role, character in spans:
        if role == "pronoun" and text in ("I", "my"):
            assert character == who


def test_every_other_speech_of_an_indirect_object_is_the_giver_s_or_the_receiver_s_thanks():
    n_speeches = 0
    for template in ALL_TEMPLATES:
        if "{IO}" in template and '"' in template:
            _, spans = alone(template, _TOM_GIVES)
            (said,) = (span for span in spans if span[1] == "speech")
            assert said[2] == ("Lily" if said[0].startswith("Thank you") else "Tom"), template
            n_speeches += 1
    assert n_speeches > 40


@pytest.mark.parametrize(
    ("template", "words", "until", "event"),
    [
        ("{A} and {B} went to the {PLACE}. {S} gave a {OBJECT} to {IO} and smiled.", _TOM_GIVES, " and smiled.",
         ("ball", "Lily")),
        ("{A} sat next to {B}. {S} passed the {OBJECT} to {IO}.", _TOM_GIVES, ".", ("ball", "Lily")),
        ("{A} and {B} found a {OBJECT}. {S} handed it to {IO}!", _TOM_GIVES, "!", ("ball", "Lily")),
        ("{A} and {B} had a {OBJECT}. {S} said sorry and gave it to {IO}.", _TOM_GIVES, ".", ("ball", "Lily")),
        ("{A} and {B} played at the {PLACE}. {S} threw a {OBJECT} to {IO}.", _TOM_GIVES, ".", ("ball", "")),
        ("Later, {A} and {B} were at the {PLACE}. {S} brought a {OBJECT} to {IO}.", _TOM_GIVES, ".", ("ball", "")),
        ("There was a {x_child} named {X} who had a {color} {obj}. {x_He} liked to play with {Y}.", _X_IS_TOM,
         ". He liked to play with Lily.", ("kite", "Tom")),
        ("{Y} gave {x_him} a {color} {obj}.", _X_IS_TOM, ".", ("kite", "Tom")),
        ("{X} gave {Y} a {obj}, and {y_he} was {feeling}.", _X_IS_TOM, ", and she was sad.", ("kite", "Lily")),
        ("{C} had a {color} {obj} too.", _X_IS_TOM, " too.", ("kite", "Ben")),
        ("{Y} lost {y_his} {obj}.", _X_IS_TOM, ".", ("kite", "")),
        ("{X} looked for {x_his} {obj}, but {x_he} could not find it.", _X_IS_TOM, ", but he could not find it.",
         ("kite", "")),
        ('{X} asked {Y}, "Where is my {obj}?"', _X_IS_TOM, '"', ("kite", "")),
        ("{Y} found it under the {thing}.", _X_IS_TOM, " under the box.", ("", "")),
        ("{x_He} put it in the {thing}.", _X_IS_TOM, " in the box.", ("", "")),
        ("{X} went back to the {place} to look for it.", _X_IS_TOM, ".", ("", "")),
    ],
)  # fmt: skip
def test_who_has_what(template, words, until, event):
    assert template in ALL_TEMPLATES
    truth, _ = alone(template, words)
    assert truth.holdings == (Holding(len(truth.text) - len(until), *event),)


def test_wishes_plans_shows_hugs_and_food_change_nothing():
    idle = re.compile(r"wanted to (give|have)|decided to give|showed|told|said to|ran to|gave \{y_him\}|\{food\}")
    n_idle = 0
    for template in ALL_TEMPLATES:
        truth, _ = alone(template, _X_IS_TOM | _TOM_GIVES | {"weather": "warm", "feeling2": "sad"})
        assert len(truth.holdings) <= 1
        if idle.search(template):
            assert not truth.holdings, template
            n_idle += 1
    assert n_idle > 100


def test_the_one_who_has_the_object_is_read_off_the_final_text_too(truths):
    """Second route: regular expressions over the whole story find the same events, and no others."""
    to_receiver = (
        rf"(?:gave a|passed the) (?P<o>{_OBJECT}) to (?P<h>{_NAME})",
        rf"(?:found|had) a (?P<o>{_OBJECT})\. {_NAME} (?:handed|said sorry and gave) it to (?P<h>{_NAME})",
        rf"{_NAME} gave (?P<h>{_NAME}) a (?P<o>{_OBJECT})",
        rf"named (?P<h>{_NAME}) who had a {_COLOR} (?P<o>{_OBJECT})",
        rf"(?P<h>{_NAME}) had a {_COLOR} (?P<o>{_OBJECT})(?= too)",
    )
    n_events = 0
    for truth in truths:
        found = {
            Holding(match.end(), match["o"], match["h"])
            for pattern in to_receiver
            for match in re.finditer(pattern, truth.text)
        }
        by_pronoun = {
            (match.end(), match["o"]): (match["giver"], match["whom"])
            for match in re.finditer(
                rf"(?P<giver>{_NAME}) gave (?P<whom>him|her) a {_COLOR} (?P<o>{_OBJECT})", truth.text
            )
        }
        held = {event for event in truth.holdings if event.holder}
        rest = held - found
        assert found <= held and {(event.at, event.object) for event in rest} == set(by_pronoun)
        for event in rest:
            giver, whom = by_pronoun[event.at, event.object]
            assert event.holder != giver and (pronoun(event.holder) == "she") == (whom == "her")
        n_events += len(held)
    assert n_events > 700


def test_what_a_part_of_a_story_tells():
    truth, _ = alone('{X} asked {Y}, "Where is my {obj}?"', _X_IS_TOM)
    assert truth.text == 'Tom asked Lily, "Where is my kite?"'
    cut = truth.until(len('Tom asked Lily, "Where is my ki'))
    assert cut.spans == (
        Span(0, 3, "name", "Tom", "X"), Span(10, 14, "name", "Lily", "Y"), Span(17, 31, "speech", "Tom"),
        Span(26, 28, "pronoun", "Tom"),
    )  # fmt: skip
    assert cut.holdings == () and cut.text == truth.text
    assert truth.until(len(truth.text)) == truth and truth.until(0).spans == ()
