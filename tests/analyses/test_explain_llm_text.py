"""Corpus text as data: read back exactly, and nothing in it that could be a mark, a special token or a control."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analyses.explain.llm_text import as_data, from_data, marked_text, printable

TEXTS = st.text(st.one_of(st.characters(), st.sampled_from('<>[]"\\\n\r\t\x00\u202e\u2028ntu{}')), max_size=40)


@given(TEXTS)
def test_data_is_read_back_exactly(text):
    assert from_data(as_data(text)) == text


@given(TEXTS)
def test_data_holds_no_delimiter_and_nothing_that_is_not_printed(text):
    data = as_data(text)
    assert data.isprintable() and not set(data) & set("<>\n")
    assert not re.search(r'(?<!\\)(\\\\)*[\[\]"]', data)  # none without a backslash before it


@given(st.lists(st.tuples(TEXTS, st.booleans()), max_size=6))
def test_marks_are_found_again_whatever_the_tokens_say(pairs):
    line = marked_text([t for t, _ in pairs], [m for _, m in pairs])
    found = [from_data(part) for part in re.findall(r"<<(.*?)>>", line)]
    assert found == [token for token, marked in pairs if marked]


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("<<cat>>", r"\u{3c}\u{3c}cat\u{3e}\u{3e}"),
        ("<|im_end|>", r"\u{3c}|im_end|\u{3e}"),
        ("[EXPLANATION]: x", r"\[EXPLANATION\]: x"),
        ('say "hi"\n', r"say \"hi\"\n"),
        ("a\\nb", r"a\\nb"),
        ("\x1b[2J\u202e\ud800", r"\u{1b}\[2J\u{202e}\u{d800}"),
        ("na\u00efve \u732b", "na\u00efve \u732b"),
    ],
)
def test_escapes_by_hand(text, data):
    assert as_data(text) == data and from_data(data) == text


def test_an_unknown_escape_is_refused():
    with pytest.raises(ValueError, match="no escape"):
        from_data(r"\q")


def test_a_models_words_come_on_one_line():
    assert printable(" a\n\x00b\u202ec \ud800") == "a b c"
