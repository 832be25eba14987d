"""ACDC and the incremental runs it stands on, against one whole run for each edge."""

import numpy as np
import pytest
import torch

from analyses.localization.acdc import acdc, fall_from, kl_from
from analyses.localization.increments import CircuitRun
from analyses.localization.parts import Parts
from analyses.localization.runner import contrast, end_logits

HOSTS = {
    "the_papers": {},
    "rms_rotary": {"normalization_type": "RMS", "positional_embedding_type": "rotary", "rotary_dim": 4},
    "grouped": {"n_key_value_heads": 2},
    "parallel": {"parallel_attn_mlp": True},
    "attention_only": {"attn_only": True, "d_mlp": None},
    "three_layers": {"n_layers": 3, "n_heads": 2, "d_head": 8},
    "windows": {"use_local_attn": True, "attn_types": ["global", "local"], "window_size": 3},
}


@pytest.fixture
def contrasts(tiny_model):
    """`contrasts(host)`: two lengths of prompts of a tiny model, and the intact logits of each."""

    def build(host):
        model = tiny_model(ablation={"mask": "none"}, **HOSTS[host])
        parts, generator = Parts(model), torch.Generator().manual_seed(5)
        draw = [[torch.randint(29, (n, pos), generator=generator) for _ in "ab"] for n, pos in ((2, 6), (3, 4))]
        with torch.no_grad():
            return [contrast(parts, *pair) for pair in draw], [model(clean)[:, -1] for clean, _ in draw]

    return build


def naive_acdc(contrasts, metric, tau):
    """One edge at a time, every circuit run whole."""
    graph = contrasts[0].parts.graph
    members = torch.as_tensor(graph.possible)
    costs = np.where(graph.possible, 0.0, np.nan)

    def value(circuit):
        logits = [end_logits(part, circuit[None]) for part in contrasts]
        return torch.cat([metric(part, i) for i, part in enumerate(logits)], -1).mean().item()

    now = value(members)
    for destination in reversed(range(len(graph.destinations))):
        for source in np.flatnonzero(graph.possible[:, destination])[::-1]:
            tried = members.clone()
            tried[source, destination] = False
            then = value(tried)
            costs[source, destination] = then - now
            if then - now < tau:
                members, now = tried, then
    return members.numpy(), costs


@pytest.mark.parametrize("host", sorted(HOSTS))
@pytest.mark.parametrize("guess", [1, 5, 64])
def test_guessing_keeps_the_edges_of_one_edge_at_a_time(contrasts, host, guess):
    runs, intact = contrasts(host)
    metric = kl_from(intact)
    with torch.no_grad():
        for tau in (0.0005, 0.01):
            expected, expected_costs = naive_acdc(runs, metric, tau) if guess == 5 else (None, None)
            found, costs = acdc(runs, metric, tau, guess=guess)
            if expected is None:
                expected, expected_costs = acdc(runs, metric, tau, guess=5)
            assert found.sum() < runs[0].parts.graph.n_edges
            assert found.any() or tau > 0.001
            assert np.array_equal(found, expected)
            assert np.allclose(costs, expected_costs, atol=1e-9, equal_nan=True)


def test_the_fall_of_the_logit_difference_is_a_metric_too(contrasts):
    runs, intact = contrasts("the_papers")
    answers, wrong = ([torch.full((len(x),), i) for x in intact] for i in (3, 4))
    metric = fall_from(intact, answers, wrong)
    assert torch.allclose(metric(intact[0][None], 0), torch.zeros(1, 2, dtype=torch.float64))
    worse = intact[0].clone()
    worse[:, 3] -= 2.5
    assert torch.allclose(metric(worse[None], 0), torch.full((1, 2), 2.5, dtype=torch.float64))
    with torch.no_grad():
        expected, _ = naive_acdc(runs, metric, 0.05)
        assert np.array_equal(acdc(runs, metric, 0.05)[0], expected)


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_an_incremental_run_after_many_cuts_is_a_whole_run(contrasts, host):
    runs, _ = contrasts(host)
    draw = np.random.default_rng(0)
    with torch.inference_mode():
        run = CircuitRun(runs[0])
        for _ in range(12):
            destination = int(draw.integers(len(run.graph.destinations)))
            sources = np.flatnonzero(run.members[:, destination])
            if not len(sources):
                continue
            cut = draw.choice(sources, size=min(2, len(sources)), replace=False)
            tried = run.members.copy()
            tried[cut, destination] = False
            whole = end_logits(runs[0], torch.as_tensor(tried)[None])[0]
            inputs = (run.inputs[destination] - run.moved[cut].sum(0))[None]
            if run.matters(destination):
                assert (run.end_logits(destination, inputs)[0] - whole).abs().max() < 1e-10
            run.take(destination, cut)
            assert np.array_equal(run.members, tried)
            last = len(run.graph.destinations) - 1
            assert (run.end_logits(last, run.inputs[last][None])[0] - whole).abs().max() < 1e-10


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_a_run_can_begin_at_any_circuit(contrasts, host):
    runs, _ = contrasts(host)
    members = np.random.default_rng(1).random(runs[0].parts.graph.possible.shape) < 0.7
    with torch.inference_mode():
        run = CircuitRun(runs[0], members)
        last = len(run.graph.destinations) - 1
        whole = end_logits(runs[0], torch.as_tensor(members)[None])[0]
        assert (run.end_logits(last, run.inputs[last][None])[0] - whole).abs().max() < 1e-10


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_none_is_refused(contrasts, tau):
    runs, intact = contrasts("attention_only")
    with pytest.raises(ValueError, match="tau must be"):
        acdc(runs, kl_from(intact), tau)
