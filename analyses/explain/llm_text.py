r"""Corpus text inside a prompt, as data: marked tokens, and everything that could pass for a mark or a command escaped.

A backslash stands before each of `\ [ ] "`; a line break is `\n`, a tab `\t`; `<`, `>` and any character that is not
printed (controls, direction marks, lone surrogates) is `\u{HEX}`. So neither `<<` and `>>`, nor `<|im_end|>` and its
like, nor the marker of an answer can come from the corpus, whatever stands beside what. `from_data` reads it back.
"""

import re
from collections.abc import Sequence

_NAMED = {"\n": r"\n", "\t": r"\t", "\r": r"\r"} | {c: f"\\{c}" for c in '\\[]"'}
_READ = {escape[1]: c for c, escape in _NAMED.items()}
_ESCAPE = re.compile(r"\\(?:u\{([0-9a-f]{1,6})\}|(.))", re.DOTALL)


def as_data(text: str) -> str:
    """The text, escaped: printable, on one line, without delimiters."""
    return "".join(_NAMED.get(c) or (c if c.isprintable() and c not in "<>" else f"\\u{{{ord(c):x}}}") for c in text)


def from_data(data: str) -> str:
    """What `as_data` was given.

    Raises:
        ValueError: an escape that it does not make.
    """
    return _ESCAPE.sub(_character, data)


def _character(found: re.Match[str]) -> str:
    if found[1]:
        return chr(int(found[1], 16))
    if found[2] not in _READ:
        raise ValueError(f"\\{found[2]} is no escape")
    return _READ[found[2]]


def marked_text(tokens: Sequence[str], marked: Sequence[bool]) -> str:
    """The tokens one after another, the marked ones between `<<` and `>>`."""
    return "".join(f"<<{as_data(t)}>>" if m else as_data(t) for t, m in zip(tokens, marked, strict=True))


def printable(text: str) -> str:
    """What a model wrote, on one line, with nothing in it that is not printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def unmarked(text: str) -> str:
    """Without `<` and `>`: what a model wrote, before it is shown to a model."""
    return text.replace("<", "\\u{3c}").replace(">", "\\u{3e}")
