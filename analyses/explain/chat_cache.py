"""Replies kept on disk, so that nothing is asked twice: one JSON file a request, named by its sha256.

    FOLDER/ab/ab12...ef.json    {"format", "asked": identity of the backend, "request", "reply": with its raw text}

Files are written whole or not at all. One that is damaged, or of another request, counts as absent and is replaced.
Requests without a reply are not kept: the next run asks them again. No key is in a request, so none is in a file.
"""

import contextlib
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from analyses.explain.chat import Around, ChatBackend, ChatReply, ChatRequest, NoReply, reply_of
from sat_lens.files import write_whole

FORMAT = "sat_lens chat 1"
LARGEST_FILE = 2**26


class CachedChat(Around):
    """A backend that asks another one only what it has not answered yet.

    Threads that ask one thing at once ask it once. Two processes may share a folder.

    Args:
        inner: whom to ask.
        folder: of the files; made when the first reply comes.

    Attributes:
        n_hits, n_asked: requests answered from the folder, and by `inner`.
    """

    def __init__(self, inner: ChatBackend, folder: Path | str) -> None:
        super().__init__(inner)
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"the cache of replies must be a folder; {folder} is a file")
        self.n_hits = self.n_asked = 0
        self._claimed: set[str] = set()
        self._changed = threading.Condition()

    def answers(self, requests: Sequence[ChatRequest]) -> list[ChatReply | NoReply]:
        """The reply to each; of equal requests, the same."""
        keys = [request.key(self.identity) for request in requests]
        with self._claim(set(keys)):
            found: dict[str, ChatReply | NoReply] = {}
            missing: dict[str, ChatRequest] = {}
            for key, request in zip(keys, requests, strict=True):
                if key not in found and key not in missing:
                    kept = self._kept(key, request)
                    if kept is None:
                        missing[key] = request
                    else:
                        found[key] = kept
            if missing:
                asked = self.inner.answers(list(missing.values()))
                for (key, request), reply in zip(missing.items(), asked, strict=True):
                    found[key] = reply
                    if isinstance(reply, ChatReply):
                        self._keep(key, request, reply)
        with self._changed:
            self.n_asked += sum(isinstance(found[key], ChatReply) for key in missing)  # not what was given up unsent
            self.n_hits += len(requests) - len(missing)
        return [found[key] for key in keys]

    def path(self, key: str) -> Path:
        """The file of a request."""
        return self.folder / key[:2] / f"{key}.json"

    @contextlib.contextmanager
    def _claim(self, keys: set[str]) -> Iterator[None]:
        """Wait until no other thread asks any of these, and let none begin."""
        with self._changed:
            while self._claimed & keys:
                self._changed.wait()
            self._claimed |= keys
        try:
            yield
        finally:
            with self._changed:
                self._claimed -= keys
                self._changed.notify_all()

    def _kept(self, key: str, request: ChatRequest) -> ChatReply | None:
        try:
            path = self.path(key)
            if path.stat().st_size > LARGEST_FILE:
                return None
            document = json.loads(path.read_bytes())
            right = document["format"] == FORMAT and document["request"] == request.document()
            return reply_of(document["reply"]) if right and document["asked"] == self.identity else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _keep(self, key: str, request: ChatRequest, reply: ChatReply) -> None:
        document = {"format": FORMAT, "asked": self.identity, "request": request.document(), "reply": reply.document()}
        write_whole(self.path(key), json.dumps(document, allow_nan=False) + "\n")
