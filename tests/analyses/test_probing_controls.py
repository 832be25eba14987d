"""Splits, controls and scores: what keeps a probe honest."""

import numpy as np
import pytest
import torch

from analyses.labels import Labels
from analyses.probing.cell import Asked
from analyses.probing.control import control_labels, shuffled
from analyses.probing.crossval import cross_validated, standardized
from analyses.probing.scores import Judged, balanced_accuracy, mean_over_rows, ratio
from analyses.probing.split import folds
from analyses.probing.targets import target


def test_no_story_is_on_two_sides_and_every_row_is_judged_once():
    story = torch.randint(23, (400,), generator=torch.Generator().manual_seed(0))
    split = folds(story, 5, seed=2)
    judged = torch.zeros(400)
    for f in range(5):
        parts = [split.train(f), split.validation(f), split.judged(f)]
        stories = [set(story[part].tolist()) for part in parts]
        assert not stories[0] & stories[1] and not stories[0] & stories[2] and not stories[1] & stories[2]
        assert sum(int(part.sum()) for part in parts) == 400 and all(stories)
        judged += split.judged(f)
    assert (judged == 1).all()


def test_fewer_stories_than_folds_are_refused():
    with pytest.raises(ValueError, match="5 folds need at least 5 stories with labels; got 4"):
        folds(torch.arange(4), 5)
    with pytest.raises(ValueError, match="folds must be at least 3"):
        folds(torch.arange(4), 2)


def test_a_control_gives_a_type_one_class_and_follows_the_shares_of_the_classes():
    types = torch.randint(500, (3000,), generator=torch.Generator().manual_seed(0))
    labels = (torch.rand(3000, generator=torch.Generator().manual_seed(1)) < 0.2).long()
    found = control_labels(types, labels, 20)
    for draw in found:
        for kind in types[:50].tolist():
            assert len(draw[types == kind].unique()) == 1
    assert found.double().mean() == pytest.approx(float(labels.double().mean()), abs=0.02)
    assert not torch.equal(found[0], found[1])


def test_a_shuffle_keeps_the_counts():
    labels = torch.randint(4, (100,), generator=torch.Generator().manual_seed(0))
    for draw in shuffled(labels, 3):
        assert torch.equal(draw.bincount(), labels.bincount()) and not torch.equal(draw, labels)


def test_a_probe_that_memorises_types_has_selectivity_near_0_and_one_that_reads_a_class_does_not():
    generator = torch.Generator().manual_seed(0)
    types = torch.randint(60, (3000,), generator=generator)
    story = torch.arange(300).repeat_interleave(10)
    split = folds(story, 3)
    memorised = torch.randint(2, (60,), generator=generator)[types]  # a random function of the type
    embedding = torch.randn(60, 64, generator=generator)
    by_embedding = standardized(embedding[types])
    controls = control_labels(types, memorised, 3)
    task, control = cross_validated(by_embedding, torch.stack([memorised.expand(3, -1), controls]), split, 2)
    assert task.judged.right.mean() > 0.97 and abs(task.judged.right.mean() - control.judged.right.mean()) < 0.02
    class_of_type = torch.arange(60) % 2  # one direction of a narrow embedding says the class
    narrow = torch.cat([6.0 * class_of_type[:, None], torch.randn(60, 3, generator=generator)], 1)
    labels = class_of_type[types]
    sets = torch.stack([labels.expand(3, -1), control_labels(types, labels, 3)])
    task, control = cross_validated(standardized(narrow[types]), sets, split, 2)
    assert task.judged.right.mean() > 0.99 and control.judged.right.mean() < 0.8


def test_shuffled_labels_are_read_no_better_than_the_majority_class_in_nearly_all_seeds():
    covered, story = 0, torch.arange(60).repeat_interleave(5)
    split = folds(story, 3)
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        labels = (torch.rand(300, generator=generator) < 0.4).long()
        x = labels[:, None] * 3.0 + torch.randn(300, 10, generator=generator)
        draws = shuffled(labels, 3, seed)
        (found,) = cross_validated(standardized(x), draws[None], split, 2)
        share = mean_over_rows(found.judged.right, story.numpy())
        majority = np.mean(
            [(draws[f][split.judged(f)] == draws[f][split.train(f)].bincount().argmax()).double().mean().item()
             for f in range(3)]
        )  # fmt: skip
        covered += share.low <= majority + 1e-9
    assert covered >= 38


def test_balanced_accuracy_is_the_mean_of_the_recalls():
    label = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    answer = np.array([0, 0, 0, 1, 1, 0, 2, 2])
    judged = Judged(label, answer, answer, np.zeros(8))
    assert balanced_accuracy(judged, np.arange(8), 3).value == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_a_rare_class_counts_in_balanced_answers():
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, generator=generator) < 0.05).long()
    x = standardized(labels[:, None] * 1.5 + torch.randn(4000, 1, generator=generator))
    split = folds(torch.arange(400).repeat_interleave(10), 3)
    (found,) = cross_validated(x, labels.expand(3, -1)[None], split, 2)
    story = np.arange(400).repeat(10)
    as_it_is = Judged(found.judged.label, found.judged.answer, found.judged.answer, found.judged.loss)
    best = 0.5 * (1 + torch.special.erf(torch.tensor(0.75 / 2**0.5))).item()  # two normals, 1.5 apart
    assert balanced_accuracy(found.judged, story, 2).value == pytest.approx(best, abs=0.03)
    assert balanced_accuracy(as_it_is, story, 2).value < 0.6


def test_intervals_are_over_stories_and_not_over_tokens():
    values = np.repeat(np.random.default_rng(0).random(30) < 0.5, 50).astype(float)  # all tokens of a story agree
    story = np.repeat(np.arange(30), 50)
    by_story, by_token = mean_over_rows(values, story), mean_over_rows(values, np.arange(1500))
    assert by_story.value == by_token.value == values.mean()
    assert by_story.high - by_story.low > 4 * (by_token.high - by_token.low)
    assert ratio(np.array([1.0, 3.0]), np.array([2.0, 2.0])).value == 1.0


def test_the_majority_class_is_the_most_frequent_one_of_the_rows():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2] * 3)
    story = torch.arange(12)
    values = Labels("role", ("a", "b", "c"), labels[:, None], "rules")
    draws = labels.expand(3, -1)
    one = Asked(target(values, at_least=1), labels, story, story, folds(story, 3), draws, draws, 0)
    assert one.majority() == 0.5 and len(one.erased_in()) == 4
