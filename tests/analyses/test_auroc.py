"""AUROC and average precision of edge scores: by hand, and by looking at every pair."""

import numpy as np
import pytest

from analyses.localization.attribution import eap
from analyses.localization.auroc import auroc_table, edge_auroc, edge_average_precision

NAN = np.nan


def one_row(*values):
    return np.array([values])


def by_pairs(scores, members):
    """Every edge of the circuit against every other."""
    values = np.abs(scores)
    pairs = [(a, b) for a in values[members] for b in values[~members & ~np.isnan(scores)]]
    return np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs])


def by_thresholds(scores, members):
    """Sum over distinct scores of precision times gain of recall."""
    values, total, recall = np.abs(scores), 0.0, 0.0
    for threshold in sorted(set(values[~np.isnan(values)]), reverse=True):
        taken = values >= threshold
        total += (members & taken).sum() / taken.sum() * ((members & taken).sum() / members.sum() - recall)
        recall = (members & taken).sum() / members.sum()
    return total


def test_by_hand():
    scores, members = one_row(3.0, -2.0, 1.0, 2.0, NAN), one_row(True, True, False, False, False)
    # 3 beats 1 and 2; |-2| beats 1 and ties with 2: (1 + 1 + 1 + 1/2) / 4
    assert edge_auroc(scores, members) == 3.5 / 4
    # -2 is below 1 and 2: (1 + 1 + 0 + 0) / 4
    assert edge_auroc(scores, members, absolute=False) == 2 / 4
    # above 3: 1 of 1; above 2, tie and all: 2 of 3
    assert edge_average_precision(scores, members) == (1 + 2 / 3) / 2


@pytest.mark.parametrize("seed", range(8))
def test_other_routes_agree_with_ties_and_without_edges(seed):
    draw = np.random.default_rng(seed)
    scores = draw.integers(-4, 5, (5, 7)).astype(float)
    scores[draw.random(scores.shape) < 0.2] = NAN
    members = (draw.random(scores.shape) < 0.3) & ~np.isnan(scores)
    assert edge_auroc(scores, members) == pytest.approx(by_pairs(scores, members), abs=1e-12)
    assert edge_average_precision(scores, members) == pytest.approx(by_thresholds(scores, members), abs=1e-12)


def test_all_equal_scores_say_nothing():
    members = one_row(True, False, False, False)
    for scores in (np.zeros((1, 4)), np.full((1, 4), 2.0)):
        assert edge_auroc(scores, members) == 0.5 and edge_average_precision(scores, members) == 0.25


def test_rounding_errors_tie_with_zero():
    members = one_row(True, True, False, False)
    assert edge_auroc(one_row(1.0, 0.0, 1e-17, -1e-16), members) == edge_auroc(one_row(1.0, 0.0, 0.0, 0.0), members)
    assert edge_auroc(one_row(1.0, 0.0, 1e-6, 0.0), members) < edge_auroc(one_row(1.0, 0.0, 0.0, 0.0), members)


@pytest.mark.parametrize(
    ("scores", "members", "said"),
    [
        (one_row(1.0, NAN), one_row(False, True), "1 have NaN"),
        (one_row(1.0, 2.0), one_row(True, True), "of 2 edges 2 are"),
        (one_row(1.0, NAN), one_row(True, False), "of 1 edges 1 are"),
        (one_row(1.0, 2.0), one_row(False, False), "of 2 edges 0 are"),
    ],
)
def test_what_cannot_be_rated_is_refused(scores, members, said):
    with pytest.raises(ValueError, match=said):
        edge_auroc(scores, members)


def test_the_table_has_a_row_a_model_and_a_column_a_method():
    table = auroc_table({"eap": eap, "nothing": lambda setting: 0 * eap(setting)}, ["linear", "copy"], n=3)
    assert list(table.index) == ["linear", "copy"] and list(table.columns) == ["eap", "nothing"]
    assert (table["eap"] > 0.9).all() and (table["nothing"] == 0.5).all()
