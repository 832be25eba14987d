"""The MLP probe: one hidden layer, for what is there and not linear.

softmax(relu(x W1 + b1) W2 + b2), `HIDDEN` units, Adam on batches of rows, all problems at once. Of the epochs the one
with the least loss on the validation rows is kept, a problem each. Stronger probes memorise more: read its selectivity.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.probing.crossval import joined, judge
from analyses.probing.scores import Judged
from analyses.probing.split import Folds

HIDDEN, EPOCHS, ROWS, RATE, DECAY = 64, 12, 256, 3e-3, 1e-3


def mlp_probes(
    x: Float[Tensor, "row unit"], labels: Int[Tensor, "set fold row"], folds: Folds, n_classes: int, seed: int = 0
) -> list[tuple[Judged, bool]]:
    """Answers for each set of labels, and whether the best epoch of every fold came before the last.

    Args:
        x: standardized features.
        labels: classes, from 0; each fold may have its own.
        folds: of the rows.
        n_classes: classes.
        seed: of weights and batches.
    """
    flat = labels.flatten(0, 1)
    n_sets = len(labels)
    train = torch.stack([folds.train(f) for f in range(folds.n)]).repeat(n_sets, 1)
    validation = torch.stack([folds.validation(f) for f in range(folds.n)]).repeat(n_sets, 1).to(x.dtype)
    generator = torch.Generator().manual_seed(seed)
    weights = _start(len(flat), x.shape[1], n_classes, generator)
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=DECAY)
    best, kept, when = torch.full((len(flat),), torch.inf), None, torch.zeros(len(flat))
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(ROWS):
            with torch.enable_grad():
                loss = (_loss(x[rows], flat[:, rows], weights) * train[:, rows]).sum() / ROWS
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
        with torch.no_grad():
            loss = (_loss(x, flat, weights) * validation).sum(1) / validation.sum(1)
            better = loss < best
            best, when = torch.where(better, loss, best), when.masked_fill(better, epoch)
            kept = [
                w.detach().clone() if old is None else torch.where(better.view(-1, *[1] * (w.ndim - 1)), w, old)
                for w, old in zip(weights, kept or [None] * len(weights), strict=True)
            ]
    with torch.no_grad():
        logp = _logits(x, kept or weights).log_softmax(-1)
    found = []
    for i in range(n_sets):
        parts = []
        for f in range(folds.n):
            rows = folds.judged(f).nonzero()[:, 0]
            parts.append((rows, judge(rows, logp[i * folds.n + f, rows].T, labels[i, f], folds.train(f))))
        mine = when[i * folds.n : (i + 1) * folds.n]
        found.append((joined(parts), bool((mine < EPOCHS - 1).all())))
    return found


def _start(n: int, width: int, n_classes: int, generator: torch.Generator) -> list[Tensor]:
    """Weights of n probes: He's scale for the hidden layer, small for the output."""
    hidden = torch.randn(n, width, HIDDEN, generator=generator) * math.sqrt(2 / width)
    out = torch.randn(n, HIDDEN, n_classes, generator=generator) * math.sqrt(1 / HIDDEN)
    return [w.requires_grad_() for w in (hidden, torch.zeros(n, 1, HIDDEN), out, torch.zeros(n, 1, n_classes))]


def _logits(x: Tensor, weights: list[Tensor]) -> Float[Tensor, "problem row class"]:
    first, bias, second, last = weights
    return torch.relu(x @ first + bias) @ second + last


def _loss(x: Tensor, labels: Tensor, weights: list[Tensor]) -> Float[Tensor, "problem row"]:
    logits = _logits(x, weights)
    return logits.logsumexp(-1) - logits.gather(-1, labels[..., None])[..., 0]
