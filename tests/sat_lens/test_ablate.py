import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_lens._tl import HookedTransformerConfig, hooked_transformer
from sat_lens.ablate import Ablation, mean, mean_activations, optimal, optimal_constants, other_rows, resample, zero

Z = "blocks.0.attn.hook_z"
POST = "blocks.1.mlp.hook_post"


@pytest.fixture(scope="module")
def model():
    return hooked_transformer(
        HookedTransformerConfig(
            n_layers=2, d_model=8, n_heads=2, d_head=4, d_mlp=6, n_ctx=10, d_vocab=11, act_fn="gelu", seed=0,
            normalization_type="LN", dtype=torch.float64,
        )
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(0, 11, (5, 7), generator=torch.Generator().manual_seed(0))


def test_zero_replaces_by_zero_and_only_the_units_asked_for():
    activation = torch.tensor([[[1.0, 2.0, 3.0]]])
    assert zero().replace(activation).tolist() == [[[0.0, 0.0, 0.0]]]
    assert zero().replace(activation, torch.tensor([False, True, False])).tolist() == [[[1.0, 0.0, 3.0]]]


def test_a_mean_is_the_same_for_every_prompt_and_position():
    replaced = mean(torch.tensor([5.0, 7.0])).replace(torch.zeros(2, 3, 2))
    assert replaced.unique(dim=0).tolist() == [[[5.0, 7.0]] * 3]


def test_resampled_activations_are_taken_row_by_row(model, tokens):
    _, cache = model.run_with_cache(tokens)
    donors = other_rows(len(tokens), seed=1)
    hook = resample(cache[Z][donors]).hook()
    logits = model.run_with_hooks(tokens, fwd_hooks=[(Z, hook)])
    for row, donor in enumerate(donors.tolist()):
        alone = model.run_with_hooks(
            tokens[row : row + 1], fwd_hooks=[(Z, lambda z, hook, d=donor: cache[Z][d : d + 1])]
        )
        assert torch.allclose(alone[0], logits[row])


def test_hooks_leave_no_trace(model, tokens):
    before = model(tokens)
    with model.hooks(fwd_hooks=[(Z, zero().hook()), (POST, zero().hook(torch.arange(6) == 2))]):
        assert not torch.allclose(model(tokens), before)
    assert torch.equal(model(tokens), before)


@given(st.integers(2, 50), st.integers(0, 1000))
def test_no_row_is_its_own_donor_and_each_is_used_once(n, seed):
    donors = other_rows(n, seed)
    assert sorted(donors.tolist()) == list(range(n))
    assert (donors != torch.arange(n)).all()


def test_one_row_has_no_donor():
    with pytest.raises(ValueError, match="at least 2 rows; got 1"):
        other_rows(1)


def test_values_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match=r"mean values must broadcast .* \(1, 1, 3\); got \(2,\)"):
        mean(torch.zeros(2)).replace(torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match="resample values"):
        Ablation("resample", torch.zeros(4, 2, 3)).replace(torch.zeros(1, 2, 3))


def test_streamed_means_are_those_of_a_whole_cache_whatever_the_batch(model, tokens):
    _, cache = model.run_with_cache(tokens)
    for batch in (1, 2, 5):
        means = mean_activations(model, tokens, [Z, POST], batch=batch)
        assert torch.allclose(means[Z], cache[Z].mean((0, 1))) and torch.allclose(means[POST], cache[POST].mean((0, 1)))


def test_means_leave_out_what_is_not_kept(model, tokens):
    keep = torch.arange(7) < torch.tensor([7, 3, 5, 1, 2])[:, None]
    _, cache = model.run_with_cache(tokens)
    assert torch.allclose(mean_activations(model, tokens, [Z], keep=keep, batch=2)[Z], cache[Z][keep].mean(0))
    by_position = mean_activations(model, tokens, [Z], keep=keep, by_position=True)[Z]
    assert torch.allclose(by_position[4], cache[Z][[0, 2], 4].mean(0))  # rows 0 and 2 reach position 4
    assert torch.allclose(by_position[5], cache[Z][0, 5])


def test_a_mean_of_nothing_or_of_a_hook_that_does_not_fire_is_refused(model, tokens):
    with pytest.raises(ValueError, match="at least 1 token"):
        mean_activations(model, tokens, [Z], keep=torch.zeros(5, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="hook_result did not fire"):
        mean_activations(model, tokens, ["blocks.0.attn.hook_result"])
    with pytest.raises(ValueError, match=r"must begin with \[batch pos\]"):
        mean_activations(model, tokens, ["blocks.0.attn.hook_pattern"])


def test_the_optimal_constant_of_a_planted_loss_is_found(model, tokens):
    # the loss is the distance of neuron 3 from 0.7 and of neuron 4 from -0.2, so these are the optimum
    target = torch.tensor([0.0, 0.0, 0.0, 0.7, -0.2, 0.0], dtype=torch.float64)
    units = torch.tensor([False, False, False, True, True, False])
    seen = {}

    def loss():
        with model.hooks(fwd_hooks=[(POST, lambda post, hook: seen.update(post=post))]):
            model(tokens)
        return (seen["post"] - target)[..., 3:5].square().mean()

    start = torch.zeros(6, dtype=torch.float64)
    found = optimal_constants(model, POST, loss, start, units=units, steps=200)
    assert torch.allclose(found, target, atol=1e-2)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_optimal_constants_hurt_the_model_no_more_than_the_means_they_start_from(model, tokens):
    start = mean_activations(model, tokens, [Z])[Z]
    loss = lambda: model(tokens, return_type="loss")  # noqa: E731
    found = optimal_constants(model, Z, loss, start, steps=30)
    with_mean = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(Z, mean(start).hook())])
    with_optimal = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[(Z, optimal(found).hook())])
    assert with_optimal < with_mean - 1e-4


def test_no_steps_return_the_start(model, tokens):
    start = torch.ones(2, 4, dtype=torch.float64)
    found = optimal_constants(model, Z, lambda: model(tokens, return_type="loss"), start, steps=0)
    assert torch.equal(found, start)
    with pytest.raises(ValueError, match="lr above 0"):
        optimal_constants(model, Z, lambda: model(tokens, return_type="loss"), start, lr=0.0)
