"""Rules for words: sentences, quotes, names, parts of speech, against hand-labelled text and the generator's slots."""

from collections import Counter
from itertools import islice

import pytest

from analyses.labels.part_of_speech import PARTS, parts_of_speech
from analyses.labels.roles import spans_by_rules
from analyses.labels.words import names, sentence_starts, speeches, words
from sat_lens.story_truth import labelled_stories

_OF_SLOT = {
    "adj": "adjective", "color": "adjective", "weather": "adjective", "feeling": "adjective", "feeling2": "adjective",
    "animal": "noun", "thing": "noun", "food": "noun", "x_child": "noun",
}  # fmt: skip
_OF_ROLE = {"name": "name", "object": "noun", "place": "noun", "pronoun": "pronoun"}

HAND_TAGGED = (
    "The/determiner old/adjective man/noun lived/verb near/preposition the/determiner sea/noun with/preposition "
    "his/pronoun cat/noun ,/punctuation Whiskers/name ./punctuation",
    "Timmy/noun did/auxiliary n't/particle want/verb to/particle share/verb his/pronoun new/adjective truck/noun "
    "because/conjunction he/pronoun loved/verb it/pronoun very/adverb much/adverb ./punctuation",
    "``/punctuation Where/adverb are/auxiliary you/pronoun going/verb ?/punctuation ``/punctuation asked/verb "
    "the/determiner little/adjective bird/noun ./punctuation",
    "One/number morning/noun ,/punctuation a/determiner tiny/adjective mouse/noun found/verb a/determiner "
    "delicious/adjective piece/noun of/preposition cheese/noun under/preposition the/determiner table/noun "
    "./punctuation",
    "After/preposition lunch/noun ,/punctuation they/pronoun all/determiner walked/verb slowly/adverb to/preposition "
    "the/determiner river/noun and/conjunction threw/verb three/number stones/noun into/preposition it/pronoun "
    "./punctuation",
    "Her/pronoun mother/noun was/auxiliary worried/adjective ,/punctuation so/adverb she/pronoun called/verb "
    "Dr/noun ./punctuation Brown/name ./punctuation",
)
"""By hand; `` stands for a double quote. The rules get some of it wrong: Timmy opens a story, "very much"."""


def test_words_keep_contractions_numbers_and_marks_apart():
    assert [word.text for word in words("Tom's dog didn't eat 2.5 cakes... can\u2019t!")] == [
        "Tom", "'s", "dog", "did", "n't", "eat", "2.5", "cakes", ".", ".", ".", "ca", "n\u2019t", "!",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Tom ran. Lily sat! Why?", ["Tom ran. ", "Lily sat! ", "Why?"]),
        ('"Hi!" said Tom. "Bye."', ['"Hi!" said Tom. ', '"Bye."']),
        ('He said, "Go." Lily went.', ['He said, "Go." ', "Lily went."]),
        ("Mr. Fox had 2.5 pies.\nthe end", ["Mr. Fox had 2.5 pies.\n", "the end"]),
        ("No end here\n\nNext", ["No end here\n\n", "Next"]),
        ("Well... maybe. Wow!!  Yes", ["Well... maybe. ", "Wow!!  ", "Yes"]),
        ("", [""]),
    ],
)
def test_sentences_are_cut_where_a_reader_would(text, sentences):
    starts = [*sentence_starts(text), len(text)]
    assert [text[a:b] for a, b in zip(starts, starts[1:], strict=False)] == sentences


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"Hi," said Tom. "Bye."', ["Hi,", "Bye."]),
        ("\u201cHi,\u201d said Tom.", ["Hi,"]),
        ('Tom said, "I will\nLily ran. "Stop!"', ["I will", "Stop!"]),
        ("Tom said no.", []),
    ],
)
def test_speech_is_what_stands_between_quotes_of_a_paragraph(text, said):
    assert [text[a:b] for a, b in speeches(text)] == said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Tom saw a girl named Zara. Zara laughed.", ["Tom", "Zara", "Zara"]),
        ("Zara met Timmy.", ["Timmy"]),  # a first word that no list has may be any word
        ('Lily said, "Look at Spot!" Then Spot ran.', ["Lily", "Spot", "Spot"]),
        ("May I go on Monday? asked May. May went.", ["May", "May"]),
        ("I saw Mr. Bear. STOP! He and I ran.", ["Bear"]),
        ("It was his Mom, and she said I'm Sam.", ["Mom", "Sam"]),
    ],
)
def test_names_by_list_and_by_capitals_within_a_sentence(text, named):
    assert [word.text for word in names(text)] == named


def test_roles_by_rules():
    text = 'Zed took two balls to the park. He said, "I like toys, Lily!"'
    assert sorted((text[a:b], role) for a, b, role in spans_by_rules(text)) == [
        ("He", "pronoun"), ("I", "pronoun"), ("I like toys, Lily!", "speech"), ("Lily", "name"), ("balls", "object"),
        ("park", "place"), ("toys", "object"),
    ]  # fmt: skip


def test_hand_tagged_sentences():
    wrong = Counter()
    n_words = 0
    for sentence in HAND_TAGGED:
        pairs = [pair.rsplit("/", 1) for pair in sentence.replace("``", '"').split()]
        text = ""
        for word, _ in pairs:
            glued = word in list(".,?") or word.startswith("n't") or text.endswith(' "') or text in ("", '"')
            text += word if glued else f" {word}"
        text = text.replace('? "', '?"')
        found = [(text[a:b], part) for a, b, part in parts_of_speech(text)]
        assert [word for word, _ in found] == [word for word, _ in pairs]
        assert {part for _, part in pairs} <= set(PARTS)
        n_words += len(pairs)
        wrong.update(word for (word, got), (_, right) in zip(found, pairs, strict=True) if got != right)
    assert n_words > 80 and sum(wrong.values()) <= 3, wrong


def test_parts_of_speech_of_the_generator_s_slots():
    """The number that `analyses.labels.part_of_speech` states: 99.8 % of the words in slots; all but some names."""
    right, n_all = Counter(), Counter()
    for truth in islice(labelled_stories(5), 200):
        by_end = {end: part for _, end, part in parts_of_speech(truth.text)}
        for span in truth.spans:
            if span.role == "speech" or truth.text[span.start : span.end] == "not":
                continue
            kind = "name" if span.role == "name" else "other"
            right[kind] += by_end.get(span.end) == (_OF_ROLE.get(span.role) or _OF_SLOT[span.slot])
            n_all[kind] += 1
    assert n_all.total() == 6_371
    assert right.total() / n_all.total() > 0.998
    assert right["other"] == n_all["other"] == 2_536
