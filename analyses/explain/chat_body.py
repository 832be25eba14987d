"""The body of an OpenAI-compatible `/chat/completions`: made, and read strictly.

Whatever a server sends ends as a reply or as one of two refusals. Log-probabilities and token counts of an odd shape
are none; the text is kept.
"""

import html
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from analyses.explain.chat import LONGEST_TEXT, ChatReply, ChatRequest, Usage, is_count, token_logprobs


class Unreadable(Exception):
    """No reply is in it; another attempt may help. `status`: what the body says instead of the HTTP status, or 0."""

    def __init__(self, words: str, status: int = 0) -> None:
        super().__init__(words)
        self.status = status


def request_body(model: str, request: ChatRequest, extra: Mapping[str, Any], logprobs: bool) -> bytes:
    """What is sent; log-probabilities are asked for where `logprobs` and the request wants them."""
    document = dict(extra) | {
        "model": model,
        "messages": request.document()["messages"],
        "max_tokens": request.max_tokens,
        "temperature": float(request.temperature),
        "stream": False,
    }
    if logprobs and request.top_logprobs:
        document |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    return json.dumps(document, allow_nan=False).encode("ascii")


def read_body(body: bytes, secret: str | None = None) -> ChatReply:
    """The reply in a body.

    Args:
        body: as it came.
        secret: what must not be in the reply, even where the server repeats it.

    Raises:
        Unreadable: no reply is in it.
    """
    try:
        text = body.decode("utf-8")
        document = json.loads(text, parse_constant=lambda constant: None)  # NaN and Infinity are no JSON
        if secret:
            text = without(json.dumps(document), secret)
            document = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable(f"the answer is no JSON: {excerpt(body, secret)}") from None
    if not isinstance(document, dict):
        raise Unreadable("the answer is no JSON object")
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Unreadable(f"the answer has no choices: {excerpt(body, secret)}", _status(document))
    choice = choices[0]
    message = choice.get("message")
    content = _content(message.get("content", 0)) if isinstance(message, dict) else None
    if content is None:
        raise Unreadable("the answer's message has no text", _status(document))
    found = choice.get("logprobs")
    logprobs = token_logprobs(found.get("content"), "top_logprobs") if isinstance(found, dict) else None
    finish = choice.get("finish_reason")
    return ChatReply(content, logprobs or None, _usage(document), finish if isinstance(finish, str) else "", text)


def excerpt(body: bytes, secret: str | None = None) -> str:
    """The beginning of a body on one line, without control characters, and without the secret."""
    text = body[:8192].decode("utf-8", "replace")
    text = without(_unescaped(text), secret)[:4096] if secret else text[:4096]  # blotted out first: none is cut in two
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:160] or "(empty)"


def without(text: str, secret: str) -> str:
    """`text`, in JSON, HTML, an address or plain, with the secret blotted out."""
    for form in (secret, json.dumps(secret)[1:-1], html.escape(secret), quote(secret, safe="")):
        text = text.replace(form, "[key]")
    return text


def _unescaped(text: str) -> str:
    """Characters that JSON writes by their number, as themselves."""
    return re.sub(r"\\u00([2-7][0-9a-fA-F])", lambda found: chr(int(found[1], 16)), text)


def _content(content: Any) -> str | None:
    if content is None:  # all of max_tokens went into hidden reasoning, or a refusal: a reply that says nothing
        return ""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(parts) if parts and all(isinstance(part, str) for part in parts) else None
    return content if isinstance(content, str) and len(content) <= LONGEST_TEXT else None


def _usage(document: dict[str, Any]) -> Usage | None:
    found = document.get("usage")
    counts = [found.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(found, dict) else [None]
    return Usage(*counts) if all(map(is_count, counts)) else None


def _status(document: dict[str, Any]) -> int:
    """Some servers send an error as an answer of status 200, its code inside."""
    error = document.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600 else 0
