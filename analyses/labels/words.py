"""Words, sentences, quotes and names of a text by rules: what is labelled where no generator tells the truth.

Every rule looks back, and at the word and its mark, only: a word's label never depends on the words that follow.

Words: runs of letters; "n't" and "'s", "'m", "'re", "'ve", "'ll", "'d" are words of their own; numbers; every
other visible character alone.
Sentences: the next one starts after [.!?] with any closing quotes and brackets, and white space, unless a small
letter follows ('"Hi!" said Tom'), and after an end of line; not after Mr., Mrs., Ms., Dr. and St.
Speech: what stands between a double quote and the next one of the same paragraph, or between curly ones, these
excluded; a quote that is never closed speaks to the end of its paragraph.
Names: a capitalised word (one capital, then small letters) that is one of the generator's NAMES; or that stands
within a sentence, not just after an opening quote, and is no pronoun or other function word, title, day or
month; or that the story has used as a name before. A name that is also a common first word (Mark, May, Pat,
Rose) needs one of the last two.
"""

import dataclasses
import re
from collections.abc import Iterator

from sat_lens.stories import NAMES

PRONOUNS = frozenset(
    (
        "i you he she it we they me him her us them my your his its our their mine yours hers ours theirs "
        "myself yourself himself herself itself ourselves themselves"
    ).split()
)
"""Personal, possessive and reflexive ones, in small letters."""

_NO_NAMES = PRONOUNS | frozenset(
    (
        "a an the and or but so because if then when while after before that this there here to of in on at for from "
        "with by up down out as is was are were not no yes oh all one what who where why how "
        "mr mrs ms dr st sir miss monday tuesday wednesday thursday friday saturday sunday january february march "
        "april june july august september october november december"
    ).split()
)
_NAMES = frozenset(NAMES)
_COMMON_WORDS_TOO = frozenset("Mark May Pat Rose".split())
_WORD = re.compile(
    r"[^\W\d_]+?(?=n['\u2019]t\b)|n['\u2019]t\b|['\u2019](?:s|m|re|ve|ll|d)\b|[^\W\d_]+|\d+(?:[.,:]\d+)*|\S"
)
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.!?][.!?\"'\u201d\u2019)\]]*\s+(?![a-z\s])|\n\s*"
)
_SPEECH = re.compile(r'"([^"\n]*)(?:"|$|(?=\n))|\u201c([^\u201d\n]*)')
_QUOTES = "\"'\u201c\u2018"


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a text: its characters, and whether it opens a sentence or a speech."""

    text: str
    start: int
    opens: bool

    @property
    def end(self) -> int:
        """Just after its last character."""
        return self.start + len(self.text)


def words(text: str) -> Iterator[Word]:
    """The words of a text, marks included, in order."""
    starts = iter([*sentence_starts(text), len(text) + 1])
    next_start, fresh = next(starts), False
    for match in _WORD.finditer(text):
        at = match.start()
        while at >= next_start:
            next_start, fresh = next(starts), True
        is_word = match[0][0].isalnum()
        yield Word(match[0], at, is_word and (fresh or (at > 0 and text[at - 1] in _QUOTES)))
        fresh = fresh and not is_word


def sentence_starts(text: str) -> list[int]:
    """Characters at which the sentences of a text start, the first at 0."""
    return [0, *(match.end() for match in _SENTENCE_END.finditer(text))]


def speeches(text: str) -> list[tuple[int, int]]:
    """Characters between quotes: start, and end exclusive."""
    return [match.span(match.lastindex or 1) for match in _SPEECH.finditer(text)]


def names(text: str) -> list[Word]:
    """The words of a text that name someone."""
    found: list[Word] = []
    known: set[str] = set()
    for word in words(text):
        if _is_name(word, known):
            known.add(word.text)
            found.append(word)
    return found


def _is_name(word: Word, known: set[str]) -> bool:
    if not (word.text[0].isupper() and word.text[1:].islower()):
        return False
    within = not word.opens and word.text.lower() not in _NO_NAMES
    listed = word.text in _NAMES and word.text not in _COMMON_WORDS_TOO
    return word.text in known or listed or within
