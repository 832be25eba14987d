"""A chat with a language model: a request, a reply, and what every backend of them offers.

| backend | where the model is |
| --- | --- |
| `analyses.explain.chat_http` | behind an OpenAI-compatible HTTP interface |
| `analyses.explain.chat_hf` | a folder of local transformers weights |
| `analyses.explain.chat_replay` | nowhere: a cassette of recorded replies |

`analyses.explain.chat_cache` keeps the replies of any of them, `analyses.explain.chat_pool` asks many requests.
A reply is data: it is read strictly, and never evaluated.
"""

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

ROLES = ("system", "user", "assistant")
LONGEST_TEXT = 2**20
MOST_LOGPROBS = 20


class ChatError(ValueError):
    """Nothing more can be asked; what was answered so far is kept."""


class BudgetError(ChatError):
    """The budget would be exceeded by the next request, which was not sent."""


class NoReply(ChatError):
    """One request has no usable reply; others may have one."""


@dataclasses.dataclass(frozen=True)
class Message:
    """One turn: `role` is system, user or assistant."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"a role must be one of {', '.join(ROLES)}; got {self.role!r}")
        if not isinstance(self.content, str) or len(self.content) > LONGEST_TEXT:
            raise ValueError(f"a message must be text of at most {LONGEST_TEXT:,} characters")


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """What is asked.

    Args:
        messages: the conversation, whose next turn is the reply.
        max_tokens: of the reply.
        temperature: of sampling; 0: the most probable token each time.
        top_logprobs: alternatives a token whose log-probabilities are wanted; 0: none.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 256
    temperature: float | int = 0.0
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("a request needs at least 1 message; got none")
        if not 1 <= self.max_tokens <= LONGEST_TEXT:
            raise ValueError(f"max_tokens must be between 1 and {LONGEST_TEXT:,}; got {self.max_tokens}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be between 0 and 2; got {self.temperature}")
        if not 0 <= self.top_logprobs <= MOST_LOGPROBS:
            raise ValueError(f"top_logprobs must be between 0 and {MOST_LOGPROBS}; got {self.top_logprobs}")

    def document(self) -> dict[str, Any]:
        """As JSON knows it."""
        return dataclasses.asdict(self) | {
            "messages": [dataclasses.asdict(message) for message in self.messages],
            "temperature": float(self.temperature),
        }

    def key(self, asked: Mapping[str, Any] | None = None) -> str:
        """Hexadecimal sha256 of the request, and of what was asked: a backend's `identity`."""
        whole = {"asked": dict(asked or {}), "request": self.document()}
        return hashlib.sha256(json.dumps(whole, sort_keys=True, allow_nan=False).encode("ascii")).hexdigest()


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """One token of a reply.

    Args:
        token: its text.
        logprob: natural logarithm of its probability.
        top: alternatives, itself among them, and their log-probabilities.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens that a request took."""

    prompt_tokens: int
    completion_tokens: int


@dataclasses.dataclass(frozen=True)
class ChatReply:
    """What was answered.

    Args:
        text: of the reply.
        token_logprobs: of each of its tokens; None where the backend gave none that can be read.
        usage: None where the backend did not say.
        finish: why it ended: `stop`, `length` (cut at max_tokens), another word, or nothing.
        raw: what came, as it came.
    """

    text: str
    token_logprobs: tuple[TokenLogprob, ...] | None = None
    usage: Usage | None = None
    finish: str = ""
    raw: str = dataclasses.field(default="", repr=False, compare=False)

    def document(self) -> dict[str, Any]:
        """As JSON knows it."""
        return dataclasses.asdict(self)


@runtime_checkable
class ChatBackend(Protocol):
    """What answers. `analyses.explain.chat_pool.replies` asks it many things."""

    @property
    def name(self) -> str:
        """Such as `http:MODEL`: what artefacts say of where an explanation came from."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """What, besides the request, a reply depends on. Holds no secret."""
        ...

    @property
    def n_threads(self) -> int:
        """Threads that may ask it at once."""
        ...

    @property
    def batch(self) -> int:
        """Requests that it likes to get together."""
        ...

    def chat(
        self, messages: Sequence[Message], max_tokens: int = 256, temperature: float | int = 0.0, top_logprobs: int = 0
    ) -> ChatReply:
        """The reply to one request; NoReply where it has none, ChatError where no other will have one either."""
        ...

    def answers(self, requests: Sequence[ChatRequest]) -> list[ChatReply | NoReply]:
        """The reply to each; a ChatError ends it."""
        ...

    def halt(self, level: int) -> None:
        """0: go on; 1: send nothing more; 2: break off what is under way, too."""
        ...


class OneByOne(ABC):
    """A backend that is asked through `answer`, one request at a time."""

    n_threads = 1
    batch = 1

    @abstractmethod
    def answer(self, request: ChatRequest) -> ChatReply:
        """The reply to one request."""

    def chat(
        self, messages: Sequence[Message], max_tokens: int = 256, temperature: float | int = 0.0, top_logprobs: int = 0
    ) -> ChatReply:
        """The reply to one request."""
        return self.answer(ChatRequest(tuple(messages), max_tokens, temperature, top_logprobs))

    def answers(self, requests: Sequence[ChatRequest]) -> list[ChatReply | NoReply]:
        """The reply to each."""
        found: list[ChatReply | NoReply] = []
        for request in requests:
            try:
                found.append(self.answer(request))
            except NoReply as none:
                found.append(none)
        return found

    def halt(self, level: int) -> None:  # noqa: B027 (not every backend has something to break off)
        """Nothing that takes long is under way."""


class Around(ABC):
    """A backend around another one, whose name, identity and limits are its own.

    Args:
        inner: whom to ask.
    """

    def __init__(self, inner: ChatBackend) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """See `ChatBackend`."""
        return self.inner.name

    @property
    def identity(self) -> dict[str, Any]:
        """See `ChatBackend`."""
        return self.inner.identity

    @property
    def n_threads(self) -> int:
        """See `ChatBackend`."""
        return self.inner.n_threads

    @property
    def batch(self) -> int:
        """See `ChatBackend`."""
        return self.inner.batch

    def halt(self, level: int) -> None:
        """Pass it on."""
        self.inner.halt(level)

    def chat(
        self, messages: Sequence[Message], max_tokens: int = 256, temperature: float | int = 0.0, top_logprobs: int = 0
    ) -> ChatReply:
        """The reply to one request."""
        reply = self.answers([ChatRequest(tuple(messages), max_tokens, temperature, top_logprobs)])[0]
        if isinstance(reply, NoReply):
            raise reply
        return reply

    @abstractmethod
    def answers(self, requests: Sequence[ChatRequest]) -> list[ChatReply | NoReply]:
        """See `ChatBackend`."""


def reply_of(document: Any) -> ChatReply:
    """What `ChatReply.document` gave.

    Raises:
        ValueError: anything else.
    """
    fields = {field.name for field in dataclasses.fields(ChatReply)}
    if not isinstance(document, dict) or set(document) != fields:
        raise ValueError(f"a reply has {', '.join(sorted(fields))}")
    if not all(isinstance(document[name], str) for name in ("text", "finish", "raw")):
        raise ValueError("text, finish and raw of a reply are text")
    found, usage = document["token_logprobs"], document["usage"]
    if found is not None and (found := token_logprobs(found, "top")) is None:
        raise ValueError("token_logprobs is null or [{token, logprob, top}, ...]")
    if usage is not None:
        if not isinstance(usage, dict) or set(usage) != {"prompt_tokens", "completion_tokens"}:
            raise ValueError("usage is null or {prompt_tokens, completion_tokens}")
        if not all(is_count(n) for n in usage.values()):
            raise ValueError("usage counts tokens")
        usage = Usage(**usage)
    return ChatReply(document["text"], found, usage, document["finish"], document["raw"])


def token_logprobs(entries: Any, top: str) -> tuple[TokenLogprob, ...] | None:
    """Log-probabilities as a tuple; None where anything of them has another shape, or is no number.

    Args:
        entries: [{"token", "logprob", TOP: alternatives}, ...]; alternatives are pairs, or like entries.
        top: name of the alternatives.
    """
    if not isinstance(entries, list):
        return None
    found = []
    for entry in entries:
        alternatives = entry.get(top) or [] if isinstance(entry, dict) else None
        if not isinstance(alternatives, list):
            return None
        pairs = [_pair(entry), *map(_pair, alternatives)]
        if None in pairs:
            return None
        found.append(TokenLogprob(*pairs[0], tuple(pairs[1:])))
    return tuple(found)


def _pair(entry: Any) -> tuple[str, float] | None:
    if isinstance(entry, dict):
        entry = [entry.get("token"), entry.get("logprob")]
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
        return None
    value = entry[1]
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e-3:  # NaN fails
        return None
    return entry[0], min(float(value), 0.0)


def is_count(value: Any) -> bool:
    """A whole number from 0 to 2^31 - 1."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
