"""Packing: stories become a folder of token files (`sat_lens.token_files`), written whole or not at all."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sat_lens.corpora import files_of, is_endless, read_stories
from sat_lens.files import replace_folder, sha256_file, temporary_beside
from sat_lens.token_files import FILES, SCHEMA_VERSION, Evaluation, PackedTokens, PackingError

if TYPE_CHECKING:
    import transformers

__all__ = ["Evaluation", "PackedTokens", "PackingError", "pack", "packed", "tokenizer_sha256"]
_CHUNK = 64
"""Stories encoded at once."""


def pack(
    stories: Iterable[str],
    tokenizer: "transformers.PreTrainedTokenizerFast",
    folder: Path | str,
    *,
    max_tokens: int | None = None,
    corpus: str = "",
    key: str = "",
    progress: bool = False,
) -> PackedTokens:
    """Encode stories into `folder`, which is replaced, and open it.

    Args:
        stories: clean stories, none of which contains the separator.
        max_tokens: stop before the first story that would go beyond; needed for endless corpora.
        corpus: what the stories are, for the manifest.
        key: what `packed` finds the folder by.
        progress: show a bar on stderr.
    """
    folder = Path(folder)
    new = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    temporary.mkdir()
    try:
        manifest = _write_tokens(stories, tokenizer, temporary, max_tokens, progress)
        manifest |= {"corpus": corpus, "key": key}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):  # they hold the tokens, unless nothing could be packed
            for parent in new:
                parent.rmdir()
    return PackedTokens.open(folder, verify=False)


def _write_tokens(
    stories: Iterable[str],
    tokenizer: "transformers.PreTrainedTokenizerFast",
    folder: Path,
    max_tokens: int | None,
    progress: bool,
) -> dict[str, Any]:
    from tqdm import tqdm

    vocab_size = len(tokenizer)
    dtype = np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")
    starts: list[int] = []
    characters: list[int] = []
    n_tokens = 0
    encoded = _encoded(stories, tokenizer)
    bar = tqdm(desc="packing", total=max_tokens, unit=" tokens", unit_scale=True, disable=None if progress else True)
    with open(folder / "tokens.bin", "wb") as file, bar:
        for n_characters, ids in encoded:
            if max_tokens is not None and n_tokens + len(ids) > max_tokens:
                break
            if max(ids) >= vocab_size:
                raise PackingError(f"token ids must be below the vocabulary of {vocab_size}; got {max(ids)}")
            file.write(np.asarray(ids, dtype=dtype).tobytes())
            starts.append(n_tokens)
            characters.append(n_characters)
            n_tokens += len(ids)
            bar.update(len(ids))
    if not starts:
        limit = f" of at most {max_tokens} tokens" if max_tokens is not None else ""
        raise PackingError(f"packing needs at least one story{limit}; got none")
    (folder / "starts.bin").write_bytes(np.asarray(starts, dtype="<i8").tobytes())
    (folder / "characters.bin").write_bytes(np.asarray(characters, dtype="<i4").tobytes())
    return {
        "schema_version": SCHEMA_VERSION,
        "n_tokens": n_tokens,
        "n_stories": len(starts),
        "n_characters": sum(characters),
        "dtype": dtype.str,
        "vocab_size": vocab_size,
        "separator": tokenizer.bos_token_id,
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in FILES
        },
    }


def _encoded(
    stories: Iterable[str], tokenizer: "transformers.PreTrainedTokenizerFast"
) -> Iterator[tuple[int, list[int]]]:
    """Length in characters and ids, separator first, of each story."""
    separator, name = int(tokenizer.bos_token_id), str(tokenizer.bos_token)
    stories = iter(stories)
    while chunk := list(islice(stories, _CHUNK)):
        if name in "\n".join(chunk):
            raise PackingError(f"a story must not contain the separator {name}; split the stories there first")
        encodings = tokenizer.backend_tokenizer.encode_batch_fast(chunk, add_special_tokens=False)
        for story, encoding in zip(chunk, encodings, strict=True):
            yield len(story), [separator, *encoding.ids]


def tokenizer_sha256(tokenizer: "transformers.PreTrainedTokenizerFast") -> str:
    """Hexadecimal sha256 of the tokenizer's tokenizer.json."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def is_held_out(story: str) -> bool:
    """Whether a story belongs to the held-out 1/64, by the hash of its text."""
    return hashlib.sha256(story.encode()).digest()[0] % 64 == 0


def packed(
    corpus: str,
    tokenizer: "transformers.PreTrainedTokenizerFast",
    cache: Path | str,
    *,
    max_tokens: int | None = None,
    seed: int = 0,
    split: str = "train",
    part: str = "all",
    progress: bool = False,
) -> PackedTokens:
    """A corpus packed in a folder of `cache`, made when it is not there yet or does not verify.

    The folder is found by what its tokens depend on: corpus, content of the files, generator, tokenizer,
    seed.

    Args:
        part: `all` stories, or `train` or `held_out`: one story in 64 is held out, by the hash of its text,
            so that a repeated story never stands on both sides.
    """
    if max_tokens is None and is_endless(corpus):
        raise PackingError(f"an endless corpus needs max_tokens; got none for {corpus}")
    from sat_lens import stories as generator

    depends_on = {
        "schema": SCHEMA_VERSION, "corpus": corpus, "split": split, "part": part, "seed": seed,
        "max_tokens": max_tokens,
        "files": [sha256_file(path) for path in files_of(corpus)], "tokenizer": tokenizer_sha256(tokenizer),
        "generator": sha256_file(generator.__file__) if "stories" in corpus else "",
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
    folder = Path(cache) / key[:16]
    try:
        found = PackedTokens.open(folder)
        if found.manifest.get("key") == key:
            return found
    except (FileNotFoundError, PackingError):
        pass
    stories = read_stories(corpus, split=split, seed=seed)
    if part != "all":
        stories = (story for story in stories if is_held_out(story) == (part == "held_out"))
    return pack(stories, tokenizer, folder, max_tokens=max_tokens, corpus=corpus, key=key, progress=progress)
