"""The k-sparse probe: a label read from k units alone, and how small k can be.

Units are taken one at a time, on the training rows: the next is the one that explains most of what the ones before
it leave of the labels. "Most" is the sum over classes of the explained share of each one's indicator, divided by
(class share), which is forward selection of a linear discriminant (Pillai's trace), so that rare classes count and
a unit that says what another one says is passed over. A logistic regression is then fitted on the first k units,
for every k of `SIZES`. As many units drawn at random are the null.

k_90: the smallest of `SIZES`, or all units, whose gain in accuracy over the majority class is 90 % of the full probe's.

Source: Gurnee et al., arXiv 2305.01610 (k-sparse probing; orthogonal matching pursuit is one of their selections).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.probing.crossval import joined, judge
from analyses.probing.linear import fit
from analyses.probing.scores import Judged
from analyses.probing.split import Folds

SIZES: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
PENALTY = 10.0
"""c of a sparse probe, on units that are made orthogonal: few weights need little shrinkage."""
SHARE = 0.9


def sizes_for(width: int) -> tuple[int, ...]:
    """The numbers of units that are tried at a site of this width."""
    return tuple(k for k in SIZES if k < width)


def selected(
    x: Float[Tensor, "row unit"], labels: Int[Tensor, " row"], n_classes: int, n: int
) -> Int[Tensor, " chosen"]:
    """The `n` units that forward selection takes, in its order.

    Args:
        x: features of the training rows.
        labels: classes, from 0.
        n_classes: classes.
        n: units, no more than there are.
    """
    x = x.double() - x.double().mean(0)
    onehot = torch.nn.functional.one_hot(labels, n_classes).double()
    share = onehot.mean(0)
    gram = x.T @ x / len(x)
    left = x.T @ ((onehot - share) / share.clamp(min=1 / len(x)).sqrt()) / len(x)  # covariance with what is unexplained
    variance = gram.diagonal().clone()
    least = 1e-6 * variance.clamp(min=1e-12)
    factor, chosen = x.new_zeros(len(gram), n), []
    taken = torch.zeros(len(gram), dtype=torch.bool)
    for i in range(n):
        gain = torch.where(variance > least, left.square().sum(1) / variance.clamp(min=1e-300), 0.0)
        best = int(gain.masked_fill(taken, -1.0).argmax())
        taken[best] = True
        chosen.append(best)
        if variance[best] > least[best]:  # else it says nothing that the others do not
            column = (gram[:, best] - factor @ factor[best]) / variance[best].sqrt()
            factor[:, i] = column
            variance -= column.square()
            left = left - column[:, None] * (left[best] / column[best])
    return torch.tensor(chosen)


def sparse_probes(
    x: Float[Tensor, "row unit"],
    labels: Int[Tensor, " row"],
    folds: Folds,
    n_classes: int,
    *,
    random: int | None = None,
) -> dict[int, Judged]:
    """Answers of the probe on k units, by k.

    Args:
        x: standardized features.
        labels: classes, from 0.
        folds: of the rows; the validation rows are not used.
        n_classes: classes.
        random: seed of units at random in place of selected ones.

    Cost: one fit a fold, of as many problems as `SIZES`, on 64 columns.
    """
    sizes = sizes_for(x.shape[1])
    if not sizes:
        return {}
    answers: dict[int, list] = {k: [] for k in sizes}
    for f in range(folds.n):
        train, judged = folds.train(f), folds.judged(f).nonzero()[:, 0]
        if random is None:
            units = selected(x[train], labels[train], n_classes, max(sizes))
        else:
            units = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(random + f))[: max(sizes)]
        z = orthogonal(x[:, units], x[train][:, units])
        probes = fit(
            z[train],
            labels[train].expand(len(sizes), -1),
            torch.ones(len(sizes), int(train.sum())),
            torch.full((len(sizes),), PENALTY),
            n_classes,
            support=torch.arange(z.shape[1]) < torch.tensor(sizes)[:, None],
        )
        logp = probes.log_probabilities(z[judged])
        for i, k in enumerate(sizes):
            answers[k].append((judged, judge(judged, logp[:, i], labels, train)))
    return {k: joined(parts) for k, parts in answers.items()}


def orthogonal(x: Float[Tensor, "row unit"], train: Float[Tensor, "train unit"]) -> Float[Tensor, "row unit"]:
    """Columns of which the first k span what the first k of `x` span, orthonormal on the training rows.

    A column that adds nothing to those before it becomes 0.
    """
    mean = train.double().mean(0)
    apart = train.double() - mean
    gram = apart.T @ apart / len(train)
    inverse = torch.zeros_like(gram)
    for k in range(len(gram)):  # Gram-Schmidt on the coefficients
        unit = torch.zeros(len(gram), dtype=torch.float64)
        unit[k] = 1
        for _ in range(2):  # twice is enough
            unit = unit - inverse @ (inverse.T @ (gram @ unit))
        size = (unit @ gram @ unit).clamp(min=0).sqrt()
        inverse[:, k] = unit / size if size > 1e-3 * gram[k, k].sqrt() and size > 0 else 0.0
    return ((x.double() - mean) @ inverse).to(x.dtype)


def concentration(accuracies: dict[int, float], full: float, majority: float, width: int) -> float:
    """k_90: units that give `SHARE` of the full probe's gain over the majority class; NaN where it gains nothing."""
    if full <= majority:
        return float("nan")
    reached = [k for k, accuracy in sorted(accuracies.items()) if accuracy - majority >= SHARE * (full - majority)]
    return float(reached[0] if reached else width)
