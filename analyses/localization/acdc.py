"""ACDC: walk the graph from the logits back, and cut every edge whose loss is below a threshold.

An edge is cut for good when cutting it lowers the value of the task by less than `tau`, given all cuts
so far. With `value="kl"` that is the rise of KL(intact model || circuit) in nats, the published choice;
with `logit_diff` the fall of the mean logit difference. The answer depends on the order of the edges,
as in every greedy search. All orders go from the last layer to the first and, within a layer, from
the MLP to the heads, the last head first, and for each destination from the latest source to the earliest:

    ours        a layer's values, then its keys, then its queries
    reference   queries, keys, values, as the paper's implementation does by default; auto-circuit 1.0.1 sorts by
                layer alone and leaves the rest to the hashes of names, another order in every process:
                pass its list of edges to repeat one of its runs

Both implementations look at one batch of prompts (`batches="first"`); here all prompts count.

The search computes only what a cut can change (`increments`), and it guesses: it asks about several
edges at once, each as if those before it had turned out as expected, and rolls back to the first
that did not. What is expected of an edge is what it did when last asked about, wrong guess or not; of
a new one, that it goes. The edges kept are those of one edge at a time.

Source: arXiv 2304.14997.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from analyses.localization.graph import Graph
from analyses.localization.increments import Changes, CircuitRun
from analyses.localization.runner import BYTES
from analyses.localization.setting import Scores, Setting
from sat_lens.distributed import from_main, gather_rows, shard, world_size
from sat_lens.memory import require

ORDERS = {"ours": ("v", "k", "q"), "reference": ("q", "k", "v")}
BATCHES = ("all", "first")
LARGEST_GUESS = 128
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Of what cutting everything costs: the default thresholds of `acdc_scores`."""
Order = str | Sequence[tuple[int, int]]


def acdc(
    setting: Setting,
    *,
    tau: float,
    guess: int = 16,
    order: Order = "ours",
    batches: str = "all",
    progress: bool = False,
) -> tuple[Bool[np.ndarray, "source destination"], Scores]:
    """The circuit that the search leaves, and what cutting each edge cost when it was asked about.

    Args:
        setting: its value is what must not fall, its final norm live or frozen.
        tau: an edge stays when cutting it costs at least that much, in the setting's unit.
        guess: edges asked about at once, to begin with; more while guesses come true. Changes the time alone.
        order: `ours`, `reference`, or every edge once, as (source, destination).
        batches: `all` prompts, or the `first` group of the setting.
        progress: show a bar on stderr, when that is a terminal.

    Returns:
        Members, and costs in the setting's unit: 0 where an edge could not matter any more, NaN where there is none.

    Raises:
        ValueError: tau is not a number above 0, an unknown order, too little memory.

    Cost: the nodes that follow an edge, for each edge into a node that still matters and each wrong guess; the edges
        of a guess are divided among processes. Memory:
        (3 source + destination) x n x pos x d_model for what is kept, and at most 256 MiB for the variants
        of a guess (more where one variant alone takes more); estimated, and refused before it is started.
    """
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be a number above 0, in {setting.unit}; got {tau}")
    edges = _ordered(setting.graph, order)
    with torch.inference_mode():
        search = _Search(setting, tau, guess, batches)
        with tqdm(total=len(edges), unit="edge", disable=None if progress else True) as bar:
            for stage in _stages(setting.graph, edges):
                for n_settled in search.settle(stage):
                    bar.update(n_settled)
    return search.runs[0].members, search.costs


def acdc_scores(
    setting: Setting,
    *,
    taus: Sequence[float] | None = None,
    order: Order = "ours",
    batches: str = "all",
    progress: bool = False,
) -> Scores:
    """Scores by thresholds: an edge's is the largest tau at which it is kept, 0 if there is none.

    Args:
        taus: in the setting's unit; default: SHARES of what cutting every edge costs.
        order, batches: as of `acdc`.
        progress: show a bar on stderr, when that is a terminal.

    Raises:
        ValueError: no taus, or what `acdc` refuses.

    Cost: a search for each tau; those of small taus take longest.
    """
    if taus is None:
        taus = [share * abs(float((setting.intact_values - setting.other_values).mean())) for share in SHARES]
    if not len(taus):
        raise ValueError("taus must have one threshold at least; got none")
    scores = np.where(setting.graph.possible, 0.0, np.nan)
    for tau in tqdm(sorted(taus), unit="tau", disable=None if progress else True):
        members, _ = acdc(setting, tau=tau, order=order, batches=batches)
        scores[members] = tau
    return scores


def _ordered(graph: Graph, order: Order) -> Int[np.ndarray, "edge 2"]:
    """Sources and destinations of all edges, in the order in which they are asked about."""
    if isinstance(order, str):
        if order not in ORDERS:
            raise ValueError(f"order must be {' or '.join(ORDERS)}, or every edge once; got {order!r}")
        rank = {qkv: i for i, qkv in enumerate(ORDERS[order])} | {"": -1}
        keys = [(-d.layer, rank[d.qkv], -d.head) for d in graph.destinations]
        columns = sorted(range(len(keys)), key=keys.__getitem__)
        found = [(i, j) for j in columns for i in np.flatnonzero(graph.possible[:, j])[::-1]]
        return np.array(found, dtype=np.int64)
    edges = np.array(order, dtype=np.int64).reshape(-1, 2)
    asked = np.zeros_like(graph.possible)
    if len(edges) == graph.n_edges and edges.min() >= 0 and (edges.max(0) < asked.shape).all():
        asked[edges[:, 0], edges[:, 1]] = True
    if not np.array_equal(asked, graph.possible):
        raise ValueError(f"order must have each of the {graph.n_edges:,} edges once; got {len(edges):,} entries")
    return edges


def _stages(graph: Graph, edges: Int[np.ndarray, "edge 2"]) -> Iterator[Int[np.ndarray, "_ 2"]]:
    """Runs of edges whose destinations do not feed one another."""
    of = [(d.layer, d.kind) for d in graph.destinations]
    for _, stage in itertools.groupby(edges, lambda edge: of[edge[1]]):
        yield np.array(list(stage))


class _Search:
    def __init__(self, setting: Setting, tau: float, guess: int, batches: str) -> None:
        if batches not in BATCHES:
            raise ValueError(f"batches must be {' or '.join(BATCHES)}; got {batches!r}")
        self.setting, self.graph, self.tau = setting, setting.graph, tau
        self.groups = setting.groups if batches == "all" else setting.groups[:1]
        self.guess = max(1, guess)
        self.costs = np.where(self.graph.possible, 0.0, np.nan)
        kept, self.of_a_variant = self._bytes()
        guessed = max(self.of_a_variant, min(BYTES, LARGEST_GUESS * self.of_a_variant))
        what = f"ACDC on {sum(len(group.rows) for group in self.groups)} prompts"
        require(kept + guessed, what, str(setting.parts.cfg.device), "take fewer prompts")
        self.runs = [CircuitRun(group.contrast, frozen_norm=setting.frozen_norm) for group in self.groups]
        last = len(self.graph.destinations) - 1
        nothing, no_cut = np.array([[0, last]]), np.zeros((1, 1), dtype=bool)
        self.now = from_main(self._values([run.without(nothing, no_cut) for run in self.runs])).item()

    def _bytes(self) -> tuple[int, int]:
        """Of what is kept; and, at most, of what one variant changes."""
        cfg, n_sources, n_destinations = self.setting.parts.cfg, *self.graph.possible.shape
        one = [group.contrast.clean[0].numel() * group.contrast.clean.element_size() for group in self.groups]
        ends = sum(len(group.rows) for group in self.groups) * cfg.d_vocab * self.groups[0].intact.element_size()
        return sum(one) * (3 * n_sources + n_destinations), sum(one) * n_sources + 4 * ends

    def settle(self, edges: Int[np.ndarray, "edge 2"]) -> Iterator[int]:
        """Ask about all edges of a stage; gives numbers of edges as they are settled."""
        matters = {j: self.runs[0].matters(j) for j in np.unique(edges[:, 1]).tolist()}
        alive = np.array([matters[j] for j in edges[:, 1].tolist()])
        for run in self.runs:
            run.adopt(edges[~alive], None)
        yield int((~alive).sum())
        edges = edges[alive]
        expect_cut = np.ones(len(edges), dtype=bool)
        largest = min(LARGEST_GUESS, max(1, BYTES // self.of_a_variant))
        while len(edges):
            asked, expected = edges[: min(self.guess, largest)], expect_cut[: min(self.guess, largest)]
            cuts, mine = _cuts(expected), shard(len(asked))
            changes = self._without(asked, cuts[mine.start : mine.stop])
            values = gather_rows(self._values(changes)).numpy(force=True)
            costs = _costs(self.now, values, expected)
            cut = costs < self.tau
            wrong = np.flatnonzero(cut != expected)
            n = int(wrong[0]) + 1 if len(wrong) else len(asked)
            self.costs[asked[:n, 0], asked[:n, 1]] = costs[:n]
            if cut[:n].any():
                variant = row = int(np.flatnonzero(cut[:n])[-1])  # is without every edge that goes
                if world_size() > 1:
                    del changes
                    changes, row = self._without(asked, cuts[variant][None]), 0  # one rank alone has its changes
                for run, change in zip(self.runs, changes, strict=True):
                    run.adopt(asked[:n][cut[:n]], change, row)
                self.now = float(values[variant])
            self.guess = max(6, n + n // 3) if len(wrong) else 2 * n
            expect_cut[n : len(asked)] = cut[n:]
            edges, expect_cut = edges[n:], expect_cut[n:]
            yield n

    def _without(self, asked: Int[np.ndarray, "edge 2"], cuts: Bool[np.ndarray, "variant edge"]) -> list[Changes]:
        return [run.without(asked, cuts) for run in self.runs] if len(cuts) else []

    def _values(self, changes: Sequence[Changes]) -> Float[Tensor, " variant"]:
        found = [
            self.setting.measured(change.logits, group).double().sum(-1)
            for change, group in zip(changes, self.groups[: len(changes)], strict=True)
        ]
        if not found:
            return torch.empty(0, dtype=torch.float64, device=self.groups[0].intact.device)
        return torch.stack(found).sum(0) / sum(len(group.rows) for group in self.groups)


def _cuts(expected: Bool[np.ndarray, " edge"]) -> Bool[np.ndarray, "edge edge"]:
    """A variant an edge: without it, and without those before it that are expected to be cut."""
    return (np.tri(len(expected), k=-1, dtype=bool) & expected) | np.eye(len(expected), dtype=bool)


def _costs(
    now: float, values: Float[np.ndarray, " edge"], expected: Bool[np.ndarray, " edge"]
) -> Float[np.ndarray, " edge"]:
    """What each edge costs, if those before it are cut as expected."""
    costs, before = np.empty(len(values)), now
    for i, value in enumerate(values):
        costs[i] = before - value
        before = value if expected[i] else before
    return costs
