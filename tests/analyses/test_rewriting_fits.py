"""Calibrations, counts, windows and matching against scikit-learn, naive loops and numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from analyses.explain.score import BINS
from analyses.result import Result
from analyses.rewriting.calibration import CALIBRATIONS, Pairs, bins, calibration
from analyses.rewriting.counts import Counts
from analyses.rewriting.detection import WINDOW, judged
from analyses.rewriting.equal_loss import EDGES, loss_bins, matched
from analyses.rewriting.explaining import explained_by_rules
from analyses.rewriting.rewriter import Simulations, rule_rewriter
from sat_lens.coders.substitute import Substituted
from tests.cases.rewriting import random_setting


def some_pairs(n=400, n_units=3, missing=False):
    """Simulated levels of a rule, which are parts of the range exactly, and true values that follow them."""
    draw = torch.Generator().manual_seed(0)
    level = torch.randint(0, 12, (n, n_units), generator=draw) * 23
    y = level / (BINS - 1) * 4 - 1
    x = ((y + torch.randn(n, n_units, generator=draw)).clamp(min=0) * torch.tensor([1.0, 2.0, 0.0])).float()
    if missing:
        y[::7, 0] = torch.nan
    low, high = torch.full((n_units,), -1.0), torch.full((n_units,), 3.0)
    return Pairs(y, x, low, high, torch.tensor([1.5, 2.0, 0.0]), torch.tensor([3.0, 4.0, 0.0]))


@pytest.mark.parametrize("missing", [False, True])
def test_calibrations_are_those_of_numpy_and_scikit_learn(missing):
    seen = some_pairs(missing=missing)
    made = {kind: calibration(kind, seen)(seen.y[None])[0] for kind in CALIBRATIONS}
    for unit in range(3):
        there = ~seen.y[:, unit].isnan()
        y, x = (of[there, unit].double().numpy() for of in (seen.y, seen.x))
        found = {kind: of[there, unit].numpy() for kind, of in made.items()}
        np.testing.assert_array_equal(found["none"], seen.y[there, unit].numpy())
        np.testing.assert_allclose(found["affine"], np.polyval(np.polyfit(y, x, 1), y), atol=1e-5)
        np.testing.assert_allclose(found["isotonic"], IsotonicRegression().fit_transform(y, x), atol=1e-5)
        for kind, top in (("linear", seen.quantile), ("linear-maximum", seen.maximum)):
            np.testing.assert_allclose(found[kind], y.clip(0, 3) / 3 * top[unit].item(), atol=1e-6)
        ranked, order = np.sort(x), np.argsort(y, kind="stable")
        by_rank = np.empty(len(x))
        for value in np.unique(y):  # tokens of one simulated value share the mean of the true values of their ranks
            ranks = np.flatnonzero(y[order] == value)
            by_rank[order[ranks]] = ranked[ranks].mean()
        np.testing.assert_allclose(found["quantile"], by_rank, atol=1e-5)
        assert found["quantile"].sum() == pytest.approx(x.sum(), abs=1e-3)
        assert all(of[~there, unit].isnan().all() for of in made.values())


def test_a_constant_simulation_is_calibrated_to_the_mean():
    seen, level = some_pairs(), torch.full((3,), 0.5)
    flat = Pairs(level.expand_as(seen.y), seen.x, level, level, seen.quantile, seen.maximum)
    for kind in ("affine", "isotonic", "quantile"):
        torch.testing.assert_close(calibration(kind, flat)(flat.y[None])[0, 0], seen.x.mean(0), atol=1e-5, rtol=1e-5)


def test_an_unknown_calibration_is_refused():
    with pytest.raises(ValueError, match=r"^a calibration must be one of none, linear, .*; got 'best'$"):
        calibration("best", some_pairs())


def test_counts_give_scikit_learns_scores():
    seen = some_pairs(missing=True)
    at, active, known = bins(seen.y, seen.low, seen.high), seen.x > 0.4, ~seen.y.isnan()
    counts = Counts.of(at, active, known)
    for unit in range(2):
        y, true = at[known[:, unit], unit].numpy(), active[known[:, unit], unit].numpy()
        assert counts.average_precision[unit].item() == pytest.approx(average_precision_score(true, y))
        assert counts.base_rate[unit].item() == pytest.approx(true.mean())
        cut = counts.best_balanced
        scores = [balanced_accuracy_score(true, y >= c) for c in range(BINS)]
        assert counts.balanced_accuracy(cut)[unit].item() == pytest.approx(max(scores))
        assert counts.false_positives(cut)[unit].item() == pytest.approx(((y >= int(cut[unit])) & ~true).mean())
        f1 = [2 * ((y >= c) & true).sum() / max(1, (y >= c).sum() + true.sum()) for c in range(BINS)]
        assert f1[int(counts.best_f1[unit])] == max(f1)
    assert counts.average_precision[2].isnan() and counts.balanced_accuracy(counts.best_balanced)[2].isnan()


def test_windows_and_their_tokens_are_counted_as_a_loop_counts_them(tiny_model, monkeypatch):
    monkeypatch.setattr("analyses.rewriting.detection.WINDOW", 4)
    assert WINDOW == 32
    made = random_setting(tiny_model)
    rewriter = rule_rewriter("token", explained_by_rules(made, "token"), made.vocabulary)
    rows = made.splits.score
    simulations = Simulations(rewriter, made.stories, rows)
    found = judged(made, rewriter, simulations, "score").summed()
    at = bins(simulations.values, rewriter.simulator.low, rewriter.simulator.high)
    true = torch.cat([batch.values for batch in made.of("score").batches()])
    want = {name: torch.zeros(2, BINS, 30) for name in ("detection", "fuzzing", "tokens")}
    for i, row in enumerate(rows.tolist()):
        length = int(made.stories.lengths[row])
        for unit in range(30):
            for first in range(0, length, 4):
                window = slice(first, min(first + 4, length))
                fires = true[i, window, unit] > 0
                want["detection"][int(not fires.any()), at[i, window, unit].max(), unit] += 1
                for fired, part in zip(fires.tolist(), at[i, window, unit].tolist(), strict=True):
                    want["tokens"][int(not fired), part, unit] += 1
                    if fires.any():
                        want["fuzzing"][int(not fired), part, unit] += 1
    for name, counts in want.items():
        got = getattr(found, name)
        assert torch.equal(got.active.float(), counts[0]) and torch.equal(got.inactive.float(), counts[1]), name


def test_models_are_compared_on_tokens_of_equal_loss_by_hand():
    def result(losses, kls):
        n = len(losses)
        values = {"rewritten": torch.tensor(kls)}
        found = Substituted(torch.zeros(n).long(), torch.arange(n), 1, torch.tensor(losses), {}, values, {})
        return Result("x", pd.DataFrame(), {}, {"by_loss": loss_bins(found, {"rewritten": ["rewritten"]})})

    # bins [0.6, 0.9) and [1.25, 1.7): the first model has 2 and 1 tokens there, the second 1 and 3
    first = result([0.7, 0.8, 1.5], [0.1, 0.3, 1.0])
    second = result([0.65, 1.3, 1.4, 1.6], [0.5, 0.0, 0.3, 0.6])
    found = matched([first, second], np.ones((1, 1)))
    assert {0.6, 0.9, 1.25, 1.7} <= set(EDGES)
    np.testing.assert_allclose(found["rewritten"], [[(0.2 + 1.0) / 2, (0.5 + 0.3) / 2]], atol=1e-6)
    np.testing.assert_allclose(found["kept"], [[2 / 3, 2 / 4]])
    np.testing.assert_allclose(found["loss"], [[(0.75 + 1.5) / 2, (0.65 + 4.3 / 3) / 2]], atol=1e-6)
