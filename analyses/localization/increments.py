"""What cutting edges does to the logits, computing only what can change.

A circuit's run is kept: what every source writes and every destination reads. To ask what other inputs
of a destination would do, its node is run on them, the difference of its output is carried along the
circuit's edges to the nodes that it reaches, those are run, and so on to the logits. Never run is
what no path of the circuit leads from to the logits; and where all paths need a node at the last
position alone (they lead through queries and MLPs, not through keys and values), it is run there
alone. Many variants are one batch, as are the heads of a layer.

Exact: the same numbers as `runner.end_logits`, without autograd.
"""

import dataclasses
import itertools

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.localization.graph import Graph
from analyses.localization.runner import Contrast

AT_THE_END, EVERYWHERE = 1, 2
"""Positions at which something can change the logits; 0: at none."""
CHUNK = 2**18
"""Numbers in what the heads of one pass read by one of their inputs, about: what a processor's cache holds."""


@dataclasses.dataclass
class Changes:
    """What variants of a run would change.

    Args:
        inputs: what changed destinations read, one entry a pattern of cuts, and each variant's pattern.
        written: how much more each reached source writes, at all positions or at the last.
        logits: at the last position.
    """

    inputs: dict[int, tuple[Tensor, Int[Tensor, " variant"]]]
    written: dict[int, Float[Tensor, "variant n pos_or_end d_model"]]
    logits: Float[Tensor, "variant n d_vocab"]


class CircuitRun:
    """One circuit's run on one batch of prompts, kept so that it can be changed edge by edge.

    What is kept is right wherever it can still change the logits; members can only be taken away.

    Args:
        contrast: prompts, and what cut edges carry.
        members: which edges are in the circuit; default: all. The array is this object's own.
        frozen_norm: divide by the clean run's scale in the final norm, not by the circuit's own.
    """

    def __init__(
        self,
        contrast: Contrast,
        members: Bool[np.ndarray, "source destination"] | None = None,
        frozen_norm: bool = False,
    ) -> None:
        self.contrast, self.parts, self.graph = contrast, contrast.parts, contrast.parts.graph
        self.members = (self.graph.possible if members is None else members & self.graph.possible).copy()
        self.moved = contrast.clean - contrast.other
        self.inputs = _other_inputs(contrast)
        self._nodes, self._reads = self.graph.sources_of_destination, self.graph.destinations_of_source
        self._last = len(self.graph.destinations) - 1
        self._blocks = _blocks(self.graph)
        self._needed: np.ndarray | None = None
        self._scale = contrast.parts.final_scale(contrast.clean_input(self._last)[:, -1]) if frozen_norm else None
        if members is None:
            self.inputs += self._carried(np.arange(len(self.graph.destinations)))
        else:
            self._run_all()

    def _carried(self, columns: np.ndarray) -> Tensor:
        weights = torch.as_tensor(self.members[:, columns].T.copy()).to(self.moved)
        return torch.einsum("ds,snpm->dnpm", weights, self.moved)

    def _run_all(self) -> None:
        """Every node once, in order."""
        for block in self._blocks:
            columns = np.unique(self._read(block))
            self.inputs[columns] += self._carried(columns)
            read = [self.inputs[self._read(block, kind)][:, None] for kind in range(len(self._reads[block[0]]))]
            self.moved[block] = self._run(block, read, AT_THE_END + 1)[:, 0] - self.contrast.other[block]
        last = np.array([self._last])
        self.inputs[last] += self._carried(last)

    def needed(self) -> Int[np.ndarray, " source"]:
        """Where each source can change the logits: nowhere, at the last position, or at every position."""
        if self._needed is None:
            at = np.zeros(len(self.graph.destinations), dtype=np.int64)
            self._needed = np.zeros(len(self.graph.sources), dtype=np.int64)
            at[self._last] = AT_THE_END
            for block in [*self._blocks[::-1], np.array([0])]:
                here = (self.members[block] * at).max(1)
                self._needed[block] = here
                for node, where in zip(block, here, strict=True):
                    if where and len(columns := self._reads[node]):
                        at[columns[0]] = where
                        at[columns[1:]] = EVERYWHERE  # keys and values of every position are attended to
        return self._needed

    def matters(self, destination: int) -> bool:
        """Whether what the destination reads can reach the logits."""
        nodes = self._nodes[destination]
        return not len(nodes) or bool(self.needed()[nodes].any())

    def end_logits(self, destination: int, inputs: Float[Tensor, "variant n _ d_model"]) -> Tensor:
        """Logits at the last position [variant n d_vocab], were the destination to read `inputs`."""
        return self._changes({destination: (inputs, torch.arange(len(inputs), device=inputs.device))}).logits

    def without(self, edges: Int[np.ndarray, "edge 2"], cuts: Bool[np.ndarray, "variant edge"]) -> Changes:
        """What variants of the circuit would change, each without some of the edges.

        Args:
            edges: sources and destinations; none of the destinations may feed another: heads of one
                layer, or one MLP, or the logits.
            cuts: which edges each variant is without.
        """
        given = {}
        for destination in np.unique(edges[:, 1]).tolist():
            own = edges[:, 1] == destination
            patterns, which = np.unique(cuts[:, own], axis=0, return_inverse=True)
            moved, kept = self.moved[edges[own, 0]], self.inputs[destination]
            if destination == self._last:
                moved, kept = moved[:, :, -1:], kept[:, -1:]
            lost = torch.einsum("ce,enpm->cnpm", torch.as_tensor(patterns).to(moved), moved)
            given[destination] = (kept - lost, torch.as_tensor(which.reshape(-1), device=kept.device))
        return self._changes(given)

    def take(self, destination: int, sources: np.ndarray) -> None:
        """Cut the edges from `sources` into the destination, for good."""
        edges = np.stack([sources, np.full_like(sources, destination)], 1)
        matters = self.matters(destination) and len(sources)
        self.adopt(edges, self.without(edges, np.ones((1, len(edges)), dtype=bool)) if matters else None)

    def adopt(self, edges: Int[np.ndarray, "edge 2"], changes: Changes | None, variant: int = 0) -> None:
        """Cut edges for good, whose changes are known: those of a variant, or None where they do not matter."""
        self.members[edges[:, 0], edges[:, 1]] = False
        self._needed = None
        if changes is None:
            return
        for destination, (inputs, which) in changes.inputs.items():
            new = inputs[which[variant]]
            self.inputs[destination, :, -new.shape[1] :] = new
        for source, written in changes.written.items():
            new = written[variant]
            at = slice(-new.shape[1], None)
            self.moved[source, :, at] += new
            for destination in np.flatnonzero(self.members[source]):
                self.inputs[destination, :, at] += new

    def _changes(self, given: dict[int, tuple[Tensor, Tensor]]) -> Changes:
        written = self._first_written(given)
        n_variants = len(next(iter(given.values()))[1])
        if written:
            first = max(written)
            for block in self._blocks:
                if block[0] > first:
                    written |= self._later_written(block, written, n_variants)
        total = self.inputs[self._last][None, :, -1]
        if self._last in given:
            inputs, which = given[self._last]
            total = inputs[which][:, :, -1]
        for source, change in written.items():
            if self.members[source, self._last]:
                total = total + change[:, :, -1]
        total = total.expand(n_variants, -1, -1)
        return Changes(given, written, self.parts.logits(total, self._scale))

    def _first_written(self, given: dict[int, tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
        """Changes of the nodes that read at the given destinations; each different set of inputs is run once."""
        found = {}
        for node in sorted({int(node) for destination in given for node in self._nodes[destination]}):
            if not (where := self.needed()[node]):
                continue
            whiches = [given[column][1] for column in self._reads[node] if column in given]
            if len(whiches) == 1:
                rows, which = [slice(None)], whiches[0]
            else:
                patterns, which = torch.unique(torch.stack(whiches), dim=1, return_inverse=True)
                rows = list(patterns)
            read, at = [], iter(rows)
            for column in self._reads[node]:
                read.append(given[column][0][next(at)] if column in given else self.inputs[column][None])
            new = self._run(np.array([node]), [x[None] for x in read], int(where))[0]
            found[node] = (new - self._written_before(np.array([node]), int(where))[0])[which]
        return found

    def _later_written(self, block: np.ndarray, written: dict[int, Tensor], n_variants: int) -> dict[int, Tensor]:
        """Changes of those nodes of a block that read something changed."""
        needed, writers = self.needed()[block], np.array(list(written))
        reached = self.members[writers][:, self._read(block)].reshape(len(writers), -1, len(block)).any((0, 1))
        found: dict[int, Tensor] = {}
        for where in (AT_THE_END, EVERYWHERE):
            nodes = block[reached & (needed == where)]
            n, pos, d_model = self.contrast.clean.shape[1:]
            at_once = max(1, CHUNK // (n_variants * n * pos * d_model))
            for some in np.split(nodes, range(at_once, len(nodes), at_once)) if len(nodes) else []:
                read = []
                for kind in range(len(self._reads[block[0]])):
                    end_only = where == AT_THE_END and kind == 0
                    read.append(self._read_now(self._read(some, kind), written, n_variants, end_only))
                change = self._run(some, read, where) - self._written_before(some, where)[:, None]
                found |= dict(zip(some.tolist(), change, strict=True))
        return found

    def _read_now(self, columns: np.ndarray, written: dict[int, Tensor], n_variants: int, end_only: bool) -> Tensor:
        """What destinations read [destination variant n pos d_model]; one variant where nothing has changed."""
        at = slice(-1, None) if end_only else slice(None)
        base = self.inputs[columns][:, None, :, at]
        writers = [source for source in written if self.members[source, columns].any()]
        if not writers:
            return base
        total = base.repeat(1, n_variants, 1, 1, 1)
        for source in writers:
            change, readers = written[source][:, :, at], np.flatnonzero(self.members[source, columns])
            for reader in readers:
                total[reader] += change
        return total

    def _read(self, nodes: np.ndarray, kind: int | None = None) -> Int[np.ndarray, " column"]:
        """What nodes of one block read: their queries' inputs, keys', values' (0, 1, 2), an MLP's (0), or all."""
        columns = np.stack([self._reads[node] for node in nodes], 1)
        return columns.reshape(-1) if kind is None else columns[kind]

    def _written_before(self, nodes: np.ndarray, where: int) -> Float[Tensor, "node n pos_or_end d_model"]:
        at = slice(-1, None) if where == AT_THE_END else slice(None)
        return self.contrast.other[nodes][:, :, at] + self.moved[nodes][:, :, at]

    def _run(self, nodes: np.ndarray, read: list[Tensor], where: int) -> Float[Tensor, "node variant n _ d_model"]:
        """What nodes of one block write, from inputs [node variant-or-1 n pos d_model]."""
        source = self.graph.sources[nodes[0]]
        at = slice(-1, None) if where == AT_THE_END else slice(None)
        if source.kind == "mlp":
            return self.parts.mlp(source.layer, read[0][:, :, :, at])
        n_variants = max(x.shape[1] for x in read)
        q, k, v = (x.expand(-1, n_variants, -1, -1, -1).flatten(1, 2) for x in read)
        heads = torch.tensor([self.graph.sources[node].head for node in nodes], device=q.device)
        return self.parts.heads(source.layer, q[:, :, at], k, v, heads).unflatten(1, (n_variants, self.contrast.n))


def _blocks(graph: Graph) -> list[Int[np.ndarray, " node"]]:
    """Nodes that run at once, in order: the heads of a layer, its MLP."""
    nodes = range(1, len(graph.sources))
    of_block = itertools.groupby(nodes, lambda node: (graph.sources[node].layer, graph.sources[node].kind))
    return [np.array(list(block)) for _, block in of_block]


def _other_inputs(contrast: Contrast) -> Float[Tensor, "destination n pos d_model"]:
    """What destinations read when all edges are cut: those of one layer's heads the same."""
    of_block: dict[tuple[int, str], Tensor] = {}
    for j, d in enumerate(contrast.parts.graph.destinations):
        if (d.layer, d.kind) not in of_block:
            of_block[d.layer, d.kind] = contrast.other_input(j)
    return torch.stack([of_block[d.layer, d.kind] for d in contrast.parts.graph.destinations])
