"""Linear, sparse and MLP probes, and the online code: planted answers and second routes."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from analyses.probing.crossval import PENALTIES, cross_validated, standardized
from analyses.probing.linear import BIAS, fit
from analyses.probing.mdl import blocks, online_code
from analyses.probing.mlp import mlp_probes
from analyses.probing.sparse import concentration, orthogonal, selected, sparse_probes
from analyses.probing.split import folds


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def noisy_problem(n=400, d=12, k=5):
    x = standardized(normal(n, d) @ normal(d, d, seed=1))
    labels = (x @ normal(d, k, seed=2) + 2 * normal(n, k, seed=3)).argmax(1)
    return x, labels


def test_the_batched_probe_has_the_minimum_that_scipy_finds():
    x, labels = noisy_problem(120, 4, 3)
    train = torch.rand(2, 120, generator=torch.Generator().manual_seed(4)) < 0.7
    penalty = torch.tensor([0.5, 20.0])
    probes = fit(x, labels.expand(2, -1), train, penalty, 3, tolerance=1e-9, max_steps=2000)
    assert probes.converged.all() and (probes.gradient <= 1e-9).all()
    for i in range(2):

        def objective(flat, i=i):
            w = torch.tensor(flat).view(3, 5).requires_grad_()
            logits = x[train[i]] @ w[:, :4].T + w[:, 4]
            loss = torch.nn.functional.cross_entropy(logits, labels[train[i]], reduction="sum")
            total = loss + (penalty[i] * w[:, :4].square().sum() + BIAS * w[:, 4].square().sum()) / 2
            total.backward()
            return total.item(), w.grad.flatten().numpy()

        best = minimize(objective, np.zeros(15), jac=True, method="BFGS", options={"gtol": 1e-7})
        torch.testing.assert_close(probes.weights[:, i], torch.tensor(best.x).view(3, 5), atol=1e-6, rtol=0)


def test_the_batched_probe_equals_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels = noisy_problem()
    train = torch.rand(3, 400, generator=torch.Generator().manual_seed(4)) < 0.7
    probes = fit(x, labels.expand(3, -1), train, torch.tensor([1.0, 10.0, 0.1]), 5, tolerance=1e-9, max_steps=2000)
    for i, c in enumerate((1.0, 10.0, 0.1)):
        column = (c / BIAS) ** 0.5  # a column of this size has a weight that is penalised as the bias is
        x1 = torch.cat([x, torch.full((400, 1), column, dtype=x.dtype)], 1).numpy()
        theirs = linear_model.LogisticRegression(C=1 / c, fit_intercept=False, tol=1e-10, max_iter=5000)
        theirs.fit(x1[train[i].numpy()], labels[train[i]].numpy())
        np.testing.assert_allclose(probes.weights[:, i, :-1], theirs.coef_[:, :-1], atol=2e-5)
        np.testing.assert_allclose(
            probes.log_probabilities(x)[:, i].T.exp(), theirs.predict_proba(x1), atol=2e-5
        )  # fmt: skip


def test_a_problem_does_not_depend_on_those_beside_it():
    x, labels = noisy_problem()
    train, penalty = torch.ones(1, 400), torch.tensor([3.0])
    alone = fit(x, labels[None], train, penalty, 5, tolerance=1e-9)
    beside = fit(
        x, torch.stack([labels, labels.roll(1)]), train.expand(2, -1), torch.tensor([3.0, 1e4]), 5, tolerance=1e-9
    )
    torch.testing.assert_close(beside.weights[:, 0], alone.weights[:, 0], atol=1e-7, rtol=0)


def test_a_probe_that_may_not_go_on_says_that_it_has_not_converged():
    x, labels = noisy_problem()
    probes = fit(x, labels[None], torch.ones(1, 400), torch.tensor([1e-3]), 5, tolerance=1e-9, max_steps=3)
    assert not probes.converged.any() and float(probes.gradient) > 1e-9


def test_a_label_is_read_where_it_is_planted_and_not_where_it_is_not():
    story = torch.arange(60).repeat_interleave(10)
    labels = torch.randint(3, (600,), generator=torch.Generator().manual_seed(0))
    noise = normal(600, 8, dtype=torch.float32)
    there = noise + 6 * torch.nn.functional.one_hot(labels, 8)
    split = folds(story, 5)
    for x, low, high in ((there, 0.97, 1.0), (noise, 0.25, 0.42)):
        (found,) = cross_validated(standardized(x), labels.expand(5, -1)[None], split, 3)
        assert low <= found.judged.right.mean() <= high
        assert found.converged == 1 and len(found.penalty) == 5


def test_the_online_code_is_that_of_a_naive_loop():
    x, labels = noisy_problem(60, 3, 3)
    story = torch.arange(20).repeat_interleave(3)
    block = blocks(story, seed=3)
    code = online_code(x, labels, block, 3, (1.0, 50.0), tolerance=1e-7)
    totals, each = [], []
    for c in (1.0, 50.0):
        bits = np.zeros(60)
        for row in range(60):
            before = block < block[row]
            if not before.any():
                bits[row] = np.log2(3)
                continue
            one = fit(x[before], labels[before][None], torch.ones(1, int(before.sum())), torch.tensor([c]), 3,
                      tolerance=1e-7)  # fmt: skip
            bits[row] = -one.log_probabilities(x[row : row + 1])[labels[row], 0, 0].item() / np.log(2)
        totals.append(bits.sum())
        each.append(bits)
    best = int(np.argmin(totals))
    np.testing.assert_allclose(code.bits, each[best], atol=1e-5)
    assert code.total == pytest.approx(totals[best] + 1.0, abs=1e-3)  # 1 bit says which of two penalties
    assert code.penalty == (1.0, 50.0)[best]


def test_random_labels_cost_log2_of_the_classes_each_and_readable_ones_far_less():
    labels = torch.randint(4, (2000,), generator=torch.Generator().manual_seed(0))
    story = torch.arange(200).repeat_interleave(10)
    block = blocks(story)
    noise = normal(2000, 6, dtype=torch.float32)
    random = online_code(standardized(noise), labels, block, 4, PENALTIES)
    assert 2000 * 2 * 0.995 < random.total < 2000 * 2 * 1.02
    assert random.prior_bits.sum() == pytest.approx(4000, rel=0.02)
    readable = noise + 10 * torch.nn.functional.one_hot(labels, 6)
    found = online_code(standardized(readable), labels, block, 4, PENALTIES)
    assert found.total < 0.1 * 4000 and found.compression == pytest.approx(4000 / found.total)


def test_blocks_double_and_never_split_a_story():
    story = torch.arange(128).repeat_interleave(3)
    block = blocks(story, seed=5)
    of_story = block.view(128, 3)
    assert (of_story == of_story[:, :1]).all()
    assert torch.bincount(of_story[:, 0]).tolist() == [2, 2, 4, 8, 16, 32, 64]


def test_forward_selection_is_that_of_least_squares_tried_one_by_one():
    x, labels = noisy_problem(300, 8, 4)
    onehot = torch.nn.functional.one_hot(labels, 4).double()
    y = ((onehot - onehot.mean(0)) / onehot.mean(0).sqrt()).numpy()
    centred, chosen = (x - x.mean(0)).numpy(), []
    for _ in range(4):
        left = {}
        for unit in set(range(8)) - set(chosen):
            part = centred[:, [*chosen, unit]]
            left[unit] = ((y - part @ np.linalg.lstsq(part, y, rcond=None)[0]) ** 2).sum()
        chosen.append(min(left, key=left.get))
    assert selected(x, labels, 4, 4).tolist() == chosen


def test_the_planted_neurons_are_found_and_a_copy_of_one_is_passed_over():
    labels = torch.randint(3, (900,), generator=torch.Generator().manual_seed(0))
    x = normal(900, 20)
    x[:, 7] += 5 * (labels == 0)
    x[:, 11] += 4 * (labels == 1)
    x[:, 3] = x[:, 7]
    found = selected(x, labels, 3, 2).tolist()
    assert set(found) in ({7, 11}, {3, 11})


def test_k_90_of_a_label_that_two_units_carry_is_two():
    labels = torch.randint(3, (1200,), generator=torch.Generator().manual_seed(0))
    x = normal(1200, 20, dtype=torch.float32)
    x[:, 7] += 8 * (labels == 0)
    x[:, 11] += 8 * (labels == 1)
    split = folds(torch.arange(120).repeat_interleave(10), 3)
    found = {k: judged.right.mean() for k, judged in sparse_probes(standardized(x), labels, split, 3).items()}
    assert list(found) == [1, 2, 4, 8, 16] and found[1] < 0.75 and found[2] > 0.97
    assert concentration(found, 0.99, 0.34, 20) == 2
    drawn = sparse_probes(standardized(x), labels, split, 3, random=0)
    assert drawn[1].right.mean() < 0.5


def test_k_90_is_all_units_when_few_do_not_do_and_unknown_when_nothing_is_gained():
    assert concentration({1: 0.5, 2: 0.55}, 0.9, 0.5, 20) == 20
    assert np.isnan(concentration({1: 0.5}, 0.5, 0.5, 20))


def test_orthogonal_columns_span_what_the_first_ones_span_and_drop_what_adds_nothing():
    x = normal(200, 5)
    x[:, 2] = x[:, 0] - 2 * x[:, 1]
    z = orthogonal(x, x[:150])
    gram = z[:150].T @ z[:150] / 150
    torch.testing.assert_close(gram, torch.diag(torch.tensor([1.0, 1, 0, 1, 1], dtype=torch.float64)))
    both = torch.cat([z[:150, :2], x[:150, :2] - x[:150, :2].mean(0)], 1)
    assert torch.linalg.matrix_rank(both) == 2


def test_the_mlp_probe_reads_an_exclusive_or_that_no_linear_probe_reads():
    x = normal(1500, 2, dtype=torch.float32)
    labels = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()
    split = folds(torch.arange(150).repeat_interleave(10), 3)
    sets = labels.expand(3, -1)[None]
    ((deep, _),) = mlp_probes(standardized(x), sets, split, 2)
    (flat,) = cross_validated(standardized(x), sets, split, 2)
    assert deep.right.mean() > 0.93 and flat.judged.right.mean() < 0.62
