"""The graph of a transformer's parts: who writes into the residual stream, and who reads from it.

Sources are the embedding (`input`), every head (`a0.h1`) and every MLP (`m3`). Destinations are the
query, key and value input of every head (`a0.h1<q>`), every MLP's input and the `logits`. An edge
goes from each source to each destination that the residual stream carries it to: those of later
layers, and a layer's MLP after its heads where the two are not parallel. Heads that share keys and
values share those two inputs: there are as many `<k>` and `<v>` as key-value heads.

Names and JSON are those of MIB's circuit track, so that circuits can be exchanged.

Source: arXiv 2304.14997 (ACDC), 2504.13151 (MIB); 23,981 edges at 8 layers of 16 heads.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

Kind = Literal["input", "attn", "mlp", "logits"]
QKV = ("q", "k", "v")


class Source(NamedTuple):
    """What writes into the residual stream."""

    kind: Kind
    layer: int
    head: int
    name: str


class Destination(NamedTuple):
    """What reads from the residual stream; `qkv` is empty but for heads."""

    kind: Kind
    layer: int
    head: int
    qkv: str
    name: str


@dataclasses.dataclass(frozen=True)
class Graph:
    """Every source, destination and possible edge of an architecture.

    Args:
        n_layers, n_heads, n_kv_heads: counts; n_kv_heads of a layer's keys and values.
        has_mlp: whether layers have an MLP.
        parallel: whether a layer's MLP reads what its heads read.
        d_model: of the model, for the record.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    has_mlp: bool
    parallel: bool
    d_model: int = 0

    @functools.cached_property
    def sources(self) -> tuple[Source, ...]:
        """In the order of computation: input, then layer by layer heads and MLP."""
        found = [Source("input", -1, 0, "input")]
        for layer in range(self.n_layers):
            found += [Source("attn", layer, head, f"a{layer}.h{head}") for head in range(self.n_heads)]
            found += [Source("mlp", layer, 0, f"m{layer}")] if self.has_mlp else []
        return tuple(found)

    @functools.cached_property
    def destinations(self) -> tuple[Destination, ...]:
        """Layer by layer queries, keys, values and MLP input, then the logits."""
        found = []
        for layer in range(self.n_layers):
            for qkv in QKV:
                n = self.n_heads if qkv == "q" else self.n_kv_heads
                found += [Destination("attn", layer, head, qkv, f"a{layer}.h{head}<{qkv}>") for head in range(n)]
            found += [Destination("mlp", layer, 0, "", f"m{layer}")] if self.has_mlp else []
        return (*found, Destination("logits", self.n_layers, 0, "", "logits"))

    @functools.cached_property
    def possible(self) -> Bool[np.ndarray, "source destination"]:
        """Which edges exist."""
        return np.array([[self._reaches(s, d) for d in self.destinations] for s in self.sources])

    def _reaches(self, source: Source, destination: Destination) -> bool:
        within = source.kind == "attn" and destination.kind == "mlp" and not self.parallel
        return source.layer < destination.layer or (within and source.layer == destination.layer)

    @property
    def n_edges(self) -> int:
        return int(self.possible.sum())

    @functools.cached_property
    def source_index(self) -> dict[str, int]:
        return {source.name: i for i, source in enumerate(self.sources)}

    @functools.cached_property
    def destination_index(self) -> dict[str, int]:
        return {destination.name: i for i, destination in enumerate(self.destinations)}

    @functools.cached_property
    def destinations_of_source(self) -> list[np.ndarray]:
        """What each source's node reads: nothing (input), an MLP's input, or a head's query, key and value."""
        shared = self.n_heads // self.n_kv_heads
        found = []
        for source in self.sources:
            if source.kind == "input":
                names: list[str] = []
            elif source.kind == "mlp":
                names = [source.name]
            else:
                heads = (source.head, source.head // shared, source.head // shared)
                names = [f"a{source.layer}.h{head}<{qkv}>" for head, qkv in zip(heads, QKV, strict=True)]
            found.append(np.array([self.destination_index[name] for name in names], dtype=np.int64))
        return found

    @functools.cached_property
    def sources_of_destination(self) -> list[np.ndarray]:
        """The nodes that read at each destination: one, or all heads that share a key or value; none at the logits."""
        found: list[list[int]] = [[] for _ in self.destinations]
        for i, columns in enumerate(self.destinations_of_source):
            for column in columns:
                found[column].append(i)
        return [np.array(nodes, dtype=np.int64) for nodes in found]

    def live_sources(self, members: Bool[np.ndarray, "source destination"]) -> Bool[np.ndarray, " source"]:
        """Which sources a path of the circuit leads from to the logits."""
        alive = members[:, -1].copy()
        for i in reversed(range(len(self.sources))):
            if alive[i]:
                alive |= members[:, self.destinations_of_source[i]].any(1)
        return alive

    def reached_sources(self, members: Bool[np.ndarray, "source destination"]) -> Bool[np.ndarray, " source"]:
        """Which sources a path of the circuit leads to from the input."""
        reached = np.zeros(len(self.sources), dtype=bool)
        reached[0] = True
        for i, columns in enumerate(self.destinations_of_source):
            if len(columns):
                reached[i] = (members[:, columns] & reached[:, None]).any()
        return reached

    def live_destinations(self, alive: Bool[np.ndarray, " source"]) -> Bool[np.ndarray, " destination"]:
        """The logits, and what the `alive` sources' nodes read."""
        found = [not len(nodes) or bool(alive[nodes].any()) for nodes in self.sources_of_destination]
        return np.array(found)

    def edge_name(self, source: int, destination: int) -> str:
        """As MIB names it: `a0.h1->m3`, `input->a0.h0<q>`."""
        return f"{self.sources[source].name}->{self.destinations[destination].name}"

    def edge(self, name: str) -> tuple[int, int]:
        """Indices of an edge by its name.

        Raises:
            ValueError: no such edge in this architecture.
        """
        source, arrow, destination = name.partition("->")
        i, j = self.source_index.get(source), self.destination_index.get(destination)
        if not arrow or i is None or j is None or not self.possible[i, j]:
            raise ValueError(
                f"{name!r} is no edge of a model of {self.n_layers} layers of {self.n_heads} heads; "
                "edges are named as a0.h1->m3 or input->a0.h0<q>"
            )
        return i, j


def graph_of(cfg: Any) -> Graph:
    """The graph of a HookedTransformerConfig.

    Raises:
        ValueError: an architecture whose parts do not simply add up in the residual stream.
    """
    if cfg.use_normalization_before_and_after or cfg.num_experts is not None:
        raise ValueError("circuits need pre-norm blocks without experts, whose heads and MLPs add up")
    return Graph(
        n_layers=cfg.n_layers,
        n_heads=cfg.n_heads,
        n_kv_heads=cfg.n_key_value_heads or cfg.n_heads,
        has_mlp=not cfg.attn_only,
        parallel=bool(cfg.parallel_attn_mlp),
        d_model=cfg.d_model,
    )
