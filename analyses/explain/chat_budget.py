"""What may be spent on requests: calls and tokens, asked for before a request is sent."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

from analyses.explain.chat import BudgetError, ChatRequest

PER_MESSAGE = 16
"""Tokens that a chat template may put around a message."""


@dataclasses.dataclass
class Call:
    """One request on its way.

    Args:
        tokens: what it takes; its upper bound as long as that is not known.
        sent: whether it was.
    """

    tokens: int
    sent: bool = True


class Budget:
    """A limit of calls and tokens, for all threads together.

    A request is let through when the most it can take still fits; what it took is booked when it has ended. While
    others are under way, one that does not fit waits for what they leave. Every attempt is a call, repeated ones too.

    Args:
        max_calls, max_tokens: of this run; None: no limit. Tokens count those of prompts and replies.
    """

    def __init__(self, max_calls: int | None = None, max_tokens: int | None = None) -> None:
        for name, value in (("max_calls", max_calls), ("max_tokens", max_tokens)):
            if value is not None and value < 0:
                raise ValueError(f"{name} must be 0 or more; got {value}")
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.calls, self.tokens = 0, 0
        self._under_way = 0
        self._reserved = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def call(self, most_tokens: int) -> Iterator[Call]:
        """Around one request; set the call's `tokens` when they are known.

        Raises:
            BudgetError: it does not fit; nothing may be sent.
        """
        with self._changed:
            while not self._fits(most_tokens):
                if not self._under_way:
                    raise BudgetError(self._exceeded(most_tokens))
                self._changed.wait()
            self._under_way += 1
            self._reserved += most_tokens
            self.calls += 1
        call = Call(most_tokens)
        try:
            yield call
        finally:
            with self._changed:
                self._under_way -= 1
                self._reserved -= most_tokens
                self.tokens += call.tokens if call.sent else 0
                self.calls -= not call.sent
                self._changed.notify_all()

    def _fits(self, most_tokens: int) -> bool:
        calls = self.max_calls is None or self.calls < self.max_calls
        return calls and (self.max_tokens is None or self.tokens + self._reserved + most_tokens <= self.max_tokens)

    def _exceeded(self, most_tokens: int) -> str:
        spent = f"{self.calls:,} calls and {self.tokens:,} tokens are spent"
        if self.max_calls is not None and self.calls >= self.max_calls:
            limit = f"the budget allows {self.max_calls:,} calls"
        else:
            limit = f"the budget allows {self.max_tokens:,} tokens, and the next request may take {most_tokens:,}"
        return f"{limit}; {spent}; raise the budget to go on, what was answered is kept"


def most_tokens(request: ChatRequest) -> int:
    """Upper bound of what a request takes: a token holds at least one byte of the text it stands for."""
    texts = (len(message.content.encode("utf-8", "surrogatepass")) for message in request.messages)
    return sum(texts) + PER_MESSAGE * (len(request.messages) + 1) + request.max_tokens
