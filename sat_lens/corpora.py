"""Corpora as streams of stories: the generator, text, JSON, Parquet, Hugging Face datasets, mixtures.

A story that comes out of here is clean: UTF-8 whose mojibake is repaired, one newline between paragraphs, no
control characters, no `<|endoftext|>`, and at least one letter. What cannot be read as text is refused, never
passed on.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from sat_lens.boundaries import SEPARATOR, blocks, marked_stories, opened_stories
from sat_lens.cleaning import clean
from sat_lens.stories import stories

Boundary = Literal["auto", "endoftext", "blank-line", "file"]
MAX_LINE_BYTES = 64 * 2**20
_FIELDS = ("text", "story", "content")
_SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")


class CorpusError(ValueError):
    """A corpus that cannot be read as stories; the message is one line: what must hold, what came."""


def read_stories(corpus: str, *, split: str = "train", seed: int = 0, boundary: Boundary = "auto") -> Iterator[str]:
    """The stories of a corpus, in its order.

    Args:
        corpus: `stories` (the generator; endless), the path of a `.txt`, `.jsonl`, `.json` or `.parquet`
            file, the name `owner/name` of a Hugging Face dataset (streamed), or a mixture of those
            (`read_mixture`).
        split: of a Hugging Face dataset.
        seed: of the generator and of the order in which a mixture repeats its files.
        boundary: where a story of a `.txt` ends. `endoftext`: at `<|endoftext|>`. `blank-line`: at an empty
            line. `file`: the file is one story. `auto`: as `endoftext` where that marker occurs; else a block
            after an empty line starts a new story when it opens like one ("Once upon a time", "There was", or
            a first name that the running story has not used), see `opens_story`.

    A last story that follows the last `<|endoftext|>` and does not end like a sentence was cut; it is left
    out.

    Raises:
        FileNotFoundError: no such file. CorpusError: no such kind of corpus; and, while reading, an empty
            file, bytes that are no UTF-8 (with their position), a line over 64 MB, invalid JSON, or no story
            at all.
    """
    if is_mixture(corpus):
        return read_mixture(corpus, split=split, seed=seed, boundary=boundary)
    if corpus == "stories":
        return stories(seed)
    path = Path(corpus)
    if path.suffix.lower() in _SUFFIXES or _exists(corpus):
        return _clean_stories(_raw_stories(path, boundary), corpus)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", corpus):
        return _clean_stories(_hub_stories(corpus, split), corpus)
    raise CorpusError(
        "a corpus must be 'stories', a .txt, .jsonl, .json or .parquet file, or a Hugging Face owner/name; "
        f"got {corpus!r}"
    )


def is_mixture(corpus: str) -> bool:
    """Whether `corpus` is written as `A+B` or `A:weight+...` and is no file of that very name."""
    weighted = re.search(r":[0-9.eE-]+$", corpus) is not None
    return ("+" in corpus or weighted) and not _exists(corpus)


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # longer than any file name may be
        return False


def mixture_parts(corpus: str) -> list[tuple[str, float]]:
    """Members and weights of `A:0.5+B:0.25+C`; a member without a weight has weight 1."""
    parts = []
    for member in corpus.split("+"):
        name, colon, weight = member.rpartition(":")
        name, weight = (name, weight) if colon else (member, "1")
        try:
            value = float(weight)
        except ValueError:
            value = -1.0
        if not name or not 0.0 < value < float("inf"):
            raise CorpusError(f"a member of a mixture is written NAME or NAME:WEIGHT, weight > 0; got {member!r}")
        parts.append((name, value))
    return parts


def read_mixture(corpus: str, *, split: str = "train", seed: int = 0, boundary: Boundary = "auto") -> Iterator[str]:
    """Endless stories of several corpora, `stories:0.5+a.txt:0.25+b.json:0.25`, weighted by characters.

    The next story always comes from the member that is furthest behind its share, so that each prefix of the
    mixture has the shares asked for, to within one story. Files are held in memory; the first pass keeps
    their order, and each later one is shuffled by `seed` and the number of the pass.
    """
    parts = mixture_parts(corpus)
    members = [_endlessly(name, split, seed, boundary) for name, _ in parts]
    return _interleaved(members, [weight for _, weight in parts])


def _interleaved(members: list[Iterator[str]], weights: list[float]) -> Iterator[str]:
    n_characters = [0] * len(members)
    while True:
        member = min(range(len(members)), key=lambda i: n_characters[i] / weights[i])
        story = next(members[member])
        n_characters[member] += len(story)
        yield story


def _endlessly(corpus: str, split: str, seed: int, boundary: Boundary) -> Iterator[str]:
    first_pass = read_stories(corpus, split=split, seed=seed, boundary=boundary)
    return first_pass if corpus == "stories" else _repeated(first_pass, seed)


def _repeated(first_pass: Iterator[str], seed: int) -> Iterator[str]:
    kept = []
    for story in first_pass:
        kept.append(story)
        yield story
    n_passes = 1
    while True:
        order = list(range(len(kept)))
        random.Random(f"{seed} {n_passes}").shuffle(order)
        yield from (kept[i] for i in order)
        n_passes += 1


def is_endless(corpus: str) -> bool:
    """Whether `read_stories` of this corpus never ends: the generator and every mixture."""
    return corpus == "stories" or is_mixture(corpus)


def files_of(corpus: str) -> list[Path]:
    """The files that a corpus reads, in the order named."""
    names = [name for name, _ in mixture_parts(corpus)] if is_mixture(corpus) else [corpus]
    return [Path(name) for name in names if name != "stories" and Path(name).is_file()]


def _clean_stories(raw: Iterable[str], corpus: str) -> Iterator[str]:
    n_stories = 0
    for text in raw:
        for piece in text.split(SEPARATOR):
            story = clean(piece)
            if any(character.isalpha() for character in story):
                n_stories += 1
                yield story
    if not n_stories:
        raise CorpusError(f"a corpus must hold at least one story; found none in {corpus}")


def _raw_stories(path: Path, boundary: Boundary) -> Iterator[str]:
    if not path.exists():
        raise FileNotFoundError(f"no such corpus file: {path}")
    if not path.is_file():
        raise CorpusError(f"a corpus must be a file; {path} is {'a folder' if path.is_dir() else 'no regular file'}")
    if path.stat().st_size == 0:
        raise CorpusError(f"a corpus must hold text; {path} is empty")
    match path.suffix.lower():
        case ".txt":
            return _text_stories(path, boundary)
        case ".jsonl":
            return _json_line_stories(path)
        case ".json":
            return _json_stories(path)
        case ".parquet":
            return _parquet_stories(path)
        case other:
            raise CorpusError(f"a corpus file must end in {', '.join(_SUFFIXES)}; got {other!r} ({path})")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file without their ends, read piece by piece."""
    position = 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            if len(line) > MAX_LINE_BYTES:
                raise CorpusError(f"a line must be at most 64 MB; {path} has a longer one at byte {position}")
            try:
                text = line.decode("utf-8-sig" if position == 0 else "utf-8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"a corpus must be UTF-8; {path} has the byte 0x{line[error.start]:02x} at byte "
                    f"{position + error.start}, which is not"
                ) from None
            if (null := line.find(b"\0")) >= 0:
                raise CorpusError(f"a corpus must be text; {path} has a NUL at byte {position + null}")
            position += len(line)
            yield text.rstrip("\r\n")


def _text_stories(path: Path, boundary: Boundary) -> Iterator[str]:
    if boundary == "file":
        yield "\n".join(_lines(path))
    elif boundary == "endoftext" or (boundary == "auto" and any(SEPARATOR in line for line in _lines(path))):
        yield from marked_stories(_lines(path))
    else:
        paragraphs = blocks(_lines(path))
        yield from paragraphs if boundary == "blank-line" else opened_stories(paragraphs)


def _json_line_stories(path: Path) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            yield _field(_parsed(line, f"{path}, line {number}"), f"{path}, line {number}")


def _json_stories(path: Path) -> Iterator[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"a corpus must be UTF-8; {path} is not, at byte {error.start}") from None
    content = _parsed(text, str(path))
    if isinstance(content, dict):
        content = next((content[key] for key in ("texts", "stories", "data") if key in content), content)
    if not isinstance(content, list):
        raise CorpusError(f'a .json corpus must be a list or {{"texts": [...]}}; {path} holds neither')
    for number, record in enumerate(content):
        yield _field(record, f"{path}, item {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CorpusError(f"a corpus must be valid JSON; {where}: {reason}") from None


def _field(record: object, where: str) -> str:
    """The story of a JSON record: the record itself, or its field text, story or content."""
    if isinstance(record, dict):
        record = next((record[name] for name in _FIELDS if name in record), None)
    if not isinstance(record, str):
        raise CorpusError(f"a record must be a string or have a string field {', '.join(_FIELDS)}; {where} has none")
    return record


def _parquet_stories(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        column = next((name for name in _FIELDS if name in file.schema_arrow.names), None)
        if column is None:
            names = ", ".join(file.schema_arrow.names)
            raise CorpusError(f"a .parquet corpus must have a column {', '.join(_FIELDS)}; {path} has {names}")
        for batch in file.iter_batches(batch_size=1024, columns=[column]):
            for number, story in enumerate(batch.column(0).to_pylist()):
                yield _field(story, f"{path}, a row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"a .parquet corpus must be readable; {path}: {_one_line(error)}") from None


def _hub_stories(name: str, split: str) -> Iterator[str]:
    try:
        import datasets

        for record in datasets.load_dataset(name, split=split, streaming=True):
            yield _field(record, f"a record of {name}")
    except CorpusError:
        raise
    except Exception as error:  # the hub's client raises many kinds: offline, no such dataset, no such split
        raise CorpusError(
            f"{name} is no file here, and could not be read as a Hugging Face dataset "
            f"(split {split!r}): {_one_line(error)}"
        ) from None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
