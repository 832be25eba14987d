"""Nulls: what circuits that know nothing of the task, and models that know nothing, come to.

Random circuits of a circuit's size, of three kinds, each a harder test than the one before:

    size      uniform among the sets of as many edges
    layers    uniform among the sets with as many edges from each layer to each layer
    shape     the circuit itself with the heads of each layer dealt anew: the same paths through other heads

Most random sets of few edges lead nowhere; only `shape` keeps every path. In grouped attention, groups of heads
that share keys and values are dealt as groups, and heads within them. Where the heads of a layer are used alike,
the deal may give the circuit itself again: it is counted as the others are.

`analyses.random_weights` gives a model with the same weights in another order; a method is run on it again by the
caller, and what it finds there is what it finds where there is nothing.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from analyses.localization.faithfulness import TAILS, Gap
from analyses.localization.graph import Graph
from analyses.localization.setting import Setting

Members = Bool[np.ndarray, "source destination"]
KEEPS = ("size", "layers", "shape")


def random_subsets(
    of: Members, n: int, draw: np.random.Generator, share: float | None = None
) -> Bool[np.ndarray, "set source destination"]:
    """Random sets of these edges, each edge by itself with chance `share`; None: one drawn from 0..1 for each set."""
    shares = draw.random((n, 1, 1)) if share is None else np.full((n, 1, 1), share)
    return (draw.random((n, *of.shape)) < shares) & of


def random_circuits(
    graph: Graph,
    n_edges: int,
    n: int,
    seed: int = 0,
    like: Members | None = None,
    keep: str = "layers",
) -> Bool[np.ndarray, "circuit source destination"]:
    """Random circuits of `n_edges` edges.

    Args:
        n_edges: of each.
        n: circuits.
        like: a circuit of that size that they share something with; without it, nothing but the size.
        keep: what they share: `size`, `layers` or `shape`, see the module.

    Raises:
        ValueError: sizes beyond the graph's, another `keep`, or `like` of another size.
    """
    if keep not in KEEPS:
        raise ValueError(f"keep must be {', '.join(KEEPS[:-1])} or {KEEPS[-1]}; got {keep!r}")
    if not 0 <= n_edges <= graph.n_edges or n < 0:
        raise ValueError(f"random circuits of this graph have 0 to {graph.n_edges:,} edges; got {n} of {n_edges}")
    if like is not None and int((like & graph.possible).sum()) != n_edges:
        raise ValueError(f"`like` must have {n_edges} edges; it has {int((like & graph.possible).sum())}")
    draw = np.random.default_rng(seed)
    if like is not None and keep == "shape":
        found = [_with_other_heads(graph, like, draw) for _ in range(n)]
        return np.array(found, dtype=bool).reshape(n, *graph.possible.shape)
    pools = [(np.flatnonzero(graph.possible), n_edges)]
    if like is not None and keep == "layers":
        pools = _pools_by_layers(graph, like)
    found = np.zeros((n, graph.possible.size), dtype=bool)
    for row in found:
        for edges, size in pools:
            row[draw.choice(edges, size, replace=False)] = True
    return found.reshape(n, *graph.possible.shape)


def _pools_by_layers(graph: Graph, like: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Edges between each pair of layers, and how many of them the circuit has."""
    start = np.array([source.layer for source in graph.sources])[:, None]
    end = np.array([destination.layer for destination in graph.destinations])
    kinds = np.where(graph.possible, (start + 1) * (graph.n_layers + 1) + end, -1)
    return [
        (np.flatnonzero(kinds == kind), int((like & (kinds == kind)).sum())) for kind in np.unique(kinds[kinds >= 0])
    ]


def _with_other_heads(graph: Graph, like: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """The circuit with the heads of every layer renamed at random."""
    sources, destinations = np.arange(len(graph.sources)), np.arange(len(graph.destinations))
    each = graph.n_heads // graph.n_kv_heads
    for layer in range(graph.n_layers):
        kv = draw.permutation(graph.n_kv_heads)
        heads = np.concatenate([group * each + draw.permutation(each) for group in kv])
        for head, other in enumerate(heads):
            sources[graph.source_index[f"a{layer}.h{head}"]] = graph.source_index[f"a{layer}.h{other}"]
        for qkv, order in (("q", heads), ("k", kv), ("v", kv)):
            for head, other in enumerate(order):
                column = graph.destination_index[f"a{layer}.h{head}<{qkv}>"]
                destinations[column] = graph.destination_index[f"a{layer}.h{other}<{qkv}>"]
    found = np.zeros_like(like)
    found[np.ix_(sources, destinations)] = like
    return found & graph.possible


class AgainstRandom(NamedTuple):
    """A circuit's faithfulness beside that of random ones.

    `faithfulness` of the circuit; `random` mean of the random ones' and their central 95 % (`low`, `high`);
    `p_value` of f at least as large; `p_value_near` of f at least as near to 1; `n_random` circuits.
    """

    faithfulness: float
    random: float
    low: float
    high: float
    p_value: float
    p_value_near: float
    n_random: int


def against_random(
    setting: Setting,
    members: Members,
    gap: Gap,
    *,
    n_random: int = 99,
    keep: str = "layers",
    seed: int = 0,
) -> AgainstRandom:
    """Whether random circuits of the same size are as faithful.

    Args:
        gap: of the setting (`faithfulness.gap_of`).
        keep: what random circuits share with this one, see the module.

    Cost: a forward pass for each random circuit and prompt, and one.
    """
    others = random_circuits(setting.graph, int(members.sum()), n_random, seed, members, keep)
    f = gap.faithfulness(setting.values(np.concatenate([members[None], others])))
    low, high = np.quantile(f[1:], TAILS) if n_random else (np.nan, np.nan)
    return AgainstRandom(
        faithfulness=float(f[0]),
        random=float(f[1:].mean()) if n_random else float("nan"),
        low=float(low),
        high=float(high),
        p_value=share_as_large(f[0], f[1:]),
        p_value_near=share_as_large(-abs(1 - f[0]), -np.abs(1 - f[1:])),
        n_random=n_random,
    )


def share_as_large(value: float, null: Float[np.ndarray, " random"]) -> float:
    """p-value of "this is one of them": (b + 1) / (n + 1), b of n random values as large.

    Values within 1e-9 of their size count as equal: the same circuit in another batch is a tie. NaN stays NaN, and
    without random values it is NaN.
    """
    if np.isnan(value) or np.isnan(null).any() or not len(null):
        return float("nan")
    slack = 1e-9 * max(1.0, abs(float(value)))
    return float((1 + (null >= value - slack).sum()) / (1 + len(null)))
