"""LEACE: nothing linear is left, and no smaller change would do."""

import numpy as np
import pytest
import torch

from analyses.probing.causal import story_losses
from analyses.probing.crossval import cross_validated, standardized
from analyses.probing.erasure import Eraser, leace, random_erasers
from analyses.probing.split import folds
from analyses.texts import Stories


def labelled(n=800, d=10, k=4):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(k, (n,), generator=generator)
    mixed = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixed
    return x + torch.randn(k, d, generator=generator, dtype=torch.float64)[labels] * 2, labels


def cross_covariance(x, labels, k):
    onehot = torch.nn.functional.one_hot(labels, k).double()
    return (x - x.mean(0)).T @ (onehot - onehot.mean(0)) / len(x)


def test_features_and_labels_have_no_covariance_left():
    x, labels = labelled()
    eraser = leace(x, labels, 4)
    assert cross_covariance(x, labels, 4).abs().max() > 0.1
    assert cross_covariance(eraser(x), labels, 4).abs().max() < 1e-10
    assert eraser.rank == 3
    torch.testing.assert_close(eraser(x).mean(0), x.mean(0))
    torch.testing.assert_close(eraser(eraser(x)), eraser(x))


def test_a_fresh_probe_reads_the_majority_class():
    x, labels = labelled()
    erased = leace(x, labels, 4)(x).float()
    split = folds(torch.arange(80).repeat_interleave(10), 3)
    before, after = (
        cross_validated(standardized(values.float()), labels.expand(3, -1)[None], split, 4)[0] for values in (x, erased)
    )
    assert before.judged.right.mean() > 0.6 and after.judged.right.mean() < 0.3


def test_for_two_classes_it_projects_along_the_difference_of_means():
    """r(x) = x - d d' S^-1 (x - mean) / (d' S^-1 d), d the difference of the class means, S the covariance."""
    x, labels = labelled(k=2)
    d = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    apart = x - x.mean(0)
    inverse = torch.linalg.inv(apart.T @ apart / len(x))
    expected = torch.outer(d, inverse @ d) / (d @ inverse @ d)
    torch.testing.assert_close(leace(x, labels, 2).projection, expected, atol=1e-10, rtol=0)


def test_no_other_erasing_map_changes_less():
    """Any map x - Q (x - mean) with Q C = C erases; move from LEACE's along all such and the change grows."""
    x, labels = labelled()
    eraser, shared = leace(x, labels, 4), cross_covariance(x, labels, 4)
    change = (eraser(x) - x).square().sum(1).mean()
    free = torch.eye(10, dtype=torch.float64) - shared @ shared.pinverse()  # Q + A free keeps Q C = C
    generator = torch.Generator().manual_seed(1)
    for size in (1e-3, 0.1, 1.0):
        a = size * torch.randn(10, 10, generator=generator, dtype=torch.float64)
        other = Eraser(eraser.mean, eraser.projection + a @ free, 3)
        assert cross_covariance(other(x), labels, 4).abs().max() < 1e-9
        assert (other(x) - x).square().sum(1).mean() > change
    orthogonal = Eraser(eraser.mean, shared @ shared.pinverse(), 3)
    assert (orthogonal(x) - x).square().sum(1).mean() > change


def test_it_equals_the_published_package():
    erasure = pytest.importorskip("concept_erasure")
    x, labels = labelled()
    onehot = torch.nn.functional.one_hot(labels, 4).double()
    theirs = erasure.LeaceEraser.fit(x, onehot, shrinkage=False)  # by default it shrinks the covariance first
    torch.testing.assert_close(leace(x, labels, 4)(x), theirs(x), atol=1e-10, rtol=0)


def test_directions_that_never_vary_and_labels_that_vary_with_nothing_do_no_harm():
    x, labels = labelled()
    flat = torch.cat([x, torch.full((800, 1), 3.0, dtype=x.dtype), x[:, :1]], 1)
    erased = leace(flat, labels, 4)(flat)
    assert cross_covariance(erased, labels, 4).abs().max() < 1e-9 and (erased[:, 10] == 3).all()
    assert leace(x, torch.zeros(800, dtype=torch.long), 2).rank == 0


def test_a_random_subspace_is_as_large_and_leaves_the_label_readable():
    x, labels = labelled()
    apart = x - x.mean(0)
    inverse = torch.linalg.inv(apart.T @ apart / len(x))
    sizes = []
    for eraser in (leace(x, labels, 4), *random_erasers(x, 3, 5)):
        lost = x - eraser(x)
        sizes.append(float(((lost @ inverse) * lost).sum(1).mean()))  # in the whitened space: its dimension
        assert torch.linalg.matrix_rank(eraser.projection) == 3
    np.testing.assert_allclose(sizes, 3, atol=1e-8)
    assert cross_covariance(random_erasers(x, 3, 1)[0](x), labels, 4).abs().max() > 1e-3


def test_erasure_acts_at_the_named_tokens_of_the_named_site_alone(tiny_model):
    model = tiny_model()
    tokens = torch.randint(29, (3, 9), generator=torch.Generator().manual_seed(0))
    stories = Stories(tokens, torch.tensor([9, 7, 9]))
    intact = story_losses(model, stories)
    for row in range(3):
        loss = model(tokens[row : row + 1, : int(stories.lengths[row])], return_type="loss", loss_per_token=True)
        assert intact[row] == pytest.approx(float(loss.detach().sum()), rel=1e-6)
    nothing = Eraser(torch.zeros(16), torch.zeros(16, 16), 0)
    everything = Eraser(torch.ones(16).double(), torch.eye(16).double(), 16)
    where = torch.zeros(3, 9, dtype=torch.bool)
    where[1, 4] = True
    same = story_losses(model, stories, erased=("blocks.0.hook_resid_post", nothing, where))
    np.testing.assert_allclose(same, intact, rtol=1e-6)
    changed = story_losses(model, stories, erased=("blocks.0.hook_resid_post", everything, where))

    def replace(activation, hook):
        activation[1, 4] = 1.0
        return activation

    by_hand = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_post", replace)])
    expected = torch.nn.functional.cross_entropy(by_hand[1, :6], tokens[1, 1:7], reduction="sum")
    assert changed[1] == pytest.approx(float(expected.detach()), rel=1e-6) and changed[1] != pytest.approx(
        intact[1], rel=1e-4
    )
    np.testing.assert_allclose(changed[[0, 2]], intact[[0, 2]], rtol=1e-6)
    heads = Eraser(torch.zeros(16), torch.eye(16), 16)
    ablated = story_losses(model, stories, stream="ablated", erased=("blocks.1.ablated.hook_z", heads, where))
    assert ablated[1] != story_losses(model, stories, stream="ablated")[1]
