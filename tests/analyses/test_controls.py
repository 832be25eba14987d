"""Controls: chance is chance, and magnitude is what a loop over prompts and positions says."""

import numpy as np
import pytest
import torch

from analyses.localization import controls
from analyses.localization.controls import magnitude, random_scores
from analyses.localization.setting import setting_of
from sat_lens.tasks.encoding import task_from_ids
from tests.cases.architectures import HOSTS


@pytest.fixture
def setting(tiny_model):
    """`setting(host, swapped=False)`; `swapped`: right and wrong answers change places."""

    def build(host="the_papers", swapped=False, **knobs):
        draw = np.random.default_rng(0)
        rows = [[draw.integers(1, 29, n).tolist() for n in (6, 4, 6)] for _ in range(2)]
        answers = [(i + 9, i + 1) if swapped else (i + 1, i + 9) for i in range(3)]
        task = task_from_ids("made", *rows, answers, {}, [])
        return setting_of(tiny_model(ablation={"mask": "none"}, **HOSTS[host]), task, **knobs)

    return build


def test_random_scores_are_uniform_distinct_and_of_their_seed(setting):
    made = setting()
    first, again, other = (random_scores(made, seed=seed) for seed in (0, 0, 1))
    possible = made.graph.possible
    assert np.array_equal(first, again, equal_nan=True) and not np.array_equal(first, other, equal_nan=True)
    assert np.array_equal(np.isnan(first), ~possible)
    many = np.concatenate([random_scores(made, seed=seed)[possible] for seed in range(20)])
    assert len(np.unique(many)) == len(many)
    assert np.abs(np.sort(many) - np.linspace(0, 1, len(many))).max() < 0.05  # Kolmogorov-Smirnov at 2,000 draws


def linear_part(norm, x, d):
    """What the norm makes of d when it divides by the scale of x, by numerical differentiation of a frozen scale."""
    if isinstance(norm, torch.nn.Identity):
        return d
    layer = "LayerNorm" in type(norm).__name__
    centred, moved = (v - v.mean() if layer else v for v in (x, d))
    return moved / (centred.square().mean() + norm.eps).sqrt() * norm.w


def weights_of(model, destination):
    """Norm and weights of a destination, as TransformerLens names them."""
    if destination.kind == "logits":
        W_U = model.unembed.W_U
        return getattr(model, "ln_final", torch.nn.Identity()), W_U - W_U.mean(1, keepdim=True)
    block = model.blocks[destination.layer]
    if destination.kind == "mlp":
        gate = [block.mlp.W_gate] if model.cfg.gated_mlp else []
        return block.ln2, torch.cat([*gate, block.mlp.W_in], 1)
    W = getattr(block.attn, f"W_{destination.qkv.upper()}")
    shared = 1 if destination.qkv == "q" else model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
    return block.ln1, W[destination.head * shared]


@pytest.mark.parametrize("host", sorted(HOSTS))
def test_magnitude_is_the_share_of_what_is_read(setting, host):
    made = setting(host)
    graph, found = made.graph, magnitude(made)
    assert np.array_equal(np.isnan(found), ~graph.possible)
    with torch.no_grad():
        for i, j in np.argwhere(graph.possible)[::9].tolist():
            norm, W = weights_of(made.parts.model, graph.destinations[j])
            moved, read = 0.0, 0.0
            for group in made.groups:
                x = group.contrast.clean_input(j)
                d = group.contrast.clean[i] - group.contrast.other[i]
                for row in range(x.shape[0]):
                    for pos in [x.shape[1] - 1] if graph.destinations[j].kind == "logits" else range(x.shape[1]):
                        moved += (linear_part(norm, x[row, pos], d[row, pos]) @ W).square().sum().item()
                        read += (linear_part(norm, x[row, pos], x[row, pos]) @ W).square().sum().item()
            assert abs(found[i, j] - (moved / read) ** 0.5) < 1e-10


def test_magnitude_does_not_know_the_answers(setting):
    one, other = setting(), setting(swapped=True)
    assert not np.allclose(one.intact_values, other.intact_values)
    assert np.array_equal(magnitude(one), magnitude(other), equal_nan=True)


def test_a_destination_that_reads_nothing_scores_zero(setting):
    made = setting()
    with torch.no_grad():
        made.parts.model.blocks[1].attn.W_K[2] = 0.0
    found = magnitude(made)
    unread = made.graph.destination_index["a1.h2<k>"]
    assert (found[made.graph.possible[:, unread], unread] == 0).all()
    assert np.nanmin(found[:, made.graph.destination_index["a1.h1<k>"]]) > 0


def test_one_source_at_a_time_is_the_same_as_many(setting, monkeypatch):
    made = setting("grouped")
    expected = magnitude(made)
    monkeypatch.setattr(controls, "BYTES", 1)
    assert np.allclose(magnitude(made), expected, rtol=0, atol=1e-12, equal_nan=True)
