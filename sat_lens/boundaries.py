"""Where one story of a plain text ends and the next begins: at `<|endoftext|>`, or by how stories open."""

import re
from collections.abc import Iterable, Iterator

SEPARATOR = "<|endoftext|>"
_WHOLE_STORY = 350
"""Characters; a paragraph that opens weakly, after less than this, belongs to the running story."""

_STRONG = re.compile(
    r"\W*(Once upon a|Once,? (there|in a)|Long,? long ago|A long time ago|Long ago"
    r"|There once (was|were|lived))"
)
_WEAK = re.compile(
    r"\W*(Once|One \w*( ?\w+)?,? (there|an?) |There (was|were|lived) "
    r"|It was an? \w+ (day|morning|night|evening)|In an? \w+( \w+)? (there|lived)|The sun was "
    r"|A little (boy|girl) )"
)
_INTRODUCTION = re.compile(
    r"(?:One (?:\w+ )?(?:day|morning|evening),? )?([A-Z][a-z]+)(?: and (?:his |her )?([A-Za-z]+))? "
    r"(was|were|is|are|had|has|lived|live|lives|like|liked|likes|love|loved|loves|hated|want|wanted|wants"
    r"|went)\b( an? | friends| twins| brothers| sisters| siblings| best friends| playing| to play| to )?"
)
_NO_NAMES = frozenset("He She It They We You I The This That His Her Their There Everyone Everything".split())


def marked_stories(lines: Iterable[str]) -> Iterator[str]:
    """Stories that end with the marker, on a line of its own or within one.

    What follows the last marker is a story only when it ends like a sentence; otherwise it was cut, and is
    left out. A text without any marker is one story.
    """
    running: list[str] = []
    n_ended = 0
    for line in lines:
        *ended, rest = line.split(SEPARATOR)
        for piece in ended:
            yield "\n".join([*running, piece]).strip()
            running, n_ended = [], n_ended + 1
        running.append(rest)
    last = "\n".join(running).strip()
    if last and (n_ended == 0 or re.search(r"[.!?\u2026][\"'\u201d\u2019)]*$", last)):
        yield last


def blocks(lines: Iterable[str]) -> Iterator[str]:
    """Runs of lines between empty lines."""
    running: list[str] = []
    for line in lines:
        if line.strip():
            running.append(line)
        elif running:
            yield "\n".join(running)
            running = []
    if running:
        yield "\n".join(running)


def opened_stories(paragraphs: Iterable[str]) -> Iterator[str]:
    """Paragraphs put together to stories; a paragraph that `opens_story` starts the next."""
    running: list[str] = []
    for paragraph in paragraphs:
        if running and opens_story(paragraph, "\n".join(running)):
            yield "\n".join(running)
            running = []
        running.append(paragraph)
    if running:
        yield "\n".join(running)


def opens_story(paragraph: str, running: str) -> bool:
    """Whether a paragraph starts a new story after `running`, the text of the story so far.

    It does when it opens in a way that only stories open ("Once upon a time"). After 350 characters of the
    running story it also does when it opens in a way that stories often do ("One day, a", "It was a sunny
    day"), or when it introduces characters ("Sara liked"): some that `running` has not named, or with words
    that introduce ("Tom and Lily are friends", "Ben was a", "Anna liked to").
    """
    if _STRONG.match(paragraph):
        return True
    if len(running) < _WHOLE_STORY:
        return False
    if _WEAK.match(paragraph):
        return True
    introduction = _INTRODUCTION.match(paragraph)
    if introduction is None or introduction[1] in _NO_NAMES:
        return False
    unknown = re.search(rf"\b{introduction[1]}\b", running) is None
    return unknown or (introduction[4] is not None and introduction[3] not in ("had", "has", "want", "wants", "wanted"))
