"""The size that a circuit needs: the fewest edges at which it is as faithful as asked.

Circuits are compared at matched faithfulness by how many of a method's best edges it takes to reach it.
Faithfulness does not always rise with size, so the answer is defined on the sizes that were looked at:

    lasting      the smallest size from which on every larger size looked at is faithful enough
    not lasting  the smallest size looked at that is

The sizes are a geometric grid from 1 to all edges, then halvings of the step below the answer, until the next
smaller size is known to fall short. Between the grid's other sizes nobody looks.

Source: arXiv 2511.13653 compares circuits so (at equal loss); differs: faithfulness, intervals, curves that fall.
"""

import dataclasses

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from analyses.localization.faithfulness import TAILS, Gap, circuits_of, gap_of
from analyses.localization.setting import Scores, Setting


@dataclasses.dataclass(frozen=True)
class MatchedCircuit:
    """The smallest circuit that is faithful enough.

    Args:
        members: its edges, without dead ends.
        n_edges: best edges that were needed; `low` to `high` is the 95 % interval over prompts.
        n_edges_pruned: of them on a path from the input to the logits.
        faithfulness: of the circuit.
        threshold: what was asked for.
        note: why there is no answer, or no interval; empty where there is.
        table: every size that was looked at: n_edges, n_edges_pruned, faithfulness, low, high.
    """

    members: Bool[np.ndarray, "source destination"]
    n_edges: float
    low: float
    high: float
    n_edges_pruned: float
    faithfulness: float
    threshold: float
    note: str
    table: pd.DataFrame


def circuit_at_faithfulness(
    setting: Setting,
    scores: Scores,
    threshold: float = 0.9,
    *,
    two_sided: bool = False,
    lasting: bool = True,
    sign: str = "absolute",
    prune: bool = True,
    step: float = 1.25,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> MatchedCircuit:
    """The smallest circuit of best edges with f >= threshold, and an interval over prompts of its size.

    The interval's ends are found as the answer is, on resampled prompts, with the halvings of their own.

    Args:
        threshold: of faithfulness, between 0 and 1; all edges have it by definition.
        two_sided: |1 - f| <= 1 - threshold instead: a circuit that overshoots is not faithful either.
        lasting: what the smallest size is where the curve falls again; see the module.
        sign, prune: as in `faithfulness.curve`.
        step: ratio of neighbouring sizes of the grid.
        n_bootstrap, seed: resamples of the prompts.

    Returns:
        Without a gap between intact model and other run, NaN and no members.

    Raises:
        ValueError: threshold, step or sign as none of these.

    Cost: a forward pass for each size and prompt: ln(edges) / ln(step) of them, and at most three for each halving.
    """
    if not 0 < threshold < 1 or not 1 < step < float("inf"):
        raise ValueError(f"threshold must lie between 0 and 1, and step above 1; got {threshold} and {step}")
    gap = gap_of(setting, n_bootstrap=n_bootstrap, seed=seed)
    n = setting.graph.n_edges
    if np.isnan(gap.faithfulness(gap.intact[None])[0]):
        return _none(setting, threshold, gap)

    def measured(n_edges: Int[np.ndarray, " size"]) -> _Looked:
        whole, pruned = circuits_of(setting, scores, n_edges, sign)
        return _Looked(n_edges, pruned.sum((1, 2)), setting.values(pruned if prune else whole))

    looked = measured(np.unique(np.ceil(step ** np.arange(np.log(n) / np.log(step))).astype(int).tolist() + [n]))
    while True:
        f = np.concatenate([gap.faithfulness(looked.values)[:, None], gap.resampled(looked.values)], 1)
        holds = np.abs(1 - f) <= 1 - threshold if two_sided else f >= threshold
        at = smallest(holds, lasting)
        ends = [int(at[0])] * 2 if np.isnan(f[0, 1]) else _tails(at[1:])
        halves = _halves(looked.n_edges, [int(at[0]), *ends])
        if not len(halves):
            break
        looked = looked.joined(measured(halves))
    return _answer(setting, scores, sign, threshold, gap, looked, int(at[0]), ends)


def smallest(holds: Bool[np.ndarray, "size column"], lasting: bool = True) -> Int[np.ndarray, " column"]:
    """Index of the smallest size that is faithful enough (`lasting`: with all larger ones); the last always is."""
    holds = holds.copy()
    holds[-1] = True
    return (np.logical_and.accumulate(holds[::-1])[::-1] if lasting else holds).argmax(0)


@dataclasses.dataclass(frozen=True)
class _Looked:
    n_edges: Int[np.ndarray, " size"]
    n_pruned: Int[np.ndarray, " size"]
    values: Float[np.ndarray, "size n"]

    def joined(self, more: "_Looked") -> "_Looked":
        both = np.concatenate([self.n_edges, more.n_edges])
        order = np.argsort(both)
        pruned = np.concatenate([self.n_pruned, more.n_pruned])
        return _Looked(both[order], pruned[order], np.concatenate([self.values, more.values])[order])


def _tails(at: Int[np.ndarray, " resample"]) -> list[int]:
    """Both ends of the interval, outwards to indices that occur."""
    methods = ("lower", "higher")
    return [int(np.quantile(at, tail, method=method)) for tail, method in zip(TAILS, methods, strict=True)]


def _halves(n_edges: Int[np.ndarray, " size"], at: list[int]) -> Int[np.ndarray, " half"]:
    """The middle of each step below these sizes that is wider than one edge; below the first size is no edge."""
    before = [int(n_edges[i - 1]) if i else 0 for i in at]
    middles = [(low + int(n_edges[i])) // 2 for low, i in zip(before, at, strict=True) if n_edges[i] - low > 1]
    return np.unique(np.array(middles, dtype=int))


def _answer(
    setting: Setting, scores: Scores, sign: str, threshold: float, gap: Gap, looked: _Looked, at: int, ends: list[int]
) -> MatchedCircuit:
    f, (low, high) = gap.faithfulness(looked.values), gap.interval(looked.values)
    known = not np.isnan(low[-1])
    table = pd.DataFrame(
        {
            "n_edges": looked.n_edges,
            "n_edges_pruned": looked.n_pruned,
            "faithfulness": f,
            "low": low,
            "high": high,
        }
    )
    return MatchedCircuit(
        members=circuits_of(setting, scores, looked.n_edges[at : at + 1], sign)[1][0],
        n_edges=float(looked.n_edges[at]),
        low=float(looked.n_edges[ends[0]]) if known else float("nan"),
        high=float(looked.n_edges[ends[1]]) if known else float("nan"),
        n_edges_pruned=float(looked.n_pruned[at]),
        faithfulness=float(f[at]),
        threshold=threshold,
        note=gap.note,
        table=table,
    )


def _none(setting: Setting, threshold: float, gap: Gap) -> MatchedCircuit:
    nan, nothing = float("nan"), np.zeros_like(setting.graph.possible)
    columns = ["n_edges", "n_edges_pruned", "faithfulness", "low", "high"]
    return MatchedCircuit(nothing, nan, nan, nan, nan, nan, threshold, gap.note, pd.DataFrame(columns=columns))
