"""Packed stories: one memory-mapped file of token ids, with explicit boundaries and a manifest of hashes.

A folder holds `tokens.bin` (uint16, or uint32 where the vocabulary needs it; each story is the separator and
then its ids), `starts.bin` (int64, where each story starts, in tokens), `characters.bin` (int32, the length
of each story in characters) and `manifest.json`. Written by `sat_lens.packing`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sat_lens.files import sha256_file

SCHEMA_VERSION = 1
FILES = {"tokens.bin": None, "starts.bin": np.int64, "characters.bin": np.int32}


class PackingError(ValueError):
    """Token files that cannot be made, read or used; one line: what must hold, what came."""


@dataclass(frozen=True)
class Evaluation:
    """Stories as rows of one length, each starting in a row of its own with the separator.

    A story longer than a row goes on in the next, whose first token is the last of the row before: so each
    token of each story is predicted exactly once, and none is cut off. The rest of a row is padding.
    """

    tokens: Int[Tensor, "row pos"]
    mask: Bool[Tensor, "row pos"]
    """True where `tokens` is of the story; the prediction of position t counts where t > 0 and mask[t]."""
    continued: Bool[Tensor, " row"]
    """True for rows that go on with the story of the row before."""
    n_characters: int
    """Of the stories, for losses in bits a character."""

    @property
    def n_continued(self) -> int:
        """Rows that go on with a story."""
        return int(self.continued.sum())

    @property
    def n_predicted(self) -> int:
        """Tokens to predict: all of the stories but the separators."""
        return int(self.mask[:, 1:].sum())


@dataclass(frozen=True, eq=False)
class PackedTokens:
    """Packed stories on disk; batches are pure functions of (seed, step)."""

    folder: Path
    manifest: dict[str, Any]
    tokens: np.ndarray = field(repr=False)
    starts: np.ndarray = field(repr=False)
    characters: np.ndarray = field(repr=False)
    _rows: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(folder: Path | str, *, verify: bool = True) -> "PackedTokens":
        """The packed stories of a folder.

        Args:
            verify: compare the hashes too, and look for ids beyond the vocabulary (reads the whole file);
                sizes and manifest are always checked.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        arrays = {}
        for name, dtype in FILES.items():
            entry = manifest["files"][name]
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                size = path.stat().st_size if path.is_file() else "no"
                raise PackingError(f"{path} must have {entry['bytes']} bytes; it has {size}: pack the corpus again")
            if verify and sha256_file(path) != entry["sha256"]:
                raise PackingError(f"{path} is not the file that was packed (sha256 differs): pack the corpus again")
            arrays[name] = np.memmap(path, dtype=dtype or manifest["dtype"], mode="r")
        packed = PackedTokens(folder, manifest, arrays["tokens.bin"], arrays["starts.bin"], arrays["characters.bin"])
        if verify:
            packed._check_boundaries()
            packed.check_vocabulary(manifest["vocab_size"])
        return packed

    @property
    def n_tokens(self) -> int:
        """Tokens, separators included."""
        return len(self.tokens)

    @property
    def n_stories(self) -> int:
        return len(self.starts)

    @property
    def n_characters(self) -> int:
        """Characters of all stories, separators not counted."""
        return int(self.manifest["n_characters"])

    def _check_boundaries(self) -> None:
        increasing = self.n_stories > 0 and self.starts[0] == 0 and bool(np.all(np.diff(self.starts) > 0))
        if not increasing or self.starts[-1] >= self.n_tokens or len(self.characters) != self.n_stories:
            raise PackingError(f"story starts must rise from 0 to below {self.n_tokens}; those of {self.folder} do not")

    def check_vocabulary(self, d_vocab: int) -> None:
        """Refuse ids that a model of `d_vocab` ids does not know."""
        for at in range(0, self.n_tokens, 1 << 22):
            highest = int(self.tokens[at : at + (1 << 22)].max())
            if highest >= d_vocab:
                raise PackingError(f"token ids must be below the vocabulary of {d_vocab}; {self.folder} has {highest}")

    def window(self, starts: np.ndarray, length: int) -> Int[Tensor, "batch length"]:
        """The `length` tokens from each of `starts` (positions in tokens)."""
        starts = np.asarray(starts, dtype=np.int64)
        if starts.size and (starts.min() < 0 or starts.max() + length > self.n_tokens):
            raise PackingError(
                f"windows of {length} must start between 0 and {self.n_tokens - length}; "
                f"got {starts.min()} to {starts.max()}"
            )
        rows = self.tokens[starts[:, None] + np.arange(length)]
        return torch.from_numpy(rows.astype(np.int64))

    def batch(
        self, step: int, batch_size: int, length: int, seed: int = 0, *, align: bool = True
    ) -> Int[Tensor, "batch length"]:
        """The training batch of a step: a pure function of the arguments, drawn with replacement.

        Args:
            align: windows start where a row of `evaluation` would: at a story, or where a story longer than a
                row goes on; with False, anywhere. Either way a window runs on into the stories that follow.
        """
        starts = self._row_starts(length) if align else None
        n_starts = len(starts) if starts is not None else self.n_tokens - length + 1
        if n_starts < 1 or self.n_tokens < length:
            raise PackingError(
                f"a corpus needs at least {length} tokens, one context; {self.folder} has {self.n_tokens}"
            )
        # Counter-based: no state to save, so that a resumed run meets the same batches bit for bit. Raw
        # words, because numpy fixes their sequence for ever, unlike that of its distributions.
        words = np.random.Philox(key=np.array([seed % 2**64, step], np.uint64)).random_raw(batch_size)
        drawn = (words % np.uint64(n_starts)).astype(np.int64)
        return self.window(starts[drawn] if starts is not None else drawn, length)

    def _row_starts(self, length: int) -> np.ndarray:
        """Where aligned windows may start: the rows of every story that leave `length` tokens to the end."""
        if length not in self._rows:
            n_rows, offsets = self._rows_of_stories(length, self.n_stories)
            rows = np.repeat(np.asarray(self.starts), n_rows) + offsets
            self._rows[length] = rows[rows + length <= self.n_tokens]
        return self._rows[length]

    def _ends(self) -> np.ndarray:
        return np.append(self.starts[1:], self.n_tokens)

    def _rows_of_stories(self, length: int, n_stories: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of each story, and the offset of each row in its story; rows overlap by one token."""
        if length < 2:
            raise PackingError(f"a row must have at least 2 tokens, one to predict the other; got {length}")
        lengths = (self._ends() - self.starts)[:n_stories]
        n_rows = np.maximum(1, -(-(lengths - 1) // (length - 1)))
        first_row = np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
        return n_rows, (np.arange(n_rows.sum()) - first_row) * (length - 1)

    def evaluation(self, length: int, *, n_stories: int | None = None) -> Evaluation:
        """The first `n_stories` (all by default) as rows of `length` tokens, padded with the separator."""
        if n_stories is not None and not 1 <= n_stories <= self.n_stories:
            raise PackingError(f"n_stories must be between 1 and {self.n_stories}; got {n_stories}")
        n_stories = n_stories or self.n_stories
        n_rows, offsets = self._rows_of_stories(length, n_stories)
        begins = np.repeat(np.asarray(self.starts[:n_stories]), n_rows) + offsets
        positions = begins[:, None] + np.arange(length)
        mask = positions < np.repeat(self._ends()[:n_stories], n_rows)[:, None]
        rows = self.tokens[np.where(mask, positions, 0)].astype(np.int64)
        rows[~mask] = self.manifest["separator"]
        return Evaluation(
            tokens=torch.from_numpy(rows),
            mask=torch.from_numpy(mask),
            continued=torch.from_numpy(offsets > 0),
            n_characters=int(self.characters[:n_stories].sum()),
        )


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"no packed tokens: {path} is not there")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        for name in FILES:
            _ = manifest["files"][name]["bytes"], manifest["files"][name]["sha256"]
        for name in ("vocab_size", "separator", "n_characters"):
            manifest[name] = int(manifest[name])
        if manifest["dtype"] not in ("<u2", "<u4"):
            raise ValueError(f"dtype {manifest['dtype']!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackingError(f"{path} is no manifest of packed tokens: {type(error).__name__} {error}") from None
    if version != SCHEMA_VERSION:
        raise PackingError(f"packed tokens must have schema_version {SCHEMA_VERSION}; {path} has {version}")
    return manifest
