"""What cutting edges into one destination does to the logits, computing only what can change.

A circuit's run is kept: what every source writes and every destination reads. To ask about other
inputs of one destination, its node is run on them, the difference of its output is carried along
the circuit's edges to the nodes that it reaches, those are run, and so on to the logits. A node that
no path of the circuit leads from to the logits cannot change anything and is never run; a node that
only the logits read is run at the last position alone. Many inputs are one batch.

Exact: the same numbers as `runner.end_logits`, without autograd.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.localization.runner import Contrast


class CircuitRun:
    """One circuit's run on one batch of prompts, kept so that it can be changed edge by edge.

    Args:
        contrast: prompts, and what cut edges carry.
        members: which edges are in the circuit; default: all. The array is this object's own.
    """

    def __init__(self, contrast: Contrast, members: Bool[np.ndarray, "source destination"] | None = None) -> None:
        self.contrast, self.parts, self.graph = contrast, contrast.parts, contrast.parts.graph
        self.members = (self.graph.possible if members is None else members & self.graph.possible).copy()
        self.moved = contrast.clean - contrast.other
        self.inputs = torch.stack([contrast.other_input(j) for j in range(len(self.graph.destinations))])
        self._nodes, self._reads = self.graph.sources_of_destination, self.graph.destinations_of_source
        self._alive: np.ndarray | None = None
        every = np.arange(len(self.graph.destinations))
        if members is None:
            self.inputs += self._carried(every, self.moved)
        else:
            self._run_all()

    def _carried(self, columns: np.ndarray, moved: Tensor) -> Tensor:
        weights = torch.as_tensor(self.members[:, columns].T.copy()).to(moved)
        return torch.einsum("ds,snpm->dnpm", weights, moved)

    def _run_all(self) -> None:
        """Every node once, in order."""
        filled: set[int] = set()  # heads that share a key read the same column
        for node in range(len(self.graph.sources)):
            columns = np.array([column for column in self._reads[node] if column not in filled], dtype=np.int64)
            filled.update(columns.tolist())
            if len(self._reads[node]):
                self.inputs[columns] += self._carried(columns, self.moved)
                written = self._written(node, {}, end_only=False)
                self.moved[node] = written[0] - self.contrast.other[node]
        last = np.array([len(self.graph.destinations) - 1])
        self.inputs[last] += self._carried(last, self.moved)

    def live(self) -> Bool[np.ndarray, " source"]:
        """Which sources a path of the circuit leads from to the logits."""
        if self._alive is None:
            self._alive = self.graph.live_sources(self.members)
        return self._alive

    def matters(self, destination: int) -> bool:
        """Whether what the destination reads can reach the logits."""
        nodes = self._nodes[destination]
        return not len(nodes) or bool(self.live()[nodes].any())

    def end_logits(self, destination: int, inputs: Float[Tensor, "variant n pos d_model"]) -> Tensor:
        """Logits at the last position [variant n d_vocab], were the destination to read `inputs`."""
        last = len(self.graph.destinations) - 1
        if destination == last:
            return self.parts.logits(inputs[:, :, -1])
        changed = self._changes(destination, inputs, self.live())
        total = self.inputs[last][:, -1].expand(len(inputs), -1, -1)
        for node, change in changed.items():
            if self.members[node, last]:
                total = total + change[:, :, -1]
        return self.parts.logits(total)

    def take(self, destination: int, sources: np.ndarray) -> None:
        """Cut the edges from `sources` into the destination, for good."""
        matters, alive = self.matters(destination), self.live()
        self.members[sources, destination] = False
        self._alive = None
        if not matters:
            return
        self.inputs[destination] -= self.moved[sources].sum(0)
        changed = self._changes(destination, self.inputs[destination][None], alive, end_only=False)
        for source, change in changed.items():
            self.inputs[np.flatnonzero(self.members[source])] += change[0]
            self.moved[source] += change[0]

    def _changes(
        self, destination: int, inputs: Tensor, alive: np.ndarray, end_only: bool = True
    ) -> dict[int, Float[Tensor, "variant n pos_or_end d_model"]]:
        """How much more each source that is reached writes, were the destination to read `inputs`."""
        given: dict[int, Tensor] = {destination: inputs}
        changed: dict[int, Tensor] = {}
        first = self._nodes[destination]
        for node in range(first.min() if len(first) else len(alive), len(alive)):
            if not alive[node]:
                continue
            for column in self._reads[node]:
                writers = [source for source in changed if self.members[source, column]]
                if writers:
                    given[column] = self.inputs[column] + sum(changed[source] for source in writers)
            if any(column in given for column in self._reads[node]):
                short = end_only and self._read_by_logits_alone(node, alive)
                at = slice(-1, None) if short else slice(None)
                before = (self.contrast.other[node] + self.moved[node])[:, at]
                changed[node] = self._written(node, given, short) - before
        return changed

    def _read_by_logits_alone(self, node: int, alive: np.ndarray) -> bool:
        readers = np.flatnonzero(self.members[node, :-1])
        return not any(alive[self._nodes[column]].any() for column in readers)

    def _written(self, node: int, given: dict[int, Tensor], end_only: bool) -> Float[Tensor, "variant n pos d_model"]:
        """What a node writes when it reads `given`, and what is kept where nothing is given."""
        source, columns = self.graph.sources[node], self._reads[node]
        read = [given.get(column, self.inputs[column][None]) for column in columns]
        n_variants = max(len(x) for x in read)
        if source.kind == "mlp":
            return self.parts.mlp(source.layer, read[0][:, :, -1:] if end_only else read[0])
        n = self.contrast.n
        q, k, v = (x.expand(n_variants, -1, -1, -1).flatten(0, 1)[None] for x in read)
        which = torch.tensor([source.head], device=q.device)
        written = self.parts.heads(source.layer, q[:, :, -1:] if end_only else q, k, v, which)
        return written[0].unflatten(0, (n_variants, n))
