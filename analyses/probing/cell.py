"""One target at one site: every number of the table's row, from features that are already there."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.probing.causal import story_losses
from analyses.probing.control import control_labels, shuffled
from analyses.probing.crossval import PENALTIES, CrossValidated, cross_validated, judge, standardized
from analyses.probing.erasure import leace, random_erasers
from analyses.probing.linear import fit
from analyses.probing.mdl import blocks, online_code
from analyses.probing.mlp import mlp_probes
from analyses.probing.scores import balanced_accuracy, mean_over_rows, ratio
from analyses.probing.sparse import concentration, sparse_probes
from analyses.probing.split import Folds
from analyses.probing.targets import Target
from analyses.texts import Stories

RANDOM_SUBSPACES, ERASED_STORIES = 2, 40
"""Random subspaces of a label's rank; stories of fold 0, at most, in which a label is erased."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A target's tokens, the same at every site.

    Args:
        target: what is asked.
        labels: class of each token.
        types: token id of each.
        story: of each.
        folds: by story.
        controls: classes at random for token types, a draw a fold.
        shuffles: the labels in another order, a draw a fold.
        seed: of draws, blocks and hidden layers.
    """

    target: Target
    labels: Int[Tensor, " row"]
    types: Int[Tensor, " row"]
    story: Int[Tensor, " row"]
    folds: Folds
    controls: Int[Tensor, "fold row"]
    shuffles: Int[Tensor, "fold row"]
    seed: int

    @property
    def n_classes(self) -> int:
        """Classes that are kept."""
        return len(self.target.labels.classes)

    @property
    def rows_story(self) -> Int[np.ndarray, " row"]:
        """Story of each token."""
        return self.story.numpy()

    def erased_in(self) -> Int[Tensor, " story"]:
        """Stories in which the label is erased: of fold 0, whose rows no eraser is fitted on."""
        return self.story[self.folds.judged(0)].unique()[:ERASED_STORIES]

    def majority(self) -> float:
        """Share of the most frequent class: the accuracy of always naming it, for who knows which it is."""
        return float(torch.bincount(self.labels).max()) / len(self.labels)


def asked(target: Target, labels: Tensor, types: Tensor, story: Tensor, folds: Folds, seed: int) -> Asked:
    """The target's tokens with the draws of its controls."""
    return Asked(
        target, labels, types, story, folds, control_labels(types, labels, folds.n, seed),
        shuffled(labels, folds.n, seed), seed,
    )  # fmt: skip


def linear_row(
    raw: Float[Tensor, "row unit"], untrained: Float[Tensor, "row _"] | None, one: Asked, controls: bool
) -> tuple[dict[str, Any], CrossValidated]:
    """Accuracy, selectivity and description length of the linear probe, with controls; and the probe of the task.

    Args:
        raw: features of the site.
        untrained: those of a model that has learned nothing; None: left out.
        one: the target.
        controls: whether to ask for control labels and shuffles.
    """
    x, story, n = standardized(raw), one.rows_story, one.n_classes
    task_labels = one.labels.expand(one.folds.n, -1)
    sets = [task_labels, one.controls, one.shuffles] if controls else [task_labels]
    task, *others = cross_validated(x, torch.stack(sets), one.folds, n)
    row = {
        **mean_over_rows(task.judged.right, story).columns("accuracy"),
        **balanced_accuracy(task.judged, story, n).columns("balanced"),
        "majority": one.majority(),
        "gradient": task.gradient,
        "converged": float(np.mean([probe.converged for probe in (task, *others)])),
    }
    for name, probe in zip(("control", "shuffle"), others, strict=False):
        row |= mean_over_rows(probe.judged.right, story).columns(name)
        if name == "control":
            row |= mean_over_rows(task.judged.right - probe.judged.right, story).columns("selectivity")
    if untrained is not None:
        (bare,) = cross_validated(standardized(untrained), task_labels[None], one.folds, n)
        row |= mean_over_rows(bare.judged.right, story).columns("untrained")
    return row | description(x, one), task


def description(x: Float[Tensor, "row unit"], one: Asked) -> dict[str, float]:
    """The online code of the labels."""
    block, n = blocks(one.story, one.seed), len(x)
    code = online_code(x, one.labels, block, one.n_classes, PENALTIES)
    mean = mean_over_rows(code.bits + code.overhead / n, one.rows_story)
    return {
        "mdl_bits": code.total, "mdl_bits_low": n * mean.low, "mdl_bits_high": n * mean.high,
        "uniform_bits": n * code.uniform, "prior_bits": float(code.prior_bits.sum()),
        "compression": code.compression, "compression_low": code.uniform / mean.high,
        "compression_high": code.uniform / mean.low,
    }  # fmt: skip


def sparse_rows(raw: Float[Tensor, "row unit"], one: Asked, full: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each number of units, and what the full probe's row learns from them (`k_90`)."""
    x, story = standardized(raw), one.rows_story
    chosen = sparse_probes(x, one.labels, one.folds, one.n_classes)
    drawn = sparse_probes(x, one.labels, one.folds, one.n_classes, random=one.seed)
    accuracies = {}
    for k, judged in chosen.items():
        right = mean_over_rows(judged.right, story)
        accuracies[k] = right.value
        yield {
            "probe": "sparse", "k": float(k), **right.columns("accuracy"),
            **balanced_accuracy(judged, story, one.n_classes).columns("balanced"),
            "majority": full["majority"], **mean_over_rows(drawn[k].right, story).columns("random_units"),
        }  # fmt: skip
    gains = full["accuracy_low"] > full["majority"]
    full["k_90"] = (
        concentration(accuracies, full["accuracy"], full["majority"], raw.shape[1]) if gains else float("nan")
    )


def mlp_row(raw: Float[Tensor, "row unit"], one: Asked, majority: float) -> dict[str, Any]:
    """Accuracy and selectivity of the MLP probe."""
    sets = torch.stack([one.labels.expand(one.folds.n, -1), one.controls])
    (task, ended), (control, _) = mlp_probes(standardized(raw), sets, one.folds, one.n_classes, one.seed)
    story = one.rows_story
    return {
        "probe": "mlp", **mean_over_rows(task.right, story).columns("accuracy"),
        **balanced_accuracy(task, story, one.n_classes).columns("balanced"), "majority": majority,
        **mean_over_rows(control.right, story).columns("control"),
        **mean_over_rows(task.right - control.right, story).columns("selectivity"), "converged": float(ended),
    }  # fmt: skip


def erasure_columns(
    model: Any, site: str, stream: str, raw: Float[Tensor, "row unit"], stories: Stories, one: Asked, penalty: float,
    intact: Float[np.ndarray, " judged_story"],
) -> dict[str, Any]:  # fmt: skip
    """What is left of the label, and what the model loses, when the label's subspace is erased at the site.

    Args:
        model: of the features.
        site: hook point.
        stream: whose loss.
        raw: features at the target's tokens.
        stories: all of them.
        one: the target.
        penalty: of the probe that is fitted anew.
        intact: losses of `one.erased_in()` without erasure, nats.
    """
    train, judged = one.folds.train(0), one.folds.judged(0).nonzero()[:, 0]
    eraser = leace(raw[train], one.labels[train], one.n_classes)
    spread, mean = torch.std_mean(raw, 0, correction=0)
    x = ((eraser(raw.double()) - mean) / spread.clamp(min=1e-12)).float().masked_fill(spread == 0, 0.0)
    probe = fit(
        x[train], one.labels[None, train], torch.ones(1, int(train.sum())), torch.tensor([penalty]), one.n_classes
    )
    left = judge(judged, probe.log_probabilities(x[judged])[:, 0], one.labels, train)
    held_out = one.erased_in()
    part, where = stories.subset(held_out), one.target.labels.values[held_out] >= 0
    n_tokens = part.predicted.sum(1).double().numpy()
    draws = random_erasers(raw[train], eraser.rank, RANDOM_SUBSPACES, one.seed)
    losses = [story_losses(model, part, stream=stream, erased=(site, way, where)) - intact for way in (eraser, *draws)]
    random = np.mean(losses[1:], axis=0)
    return {
        "rank": float(eraser.rank), **mean_over_rows(left.right, one.rows_story[judged.numpy()]).columns("erased"),
        "loss": ratio(intact, n_tokens).value, **ratio(losses[0], n_tokens).columns("loss_rise"),
        **ratio(random, n_tokens).columns("random_rise"),
        **ratio(losses[0] - random, n_tokens).columns("rise_beyond_random"),
    }  # fmt: skip
