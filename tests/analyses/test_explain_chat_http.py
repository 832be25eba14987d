"""The HTTP backend against a real server process that answers late, badly, or not at all."""

import json
import socket
import time
from email.utils import formatdate

import pytest

from analyses.explain.chat import ChatError, ChatRequest, Message, NoReply
from analyses.explain.chat_budget import Budget
from analyses.explain.chat_http import GIVE_UP, HttpChat, _seconds
from analyses.explain.chat_wire import Limits, checked_url
from tests.cases.chat_server import completion, serving

QUICK = Limits(connect_s=5, read_s=8, total_s=9, n_bytes=20_000, retries=2, backoff_s=0.001, longest_wait_s=0.2)
GOOD = {"do": "json", "body": completion("fine")}
KEY = "sk-9f8e7d6c5b4a-very-secret"


def chat(server, **knobs):
    return HttpChat(server.url, "m", **{"limits": QUICK} | knobs)


def ask(backend, text="hello", **knobs):
    return backend.chat([Message("user", text)], **knobs)


def test_a_good_answer_is_read_and_the_request_says_what_was_asked(tmp_path):
    entry = [{"token": "fine", "logprob": -0.5, "top_logprobs": [{"token": "fine", "logprob": -0.5}]}]
    with serving(tmp_path, {"do": "json", "body": completion("fine", entry, (7, 3), "length")}) as server:
        reply = ask(chat(server, extra={"seed": 4}), max_tokens=9, temperature=0.5, top_logprobs=3)
        (sent,) = server.requests
    assert (reply.text, reply.finish, reply.usage.prompt_tokens, reply.usage.completion_tokens) == (
        "fine",
        "length",
        7,
        3,
    )
    assert [(t.token, t.logprob, t.top) for t in reply.token_logprobs] == [("fine", -0.5, (("fine", -0.5),))]
    assert json.loads(reply.raw)["id"] == "x" and sent["path"] == "/v1/chat/completions"
    assert sent["body"] == {
        "model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 9, "temperature": 0.5,
        "stream": False, "logprobs": True, "top_logprobs": 3, "seed": 4,
    }  # fmt: skip
    assert "Authorization" not in sent["headers"]


@pytest.mark.parametrize("how", ["json", "chunks", "unannounced"])
def test_bodies_of_each_length_notation_are_read_whole_at_the_first_attempt(tmp_path, how):
    with serving(tmp_path, {"do": how, "body": completion("long " * 1500)}) as server:
        assert ask(chat(server)).text == "long " * 1500 and len(server.requests) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"do": "status", "status": 429},
        {"do": "status", "status": 500},
        {"do": "status", "status": 503, "headers": {"Retry-After": "nonsense"}},
        {"do": "text", "body": '{"choices": [{"mess'},
        {"do": "text", "body": "<html>gateway</html>"},
        {"do": "json", "body": {"choices": []}},
        {"do": "json", "body": {"error": {"code": 502, "message": "upstream"}}},
        {"do": "drop", "how": "length"},
        {"do": "drop", "how": "chunk"},
        {"do": "drop", "how": "nothing"},
    ],
    ids=lambda bad: "-".join(str(v)[:20] for v in bad.values()),
)
def test_what_may_pass_is_asked_again(tmp_path, bad):
    with serving(tmp_path, bad | {"times": 2}, GOOD) as server:
        assert ask(chat(server)).text == "fine"
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "body",
    [
        "", "null", "[]", "5", "NaN", '"text"', "{}", '{"choices": null}', '{"choices": [null]}',
        '{"choices": {"0": 1}}', '{"choices": [{"message": {}}]}', '{"choices": [{"message": "hi"}]}',
        '{"choices": [{"message": {"content": 7}}]}',
        '{"choices": [{"message": {"content": [1]}}]}', '{"choices": [{"message": {"content": []}}]}',
        "[" * 9000, '{"a":' * 3000, '{"choices": ' + "9" * 6000 + "}", "\udcff", "<html>\x00</html>",
    ],
    ids=lambda body: repr(body[:24]),
)  # fmt: skip
def test_a_body_without_a_reply_is_a_missing_one_in_one_line(tmp_path, body):
    with serving(
        tmp_path, {"when": "odd", "do": "text", "body": body.encode("utf-8", "replace").decode()}, GOOD
    ) as server:
        backend = chat(server)
        ask(backend)
        with pytest.raises(NoReply) as caught:
            ask(backend, "odd")
        assert "\n" not in str(caught.value) and str(caught.value).isprintable()
        assert ask(backend).text == "fine"


def test_an_answer_that_says_nothing_is_a_reply(tmp_path):
    with serving(tmp_path, {"do": "json", "body": completion(None, finish="length")}) as server:
        assert ask(chat(server)).text == "" and len(server.requests) == 1


@pytest.mark.parametrize(
    "odd",
    [
        "none", 7, {"tokens": ["a"]}, [None], [{"token": 1, "logprob": -1.0}], [{"token": "a", "logprob": "x"}],
        [{"token": "a", "logprob": float("nan")}], [{"token": "a", "logprob": 0.5}], [{"token": "a", "logprob": True}],
        [{"token": "a", "logprob": -1.0, "top_logprobs": {"a": -1}}],
        [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b"}]}],
        [{"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "b", "logprob": float("-inf")}]}],
    ],
    ids=repr,
)  # fmt: skip
def test_log_probabilities_of_an_odd_shape_are_none_and_the_text_is_kept(tmp_path, odd):
    with serving(tmp_path, {"do": "json", "body": completion("fine", odd, (-1, "x"))}) as server:
        reply = ask(chat(server), top_logprobs=2)
    assert (reply.text, reply.token_logprobs, reply.usage) == ("fine", None, None)


def test_refused_log_probabilities_are_not_asked_for_again(tmp_path):
    no = {"when": '"logprobs"', "do": "status", "status": 400, "body": {"error": {"message": "logprobs unsupported"}}}
    with serving(tmp_path, no, GOOD) as server:
        backend = chat(server)
        assert [ask(backend, top_logprobs=5).token_logprobs for _ in range(3)] == [None] * 3
        assert ["logprobs" in request["body"] for request in server.requests] == [True, False, False, False]


def test_the_servers_wish_to_wait_is_honoured_up_to_a_limit(tmp_path):
    busy = [{"do": "status", "status": 429, "headers": {"Retry-After": s}, "times": 1} for s in ("0.15", "9999")]
    with serving(tmp_path, *busy, GOOD) as server:
        began = time.monotonic()
        ask(chat(server))
        assert 0.35 <= time.monotonic() - began < 5  # 0.15 as asked, then the limit of 0.2


def test_waiting_times_are_seconds_or_dates():
    assert _seconds("7") == 7 and _seconds(" 1.5 ") == 1.5
    assert 55 < _seconds(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert [_seconds(odd) for odd in ("", "-3", "soon", "1e400", formatdate(0))] == [0.0] * 5


@pytest.mark.parametrize(
    "entry", [{"do": "drip", "part": "body"}, {"do": "drip", "part": "headers"}, GOOD | {"after": 9}]
)
def test_an_answer_that_does_not_end_is_ended(tmp_path, entry):
    with serving(tmp_path, entry) as server:
        began = time.monotonic()
        with pytest.raises(ChatError, match="not whole after 0.6 s|nothing came in time"):
            ask(chat(server, limits=Limits(connect_s=1, read_s=0.4, total_s=0.6, retries=1, backoff_s=0.001)))
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("announced", [None, 10**13])
def test_a_body_without_an_end_is_not_read_to_its_end(tmp_path, announced):
    huge = {"do": "huge", "when": "odd"} | ({"announced": announced} if announced else {})
    with serving(tmp_path, huge, GOOD) as server:
        backend = chat(server)
        with pytest.raises(NoReply, match="larger than 20,000 bytes"):
            ask(backend, "odd")
        assert len(server.requests) == 1 and ask(backend).text == "fine"


def test_nobody_there_ends_the_run_in_one_line():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ChatError, match="answered nothing in 3 attempts: the connection failed") as caught:
        ask(HttpChat(f"http://127.0.0.1:{port}", "m", limits=QUICK))
    assert not isinstance(caught.value, NoReply)


@pytest.mark.parametrize(("status", "words"), [(401, "names? ?a|look|wants a key"), (403, "key"), (404, "base URL")])
def test_what_no_other_request_will_change_ends_the_run(tmp_path, status, words):
    with serving(tmp_path, {"do": "status", "status": status, "body": {"error": "line 1\nline 2"}}) as server:
        with pytest.raises(ChatError, match=words) as caught:
            ask(chat(server))
        assert not isinstance(caught.value, NoReply) and "\n" not in str(caught.value) and len(server.requests) == 1


def test_one_refused_request_is_missing_and_many_in_a_row_end_the_run(tmp_path):
    long = {"when": "long", "do": "status", "status": 400, "body": {"error": {"message": "context length"}}}
    with serving(tmp_path, long, GOOD) as server:
        backend = chat(server)
        for _ in range(2):  # a good answer in between begins the count anew
            for _ in range(GIVE_UP - 1):
                with pytest.raises(NoReply, match="context length"):
                    ask(backend, "long")
            ask(backend)
        with pytest.raises(ChatError, match="8 requests in a row"):
            for _ in range(GIVE_UP):
                with pytest.raises(NoReply):
                    ask(backend, "long")


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.1:1/v1/chat/completions", "//evil.example/x", "https://127.0.0.1/", "ftp://x/", "http://[", ""],
)
def test_a_redirect_elsewhere_is_refused_and_the_key_stays(tmp_path, monkeypatch, location):
    monkeypatch.setenv("CHAT_KEY", KEY)
    with serving(tmp_path, {"do": "status", "status": 307, "headers": {"Location": location}}) as server:
        with pytest.raises(ChatError, match="refused") as caught:
            ask(chat(server, key_variable="CHAT_KEY"))
        assert len(server.requests) == 1 and KEY not in str(caught.value)


def test_a_redirect_to_another_server_sends_it_nothing_and_one_within_the_server_is_followed(tmp_path):
    with serving(tmp_path, GOOD) as other:
        moved = {"do": "status", "status": 308, "headers": {"Location": f"{other.url}/chat/completions"}, "times": 1}
        within = {"do": "status", "status": 307, "headers": {"Location": "/v2/chat?a=b"}, "times": 1}
        with serving(tmp_path, moved, within, GOOD) as server:
            with pytest.raises(ChatError, match="refused"):
                ask(chat(server))
            assert ask(chat(server)).text == "fine"
            assert server.requests[-1]["path"] == "/v2/chat?a=b" and server.requests[-1]["body"]["model"] == "m"
        assert other.requests == []


def test_redirects_in_a_circle_end(tmp_path):
    turn = [
        {"do": "status", "status": 307, "headers": {"Location": path}, "times": 1} for path in ("/a", "/b", "/c", "/d")
    ]
    with serving(tmp_path, *turn, GOOD) as server, pytest.raises(ChatError, match="more than 3"):
        ask(chat(server))


def test_the_key_is_sent_and_shown_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_KEY", KEY)
    with serving(tmp_path, {"do": "leak", "times": 1}, {"do": "leak", "status": 400, "times": 1},
                 {"do": "leak", "status": 401}) as server:  # fmt: skip
        backend = chat(server, key_variable="CHAT_KEY")
        reply = ask(backend)
        with pytest.raises(NoReply) as refused:
            ask(backend)
        with pytest.raises(ChatError) as unauthorized:
            ask(backend)
        assert [r["headers"]["Authorization"] for r in server.requests] == [f"Bearer {KEY}"] * 3
    assert reply.text == "[key] [key]"  # the second was written with an escape for each character
    said = [reply.raw, repr(backend), str(vars(backend)), str(backend.identity), backend.name]
    for text in [*said, str(refused.value), str(unauthorized.value)]:
        assert KEY not in text
    assert "[key]" in str(refused.value) and "CHAT_KEY" in str(unauthorized.value)


@pytest.mark.parametrize("value", [None, "", "two words", "line\nbreak", "\u00e9t\u00e9"])
def test_a_key_that_is_none_is_refused_at_the_door(monkeypatch, value):
    monkeypatch.delenv("CHAT_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("CHAT_KEY", value)
    with pytest.raises(ValueError, match="CHAT_KEY must hold the key"):
        HttpChat("https://example.org/v1", "m", key_variable="CHAT_KEY")


def test_a_key_given_in_the_place_of_its_variables_name_is_not_repeated():
    with pytest.raises(ValueError, match="NAME of an environment variable") as caught:
        HttpChat("https://example.org/v1", "m", key_variable=KEY)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("http://example.org/v1", False), ("http://8.8.8.8", False), ("https://example.org/v1", True),
        ("http://gpu01:80", True), ("http://127.0.0.1:8000/v1", True), ("http://[::1]:8000", True),
        ("http://10.1.2.3", True), ("http://box.local", True),
    ],
)  # fmt: skip
def test_a_key_is_sent_in_the_clear_to_private_networks_alone(monkeypatch, url, good):
    monkeypatch.setenv("CHAT_KEY", KEY)
    HttpChat(url, "m")
    if good:
        HttpChat(url, "m", key_variable="CHAT_KEY")
    else:
        with pytest.raises(ValueError, match="take https"):
            HttpChat(url, "m", key_variable="CHAT_KEY")


@pytest.mark.parametrize(
    "url",
    [
        "", "localhost:8000", "ftp://x/v1", "file:///etc/passwd", "http://", "http:///v1", "http://user:pw@x/v1",
        "http://x/v1?key=1", "http://x/#a", "http://x:99999", "http://x:0",
        "http://x y/", "http://x/\r\nA: b", "http://\u00e9/", "http://[/",
    ],
)  # fmt: skip
def test_a_base_url_that_is_none_is_refused_and_no_password_is_repeated(url):
    with pytest.raises(ValueError, match="base URL must be") as caught:
        checked_url(url)
    assert "pw" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_paths_that_people_paste_are_understood():
    urls = ("http://x/v1", "http://x/v1/", "http://x/v1/chat/completions", "http://x/v1/chat/completions/")
    assert {HttpChat(url, "m").base_url for url in urls} == {"http://x/v1"}


@pytest.mark.parametrize(
    "knobs",
    [{"n_threads": 0}, {"extra": {"messages": []}}, {"extra": {"a": float("nan")}}, {"model": ""}, {"model": "a\nb"}],
)
def test_wrong_settings_are_refused(knobs):
    with pytest.raises(ValueError):
        HttpChat(**{"base_url": "http://x", "model": "m"} | knobs)


def test_the_budget_stops_before_the_request_that_does_not_fit(tmp_path):
    with serving(tmp_path, GOOD) as server:
        backend = chat(server, budget=Budget(max_calls=2))
        ask(backend), ask(backend)
        with pytest.raises(ChatError, match="allows 2 calls; 2 calls and 30 tokens are spent"):
            ask(backend)
        assert len(server.requests) == 2
        small = chat(server, budget=Budget(max_tokens=100))
        for text in ("x", "\u00e9" * 40):  # 32 + 1 + 30 fits and takes 15; 32 + 80 + 10 does not: 122 > 100 - 15
            try:
                ask(small, text, max_tokens=30 if text == "x" else 10)
            except ChatError as error:
                assert "15 tokens are spent" in str(error) and "may take 122" in str(error)
        assert len(server.requests) == 3


def test_repeated_attempts_are_calls_and_refused_ones_take_no_tokens(tmp_path):
    with serving(tmp_path, {"do": "status", "status": 500, "times": 2}, GOOD) as server:
        budget = Budget()
        ask(chat(server, budget=budget))
        assert (budget.calls, budget.tokens) == (3, 15)
        dropped = Budget(max_calls=2)
        with serving(tmp_path, {"do": "drop"}) as broken, pytest.raises(ChatError, match="2 calls"):
            ask(chat(broken, budget=dropped), "x", max_tokens=10)
        assert dropped.tokens == 2 * (1 + 32 + 10)  # unknown, so counted at their most


def test_requests_are_checked():
    for knobs in ({"max_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_logprobs": 21}):
        with pytest.raises(ValueError, match="must be between"):
            ChatRequest((Message("user", "x"),), **knobs)
    with pytest.raises(ValueError, match="role"):
        Message("root", "x")
