"""Every question leaves model and process as it found them, also when it is stopped, and answers the same twice."""

from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch

from sat_lens import SelfAblatingTransformer, SelfAblation
from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.tokenizers import load_tokenizer

QUESTIONS = {
    "localization, units": "localization --n 4",
    "localization, eap-ig": "localization --method eap-ig --n 4 --steps 2 --no-checks --force",
    "localization, acdc": "localization --method acdc --n 2 --tau 1 --no-checks --force",
    "localization, overlap": "localization --method overlap --n 4",
    "leakage": "leakage --quick --n 6",
    "specialization": "specialization --quick --n 8 --draws 2",
    "explained": "specialization --quick --n 8 --explain",
    "probing": "probing --n 10 --folds 3 --target role --tokens 8",
    "self-repair": "self_repair --tokens 400",
    "self-repair, both streams": "self_repair --tokens 200 --stream both",
    "sparsity": "sparsity --n 4",
}
LONG = ("localization, overlap", "leakage", "probing", "self-repair, both streams")
LONG_ONES_SLOW = [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in QUESTIONS]
MASKED = ("localization, overlap", "leakage", "self-repair, both streams")
"""What asks about masks, and refuses a model without them."""


def asked(question: str, model) -> object:
    """The Result of a question, as its command computes it."""
    name, *flags = QUESTIONS[question].split()
    module = import_module(f"analyses.{name}.__main__")
    return module.analyse(model, module.arguments(["model", *flags, "--quiet"]))


SIZE = {"n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": 4096, "n_ctx": 64}


def config(**changes):
    return HookedTransformerConfig(**SIZE, act_fn="gelu", normalization_type="LN", device="cpu", seed=0, **changes)


def made(kind: str):
    if kind == "plain":
        model = hooked_transformer(config())
    else:
        model = SelfAblatingTransformer(config(), ablation=SelfAblation(mask=kind, k_attn=3, k_mlp=2))
    model.tokenizer = load_tokenizer("stories-4096")
    return model


class Surroundings:
    """What a library call may not change: the process's random states and defaults, and all of the model.

    Python's own `random` is drawn from by the checks of shapes that run in tests.
    """

    def __init__(self, model):
        self.numbers = [torch.get_rng_state(), *(torch.as_tensor(part) for part in np.random.get_state()[1:3])]
        self.settings = (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        )  # fmt: skip
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.parameters = [(name, p.requires_grad, p.grad, p.dtype, p.device) for name, p in model.named_parameters()]
        self.modules = {name: module.training for name, module in model.named_modules()}
        self.hooks = hooks_on(model)

    def assert_same(self, model):
        now = Surroundings(model)
        assert all(map(torch.equal, self.numbers, now.numbers)), "a random state"
        assert self.settings == now.settings
        assert self.weights.keys() == now.weights.keys()
        assert all(torch.equal(value, now.weights[name]) for name, value in self.weights.items()), "a weight"
        assert self.parameters == now.parameters and self.modules == now.modules
        assert self.hooks == now.hooks == []


def hooks_on(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "fwd_hooks", "bwd_hooks")
    return [name for name, module in model.named_modules() if any(getattr(module, kind, None) for kind in kinds)]


class Stopped(BaseException):
    """Raised in the middle of a question."""


def counted_calls(monkeypatch, stop_at=None):
    """Count calls of modules from here on; raise at one of them."""
    original, seen = torch.nn.Module.__call__, [0]

    def call(self, *args, **kwargs):
        seen[0] += 1
        if seen[0] == stop_at:
            raise Stopped
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", call)
    return seen


@pytest.mark.parametrize("question", LONG_ONES_SLOW)
def test_a_question_leaves_everything_as_it_was_and_answers_the_same_twice(question, monkeypatch):
    model = made("local").train()
    model.blocks[0].mlp.W_in.requires_grad_(False)
    model.blocks[1].eval()
    before = Surroundings(model)
    with monkeypatch.context() as patch:
        calls = counted_calls(patch)
        first = asked(question, model)
    before.assert_same(model)
    for share in (0.2, 0.5, 0.9):
        with monkeypatch.context() as patch:
            counted_calls(patch, max(1, int(share * calls[0])))
            with pytest.raises(Stopped):
                asked(question, model)
        before.assert_same(model)
    second = asked(question, model.eval())
    pd.testing.assert_frame_equal(first.table, second.table, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_two_threads_answer_as_one_does(question):
    model = made("global").eval()
    one = asked(question, model).table
    torch.set_num_threads(2)
    try:
        two = asked(question, model).table
    finally:
        torch.set_num_threads(1)
    pd.testing.assert_frame_equal(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_ordinary_model_is_asked_the_same(question):
    model = made("plain").eval()
    if question in MASKED:
        with pytest.raises(ValueError, match="mask") as refused:
            asked(question, model)
        assert "\n" not in str(refused.value)
        return
    before = Surroundings(model)
    assert len(asked(question, model).table) > 0
    before.assert_same(model)


@pytest.mark.slow
@pytest.mark.parametrize("question", ["localization --n 64", "specialization --quick --n 64 --draws 2"])
def test_a_model_wide_enough_for_two_threads_answers_as_on_one(question, monkeypatch):
    """At a width and a number of texts at which matrix products are divided between the threads."""
    monkeypatch.setitem(QUESTIONS, "wide", question)
    torch.manual_seed(0)
    wide = SIZE | {"d_model": 128, "n_heads": 4, "d_head": 32, "d_mlp": 512}
    cfg = HookedTransformerConfig(**wide, act_fn="gelu", normalization_type="LN", device="cpu", seed=0)
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask="local", k_attn=16, k_mlp=64)).eval()
    model.tokenizer = load_tokenizer("stories-4096")
    tables = []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        try:
            tables.append(asked("wide", model).table)
        finally:
            torch.set_num_threads(1)
    pd.testing.assert_frame_equal(*tables, rtol=1e-3, atol=1e-4)
