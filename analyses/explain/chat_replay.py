"""Cassettes: replies recorded from any backend, and a backend that plays them back: results are redone without a model.

A cassette is JSON lines: first `{"format": "sat_lens cassette 1", "name", "identity"}` of the backend that was
recorded, then `{"key", "request", "reply"}`, one a request. Where a request had no reply, `"reply"` is the reason, as
text; of several lines for one request a reply counts before a reason, then the first. A line that is cut off (the run
was killed) counts as absent.
"""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.explain.chat import (
    Around,
    ChatBackend,
    ChatError,
    ChatReply,
    ChatRequest,
    Message,
    NoReply,
    OneByOne,
    reply_of,
)

FORMAT = "sat_lens cassette 1"
LONGEST_LINE = 2**26


class Recording(Around):
    """A backend that writes down what another one answers; what the cassette holds already is not written again.

    Args:
        inner: whom to ask, every time: put a `CachedChat` inside to ask once.
        path: of the cassette; one that is there is gone on with.

    Raises:
        ValueError: a file that is no cassette, or one of another backend.
    """

    def __init__(self, inner: ChatBackend, path: Path | str) -> None:
        super().__init__(inner)
        self.path = Path(path)
        self._written: set[str] = set()
        self._lock = threading.Lock()
        if self.path.exists():
            header, entries, _ = read_cassette(self.path)
            if header["identity"] != inner.identity:
                raise ValueError(f"{path} was recorded from {header['name']!r}, of other settings than {inner.name!r}")
            self._written = {key for key, reply in entries.items() if isinstance(reply, ChatReply)}

    def answers(self, requests: Sequence[ChatRequest]) -> list[ChatReply | NoReply]:
        """The reply to each."""
        found = self.inner.answers(requests)
        self._write(requests, found)
        return found

    def _write(self, requests: Sequence[ChatRequest], found: Sequence[ChatReply | NoReply]) -> None:
        with self._lock:
            lines = []
            for request, reply in zip(requests, found, strict=True):
                if (key := request.key()) not in self._written:
                    there = isinstance(reply, ChatReply)
                    self._written |= {key} if there else set()
                    written = reply.document() if there else str(reply)
                    lines.append({"key": key, "request": request.document(), "reply": written})
            if lines:
                self._append(lines)

    def _append(self, lines: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as file:
            end = file.seek(0, 2)
            if not end:
                lines = [{"format": FORMAT, "name": self.name, "identity": self.identity}, *lines]
            elif file.seek(end - 1) and file.read(1) != b"\n":  # the last line was cut off; leave it to itself
                file.write(b"\n")
            file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode("ascii"))


class ReplayChat(OneByOne):
    """Plays a cassette back.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file that is no cassette.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.header, self.entries, self.n_damaged = read_cassette(self.path)

    @property
    def name(self) -> str:
        """`replay:` and the name of what was recorded."""
        return f"replay:{self.header['name']}"

    @property
    def identity(self) -> dict[str, Any]:
        """That of what was recorded."""
        return {"kind": "replay", "of": self.header["identity"]}

    def answer(self, request: ChatRequest) -> ChatReply:
        """The recorded reply.

        Raises:
            NoReply: it is recorded that there was none.
            ChatError: nothing is recorded of it.
        """
        key = request.key()
        if (reply := self.entries.get(key)) is None:
            damaged = f", and {self.n_damaged} damaged lines" if self.n_damaged else ""
            raise ChatError(
                f"{self.path} holds nothing of request {key[:12]}; it has {len(self.entries):,} others{damaged}; "
                "record it with the settings of this run"
            )
        if isinstance(reply, str):
            raise NoReply(reply)
        return reply


def read_cassette(path: Path) -> tuple[dict[str, Any], dict[str, ChatReply | str], int]:
    """Its header, the reply (or why there was none) by request, and the number of lines that are neither.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file that is no cassette.
    """
    entries: dict[str, ChatReply | str] = {}
    n_damaged = 0
    with open(path, "rb") as file:
        header = _line(file.readline(LONGEST_LINE)) or {}
        wrong = header.get("format") != FORMAT or set(header) != {"format", "name", "identity"}
        if wrong or not isinstance(header["name"], str) or not isinstance(header["identity"], dict):
            raise ValueError(f"{path} must be a cassette: its first line says {FORMAT!r}")
        while line := file.readline(LONGEST_LINE):
            try:
                document = _line(line) or {}
                request = document["request"]
                turns = tuple(Message(**turn) for turn in request["messages"])
                key = ChatRequest(**request | {"messages": turns}).key()
                reply = document["reply"] if isinstance(document["reply"], str) else reply_of(document["reply"])
                if key != document["key"]:
                    raise ValueError("the key is another request's")
                if isinstance(entries.get(key, ""), str):
                    entries[key] = reply
            except (ValueError, KeyError, TypeError, AttributeError):
                n_damaged += 1
    return header, entries, n_damaged


def _line(line: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
