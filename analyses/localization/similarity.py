"""Agreement: how much circuits of one architecture have in common, beside what chance gives.

    Jaccard = |A and B| / |A or B|, 0..1

Two random circuits of n_a and n_b of N edges share a hypergeometric number of them, so the expected Jaccard and the
p-value (chance of sharing as many) are exact. They are for sets that know nothing: circuits that agree merely on how
many edges run between which layers have small p-values too.

Heads have no names that two training runs would agree on. `kind_jaccard` counts edges by kind (from which layer's
heads or MLP, to which layer's queries, keys, values, MLP or logits) and is sum of minima / sum of maxima of the counts:
it does not change when the heads of a layer are renamed. Its expectation is over random circuits of the same sizes.
"""

import itertools
from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Int
from scipy import stats

from analyses.localization.graph import Graph
from analyses.localization.nulls import Members

N_RANDOM = 500
"""Pairs of random circuits for the expectation by kind."""


def jaccard(a: Members, b: Members) -> float:
    """Shared edges / edges of either, 0..1; two circuits without edges are the same: 1."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def expected_jaccard(n_a: int, n_b: int, n_edges: int) -> float:
    """Mean Jaccard of independent random circuits of n_a and n_b of n_edges edges; exact.

    Raises:
        ValueError: circuits of more edges than there are.
    """
    if not 0 <= min(n_a, n_b) <= max(n_a, n_b) <= n_edges:
        raise ValueError(f"circuits must have 0 to {n_edges:,} edges; got {n_a} and {n_b}")
    if n_a + n_b == 0:
        return 1.0
    shared = np.arange(max(0, n_a + n_b - n_edges), min(n_a, n_b) + 1)
    return float((stats.hypergeom.pmf(shared, n_edges, n_a, n_b) * shared / (n_a + n_b - shared)).sum())


def agreement(circuits: Mapping[str, Members], graph: Graph, *, seed: int = 0) -> pd.DataFrame:
    """Every pair of circuits: of seeds, templates, ablations or methods.

    Args:
        circuits: name to members, all of one graph.
        seed: of the random circuits for the expectation by kind.

    Returns:
        One row a pair: a, b, n_edges_a, n_edges_b, shared, jaccard, expected_jaccard, p_value, kind_jaccard,
        expected_kind_jaccard.

    Raises:
        ValueError: members of another shape than the graph's.
    """
    for name, members in circuits.items():
        if members.shape != graph.possible.shape:
            raise ValueError(f"all circuits must be {graph.possible.shape}; {name!r} is {members.shape}")
    kinds, draw = edge_kinds(graph), np.random.default_rng(seed)
    sizes = np.bincount(kinds[graph.possible])
    by_chance: dict[tuple[int, int], tuple[float, float]] = {}
    rows = []
    for (name_a, a), (name_b, b) in itertools.combinations(circuits.items(), 2):
        a, b = a & graph.possible, b & graph.possible
        n_a, n_b, shared = (int(x.sum()) for x in (a, b, a & b))
        counts = [np.bincount(kinds[x], minlength=len(sizes)) for x in (a, b)]
        if (n_a, n_b) not in by_chance:
            random = [draw.multivariate_hypergeometric(sizes, n, N_RANDOM) for n in (n_a, n_b)]
            by_chance[n_a, n_b] = expected_jaccard(n_a, n_b, graph.n_edges), float(_count_jaccard(*random).mean())
        rows.append(
            {
                "a": name_a,
                "b": name_b,
                "n_edges_a": n_a,
                "n_edges_b": n_b,
                "shared": shared,
                "jaccard": jaccard(a, b),
                "expected_jaccard": by_chance[n_a, n_b][0],
                "p_value": float(stats.hypergeom.sf(shared - 1, graph.n_edges, n_a, n_b)),
                "kind_jaccard": float(_count_jaccard(counts[0][None], counts[1][None])[0]),
                "expected_kind_jaccard": by_chance[n_a, n_b][1],
            }
        )
    return pd.DataFrame(rows)


def edge_kinds(graph: Graph) -> Int[np.ndarray, "source destination"]:
    """A number for each edge: equal for edges that differ in heads alone; -1 where there is no edge."""
    starts = [(source.kind, source.layer) for source in graph.sources]
    ends = [(d.kind, d.layer, d.qkv) for d in graph.destinations]
    a, b = (np.array([sorted(set(names)).index(name) for name in names]) for names in (starts, ends))
    return np.where(graph.possible, a[:, None] * (b.max() + 1) + b, -1)


def _count_jaccard(a: Int[np.ndarray, "pair kind"], b: Int[np.ndarray, "pair kind"]) -> np.ndarray:
    largest = np.maximum(a, b).sum(1)
    return np.where(largest, np.minimum(a, b).sum(1) / np.maximum(largest, 1), 1.0)
