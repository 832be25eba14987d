"""Cassettes: what was recorded is played back, alike in everything, and nothing else is."""

import json

import pytest

from analyses.explain.chat import ChatError, ChatReply, ChatRequest, Message, NoReply, OneByOne, TokenLogprob, Usage
from analyses.explain.chat_pool import replies
from analyses.explain.chat_replay import Recording, ReplayChat


class Echo(OneByOne):
    name, n_threads = "http:echo", 4

    def __init__(self, to="echo"):
        self.identity = {"kind": to}

    def answer(self, request):
        text = request.messages[-1].content
        if text == "odd":
            raise NoReply("status 400: it was odd")
        top = (("\ud800", -1.25), ("b", -0.5))
        return ChatReply(text.upper(), (TokenLogprob("b", -0.5, top),), Usage(3, 4), "stop", "raw \x00")


def asked(*texts):
    return [ChatRequest((Message("user", text),), top_logprobs=2) for text in texts]


def outcome(reply):
    return (str(reply),) if isinstance(reply, NoReply) else (reply, reply.raw)


def test_what_is_played_back_is_what_was_answered(tmp_path):
    texts = ["a", "odd", "\u2028\ud800<<x>>", "a", "b"]
    recorded = list(replies(Recording(Echo(), tmp_path / "tape"), asked(*texts)))
    tape = ReplayChat(tmp_path / "tape")
    played = list(replies(tape, asked(*reversed(texts))))
    assert list(map(outcome, played)) == list(map(outcome, reversed(recorded)))
    assert tape.name == "replay:http:echo" and tape.identity["of"] == {"kind": "echo"}
    assert len((tmp_path / "tape").read_text().splitlines()) == 1 + 4


def test_what_was_not_recorded_ends_the_run_in_one_line(tmp_path):
    list(replies(Recording(Echo(), tmp_path / "tape"), asked("a")))
    tape = ReplayChat(tmp_path / "tape")
    for other in (asked("b")[0], ChatRequest((Message("user", "a"),), top_logprobs=3)):
        with pytest.raises(ChatError, match="holds nothing of request") as caught:
            tape.answer(other)
        assert not isinstance(caught.value, NoReply) and "\n" not in str(caught.value)


def test_a_cassette_is_gone_on_with_and_a_line_that_was_cut_off_does_no_harm(tmp_path):
    path = tmp_path / "tape"
    list(replies(Recording(Echo(), path), asked("a", "b")))
    path.write_bytes(path.read_bytes()[:-30])
    list(replies(Recording(Echo(), path), asked("a", "b", "c")))
    tape = ReplayChat(path)
    assert [reply.text for reply in replies(tape, asked("a", "b", "c"))] == ["A", "B", "C"] and tape.n_damaged == 1
    before = path.read_bytes()
    list(replies(Recording(Echo(), path), asked("a", "b", "c")))
    assert path.read_bytes() == before


def test_a_reply_that_comes_later_counts_before_a_missing_one(tmp_path):
    path = tmp_path / "tape"
    list(replies(Recording(Echo(), path), asked("odd")))
    lines = path.read_text().splitlines()
    entry = json.loads(lines[1])
    assert entry["reply"] == "status 400: it was odd"
    entry["reply"] = ChatReply("late").document()
    path.write_text("\n".join([*lines, json.dumps(entry)]) + "\n")
    assert ReplayChat(path).answer(asked("odd")[0]).text == "late"


@pytest.mark.parametrize(
    "change", [{"key": "0" * 64}, {"request": {}}, {"reply": None}, {"reply": {"text": 1}}, {"request": 5}]
)
def test_lines_that_do_not_hold_together_are_not_played(tmp_path, change):
    path = tmp_path / "tape"
    list(replies(Recording(Echo(), path), asked("a", "b")))
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    path.write_text("\n".join(lines) + "\n")
    tape = ReplayChat(path)
    assert tape.n_damaged == 1 and len(tape.entries) == 1


@pytest.mark.parametrize("content", ["", "null", "[]", "x", '{"format": "other"}', "[" * 9999])
def test_a_file_that_is_no_cassette_is_refused(tmp_path, content):
    (tmp_path / "tape").write_text(content)
    with pytest.raises(ValueError, match="must be a cassette"):
        ReplayChat(tmp_path / "tape")


def test_a_cassette_of_another_model_is_not_written_to(tmp_path):
    list(replies(Recording(Echo(), tmp_path / "tape"), asked("a")))
    with pytest.raises(ValueError, match="recorded from 'http:echo', of other settings"):
        Recording(Echo("other"), tmp_path / "tape")
    with pytest.raises(FileNotFoundError):
        ReplayChat(tmp_path / "none")
