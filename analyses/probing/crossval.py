"""Linear probes of several sets of labels, cross-validated over stories, all as one batch.

The features are brought to mean 0 and standard deviation 1 over all rows, labels unseen; that only sets the scale in
which weights are penalised. The penalty is one of `PENALTIES`, chosen for each fold and set of labels by validation.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.probing.linear import fit
from analyses.probing.scores import Judged
from analyses.probing.split import Folds

PENALTIES: tuple[float, ...] = (3.0, 30.0, 300.0)


@dataclasses.dataclass(frozen=True)
class CrossValidated:
    """Probes of one set of labels.

    Args:
        judged: their answers.
        penalty: chosen, a fold each.
        gradient: largest entry over the folds' chosen probes, nats a row.
        converged: share of all fits that reached the tolerance, 0..1.
    """

    judged: Judged
    penalty: tuple[float, ...]
    gradient: float
    converged: float


def standardized(x: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    """Mean 0 and standard deviation 1; a unit that never varies is 0."""
    spread, mean = torch.std_mean(x, 0, correction=0)
    varies = spread > 1e-6 * mean.abs() + 1e-12
    return torch.where(varies, (x - mean) / spread.where(varies, torch.ones_like(spread)), 0.0)


def cross_validated(
    x: Float[Tensor, "row unit"],
    labels: Int[Tensor, "set fold row"],
    folds: Folds,
    n_classes: int,
    penalties: Sequence[float] = PENALTIES,
) -> list[CrossValidated]:
    """Probe each set of labels, of which each fold may have its own.

    Args:
        x: standardized features.
        labels: classes, from 0.
        folds: of the rows.
        n_classes: classes.
        penalties: to choose from.

    Cost: sets x folds x penalties logistic regressions.
    """
    n_sets, n_penalties = len(labels), len(penalties)
    train = torch.stack([folds.train(f) for f in range(folds.n)])
    probes = fit(
        x,
        labels.flatten(0, 1).repeat_interleave(n_penalties, 0),
        train.repeat_interleave(n_penalties, 0).repeat(n_sets, 1),
        torch.tensor(list(penalties) * (n_sets * folds.n)),
        n_classes,
    )
    found = []
    for i in range(n_sets):
        answers, chosen = [], []
        for f in range(folds.n):
            first = (i * folds.n + f) * n_penalties
            mine = slice(first, first + n_penalties)
            validation, judged = folds.validation(f).nonzero()[:, 0], folds.judged(f).nonzero()[:, 0]
            rows = torch.cat([validation, judged])
            logp = probes.log_probabilities(x[rows], mine)
            right = labels[i, f, rows].expand(1, n_penalties, -1)
            loss = -logp.gather(0, right)[0]
            best = int(loss[:, : len(validation)].mean(1).argmin())
            chosen.append(first + best)
            answers.append((judged, judge(judged, logp[:, best, len(validation) :], labels[i, f], folds.train(f))))
        mine = slice(i * folds.n * n_penalties, (i + 1) * folds.n * n_penalties)
        found.append(
            CrossValidated(
                joined(answers),
                tuple(float(penalties[c % n_penalties]) for c in chosen),
                float(probes.gradient[chosen].max()),
                float(probes.converged[mine].double().mean()),
            )
        )
    return found


def judge(
    rows: Int[Tensor, " judged"],
    logp: Float[Tensor, "class judged"],
    labels: Int[Tensor, " row"],
    train: Bool[Tensor, " row"],
) -> Judged:
    """A probe's answers at some rows, from its log-probabilities there; `train` are the rows that it was fitted on."""
    share = torch.bincount(labels[train], minlength=len(logp)) / train.sum()
    adjusted = torch.where(share[:, None] > 0, logp - share.clamp(min=1e-12).log()[:, None], -torch.inf)
    label = labels[rows]
    loss = -logp.gather(0, label[None])[0].double()
    return Judged(label.numpy(), logp.argmax(0).numpy(), adjusted.argmax(0).numpy(), loss.numpy())


def joined(parts: Sequence[tuple[Int[Tensor, " _"], Judged]]) -> Judged:
    """The answers of all folds, in the order of the rows, each of which is in one fold."""
    order = np.argsort(np.concatenate([rows.numpy() for rows, _ in parts]))
    columns = [field.name for field in dataclasses.fields(Judged)]
    return Judged(*(np.concatenate([getattr(part, name) for _, part in parts])[order] for name in columns))
