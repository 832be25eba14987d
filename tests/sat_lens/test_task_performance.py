"""How well a model does a task, on models of which it is known."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from sat_lens.tasks import Task, load_task
from sat_lens.tasks.performance import Performance, performance, require_solved
from sat_lens.tokenizers import load_tokenizer


class Rule(torch.nn.Module):
    """A model whose logits at the last token are a function of a row of ids."""

    def __init__(self, rule, d_vocab=4096, n_ctx=64):
        super().__init__()
        self.rule, self.cfg = rule, SimpleNamespace(d_vocab=d_vocab, n_ctx=n_ctx, device="cpu")

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, self.cfg.d_vocab)
        logits[:, -1] = torch.stack([self.rule(row) for row in tokens.tolist()])
        return logits


def looks_back(row):
    """Logit 1 for each id that followed an earlier occurrence of the last one."""
    logits = torch.zeros(4096)
    for i in range(len(row) - 1):
        if row[i] == row[-1]:
            logits[row[i + 1]] = 1.0
    return logits


def always_the_same(row):
    return torch.randn(4096, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def induction():
    return {
        c: load_task("induction", load_tokenizer("stories-4096"), n=40, corrupt=c) for c in ("fresh", "swap", "match")
    }


@pytest.mark.parametrize(("corrupt", "left"), [("fresh", 0.0), ("swap", -1.0), ("match", 0.0)])
def test_a_model_that_looks_back_solves_induction(corrupt, left, induction):
    found = performance(Rule(looks_back), induction[corrupt], batch=7)
    assert (found.accuracy, found.informed, found.logit_diff, found.corrupt_logit_diff) == (1, 1, 1, left)
    assert found.loss_nats == pytest.approx(torch.tensor(1 + 4095 / torch.e).log().item())  # one logit is 1, the rest 0
    assert found.solved and found.summary()["solved"] and found.summary()["name"] == "induction"
    require_solved(found)


def test_a_model_that_never_looks_is_right_in_half_and_informed_in_none(induction):
    found = performance(Rule(always_the_same), induction["swap"])
    assert (found.accuracy, found.informed, found.solved) == (0.5, 0.0, False)
    with pytest.raises(ValueError, match=r"at chance on induction: accuracy 0.50 \(0.35 to 0.65, n 40\)"):
        require_solved(found)
    require_solved(found, forced=True)


def test_a_preference_for_later_years_is_no_greater_than():
    tokenizer = load_tokenizer("stories-4096")
    digits = torch.zeros(4096)
    for digit in range(10):
        digits[tokenizer.convert_tokens_to_ids(str(digit))] = digit
    found = performance(Rule(lambda row: digits), load_task("greater_than", tokenizer, n=30))
    assert (found.accuracy, found.informed, found.solved) == (1.0, 0.0, False)
    with pytest.raises(ValueError, match="not for what the counterfactual changes.* 0.00 .*n 30.*--force") as caught:
        require_solved(found)
    assert "\n" not in str(caught.value)


def known(**changes):
    shares = {"accuracy": 0.52, "accuracy_low": 0.44, "accuracy_high": 0.6}
    informed = {"informed": 0.9, "informed_low": 0.8, "informed_high": 0.95}
    fields = {"name": "induction", "stream": "clean", "n": 128, "logit_diff": 0.0, "corrupt_logit_diff": 0.0}
    return Performance(**{**fields, **shares, **informed, "loss_nats": 1.0} | changes)


def test_the_refusal_is_one_line_with_the_figure():
    with pytest.raises(ValueError) as caught:
        require_solved(known())
    assert str(caught.value) == (
        "the model is at chance on induction: accuracy 0.52 (0.44 to 0.60, n 128); a circuit of it means nothing; "
        "pass --force to go on"
    )
    with pytest.raises(ValueError, match="the ablated stream of the model is below chance"):
        require_solved(known(stream="ablated", accuracy=0.3, accuracy_low=0.2, accuracy_high=0.4))


def random_task(n=9, seed=0):
    """Prompts of 3 to 6 ids of 29."""
    draw = torch.Generator().manual_seed(seed)
    ends = torch.randint(2, 6, (n,), generator=draw)
    clean, corrupt = (torch.randint(29, (n, 6), generator=draw) for _ in range(2))
    answers = torch.randint(29, (n,), generator=draw)
    return Task("random", clean, corrupt, answers, (answers + 1) % 29, {"end": ends})


@pytest.mark.parametrize("stream", ["clean", "ablated"])
def test_each_stream_is_measured_as_prompt_by_prompt(stream, tiny_model):
    model, task = tiny_model(), random_task()
    found = performance(model, task, stream=stream, batch=2)
    diffs, losses = {"clean": [], "corrupt": []}, []
    for i, length in enumerate(task.lengths.tolist()):
        for kind in diffs:
            with torch.no_grad():
                logits = model(getattr(task, kind)[i : i + 1, :length], stream=stream)[0, -1]
            diffs[kind].append((logits[task.answers[i]] - logits[task.wrong_answers[i]]).item())
            if kind == "clean":
                losses.append(-logits.log_softmax(-1)[task.answers[i]].item())
    right = sum(d > 0 for d in diffs["clean"])
    moved = sum(c > d for c, d in zip(diffs["clean"], diffs["corrupt"], strict=True))
    assert (found.n, found.stream, found.accuracy, found.informed) == (9, stream, right / 9, moved / 9)
    means = [sum(values) / 9 for values in (diffs["clean"], diffs["corrupt"], losses)]
    assert [found.logit_diff, found.corrupt_logit_diff, found.loss_nats] == pytest.approx(means, abs=1e-12)
    interval = stats.binomtest(right, 9).proportion_ci(0.95, method="wilson")
    assert (found.accuracy_low, found.accuracy_high) == pytest.approx((interval.low, interval.high), abs=1e-4)


def test_the_streams_of_a_model_differ(tiny_model):
    model, task = tiny_model(), random_task()
    assert performance(model, task) != dataclasses.replace(performance(model, task, stream="ablated"), stream="clean")


def test_a_plain_transformer_has_the_clean_stream_alone(tiny_config):
    from sat_lens._tl import HookedTransformer

    plain = HookedTransformer(tiny_config())
    assert performance(plain, random_task()).n == 9
    for stream in ("ablated", "both"):
        with pytest.raises(ValueError, match=f"stream must be clean for this model; got '{stream}'"):
            performance(plain, random_task(), stream=stream)


@pytest.mark.parametrize(
    ("changes", "batch", "message"),
    [
        ({"clean": torch.full((9, 6), 29)}, 64, "below the model's 29"),
        ({}, 0, "batch must be at least 1 prompt; got 0"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(changes, batch, message, tiny_model):
    with pytest.raises(ValueError, match=message):
        performance(tiny_model(), dataclasses.replace(random_task(), **changes), batch=batch)


def test_prompts_longer_than_the_context_are_refused(tiny_model):
    with pytest.raises(ValueError, match="context of 4 tokens; the longest has 6"):
        performance(tiny_model(n_ctx=4), random_task())
