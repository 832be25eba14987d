"""Many requests: kept on disk, asked once, in order, within a budget, and gone on with after an interrupt."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter

import pytest

from analyses.explain.chat import BudgetError, ChatError, ChatReply, ChatRequest, Message, NoReply, OneByOne, reply_of
from analyses.explain.chat_budget import Budget, most_tokens
from analyses.explain.chat_cache import CachedChat
from analyses.explain.chat_http import HttpChat
from analyses.explain.chat_pool import replies
from analyses.explain.chat_wire import Limits
from tests.cases.chat_server import completion, serving

QUICK = Limits(connect_s=2, read_s=9, total_s=9, retries=2, backoff_s=0.001, longest_wait_s=0.2)
GOOD = {"do": "json", "body": completion("fine")}


def requests(n):
    return [ChatRequest((Message("user", f"request {i}."),)) for i in range(n)]


class Echo(OneByOne):
    """Answers with the question, and notes who asked what."""

    name, n_threads = "echo", 4

    def __init__(self, delay=0.0, wrong=(), fatal=None):
        self.identity, self.asked, self.delay, self.wrong, self.fatal = {"kind": "echo"}, [], delay, wrong, fatal
        self.at_once, self.most_at_once, self.lock = 0, 0, threading.Lock()

    def answer(self, request):
        text = request.messages[-1].content
        with self.lock:
            self.asked.append(text)
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
        time.sleep(self.delay)
        with self.lock:
            self.at_once -= 1
        if text in self.wrong:
            raise NoReply("none")
        if text == self.fatal:
            raise ChatError("no more")
        return ChatReply(text.upper())


def test_replies_come_in_order_whatever_their_speed_and_no_more_threads_than_allowed():
    echo = Echo(delay=0.005, wrong=("request 3.",))
    found = list(replies(echo, iter(requests(30)), 30))
    expected = ["none" if i == 3 else f"REQUEST {i}." for i in range(30)]
    assert [str(reply) if isinstance(reply, NoReply) else reply.text for reply in found] == expected
    assert sorted(echo.asked) == sorted(r.messages[0].content for r in requests(30)) and 2 <= echo.most_at_once <= 4


def test_requests_are_read_as_they_are_needed():
    read = []
    endless = (read.append(i) or ChatRequest((Message("user", str(i)),)) for i in range(10**9))
    answers = replies(Echo(), endless)
    assert [next(answers).text for _ in range(3)] == ["0", "1", "2"]
    answers.close()
    assert len(read) < 40


def test_an_error_that_ends_the_run_ends_it_soon():
    echo = Echo(fatal="request 2.")
    with pytest.raises(ChatError, match="no more"):
        list(replies(echo, requests(1000)))
    assert len(echo.asked) < 40


def test_nothing_is_asked_twice(tmp_path):
    echo = Echo()
    first = list(replies(CachedChat(echo, tmp_path), requests(5)))
    again = CachedChat(echo, tmp_path)
    assert list(replies(again, requests(6)))[:5] == first and len(echo.asked) == 6
    assert (again.n_hits, again.n_asked) == (5, 1)


def test_equal_requests_at_one_time_are_asked_once(tmp_path):
    echo = Echo(delay=0.05)
    cached = CachedChat(echo, tmp_path)
    found = list(replies(cached, requests(1) * 8))
    assert len(echo.asked) == 1 and {reply.text for reply in found} == {"REQUEST 0."}
    assert [r.text for r in cached.answers(requests(1) * 3 + requests(2))] == ["REQUEST 0."] * 4 + ["REQUEST 1."]
    assert len(echo.asked) == 2


def test_requests_without_a_reply_are_asked_again(tmp_path):
    echo = Echo(wrong=("request 0.",))
    cached = CachedChat(echo, tmp_path)
    for _ in range(2):
        with pytest.raises(NoReply):
            cached.chat(requests(1)[0].messages)
    assert len(echo.asked) == 2 and not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "change", [{"max_tokens": 7}, {"temperature": 1}, {"top_logprobs": 3}, {"text": "b"}, {"to": "x"}]
)
def test_the_key_holds_everything_that_a_reply_depends_on(change):
    def key(text="a", to="echo", **knobs):
        return ChatRequest((Message("user", text),), **knobs).key({"kind": to})

    assert key() == key() and key(**change) != key() and len(key()) == 64
    assert key(temperature=1) == key(temperature=1.0)


def test_the_key_does_not_confuse_what_stands_where():
    one = ChatRequest((Message("user", "a"), Message("user", "b")))
    other = ChatRequest((Message("user", 'a"}, {"role": "user", "content": "b'),))
    assert one.key() != other.key()


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"\xff\xfe", b"null", b"[]", b'{"format": "other"}', b"[" * 100_000, None,
        {"request": {}}, {"asked": {}}, {"reply": None}, {"reply": {"text": 5}}, {"format": 2},
    ],
    ids=lambda damage: str(damage)[:24],
)  # fmt: skip
def test_damaged_entries_are_asked_again_and_replaced(tmp_path, damage):
    echo = Echo()
    cached = CachedChat(echo, tmp_path)
    list(replies(cached, requests(1)))
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_bytes()
    if isinstance(damage, dict):
        path.write_text(json.dumps(json.loads(whole) | damage))
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert next(iter(replies(cached, requests(1)))).text == "REQUEST 0." and len(echo.asked) == 2
    assert path.read_bytes() == whole and [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_a_cache_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="must be a folder"):
        CachedChat(Echo(), tmp_path / "file")


def test_replies_survive_json_exactly():
    entry = [{"token": "\ud800", "logprob": -0.1, "top": [["a\x00", -1.5], ["b", 0.0]]}]
    document = {
        "text": "\ud800\u2028<b>",
        "finish": "",
        "raw": "",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }
    reply = reply_of(document | {"token_logprobs": entry})
    assert reply.token_logprobs[0].top == (("a\x00", -1.5), ("b", 0.0))
    assert reply_of(json.loads(json.dumps(reply.document()))) == reply


def test_the_raw_reply_is_kept_and_the_key_is_not(tmp_path, monkeypatch):
    key = "sk-9f8e7d6c5b4a-very-secret"
    monkeypatch.setenv("CHAT_KEY", key)
    with serving(tmp_path, {"do": "leak"}) as server:
        cached = CachedChat(HttpChat(server.url, "m", key_variable="CHAT_KEY", limits=QUICK), tmp_path / "cache")
        list(replies(cached, requests(2)))
    files = [p.read_text() for p in (tmp_path / "cache").rglob("*.json")]
    assert len(files) == 2 and not any(key in file or "very-secret" in file for file in files)
    assert all("chat.completion" in json.loads(file)["reply"]["raw"] for file in files)


def interrupted_after(seconds, backend, n, times=1):
    """Go through n requests, and get a SIGINT on the way; replies that came."""
    timers = [threading.Timer(seconds + 0.1 * i, os.kill, (os.getpid(), signal.SIGINT)) for i in range(times)]
    found = []
    try:
        for timer in timers:
            timer.start()
        for reply in replies(backend, requests(n)):
            found.append(reply)
    finally:
        for timer in timers:
            timer.join()
    return found


def test_an_interrupted_run_goes_on_without_a_repeated_call(tmp_path):
    with serving(tmp_path, GOOD | {"after": 0.1}) as server:
        backend = CachedChat(HttpChat(server.url, "m", limits=QUICK), tmp_path / "cache")
        with pytest.raises(KeyboardInterrupt):
            interrupted_after(0.45, backend, 40)
        first = len(server.asked)
        assert 4 <= first < 40
        assert [reply.text for reply in replies(backend, requests(40))] == ["fine"] * 40
        assert set(Counter(server.asked).values()) == {1} and len(server.asked) == 40
        assert backend.n_asked == 40, "what was given up unsent is not counted"


def test_a_second_interrupt_breaks_off_what_is_under_way(tmp_path):
    slow = Limits(read_s=20, total_s=20, retries=0)
    with serving(tmp_path, GOOD | {"after": 15}) as server:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            interrupted_after(0.2, HttpChat(server.url, "m", limits=slow), 8, times=2)
        for thread in threading.enumerate():
            if thread.name.startswith("chat"):
                thread.join(3)
                assert not thread.is_alive()
        assert time.monotonic() - began < 10 and len(server.asked) == 4


def test_an_interrupt_ends_the_wait_before_another_attempt(tmp_path):
    waits = Limits(retries=5, backoff_s=30.0, longest_wait_s=60.0)
    with serving(tmp_path, {"do": "status", "status": 500}) as server:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            interrupted_after(0.3, HttpChat(server.url, "m", limits=waits), 8)
        assert time.monotonic() - began < 10 and len(server.asked) == 4


def test_a_killed_run_goes_on_and_repeats_only_what_was_under_way(tmp_path):
    with serving(tmp_path, GOOD | {"after": 0.05}) as server:

        def backend():
            return CachedChat(HttpChat(server.url, "m", n_threads=2, limits=QUICK), tmp_path / "cache")

        child = multiprocessing.get_context("fork").Process(target=lambda: list(replies(backend(), requests(30))))
        child.start()
        while len(server.asked) < 8:
            time.sleep(0.01)
        child.kill()
        child.join()
        assert [reply.text for reply in replies(backend(), requests(30))] == ["fine"] * 30
        counts = Counter(server.asked)
        assert len(counts) == 30 and sum(count - 1 for count in counts.values()) <= 2


def test_a_budget_that_is_used_up_loses_nothing_and_the_next_run_goes_on(tmp_path):
    with serving(tmp_path, GOOD | {"after": 0.02}) as server:

        def run(calls):
            http = HttpChat(server.url, "m", limits=QUICK, budget=Budget(max_calls=calls))
            return [reply.text for reply in replies(CachedChat(http, tmp_path / "cache"), requests(10))]

        with pytest.raises(BudgetError, match="allows 6 calls"):
            run(6)
        assert len(server.asked) == 6 and len(list((tmp_path / "cache").rglob("*.json"))) == 6
        assert run(4) == ["fine"] * 10
        assert set(Counter(server.asked).values()) == {1}
        assert run(0) == ["fine"] * 10


def test_a_request_waits_for_what_others_leave_of_the_budget(tmp_path):
    one = most_tokens(requests(1)[0])
    budget = Budget(max_tokens=one + 60)  # the most that one takes, and four answers of 15
    with serving(tmp_path, GOOD | {"after": 0.02}) as server:
        http = HttpChat(server.url, "m", limits=QUICK, budget=budget)
        with pytest.raises(BudgetError, match="75 tokens are spent"):
            list(replies(http, requests(10)))
        assert len(server.asked) == 5  # after four answers one more fits, and then none
        assert budget.tokens == 75 <= budget.max_tokens


def test_the_most_that_a_request_takes_is_counted_in_bytes():
    assert most_tokens(ChatRequest((Message("user", "\u00e9" * 10),), max_tokens=7)) == 20 + 2 * 16 + 7


def test_a_budget_below_nothing_is_refused():
    with pytest.raises(ValueError, match="max_calls must be 0 or more"):
        Budget(max_calls=-1)
