"""Language models behind an OpenAI-compatible HTTP interface: vLLM, llama.cpp, Ollama, OpenRouter and others.

What happens to a request that fails:

| failure | what is done |
| --- | --- |
| no connection, or it breaks or is too slow; 408, 425, 429, 5xx; a body without a reply | asked again, ever later |
| the same after the last retry; 400, 413, 422; a body that is too large | this request has no reply |
| that for `GIVE_UP` requests in a row, or never a connection; 401, 403, 404 ...; a redirect elsewhere | ends the run |
| log-probabilities refused | asked without, from then on |

The key comes from an environment variable, is read when a request is sent, and is kept nowhere. It is sent in the
clear to this machine and to private networks alone.
"""

import email.utils
import ipaddress
import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from analyses.explain.chat import ChatError, ChatReply, ChatRequest, NoReply, OneByOne
from analyses.explain.chat_body import Unreadable, excerpt, read_body, request_body, without
from analyses.explain.chat_budget import Budget, most_tokens
from analyses.explain.chat_wire import Broken, Limits, TooLarge, checked_url, post

GIVE_UP = 8
SHORTEST_SECRET = 8
"""A shorter key (`EMPTY`, `x`) is none, and is not blotted out of what the server says."""
_LATER = (408, 425, 429)
_OF_THIS_REQUEST = (400, 413, 422)
_OWN_FIELDS = ("model", "messages", "max_tokens", "temperature", "stream", "logprobs", "top_logprobs")
_LOCAL = (".local", ".internal", ".lan", ".localhost", ".home.arpa")


class HttpChat(OneByOne):
    """A model at a base URL.

    Args:
        base_url: such as `http://127.0.0.1:8000/v1`; `/chat/completions` is added.
        model: its name there.
        key_variable: name of the environment variable that holds the key; None: no key is sent.
        n_threads: requests under way at once.
        budget: calls and tokens that may be spent; None: no limit.
        limits: time, size and retries of a request.
        extra: further fields of the request's body, such as a seed; no secrets: they are kept with the replies.

    Raises:
        ValueError: an address that is none, or a key that is not there or would be sent in the clear.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key_variable: str | None = None,
        n_threads: int = 4,
        budget: Budget | None = None,
        limits: Limits | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.base_url = checked_url(base_url).removesuffix("/chat/completions")
        if not isinstance(model, str) or not model or not model.isprintable() or len(model) > 200:
            raise ValueError("model must be the name of a model at the server, of at most 200 characters")
        if not 1 <= n_threads <= 256:
            raise ValueError(f"n_threads must be between 1 and 256; got {n_threads}")
        if own := set(extra or {}) & set(_OWN_FIELDS):
            raise ValueError(f"extra fields must be others than {', '.join(sorted(own))}, which the request sets")
        self.extra: dict[str, Any] = json.loads(json.dumps(dict(extra or {}), allow_nan=False))
        self.model, self.n_threads, self.key_variable = model, n_threads, key_variable
        self.budget, self.limits = budget or Budget(), limits or Limits()
        if self._key() is not None:
            _refuse_in_the_clear(self.base_url)
        self.logprobs_refused = False
        self._halted, self._broken_off = threading.Event(), threading.Event()
        self._answered, self._failed_in_a_row, self._lock = False, 0, threading.Lock()

    def __repr__(self) -> str:
        return f"HttpChat({self.base_url!r}, {self.model!r})"

    @property
    def name(self) -> str:
        """`http:MODEL`."""
        return f"http:{self.model}"

    @property
    def identity(self) -> dict[str, Any]:
        """Address, model and extra fields."""
        return {"kind": "http", "base_url": self.base_url, "model": self.model, "extra": self.extra}

    def halt(self, level: int) -> None:
        """See `ChatBackend`."""
        for event, at in ((self._halted, 1), (self._broken_off, 2)):
            event.set() if level >= at else event.clear()

    def answer(self, request: ChatRequest) -> ChatReply:
        """The reply to one request, after as many attempts as it may take.

        Raises:
            NoReply: this request has none.
            ChatError: no other one will have one; BudgetError: or may be sent.
        """
        words, wait, unconnected = "", 0.0, True
        for attempt in range(self.limits.retries + 1):
            if attempt:
                self._pause(attempt, wait)
            try:
                outcome = self._attempt(request)
            except TooLarge as error:
                self._failed(str(error))
                raise NoReply(str(error)) from None
            except Broken as error:
                words, wait = str(error), 0.0
                continue
            unconnected = False
            if isinstance(outcome, ChatReply):
                with self._lock:
                    self._answered, self._failed_in_a_row = True, 0
                return outcome
            words, wait = outcome
        if unconnected and not self._answered:
            raise ChatError(f"{self.base_url} has answered nothing in {self.limits.retries + 1} attempts: {words}")
        self._failed(words)
        raise NoReply(f"no reply in {self.limits.retries + 1} attempts: {words}")

    def _attempt(self, request: ChatRequest) -> ChatReply | tuple[str, float]:
        """A reply, or why there is none and the seconds after which the server wants to be asked again."""
        wanted = bool(request.top_logprobs) and not self.logprobs_refused
        key = self._key()
        secret = key if key and len(key) >= SHORTEST_SECRET else None
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        headers |= {"Connection": "close", "User-Agent": "sat-lens"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        body = request_body(self.model, request, self.extra, wanted)
        with self.budget.call(most_tokens(request)) as call:
            if self._halted.is_set():
                call.sent = False
                raise NoReply("it was not sent: the run was stopped")
            try:
                answer = post(f"{self.base_url}/chat/completions", body, headers, self.limits, self._broken_off)
            except ChatError as error:  # a redirect's address is the server's own words
                raise ChatError(without(str(error), secret) if secret else str(error)) from None
            status, words = answer.status, excerpt(answer.body, secret)
            if status == 200:
                try:
                    reply = read_body(answer.body, secret)
                    if reply.usage:
                        call.tokens = reply.usage.prompt_tokens + reply.usage.completion_tokens
                    return reply
                except Unreadable as error:
                    status, words = error.status, str(error)
            if status:
                call.tokens = 0  # refused, not computed
        if status == 0:
            return words, 0.0
        if status in _LATER or status >= 500:
            if status == 501 and wanted:
                return self._without_logprobs(request)
            return f"status {status}: {words}", _seconds(answer.headers.get("retry-after", ""))
        if status in _OF_THIS_REQUEST:
            if wanted and re.search(r"log_?prob", words, re.IGNORECASE):
                return self._without_logprobs(request)
            self._failed(f"status {status}: {words}")
            raise NoReply(f"{self.base_url} refuses the request with status {status}: {words}")
        raise ChatError(f"{self.base_url} answers with status {status}: {words}{_hint(status, self.key_variable)}")

    def _without_logprobs(self, request: ChatRequest) -> ChatReply | tuple[str, float]:
        self.logprobs_refused = True
        return self._attempt(request)

    def _pause(self, attempt: int, wanted_s: float) -> None:
        own = self.limits.backoff_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
        if self._halted.wait(min(max(own, wanted_s), self.limits.longest_wait_s)):
            raise NoReply("it was not asked again: the run was stopped")

    def _failed(self, words: str) -> None:
        with self._lock:
            self._failed_in_a_row += 1
            if self._failed_in_a_row < GIVE_UP:
                return
        raise ChatError(f"{self.base_url} had no usable answer to {GIVE_UP} requests in a row; the last: {words}")

    def _key(self) -> str | None:
        if self.key_variable is None:
            return None
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,99}", self.key_variable):
            raise ValueError("key_variable must be the NAME of an environment variable that holds the key, not the key")
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not re.fullmatch(r"[!-~]{1,4096}", key):
            what = "is not set" if not key else "holds what cannot be a key"
            # a key in the place of its variable's name may look like a name, and is not repeated
            named = self.key_variable if re.fullmatch(r"[A-Z0-9_]{1,40}", self.key_variable) else "key_variable names"
            raise ValueError(f"the environment variable {named} must hold the key; it {what}")
        return key


def _seconds(header: str) -> float:
    """What `Retry-After` asks for: seconds or a date; 0 where it is neither."""
    header = header.strip()
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", header):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0


def _hint(status: int, key_variable: str | None) -> str:
    if status in (401, 403):
        return f"; look at the key in {key_variable}" if key_variable else "; it wants a key: name its variable"
    return "; look at the base URL and the model's name" if status == 404 else ""


def _refuse_in_the_clear(url: str) -> None:
    parts = urlsplit(url)
    host = str(parts.hostname)
    if parts.scheme == "https" or "." not in host.rstrip(".") and ":" not in host or host.endswith(_LOCAL):
        return
    try:
        local = ipaddress.ip_address(host).is_private
    except ValueError:
        local = False
    if not local:
        raise ValueError(f"a key is sent in the clear to private networks alone; take https for {host}")
