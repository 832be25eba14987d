"""Soundness: whether a faithful circuit has all of the computation, and nothing else.

    completeness    is anything left outside?  f(M - C), the rest alone, is near 0; and what is cut from the circuit
                    is missed as much in the model: |f(C - K) - f(M - K)| is small for every set K of C's edges
    minimality      is anything in it idle?    f(C) - f(C - v) for each edge or node v

M: all edges; f: faithfulness. The supremum over sets is of those that were drawn: a lower bound. Where there is no
gap between intact model and other run, all is NaN.

Source: arXiv 2211.00593; differs: edges, many sets at once, intervals, and a null for each.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from tqdm.auto import tqdm

from analyses.localization.faithfulness import Gap
from analyses.localization.graph import Graph
from analyses.localization.nulls import Members, random_circuits, random_subsets, share_as_large
from analyses.localization.setting import Setting

AT_ONCE = 256
"""Circuits that are run between two moves of the bar."""


class Completeness(NamedTuple):
    """`complement`: f(M - C), with `low` and `high` over prompts; `complement_random`: mean over random circuits;
    `p_value`: share of random circuits whose complement is as near to 0. `incompleteness_mean`, `_max`: of
    |f(C - K) - f(M - K)| over `n_sets` random sets K of C's edges; `_random`: the largest for random circuits, their
    mean; `incompleteness_p_value`: share of random circuits with a maximum as small.
    """

    complement: float
    low: float
    high: float
    complement_random: float
    p_value: float
    incompleteness_mean: float
    incompleteness_max: float
    incompleteness_random: float
    incompleteness_p_value: float
    n_sets: int
    n_random: int


def completeness(
    setting: Setting,
    members: Members,
    gap: Gap,
    *,
    n_sets: int = 50,
    n_random: int = 19,
    keep: str = "layers",
    seed: int = 0,
) -> Completeness:
    """Whether anything that does the task was left out.

    Args:
        gap: of the setting (`faithfulness.gap_of`).
        n_sets: random sets K, of shares drawn uniformly from 0 to 1.
        n_random: random circuits, each with as many sets of its own edges.
        keep: what random circuits share with this one, see `nulls`.

    Cost: 2 x n_sets + 1 forward passes for each prompt and circuit, of which there are n_random + 1.
    """
    draw, every = np.random.default_rng(seed), setting.graph.possible
    circuits = [members, *random_circuits(setting.graph, int(members.sum()), n_random, seed, members, keep)]
    rest, mean, largest = np.empty((3, len(circuits)))
    interval = np.empty(2)
    for i, circuit in enumerate(circuits):
        sets = random_subsets(circuit, n_sets, draw)
        values = setting.values(np.concatenate([(every & ~circuit)[None], circuit & ~sets, every & ~sets]))
        f = gap.faithfulness(values)
        rest[i], differences = f[0], np.abs(f[1 : 1 + n_sets] - f[1 + n_sets :])
        mean[i], largest[i] = differences.mean(), differences.max()
        interval = gap.interval(values[:1])[:, 0] if i == 0 else interval
    return Completeness(
        complement=float(rest[0]),
        low=float(interval[0]),
        high=float(interval[1]),
        complement_random=_mean(rest[1:]),
        p_value=share_as_large(-abs(rest[0]), -np.abs(rest[1:])),
        incompleteness_mean=float(mean[0]),
        incompleteness_max=float(largest[0]),
        incompleteness_random=_mean(largest[1:]),
        incompleteness_p_value=share_as_large(-largest[0], -largest[1:]),
        n_sets=n_sets,
        n_random=n_random,
    )


def minimality(
    setting: Setting,
    members: Members,
    gap: Gap,
    *,
    unit: str = "edge",
    without: Members | None = None,
    threshold: float = 0.01,
    n_random: int = 99,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """What each edge or node of the circuit does in it: the fall of f when it is taken out.

    Args:
        gap: of the setting (`faithfulness.gap_of`).
        unit: `edge`, or `node` (all edges that leave a head or an MLP).
        without: a set K of edges that is taken out before, so that one of two backups is seen.
        threshold: falls smaller than this, up or down, are idle.
        n_random: for edges, the null: edges outside the circuit that a path of it could carry, each put in by
            itself. The p-value is the share of them that move f as much; around a small circuit there are few of
            them, and it cannot be small.

    Returns:
        One row an edge or node, largest |fall| first: name, fall, low, high, idle, p_value (NaN for nodes). The
        share of idle ones is `table["idle"].mean()`.

    Raises:
        ValueError: another unit.

    Cost: a forward pass for each row and prompt, and n_random.
    """
    if unit not in ("edge", "node"):
        raise ValueError(f"unit must be edge or node; got {unit!r}")
    graph = setting.graph
    kept = members if without is None else members & ~without
    names, cuts = _edges(graph, kept) if unit == "edge" else _nodes(graph, kept)
    base = setting.values(kept[None])

    def moved(cuts: list[np.ndarray]) -> Float[np.ndarray, "cut n"]:
        """What cutting (or, outside, putting in) each set takes from the value."""
        starts = tqdm(range(0, len(cuts), AT_ONCE), unit="batch", disable=None if progress else True)
        parts = [base - setting.values(kept ^ _masks(graph, cuts[start : start + AT_ONCE])) for start in starts]
        return np.concatenate([base[:0], *parts])

    falls = moved(cuts) + gap.empty  # so that f of it is the fall
    fall, (low, high) = gap.faithfulness(falls), gap.interval(falls)
    p_values = np.full(len(names), np.nan)
    if unit == "edge":
        outside = _random_outside(graph, kept, n_random, np.random.default_rng(seed))
        null = np.abs(gap.faithfulness(moved(outside) + gap.empty))
        p_values = np.array([share_as_large(abs(x), null) for x in fall])
    rows = {"fall": fall, "low": low, "high": high, "idle": np.abs(fall) < threshold, "p_value": p_values}
    table = pd.DataFrame({unit: names, **rows})
    return table.iloc[np.argsort(-np.abs(fall), kind="stable")].reset_index(drop=True)


def _edges(graph: Graph, members: Members) -> tuple[list[str], list[np.ndarray]]:
    found = np.argwhere(members & graph.possible)
    return [graph.edge_name(i, j) for i, j in found.tolist()], [edge[None] for edge in found]


def _nodes(graph: Graph, members: Members) -> tuple[list[str], list[np.ndarray]]:
    """Sources that a member leaves, and those members: what a node reads is nothing once it is not read."""
    sources = [i for i in range(1, len(graph.sources)) if members[i].any()]
    cuts = [np.stack([np.full(members[i].sum(), i), np.flatnonzero(members[i])], 1) for i in sources]
    return [graph.sources[i].name for i in sources], cuts


def _masks(graph: Graph, cuts: list[np.ndarray]) -> Bool[np.ndarray, "cut source destination"]:
    found = np.zeros((len(cuts), *graph.possible.shape), dtype=bool)
    for mask, edges in zip(found, cuts, strict=True):
        mask[tuple(edges.T)] = True
    return found


def _random_outside(graph: Graph, members: Members, n: int, draw: np.random.Generator) -> list[np.ndarray]:
    """Edges outside the circuit, from a source that it reaches into a destination that it leads on from."""
    alive = graph.live_destinations(graph.live_sources(members))
    able = graph.possible & ~members & graph.reached_sources(members)[:, None] & alive[None]
    edges = np.argwhere(able)
    return [edges[i][None] for i in draw.permutation(len(edges))[:n]]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
