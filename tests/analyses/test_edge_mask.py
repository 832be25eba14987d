"""Learned edge masks: gates by their formulas, and circuits that are known because they were planted."""

import numpy as np
import pytest
import torch

from analyses.localization.edge_mask import edge_mask, hard_concrete, open_probability
from analyses.localization.setting import setting_of
from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.tasks.encoding import task_from_ids

CIRCUIT = {"input->a0.h1<v>", "a0.h1->a1.h0<v>", "a1.h0->logits"}
FAINT = {"input->logits"}
AGAINST = {"input->a0.h0<v>", "a0.h0->a1.h1<v>", "a1.h1->logits"}


def planted_model():
    """Two layers of three heads that attend evenly; the token is a unit vector, copied from band to band of dims.

    a0.h1 copies band 0 to 1, a1.h0 band 1 to 2 (times 3), and the logits read band 2 and a tenth of band 0.
    a0.h0 copies band 0 to 3, a1.h1 band 3 to 2 times -0.3: it works against. a1.h2 writes where nobody reads.
    """
    cfg = HookedTransformerConfig(
        n_layers=2, n_heads=3, d_model=20, d_head=4, d_vocab=4, n_ctx=5, attn_only=True, normalization_type=None,
        dtype=torch.float64, device="cpu",
    )  # fmt: skip
    model = hooked_transformer(cfg).eval()
    bands = torch.eye(20, dtype=torch.float64).unflatten(0, (5, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E.copy_(bands[0])
        copies = [(0, 1, 0, 1, 1.0), (1, 0, 1, 2, 3.0), (0, 0, 0, 3, 1.0), (1, 1, 3, 2, -0.3), (1, 2, 1, 4, 1.0)]
        for layer, head, read, write, gain in copies:
            model.blocks[layer].attn.W_V[head] = bands[read].T
            model.blocks[layer].attn.W_O[head] = gain * bands[write]
        model.unembed.W_U.copy_((bands[2] + 0.1 * bands[0]).T)
    return model


def planted_setting(value, **knobs):
    clean, corrupt = [[i] * 5 for i in (0, 1, 2, 3)], [[i] * 5 for i in (1, 2, 3, 0)]
    task = task_from_ids("planted", clean, corrupt, [(0, 1), (1, 2), (2, 3), (3, 0)], {}, [])
    return setting_of(planted_model(), task, value=value, **knobs)


def names(setting, members):
    return {setting.graph.edge_name(i, j) for i, j in np.argwhere(members).tolist()}


@pytest.mark.parametrize(
    ("value", "size", "expected"),
    [
        ("kl", 3, CIRCUIT),
        ("kl", 7, CIRCUIT | FAINT | AGAINST),  # what works against is part of what the model does
        ("logit_diff", 3 / 52, CIRCUIT),
        ("logit_diff", 4, CIRCUIT | FAINT),
    ],
)
def test_the_planted_edges_are_found(value, size, expected):
    setting = planted_setting(value)
    assert setting.graph.n_edges == 52  # 9 + 9 * 4 + 7
    scores, members = edge_mask(setting, size=size, steps=200)
    assert names(setting, members) == expected
    assert np.array_equal(np.isnan(scores), ~setting.graph.possible)
    assert scores[members].min() > scores[setting.graph.possible & ~members].max()


def test_what_works_against_the_answer_is_cut_and_what_helps_is_open():
    setting = planted_setting("logit_diff", batch=3)
    scores, _ = edge_mask(setting, size=4, steps=200)
    sign = {name: np.sign(scores[setting.graph.edge(name)]) for name in CIRCUIT | FAINT | AGAINST}
    assert {name for name, of in sign.items() if of > 0} == CIRCUIT | FAINT


def test_as_many_gates_are_open_as_the_formula_says():
    log_alpha = torch.tensor([-4.0, -1.5, 0.0, 0.7, 3.0])
    gates = hard_concrete(log_alpha.repeat(40_000), torch.Generator().manual_seed(0)).unflatten(0, (40_000, 5))
    assert gates.min() == 0 and gates.max() == 1
    expected = open_probability(log_alpha)
    error = (expected * (1 - expected) / 40_000).sqrt()
    assert ((gates > 0).float().mean(0) - expected).abs().div(error).max() < 4
    # z > 0 where s > 1/12, z < 1 where s < 11/12: the one of -log_alpha is the other's of log_alpha
    assert ((gates < 1).float().mean(0) - open_probability(-log_alpha)).abs().max() < 0.01


def test_a_seed_gives_one_mask(tiny_model):
    draw = np.random.default_rng(1)
    rows = [[draw.integers(1, 29, 5).tolist() for _ in range(3)] for _ in "ab"]
    task = task_from_ids("made", *rows, [(1, 2)] * 3, {}, [])
    setting = setting_of(tiny_model(ablation={"mask": "none"}), task, value="kl", frozen_norm=True)
    first, again, other = (edge_mask(setting, size=0.2, steps=5, seed=seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again, equal_nan=True) and not np.array_equal(first, other, equal_nan=True)
    assert all(parameter.grad is None for parameter in setting.parts.model.parameters())


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        *(({"size": size}, "size must be a share") for size in (0, 53, 1.5, -0.1, float("nan"))),
        ({"size": 3, "steps": 0}, "steps and lr must be above 0"),
        ({"size": 3, "lr": 0.0}, "steps and lr must be above 0"),
        ({"size": 3, "warm_up": 2.0}, "warm_up in 0..1"),
    ],
)
def test_what_is_no_mask_is_refused(knobs, said):
    with pytest.raises(ValueError, match=said):
        edge_mask(planted_setting("kl"), **knobs)


def test_too_little_memory_is_said_before_training(monkeypatch):
    setting = planted_setting("kl")
    monkeypatch.setattr("sat_lens.memory.available_bytes", lambda device: 2**10)
    with pytest.raises(ValueError, match="52 edges needs about"):
        edge_mask(setting, size=3)
