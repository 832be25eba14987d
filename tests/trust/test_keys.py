"""A key is sent to the server and is nowhere else, whatever the server makes of it."""

import json
import logging
import traceback
from urllib.parse import quote

import pytest

from analyses.explain.chat import ChatError, Message, NoReply
from analyses.explain.chat_cache import CachedChat
from analyses.explain.chat_http import HttpChat
from analyses.explain.chat_wire import Limits
from tests.cases.chat_server import completion, serving

KEY = "sk-9f8e/7d6c&5b4a+very-secret"
QUICK = Limits(connect_s=5, read_s=8, total_s=9, n_bytes=60_000, retries=0, backoff_s=0.001, longest_wait_s=0.2)
BY_NUMBER = "".join(f"\\u{ord(c):04x}" for c in KEY)
ECHOES = {
    "header": f"Authorization: Bearer {KEY}",
    "by number": json.dumps({"error": "bad key KEY"}).replace("KEY", BY_NUMBER),
    "in HTML": "<p>bad key sk-9f8e/7d6c&amp;5b4a+very-secret</p>",
    "in an address": f"/login?key={quote(KEY, safe='')}",
    "cut in two": " " * 4090 + KEY,
    "after a tab": f"\x00\t{KEY}\t",
}
PARTS = (KEY, KEY[:6], "very-secret", quote(KEY, safe=""), "5b4a", BY_NUMBER[:24])


def assert_unsaid(*texts: str) -> None:
    for text in texts:
        assert not [part for part in PARTS if part in text], text[:300]


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setenv("CHAT_KEY", KEY)
    return lambda server: HttpChat(server.url, "m", key_variable="CHAT_KEY", limits=QUICK)


def test_no_error_log_or_traceback_repeats_a_key_that_the_server_repeats(backend, tmp_path, caplog, capfd, tried):
    caplog.set_level(logging.DEBUG)
    echoes = [
        {"do": "text", "body": body, "times": 1} if status == 200 else
        {"do": "status", "status": status, "body": body, "times": 1}
        for body in ECHOES.values() for status in (200, 400, 401, 500)
    ]  # fmt: skip
    with serving(tmp_path, *echoes) as server:
        for _ in echoes:
            with pytest.raises((NoReply, ChatError)) as refused:
                backend(server).chat([Message("user", "hello")])
            assert_unsaid(str(refused.value), *traceback.format_exception(refused.value), repr(refused.value))
        assert {one["headers"]["Authorization"] for one in server.requests} == {f"Bearer {KEY}"}
        assert len(server.requests) == len(echoes)
    assert_unsaid(caplog.text, *capfd.readouterr())
    tried("keys that a server repeats", len(echoes))


@pytest.mark.parametrize("where", [f"https://{KEY.replace('/', '')}.example.org/", f"https://x@{KEY}/", f"//{KEY}:1/"])
def test_a_redirect_to_an_address_of_the_key_is_refused_without_it(where, tmp_path, monkeypatch):
    key = KEY.replace("/", "")
    monkeypatch.setenv("CHAT_KEY", key)
    location = {"Location": where.replace(KEY, key)}
    with serving(tmp_path, {"do": "status", "status": 307, "headers": location}) as server:
        chat = HttpChat(server.url, "m", key_variable="CHAT_KEY", limits=QUICK)
        with pytest.raises(ChatError, match="refused") as refused:
            chat.chat([Message("user", "hello")])
    assert key not in "".join(traceback.format_exception(refused.value))


def test_what_is_kept_of_a_reply_has_no_key(backend, tmp_path):
    body = json.dumps(completion("KEY and KEY")).replace("KEY", KEY, 1).replace("KEY", BY_NUMBER)
    with serving(tmp_path, {"do": "text", "body": body}) as server:
        chat = CachedChat(backend(server), tmp_path / "replies")
        assert chat.chat([Message("user", "hello")]).text == "[key] and [key]"
    kept = [path for path in (tmp_path / "replies").rglob("*") if path.is_file()]
    assert kept
    assert_unsaid(*(path.read_text(encoding="utf-8") for path in kept), repr(chat), str(chat.identity))


@pytest.mark.parametrize("key", ["sk-ant-api03-abcdefgh", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz", "gsk_aB3dE5", "A" * 60])
def test_a_key_in_the_place_of_its_variable_s_name_is_not_repeated_even_where_it_looks_like_one(key, monkeypatch):
    monkeypatch.delenv(key, raising=False)
    with pytest.raises(ValueError, match="key") as refused:
        HttpChat("https://example.org/v1", "m", key_variable=key)
    assert key not in str(refused.value)
