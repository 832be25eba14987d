"""Untangling: models in which it is known what each latent is for, and every shortcut against the long way."""

import dataclasses
import types

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from analyses.untangling.bench import Bench, bench
from analyses.untangling.controls import dealt_labels, magnitude_matched, random_set
from analyses.untangling.examples import folds, matched_examples, source_examples
from analyses.untangling.importance import importance, summed
from analyses.untangling.knowledge import probed, softmax_probe
from analyses.untangling.pareto import front, front_area
from analyses.untangling.parts import Directions, latents, mean_difference, neurons, principal_components
from analyses.untangling.selection import greedy, tolerated
from sat_lens.toy.arithmetic import task_data
from sat_lens.toy.model import answer_logits, exact_match
from tests.cases.untangling import OPERANDS, Planted, addition_and_concatenation, planted_tasks, small_runs


@pytest.fixture(scope="module")
def data():
    return addition_and_concatenation()


@pytest.fixture(scope="module")
def planted(data):
    return planted_tasks(data)


@pytest.fixture(scope="module")
def trained():
    return small_runs()


def identity(width, site="hook_state"):
    """Latents that are the dimensions."""
    eye = torch.eye(width, dtype=torch.float64)
    return Directions("latents", site, eye, torch.zeros(width, dtype=torch.float64), eye, rectified=True)


def test_a_latent_that_carries_one_task_alone_is_found_and_removed_exactly(planted, data):
    size = len(data.tokenizer)
    judged = bench(planted, identity(2 * size + 1), data.problems)
    sums, concats = judged.of_task("sum"), judged.of_task("concat")
    values = importance(judged)
    chosen = tolerated(values[:, concats].mean(1), values[:, sums].mean(1), 0.0)
    used = set((data.problems.answer[concats] + size).unique().tolist())
    used -= {size, size + data.tokenizer.ids["E"]}  # padding is not counted; E is the shared dimension's
    assert set(chosen) == used
    right = judged.right(chosen)
    assert not right[concats].any() and right[sums].all() and judged.right()[concats].all()
    assert judged.losses(chosen)[sums].equal(judged.losses()[sums])  # not moved at all
    shared = 2 * size
    assert values[shared, sums].min() > 1  # one of two tokens of sums, of two or three of concatenations
    assert shared in tolerated(values[:, sums].mean(1), values[:, concats].mean(1), 10.0)
    assert shared not in tolerated(values[:, concats].mean(1), values[:, sums].mean(1), 10.0)  # matters more to sums


def test_importance_by_hand_and_its_sum(planted, data):
    """Without its dimension a sum's first token has 0 logits everywhere: the loss is log V instead of about 0."""
    size = len(data.tokenizer)
    judged = bench(planted, identity(2 * size + 1), data.ask(["1+2", "1C2"]))
    values = importance(judged)
    token = data.tokenizer.ids["3"]
    expected = (np.log(size) - np.log(1 + (size - 1) * np.exp(-20.0))) / 2  # of two tokens, 3 and E
    assert values[token].tolist() == pytest.approx([expected, 0.0])
    assert summed(values)[token].item() == pytest.approx(expected)
    assert torch.allclose(values, importance(judged, method="hooks"), atol=1e-12)


@pytest.mark.parametrize("arch", ["decoder", "seq2seq"])
@pytest.mark.parametrize("fill", ["zero", "mean", "resample"])
def test_analytic_importance_is_that_of_hooks(arch, fill, trained):
    run = trained[arch]
    problems = run.data.problems.subset(torch.arange(0, 50, 5))
    for given, padding in (([], False), ([3, 7], True)):
        judged = bench(run.toy, latents(run.sae, run.toy.site), problems, fill=fill, padding=padding)
        exact, hooked = (importance(judged, given=given, method=m) for m in ("analytic", "hooks"))
        assert (exact - hooked).abs().max() < 1e-5 and exact.abs().max() > 1e-3
        assert given == [] or exact[given].abs().max() == 0


def test_what_something_nonlinear_follows_has_no_analytic_importance(trained):
    run = trained["decoder"]
    judged = bench(run.toy, neurons(run.toy, 24), run.data.problems.subset(torch.arange(6)))
    with pytest.raises(ValueError, match="ask with method 'hooks'"):
        importance(judged, method="analytic")
    values = importance(judged)
    hook = lambda x, hook: x.index_fill(-1, torch.tensor([5]), 0.0)  # noqa: E731
    logits = answer_logits(run.toy, judged.problems, [("blocks.0.mlp.hook_post", hook)])
    naive = dataclasses.replace(judged, logits=logits).losses() - judged.losses()
    assert torch.allclose(values[5], naive, atol=1e-6)


def test_a_joint_edit_knows_no_order_and_a_sequential_one_does():
    """By hand: latent 0 reads x0 and writes to x1, latent 1 the other way round."""
    parts = Directions("latents", "s", torch.eye(2), torch.zeros(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]]), True)
    x = torch.tensor([1.0, 1.0])
    assert parts.edited(x, [0, 1]).tolist() == parts.edited(x, [1, 0]).tolist() == [0.0, 0.0]
    assert parts.edited(x, [0, 1], order="sequential").tolist() == [1.0, 0.0]
    assert parts.edited(x, [1, 0], order="sequential").tolist() == [0.0, 1.0]
    filled = parts.edited(x, [0], fill=torch.tensor([3.0, 9.0]))
    assert filled.tolist() == [1.0, 3.0]  # the activation rises from 1 to 3, along (0, 1)
    with pytest.raises(ValueError, match="order must be one of joint, sequential; got 'both'"):
        parts.edited(x, [0], order="both")


def test_overlapping_latents_are_taken_out_less_one_by_one():
    """Two latents that both read x and both write it: jointly x - 2x, one after the other x - x - 0."""
    parts = Directions("latents", "s", torch.ones(1, 2), torch.zeros(2), torch.ones(2, 1), True)
    x = torch.tensor([5.0])
    assert parts.edited(x, [0, 1]).item() == -5.0 and parts.edited(x, [0, 1], order="sequential").item() == 0.0


@pytest.mark.parametrize("order", ["joint", "sequential"])
def test_hooks_do_what_the_edit_of_states_does(order, trained):
    for run in trained.values():
        judged = bench(run.toy, latents(run.sae, run.toy.site), run.data.problems.subset(torch.arange(8)))
        chosen = [4, 1, 9]
        hooked = answer_logits(run.toy, judged.problems, judged.parts.hooks(run.toy, chosen, order=order))
        assert torch.allclose(hooked, judged.edited_logits(chosen, order), atol=1e-5)
        assert not torch.allclose(hooked, judged.logits, atol=1e-3)


def test_the_rule_by_hand():
    target, preserved = torch.tensor([3.0, 2.0, 1.0, -1.0, 2.0, 0.5]), torch.tensor([0.0, 0.05, 0.2, 0.0, 4.0, 0.05])
    assert tolerated(target, preserved, 0.0) == [0]
    assert tolerated(target, preserved, 0.1) == [0, 1, 5]
    assert tolerated(target, preserved, 100.0) == [0, 1, 2, 5]  # 4 matters more to what is kept
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a tolerance must be a finite number of at least 0"):
            tolerated(target, preserved, bad)


def test_greedy_sees_what_parts_do_together_and_the_rule_does_not(data):
    """Logit of a sum's token: 20 (a or b) with the other tokens at 0; without both it is nothing."""
    problems = data.problems.subset(((data.problems.left < 2) & (data.problems.right < 2)).nonzero().flatten())
    size, token = len(data.tokenizer), torch.arange(len(data.tokenizer))
    state = torch.ones(len(problems), problems.answer.shape[1], 2, dtype=torch.float64)

    class Either(Planted):
        """Right where a + b > 1/2; and of concatenations the loss grows with each that is missing."""

        def readout(self, x):
            answer = torch.nn.functional.one_hot(problems.answer, size).double()
            total = x.sum(-1, keepdim=True)
            sums = 20.0 * (total > 0.5) * answer
            concats = 3.0 * total * answer
            return torch.where((problems.task == 0)[:, None, None], sums, concats)

    toy = Either(data, state, torch.zeros(2, size, dtype=torch.float64))
    eye = torch.eye(2, dtype=torch.float64)
    parts = Directions("latents", "elsewhere", eye, torch.zeros(2, dtype=torch.float64), eye)
    toy.net = types.SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None)

    @dataclasses.dataclass(frozen=True)
    class ByReadout(Bench):
        def edited_logits(self, chosen, order="joint"):
            return self.toy.readout(self.parts.edited(self.state, chosen))

    judged = ByReadout(toy, parts, problems, toy.readout(state), state)

    def measured(bench_, given=None, method=None):
        base = bench_.losses(given or [])
        return torch.stack([bench_.losses([*(given or []), j]) - base for j in range(2)])

    sums, concats = judged.of_task("sum"), judged.of_task("concat")
    values = measured(judged)
    assert values[:, sums].abs().max() == 0 and values[:, concats].min() > 0.1 and len(token) == size
    by_rule = tolerated(values[:, concats].mean(1), values[:, sums].mean(1), 0.0)
    assert sorted(by_rule) == [0, 1] and judged.losses(by_rule)[sums].mean() > 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("analyses.untangling.selection.importance", measured)
        one = greedy(judged, concats, sums, 0.01)
        both = greedy(judged, concats, sums, 100.0)
    assert len(one) == 1 and judged.losses(one)[sums].mean() < 1e-6
    assert sorted(both) == [0, 1]


def test_greedy_takes_the_largest_first_and_only_what_helps(planted, data):
    size = len(data.tokenizer)
    judged = bench(planted, identity(2 * size + 1), data.problems)
    sums, concats = judged.of_task("sum"), judged.of_task("concat")
    chosen = greedy(judged, concats, sums, 0.0)
    values = importance(judged)
    assert chosen[0] == int(values[:, concats].mean(1).masked_fill(values[:, sums].mean(1) > 0, 0).argmax())
    assert not judged.right(chosen)[concats].any() and judged.right(chosen)[sums].all()
    assert greedy(judged, concats, sums, 0.0, most=1) == chosen[:1]


def test_sets_that_were_not_chosen():
    magnitude = torch.tensor([8.0, 7.0, 1.0, 1.2, 0.0, 100.0])
    assert magnitude_matched(magnitude, [0, 2]) == [1, 3]
    assert magnitude_matched(magnitude, [0, 1, 2, 3]) == [5]  # one is left that is ever active
    generator = torch.Generator().manual_seed(0)
    assert sorted(random_set(magnitude > 0, 9, generator)) == [0, 1, 2, 3, 5]
    labels = torch.tensor([True] * 3 + [False] * 20)
    assert dealt_labels(labels, generator).sum() == 3


def test_folds_keep_a_pair_together_and_share_nothing(data):
    fold = folds(data.problems, 3, seed=1)
    for pair in data.problems.pair.unique():
        assert len(fold[data.problems.pair == pair].unique()) == 1
    assert sorted(fold.unique().tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match="folds must be 2 to 15, the pairs of operands; got 1"):
        folds(data.problems, 1)


def test_matched_examples_are_right_in_both_tasks(planted, data):
    broken = Planted(data, planted.net.rows.clone(), planted.unembedding)
    wrong = data.ask(["1+2", "3C3"])
    for row in wrong.source:
        broken.net.rows[(data.problems.source == row).all(1)] = 0.0
    found = matched_examples(broken, data, "all", 100)
    assert len(found) == 2 * 23 and {"1+2", "1C2", "3+3", "3C3"}.isdisjoint(found.texts())
    assert len(matched_examples(broken, data, "all", 10)) == 20
    assert exact_match(answer_logits(broken, found), found.answer).all()
    dead = Planted(data, planted.net.rows * 0, planted.unembedding)
    with pytest.raises(ValueError, match="val has 0 pairs of operands of which both tasks are answered rightly"):
        matched_examples(dead, data, "val", 10)


def test_the_source_s_examples_leave_out_twins_that_were_trained_on(planted):
    by_example = task_data(OPERANDS, split="example", train_share=0.4, val_share=0.4, seed=2)
    toy = Planted(by_example, planted.net.rows, planted.unembedding)
    found = source_examples(toy, by_example, 50)
    trained_on = set(by_example.part("train").texts())
    assert not trained_on & set(found.texts())
    assert set(found.of("sum").texts()) == set(by_example.part("val").of("sum").texts())
    assert 0 < len(found.of("concat")) < len(found.of("sum"))


def test_fronts_and_areas_by_hand():
    x, y = front([0.5, 0.4, 1.0, 0.5], [0.9, 0.7, 0.5, 0.2])
    assert x.tolist() == [0.0, 0.5, 1.0] and y.tolist() == [1.0, 0.9, 0.5]
    assert front_area([0.5, 0.4, 1.0, 0.5], [0.9, 0.7, 0.5, 0.2]) == pytest.approx(0.5 * 0.9 + 0.5 * 0.5)
    assert front_area([1.0], [1.0]) == 1.0 and front_area([], []) == 0.0 and front_area([0.0], [0.8]) == 0.0
    steps = np.linspace(0, 1, 1001)
    assert front_area(steps, 1 - steps) == pytest.approx(0.5, abs=1e-3)  # both tasks lost alike


def test_principal_components_and_the_difference_of_means(planted, data):
    x = planted.net.rows.flatten(0, 1)
    parts = principal_components(x, "hook_state")
    everything = parts.edited(x, range(len(parts)))
    assert torch.allclose(everything, x.mean(0).expand_as(x), atol=1e-9)
    spread = parts.activations(x).var(0)
    assert (spread.diff() <= 1e-9).all()
    target, preserved = x[:40], x[40:] + 0.3
    one = mean_difference(target, preserved, "hook_state")
    middle = [one.activations(group).mean().item() for group in (target, preserved)]
    assert middle[0] == pytest.approx(-middle[1]) and middle[0] > 0
    gone = [one.edited(group, [0]).mean(0) for group in (target, preserved)]
    assert torch.allclose(gone[0] - gone[1], torch.zeros_like(gone[0]), atol=1e-9)


def test_a_probe_is_sklearn_s():
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(120, 4)) * [1, 3, 0.5, 2] + 1, draw.integers(0, 3, 120)
    x[:, 0] += labels
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    theirs = LogisticRegression(C=1 / (120 * 1e-2), tol=1e-10, max_iter=1000).fit(z, labels).predict_proba(z)
    weights = softmax_probe(torch.tensor(x), torch.tensor(labels), 3, ridge=1e-2, steps=300)
    ours = (torch.tensor(x) @ weights[:-1] + weights[-1]).softmax(-1).numpy()
    assert np.abs(ours - theirs).max() < 1e-3


def test_a_probe_tells_what_is_gone_from_what_is_not_read_any_more(planted, data):
    """The task's dimensions are taken out; where a copy is kept that logits do not read, a probe still finds it."""
    size, concat = len(data.tokenizer), data.problems.of("concat")
    chosen = list(range(size, 2 * size))
    gone = probed(planted, identity(2 * size + 1), chosen, concat, concat, size)
    rows = torch.cat([planted.net.rows, planted.net.rows[..., size : 2 * size]], -1)
    unembedding = torch.cat([planted.unembedding, torch.zeros(size, size, dtype=torch.float64)])
    hidden = Planted(data, rows, unembedding)
    still = probed(hidden, identity(3 * size + 1), chosen, concat, concat, size)
    most_frequent = concat.answer[:, 0].bincount().max().item() / len(concat)
    assert gone == pytest.approx(most_frequent) and still == 1.0
    judged = bench(hidden, identity(3 * size + 1), concat)
    assert not judged.right(chosen).any()
