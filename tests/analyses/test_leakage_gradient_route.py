"""Does the trunk learn for its mask? A model whose mask can be taught to tell the next token, and ones where it cannot.

The planted model: stories are "0 a b a b a b ...", its one attention head looks at the token before, which is the one
that comes next, and copies nothing of it (W_V is 0). What it copies would reach the relevance heads and nothing else:
not the logits, and no neuron. Neurons are always on, each raises the logits of the tokens with one bit in common, and
their weights in the soft mask are all that the ablated stream can tell tokens apart by. Only W_V and the heads learn.
"""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from analyses.leakage.finding import LEAKS, NOTHING
from analyses.leakage.gradient_route import fresh, gradient_route, mean_over_both, retrained, training_rows
from analyses.texts import Stories
from sat_lens.losses import cross_entropy

V, N_CTX, START, BITS = 8, 10, 8, 3
"""Tokens that stories are made of, positions, the id that stories begin with, and bits that name a token."""
LR = 0.1
UNTOLD = 2.75
"""Bits. The token before is one of 7: who does not know it cannot get below log2(7) = 2.81, but for a lucky sample."""


@pytest.fixture
def planted(tiny_model):
    """`planted(readable)`: the model; the heads can read what W_V copies, or cannot."""

    def build(readable: bool = True):
        said, code, place = V + 1, 2 * V + 2, 3 * V + 3
        model = tiny_model(
            ablation={"mask": "global", "k_attn": 1, "k_mlp": BITS, "forward": "soft", "gap_floor": 1.0},
            n_layers=1, n_heads=1, d_head=V + 1, d_model=place + N_CTX, d_mlp=3 * BITS, d_vocab=V + 1,
            n_ctx=N_CTX, act_fn="relu", normalization_type=None, tie_word_embeddings=False,
        )  # fmt: skip
        one = torch.eye(V + 1, dtype=torch.float64)
        looks = torch.zeros(N_CTX, V + 1, dtype=torch.float64)
        classes = (torch.arange(V)[:, None] >> torch.arange(BITS)) & 1  # [token, bit]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.requires_grad_(False).zero_()
            attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
            model.embed.W_E[:, : V + 1] = one
            for pos in range(N_CTX):
                model.pos_embed.W_pos[pos, place + pos] = 1
                looks[pos, pos % (V + 1)] = 1
                attn.W_Q[0, place + pos, max(pos - 1, 0) % (V + 1)] = 60
            attn.W_K[0, place:] = looks
            if readable:
                attn.W_O[0, :, code:place] = one
            mlp.b_in[:] = 1
            mlp.W_out[:BITS, said : said + V] = 4 * (classes.T == 0)
            mlp.W_out[BITS : 2 * BITS, said : said + V] = 4 * (classes.T == 1)
            model.unembed.W_U[said:code] = one
        for parameter in (attn.W_V, *model.gates.parameters()):
            parameter.requires_grad_(True)
        return model

    return build


def stories_of(pairs) -> Stories:
    tokens = torch.tensor([[START, *(pair * N_CTX)][:N_CTX] for pair in pairs])
    return Stories(tokens, torch.full((len(pairs),), N_CTX))


@pytest.fixture
def texts():
    """Stories that are held out, and the batches of 80 steps."""
    pairs = [pair for pair in itertools.product(range(V), repeat=2) if pair[0] != pair[1]]
    order = np.random.default_rng(0).permutation(len(pairs))
    held_out, train = ([pairs[i] for i in chosen] for chosen in (order[:16], order[16:]))
    return stories_of(held_out), training_rows(stories_of(train), steps=80, batch_size=8, length=N_CTX)


def test_a_trunk_that_can_teach_its_mask_to_tell_does_so_where_it_feels_the_gradient(planted, texts):
    model = planted()
    finding = gradient_route(model, *texts, lr=LR, n_draws=4)
    assert finding.value > 0.5 and finding.verdict(finding.p) == LEAKS
    assert finding.ci_low < min(finding.detail["draws"]) and finding.n_stories == 16 and finding.n == 16 * (N_CTX - 1)
    fall, clean, ablated = (finding.detail[name] for name in ("fall", "clean", "ablated"))
    assert fall["open"] - fall["closed"] == pytest.approx(finding.value)
    assert clean["open"] == pytest.approx(clean["before"]), "the clean stream's logits do not see what the head copies"
    assert max(ablated["open"]) < UNTOLD < min(ablated["closed"])


def test_where_heads_cannot_read_what_the_trunk_learns_the_route_is_worth_exactly_nothing(planted, texts):
    finding = gradient_route(planted(readable=False), texts[0], texts[1][:20], lr=LR, n_draws=2)
    assert finding.value == finding.ci_low == finding.ci_high == 0 and finding.verdict(finding.p) == NOTHING
    assert finding.detail["fall"]["open"] != 0, "the heads do learn"


@pytest.fixture
def rows():
    return torch.randint(29, (5, 3, 17), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("mask", ["local", "global"])
@pytest.mark.parametrize("path", ["fused", "hooked"])
def test_the_closed_route_leaves_the_trunk_the_gradient_of_fixed_masks(tiny_model, rows, mask, path, monkeypatch):
    if path == "hooked":
        monkeypatch.setattr("sat_lens.fast.applies", lambda model: False)
    model = tiny_model({"mask": mask, "w_clean": 0.0, "w_ablated": 1.0})
    tokens, targets = rows[0, :, :-1], rows[0, :, 1:]
    model.ablation = dataclasses.replace(model.ablation, detach="trunk")
    trunk = [parameter for name, parameter in model.named_parameters() if not name.startswith("gates.")]
    of_closed = torch.autograd.grad(model.losses(rows[0]).total, [*trunk, *model.gates.parameters()])
    clean = model.clean_stream(tokens)
    fixed = [type(layer)(*(x.detach() for x in layer)) for layer in model.masks_of(clean)]
    of_fixed = torch.autograd.grad(cross_entropy(model.ablated_stream(clean, fixed).logits, targets), trunk)
    for ours, expected in zip(of_closed, of_fixed, strict=False):
        assert torch.allclose(ours, expected, atol=1e-9)
    assert any(x.abs().max() > 1e-6 for x in of_closed[len(trunk) :]), "the heads learn all the same"
    model.ablation = dataclasses.replace(model.ablation, detach="none")
    of_open = torch.autograd.grad(model.losses(rows[0]).total, trunk)
    assert max(float((x - y).abs().max()) for x, y in zip(of_open, of_fixed, strict=True)) > 1e-6


@pytest.mark.parametrize("start", ["trunk", "scratch"])
def test_the_model_and_random_states_stay_and_the_seed_decides(tiny_model, rows, start):
    model = tiny_model({"mask": "global", "gap_floor": 0.5}, dtype=torch.float32)
    held_out = Stories(rows[0, :, :16], torch.tensor([16, 9, 12]))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    np.random.seed(3)
    torch.manual_seed(3)
    states, threads = (torch.get_rng_state(), np.random.get_state()[1].copy()), torch.get_num_threads()
    first, second = (gradient_route(model, held_out, rows, start=start, n_draws=2, seed=4) for _ in range(2))
    assert repr(first) == repr(second) and first.detail["draws"][0] != first.detail["draws"][1] != 0
    assert first.detail["steps"] == 5 and first.detail["start"] == start
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(states[1], np.random.get_state()[1])
    assert threads == torch.get_num_threads() and not model.training and model.ablation.detach == "none"
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_both_arms_begin_alike_and_from_the_models_trunk_or_from_nothing(tiny_model):
    model = tiny_model({"mask": "both"})
    trunk, again, scratch = fresh(model, "trunk", 1), fresh(model, "trunk", 1), fresh(model, "scratch", 1)
    for name, value in model.state_dict().items():
        assert torch.equal(trunk.state_dict()[name], again.state_dict()[name])
        assert torch.equal(trunk.state_dict()[name], value) != name.startswith("gates.")
        assert torch.equal(scratch.state_dict()[name], fresh(model, "scratch", 1).state_dict()[name])
    assert not torch.equal(scratch.embed.W_E, model.embed.W_E) and scratch.ablation == model.ablation
    assert not torch.equal(
        fresh(model, "trunk", 2).gates["global"]["attn"].weight, trunk.gates["global"]["attn"].weight
    )


def test_retraining_is_the_trainers_and_takes_what_it_is_told_to_change(tiny_model, rows):
    model = tiny_model(dtype=torch.float32)
    found = retrained(model, rows, detach="scores", gap_floor=0.25)
    assert found.ablation == dataclasses.replace(model.ablation, detach="scores", gap_floor=0.25)
    assert not found.training and model.ablation.gap_floor == 0
    for name, parameter in found.named_parameters():
        same = torch.equal(parameter, dict(model.named_parameters())[name])
        assert same == name.startswith("gates."), "with scores detached the heads do not learn, and all else does"
    with pytest.raises(ValueError, match="mask cannot change"):
        retrained(model, rows, mask="global")
    with pytest.raises(ValueError, match="k_mlp must be between 1 and the 24"):
        retrained(model, rows, k_mlp=25)


def test_noise_on_scores_is_felt_in_training_and_drawn_from_the_seed(tiny_model, rows):
    model = tiny_model(dtype=torch.float32)
    state = torch.get_rng_state()
    knobs = [{}, {"score_noise": 0.5}, {"score_noise": 0.5}, {"score_noise": 0.5, "seed": 1}]
    weights = [retrained(model, rows, **knob).blocks[0].mlp.W_in for knob in knobs]
    assert torch.equal(weights[1], weights[2]) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[3])
    assert model.ablation.score_noise == 0


def test_a_training_that_diverges_says_so(tiny_model, rows):
    with pytest.raises(ValueError, match="retraining with lr 1e\\+20 diverged; lower lr"):
        retrained(tiny_model(dtype=torch.float32), rows, lr=1e20)


def test_what_cannot_be_asked_is_refused(tiny_model, rows):
    model, held_out = tiny_model(), Stories(rows[0, :, :16], torch.tensor([16, 9, 12]))
    with pytest.raises(ValueError, match="start must be one of trunk, scratch; got 'else'"):
        gradient_route(model, held_out, rows, start="else")
    with pytest.raises(ValueError, match="detach cannot be chosen"):
        gradient_route(model, held_out, rows, detach="none")
    with pytest.raises(ValueError, match="n_draws must be at least 2"):
        gradient_route(model, held_out, rows, n_draws=1)
    with pytest.raises(ValueError, match="needs a row of 17 tokens; these stories have 16"):
        training_rows(Stories(rows[0, :1, :16], torch.tensor([16])), steps=1, batch_size=1, length=17)


def test_training_rows_are_the_stories_one_after_the_other_without_padding():
    """Stories "1 2 3", "4 5", "6 7 8 9" are three rows of 3, each of which comes twice in 6."""
    tokens = torch.tensor([[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 9]])
    found = training_rows(Stories(tokens, torch.tensor([3, 2, 4])), steps=2, batch_size=3, length=3, seed=1)
    assert found.shape == (2, 3, 3)
    for step in found:
        assert sorted(step.tolist()) == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_intervals_over_stories_and_draws_hold_what_they_promise():
    """Crossed effects of draws (s.d. 0.3) and stories (1) and noise (1): true mean inside in about 95 of 100."""
    draw, inside, n = np.random.default_rng(0), 0, 400
    for _ in range(n):
        values = 0.7 + 0.3 * draw.normal(size=(4, 1)) + draw.normal(size=(1, 30)) + draw.normal(size=(4, 30))
        found = mean_over_both(values)
        inside += found["ci_low"] <= 0.7 <= found["ci_high"]
    assert 0.93 < inside / n < 0.995


def test_one_draws_spread_alone_gives_students_interval():
    """Draws at 1, 2, 3 in every story: mean 2, standard error 1/sqrt(3), t of 2 degrees of freedom 4.303."""
    found = mean_over_both(np.repeat([[1.0], [2.0], [3.0]], 5, 1), margin=0.5)
    assert found["value"] == 2 and found["ci_low"] == pytest.approx(2 - 4.302653 / 3**0.5, abs=1e-5)
    assert found["p"] == pytest.approx(0.0607, abs=2e-3)
