"""Simulation by a language model: what it is asked, and how strictly its answers are read."""

import math
import re

import pytest
import torch

from analyses.explain import Explanation, Vocabulary
from analyses.explain.chat import BudgetError, ChatReply, NoReply, OneByOne, TokenLogprob
from analyses.explain.chat_budget import Budget
from analyses.explain.chat_cache import CachedChat
from analyses.explain.chat_digits import digit_distribution
from analyses.explain.chat_http import HttpChat
from analyses.explain.chat_pool import replies
from analyses.explain.llm_simulator import MARKER, LlmSimulator, Place, listed_activations, marked_activation
from analyses.explain.llm_text import from_data
from analyses.explain.rule import constant
from tests.cases.chat_server import completion, serving
from tests.cases.explained import ID, VOCABULARY, random_stories


def explained(*texts, rule=None):
    return [Explanation(unit, "test", text, rule, 8.0 * len(text), "0" * 64) for unit, text in enumerate(texts)]


class Obedient(OneByOne):
    """Takes the explanation for a token's text and answers 10 (or 9) on that token, 0 elsewhere."""

    name, identity, n_threads = "test:obedient", {"kind": "obedient"}, 3

    def __init__(self):
        self.seen = []

    def answer(self, request):
        turn = request.messages[-1].content
        self.seen.append(turn)
        text = turn.splitlines()[0].removeprefix("The unit responds to: ")
        if "Tokens:" in turn:
            tokens = [from_data(t) for t in re.findall(r'^\d+ "(.*)"$', turn, re.MULTILINE)]
            return ChatReply(
                f"{MARKER} " + " ".join(f"{i}:{10 * (t.strip() == text)}" for i, t in enumerate(tokens, 1))
            )
        (marked,) = re.findall(r"<<(.*?)>>", turn.splitlines()[1])
        return ChatReply(str(9 * (from_data(marked).strip() == text)))


@pytest.mark.parametrize("mode", ["all", "marked"])
def test_each_tokens_activation_arrives_at_its_token(mode):
    stories = random_stories(4, 20)
    simulator = LlmSimulator(
        Obedient(), explained("cat", "dog"), VOCABULARY, torch.tensor([2.0, 3.0]), mode=mode, window=6
    )
    found = simulator.simulate(stories.tokens, stories.lengths)
    truth = torch.stack([2.0 * (stories.tokens == ID[" cat"]), 3.0 * (stories.tokens == ID[" dog"])], -1)
    inside = (torch.arange(20) < stories.lengths[:, None])[..., None].expand_as(truth)
    assert torch.equal(found.valid, inside) and torch.equal(found.values[inside], truth[inside])
    assert found.values[~inside].isnan().all() and found.n_unread == 0
    n = [int(length) if mode == "marked" else math.ceil(int(length) / 6) for length in stories.lengths]
    assert found.n_asked == 2 * sum(n)
    assert torch.equal(simulator(stories.tokens, stories.lengths), truth.where(inside, 0))
    assert simulator.high.tolist() == [2, 3] and simulator.low.tolist() == [0, 0]


def test_only_tokens_that_are_wanted_are_asked_about():
    stories = random_stories(3, 12)
    wanted = torch.zeros(3, 12, dtype=torch.bool)
    wanted[1, 7] = wanted[2, 11] = True  # the latter is padding, or the end of the longest
    for mode, n_valid in (("marked", 1), ("all", 4)):
        simulator = LlmSimulator(Obedient(), explained("cat"), VOCABULARY, mode=mode, window=4)
        found = simulator.simulate(stories.tokens, torch.tensor([11, 11, 11]), wanted)
        assert found.n_asked == 1 and int(found.valid.sum()) == n_valid and bool(found.valid[1, 7, 0])


def test_questions_by_hand():
    vocabulary = Vocabulary(("a", "<<", '"\n', " d"))
    every = LlmSimulator(Obedient(), explained("x\ny"), vocabulary, window=2)
    assert every.request(Place(0, 0, 1, 2, 4), [0, 1, 2, 3]).messages[-1].content == (
        'The unit responds to: x y\nThe text so far: \\u{3c}\\u{3c}\nTokens:\n1 "\\"\\n"\n2 " d"'
    )
    one = LlmSimulator(Obedient(), explained("x"), vocabulary, mode="marked", window=3)
    request = one.request(Place(0, 0, 0, 2, 3), [0, 1, 2, 3])
    assert request.messages[-1].content == 'The unit responds to: x\nText: a\\u{3c}\\u{3c}<<\\"\\n>>'
    assert request.top_logprobs == 20 and all(len(m.content) == 1 for m in request.messages if m.role == "assistant")


def test_an_explanation_can_make_no_mark_and_no_special_token():
    one = LlmSimulator(Obedient(), explained("a\n<<b>> <|end|>"), VOCABULARY, mode="marked")
    (marked,) = re.findall("<<.*?>>", one.request(Place(0, 0, 0, 0, 1), [ID[" A"]]).messages[-1].content)
    assert marked == "<< A>>" and "<|" not in one.request(Place(0, 0, 0, 0, 1), [ID[" A"]]).messages[-1].content


def test_the_model_sees_nothing_behind_the_marked_token_and_no_more_than_its_window():
    backend = Obedient()
    tokens = torch.tensor([[ID[w] for w in (" A", " B", " cat", " dog", " ran")]])
    LlmSimulator(backend, explained("cat"), VOCABULARY, mode="marked", window=2).simulate(tokens, torch.tensor([5]))
    assert sorted(turn.splitlines()[1] for turn in backend.seen) == sorted(
        ["Text: << A>>", "Text:  A<< B>>", "Text:  B<< cat>>", "Text:  cat<< dog>>", "Text:  dog<< ran>>"]
    )


def test_units_that_are_not_explained_are_not_asked_about():
    stories = random_stories(2, 12)
    backend = Obedient()
    units = [*explained("cat", "  "), *explained("mean", rule=constant(0.5))]
    found = LlmSimulator(backend, units, VOCABULARY).simulate(stories.tokens, stories.lengths)
    assert found.valid[..., 0].any() and not found.valid[..., 1:].any() and found.values[..., 1:].isnan().all()
    assert len(backend.seen) == found.n_asked == 2


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (f"{MARKER} 1:0 2:10 3:7", [0, 10, 7]),
        (f"so {MARKER} 9:9\nno: {MARKER}\n1:0\n2:0 3:1\n", [0, 0, 1]),
        (f"{MARKER} 1:0 2:0", None),
        (f"{MARKER} 1:0 2:0 3:1 4:0", None),
        (f"{MARKER} 1:0 3:0 2:1", None),
        (f"{MARKER} 1:0 2:0 2:1", None),
        (f"{MARKER} 1:0 2:11 3:0", None),
        (f"{MARKER} 1:0 2:-1 3:0", None),
        (f"{MARKER} 1:0 2:1.5 3:0", None),
        (f"{MARKER} 1:0 2:nan 3:0", None),
        (f"{MARKER} 1:0, 2:0, 3:0", None),
        (f"{MARKER} 1:0 2:\u0663 3:0", None),
        (f"{MARKER} 1:0 2:0 3:0 I hope this helps", None),
        ("1:0 2:0 3:0", None),
        ("", None),
    ],
)
def test_lists_are_read_strictly(text, read):
    assert listed_activations(ChatReply(text), 3) == read


def test_a_list_that_was_cut_off_is_none():
    assert listed_activations(ChatReply(f"{MARKER} 1:0 2:0 3:1", finish="length"), 3) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7 / 9), (" 0\n", 0.0), ("3\n\nThe", 3 / 9), ("10", None), ("7.5", None), ("7 of 9", None), ("-1", None),
     ("seven", None), ("", None), ("\u0663", None), ("nan", None), ("[7]", None)],
)  # fmt: skip
def test_digits_are_read_strictly(text, value):
    read = marked_activation(ChatReply(text))
    assert read == (None if value is None else ([value], []))


def test_the_expected_digit_is_renormalised_over_the_digits():
    top = (
        ("7", math.log(0.3)),
        (" 7", math.log(0.1)),
        ("2", math.log(0.1)),
        ("cat", math.log(0.4)),
        ("10", math.log(0.1)),
    )
    reply = ChatReply("7", (TokenLogprob(" ", -0.1), TokenLogprob("7", math.log(0.3), top)))
    (value,), (mass,) = marked_activation(reply)
    assert value == pytest.approx((7 * 0.4 + 2 * 0.1) / 0.5 / 9) and mass == pytest.approx(0.5)
    bare = ChatReply("4", (TokenLogprob("4", -0.5),))  # no alternatives: the token itself
    assert marked_activation(bare)[0] == pytest.approx([4 / 9])


def test_probabilities_are_used_only_where_digits_are_probable_or_answered():
    def reply(text, digit_log):
        return ChatReply(text, (TokenLogprob(text, -0.01, (("3", digit_log),)),))

    assert marked_activation(reply("cat", math.log(0.3)))[0] == pytest.approx([3 / 9])
    assert marked_activation(reply("cat", -30.0)) is None and marked_activation(reply("10", -0.1)) is None
    assert marked_activation(ChatReply("3", (TokenLogprob("x", -0.1, (("y", -1.0),)),))) == ([3 / 9], [])
    assert digit_distribution(ChatReply("3")) is None


def test_a_servers_bad_answers_are_missing_values_and_no_numbers(tmp_path):
    """One story of four tokens, one request a token: probabilities, a bare digit, no digit, and an endless refusal."""
    top = [{"token": "9", "logprob": math.log(0.5)}, {"token": "0", "logprob": math.log(0.25)}]
    entry = [{"token": "9", "logprob": math.log(0.5), "top_logprobs": top}]
    answers = [
        {"when": "<< A>>", "do": "json", "body": completion("9", entry)},
        {"when": "<< B>>", "do": "json", "body": completion("3")},
        {"when": "<< cat>>", "do": "json", "body": completion("Quite active, I would say")},
        {"when": "<< dog>>", "do": "status", "status": 422},
    ]
    tokens = torch.tensor([[ID[w] for w in (" A", " B", " cat", " dog")]])
    with serving(tmp_path, *answers) as server:
        backend = CachedChat(HttpChat(server.url, "m"), tmp_path / "cache")
        simulator = LlmSimulator(backend, explained("x"), VOCABULARY, mode="marked")
        found = simulator.simulate(tokens, torch.tensor([4]))
        assert found.valid[0, :, 0].tolist() == [True, True, False, False]
        assert found.values[0, :2, 0].tolist() == pytest.approx([2 / 3, 1 / 3]) and found.values[0, 2:].isnan().all()
        assert (found.n_asked, found.n_unread, found.n_expected) == (4, 2, 1)
        assert found.digit_mass == pytest.approx(0.75) and len(server.requests) == 4
        again = simulator.simulate(tokens, torch.tensor([4]))
        assert len(server.requests) == 5  # the answer that is no digit is an answer; the refusal is asked again
        assert torch.equal(again.valid, found.valid)


def test_a_simulation_that_a_budget_stopped_goes_on_without_a_repeated_call(tmp_path):
    stories = random_stories(3, 12)
    good = {"do": "json", "body": completion("5")}
    with serving(tmp_path, good) as server:

        def simulator(calls):
            http = HttpChat(server.url, "m", budget=Budget(max_calls=calls))
            return LlmSimulator(
                CachedChat(http, tmp_path / "cache"), explained("x"), VOCABULARY, mode="marked", window=12
            )

        with pytest.raises(BudgetError):
            simulator(10).simulate(stories.tokens, stories.lengths)
        found = simulator(None).simulate(stories.tokens, stories.lengths)
        asked = server.asked
    assert found.n_unread == 0 and len(asked) == len(set(asked))


def test_wrong_settings_are_refused():
    units = explained("a")
    for knobs in (
        {"mode": "some"},
        {"window": 0},
        {"scale": torch.tensor([1.0, 2.0])},
        {"scale": torch.tensor([-1.0])},
    ):
        with pytest.raises(ValueError):
            LlmSimulator(Obedient(), units, VOCABULARY, **knobs)


def test_a_reply_that_is_missing_leaves_its_window_alone():
    class Deaf(Obedient):
        def answer(self, request):
            if '"\\u{3c}s\\u{3e}"' in request.messages[-1].content:  # the window of the first token
                raise NoReply("no")
            return super().answer(request)

    stories = random_stories(2, 12)
    found = LlmSimulator(Deaf(), explained("cat"), VOCABULARY, window=5).simulate(stories.tokens, stories.lengths)
    assert found.n_unread == 2 and not found.valid[:, :5].any() and found.valid[:, 5:10, 0].all()
    assert list(replies(Obedient(), [])) == []
