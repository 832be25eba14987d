"""Tolerance curves: how much of one task goes, and how much of the other stays, as more is tolerated.

Every curve is measured in folds: parts are chosen on some pairs of operands, and both accuracies measured on those
(`selection`) and on the pairs held out (`held_out`). Chosen on all pairs (fold -1), they are judged on a part of the
data that no choice has seen (`test`). Methods and controls: `analyses.untangling.methods`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from analyses.untangling.bench import Bench
from analyses.untangling.examples import folds, matched_examples
from analyses.untangling.methods import Direction, direction_of, methods
from analyses.untangling.selection import checked_tasks, checked_tau
from sat_lens.toy.arithmetic import Problems
from sat_lens.toy.runs import ToyRun

TAUS = (0.0, 0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Nats a token; of masks: share of tokens."""

UNITS = {
    "seed": "training seed", "tau": "nats a token, mean over examples (masks: share of tokens)",
    "fold": "index (-1: chosen on all)", "n_removed": "parts", "target_accuracy": "exact match, 0..1",
    "preserved_accuracy": "exact match, 0..1", "target_loss": "nats a token above intact",
    "preserved_loss": "nats a token above intact", "n_target": "examples", "n_preserved": "examples",
}  # fmt: skip
TESTED = "test"


def tolerance_sweep(
    run: ToyRun, target: str, preserved: str, *, taus: Sequence[float] = TAUS, k: int = 5, n: int = 100,
    part: str = "val", fill: str = "zero", with_greedy: bool = True, with_units: bool = True, seed: int = 0,
    measured: dict[str, Tensor] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """All curves of one run in one direction: one row a method, tau, fold and split.

    Args:
        target, preserved: the task to remove, and the one to keep.
        taus: tolerances.
        k: folds.
        n: pairs of operands at most.
        part: of the data, that parts are chosen on, and judged on in folds.
        fill: what takes the place of a latent: `zero`, `mean` or `resample`.
        with_greedy: also the greedy choice.
        with_units: also single channels and neurons, a forward pass each.
        seed: of examples, folds and draws.
        measured: importances of single units that are kept for the other direction (see `methods`).

    Returns:
        Columns of UNITS, with `run, arm, target, preserved, method, order, split`.

    Raises:
        ValueError: one task for both, a tolerance below 0, or too few examples that are answered rightly.
    """
    checked_tasks(target, preserved)
    taus = sorted({checked_tau(tau) for tau in taus})
    chosen_on = matched_examples(run.toy, run.data, part, n, seed)
    fold = folds(chosen_on, k, seed)
    problems, fold = with_test(run, chosen_on, fold, part, n, seed)
    places = [*range(k), *([-1] if (fold < 0).any() else [])]
    rows = []
    options = {"fill": fill, "with_greedy": with_greedy, "with_units": with_units, "seed": seed, "measured": measured}
    for method in methods(run, problems, target, preserved, **options):
        judge = Judge(method.bench, direction_of(method.bench, target, preserved), fold)
        for at in places:
            for tau in taus:
                sets = method.choice((fold >= 0) & (fold != at), tau)
                rows += [{"method": method.name, "order": method.order, "tau": tau, **row}
                         for row in judge.averaged(sets, method.order, at)]  # fmt: skip
    head = {"run": run.name, "arm": run.config.arm, "seed": run.config.seed, "target": target, "preserved": preserved}
    return pd.DataFrame([{**head, **row} for row in rows])


def with_test(run: ToyRun, chosen_on: Problems, fold: Tensor, part: str, n: int, seed: int) -> tuple[Problems, Tensor]:
    """The examples, and behind them those of `test` with fold -1; without them where the part holds them already."""
    if part not in ("val", "train") or not len(run.data.part(TESTED)):
        return chosen_on, fold
    try:
        tested = matched_examples(run.toy, run.data, TESTED, n, seed)
    except ValueError:  # too few of them are right
        return chosen_on, fold
    both = [torch.cat([getattr(chosen_on, f.name), getattr(tested, f.name)]) for f in dataclasses.fields(Problems)]
    return Problems(*both), torch.cat([fold, torch.full((len(tested),), -1)])


@dataclasses.dataclass
class Judge:
    """Accuracies and losses of sets of parts, each measured once.

    Args:
        bench: over all examples.
        direction: which of them are of which task.
        fold: of each; -1 for those of the test part.
    """

    bench: Bench
    direction: Direction
    fold: Tensor

    def __post_init__(self) -> None:
        self.intact = self.bench.losses()
        self.seen: dict[tuple[str, tuple[int, ...]], tuple[Tensor, Tensor]] = {}

    def measured(self, parts: list[int], order: str) -> tuple[Bool[Tensor, " example"], Tensor]:
        """Whether each example is right, and its loss above intact."""
        key = (order, tuple(parts) if order == "sequential" else tuple(sorted(parts)))
        if key not in self.seen:
            self.seen[key] = self.bench.right(parts, order), self.bench.losses(parts, order) - self.intact
        return self.seen[key]

    def averaged(self, sets: list[list[int]], order: str, at: int) -> Iterator[dict[str, Any]]:
        """A row for each split of a fold, averaged over sets."""
        splits = {"selection": (self.fold >= 0) & (self.fold != at), "held_out": self.fold == at}
        for split, rows in splits.items() if at >= 0 else [(TESTED, self.fold < 0)]:
            found = [self.row(parts, order, rows) for parts in sets]
            mean = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
            counts = {
                "n_target": (rows & self.direction.target).sum(),
                "n_preserved": (rows & self.direction.preserved).sum(),
            }
            yield {"fold": at, "split": split, **mean, **{key: int(value) for key, value in counts.items()}}

    def row(self, parts: list[int], order: str, rows: Tensor) -> dict[str, float]:
        """One set on some of the examples."""
        right, loss = self.measured(parts, order)
        found: dict[str, float] = {"n_removed": float(len(parts))}
        for name, of in (("target", self.direction.target), ("preserved", self.direction.preserved)):
            found[f"{name}_accuracy"] = right[rows & of].double().mean().item()
            found[f"{name}_loss"] = loss[rows & of].double().mean().item()
        return found
