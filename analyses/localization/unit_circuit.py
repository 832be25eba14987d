"""A circuit of units: which z channels of heads and which neurons are in it. Exactly what bits of a mask gate.

A row over all units is ordered as the model is: every layer's channels, head by head, then every layer's
neurons. Names are `a0.h1.c3` (layer 0, head 1, channel 3) and `m2.n17` (layer 2, neuron 17).

On disk a circuit of units is MIB's JSON of a circuit of edges whose nodes have `neurons`, a list of bits.
Differs: MIB's `neurons` are the d_model outputs of a node; these are a head's d_head channels of
`hook_z` and an MLP's d_mlp neurons of `hook_post`, and `cfg` says so.
"""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from analyses.localization.circuit import Circuit, read_mib, write_mib
from analyses.localization.graph import Graph
from sat_lens.files import write_whole

SITES = ("attn", "mlp")
NEURONS_OF = {"attn": "hook_z", "mlp": "hook_post"}


@dataclasses.dataclass(frozen=True)
class Units:
    """Every unit of an architecture, in the order of a row.

    Args:
        n_layers, n_heads, d_head: of the channels.
        d_mlp: neurons a layer; 0 for a model without MLPs.
    """

    n_layers: int
    n_heads: int
    d_head: int
    d_mlp: int

    @property
    def n_channels(self) -> int:
        """Of all layers."""
        return self.n_layers * self.n_heads * self.d_head

    @property
    def n(self) -> int:
        """Units of all layers."""
        return self.n_channels + self.n_layers * self.d_mlp

    @property
    def sites(self) -> list[tuple[int, str]]:
        """Every (layer, site), in the order of a row: attn of all layers, then mlp of all layers."""
        here = SITES if self.d_mlp else SITES[:1]
        return [(layer, site) for site in here for layer in range(self.n_layers)]

    def columns(self, layer: int, site: str) -> slice:
        """Where a layer's units of a site stand in a row."""
        width = self.n_heads * self.d_head if site == "attn" else self.d_mlp
        start = layer * width + (0 if site == "attn" else self.n_channels)
        return slice(start, start + width)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        channels = [
            f"a{layer}.h{head}.c{channel}"
            for layer in range(self.n_layers)
            for head in range(self.n_heads)
            for channel in range(self.d_head)
        ]
        return (*channels, *(f"m{layer}.n{i}" for layer in range(self.n_layers) for i in range(self.d_mlp)))

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Column of each name."""
        return {name: i for i, name in enumerate(self.names)}


def units_of(cfg: Any) -> Units:
    """The units of a HookedTransformerConfig."""
    return Units(cfg.n_layers, cfg.n_heads, cfg.d_head, 0 if cfg.attn_only else cfg.d_mlp)


@dataclasses.dataclass(frozen=True)
class UnitCircuit:
    """Units that are in a circuit.

    Args:
        channels: of z.
        neurons: of post; [layer 0] for a model without MLPs.
    """

    channels: Bool[np.ndarray, "layer head d_head"]
    neurons: Bool[np.ndarray, "layer d_mlp"]

    @property
    def units(self) -> Units:
        """What the circuit is of."""
        return Units(*self.channels.shape, self.neurons.shape[1])

    @property
    def row(self) -> Bool[np.ndarray, " unit"]:
        """All units in one row."""
        return np.concatenate([self.channels.ravel(), self.neurons.ravel()])

    @property
    def n_channels(self) -> int:
        """Members."""
        return int(self.channels.sum())

    @property
    def n_neurons(self) -> int:
        """Members."""
        return int(self.neurons.sum())

    @property
    def n_units(self) -> int:
        """Members."""
        return self.n_channels + self.n_neurons

    def names(self) -> list[str]:
        """Of the members."""
        return [name for name, member in zip(self.units.names, self.row, strict=True) if member]


def circuit_of(units: Units, row: Bool[np.ndarray, " unit"]) -> UnitCircuit:
    """The circuit of a row.

    Raises:
        ValueError: a row of another length.
    """
    if len(row) != units.n:
        raise ValueError(f"a row of this model has {units.n:,} units; got {len(row):,}")
    channels, neurons = row[: units.n_channels], row[units.n_channels :]
    return UnitCircuit(
        channels.reshape(units.n_layers, units.n_heads, units.d_head), neurons.reshape(units.n_layers, units.d_mlp)
    )


def named(units: Units, names: list[str]) -> UnitCircuit:
    """The circuit of these units.

    Raises:
        ValueError: a name that is no unit of the model.
    """
    row = np.zeros(units.n, dtype=bool)
    for name in names:
        if name not in units.index:
            raise ValueError(f"{name!r} is no unit of this model; units are named as a0.h1.c3 or m2.n17")
        row[units.index[name]] = True
    return circuit_of(units, row)


def largest_units(units: Units, scores: Float[np.ndarray, " unit"], n: int, absolute: bool = True) -> UnitCircuit:
    """The circuit of the n units with the largest |score| or, not `absolute`, score; ties by order.

    Raises:
        ValueError: n outside 0..units, or a score that is no number.
    """
    if not 0 <= n <= units.n:
        raise ValueError(f"a circuit of this model has 0 to {units.n:,} units; got {n:,}")
    if np.isnan(scores).any():
        raise ValueError("every unit needs a score to be ranked; some are NaN")
    row = np.zeros(units.n, dtype=bool)
    row[np.argsort(-np.abs(scores) if absolute else -scores, kind="stable")[:n]] = True
    return circuit_of(units, row)


def edges_among(circuit: UnitCircuit, graph: Graph) -> Circuit:
    """All edges between nodes that have a unit in the circuit; scores are 1 and 0."""
    used = np.array([True if s.kind == "input" else bool(_bits(circuit, s.name).any()) for s in graph.sources])
    members = graph.possible & used[:, None] & graph.live_destinations(used)[None]
    return Circuit(graph, np.where(graph.possible, members.astype(float), np.nan), members)


def write_mib_units(circuit: UnitCircuit, edges: Circuit, path: Path) -> None:
    """Write both as MIB's JSON, whole or not at all; every head and MLP has `neurons`."""
    with tempfile.TemporaryDirectory() as folder:
        write_mib(edges, Path(folder) / "edges.json")
        content = json.loads((Path(folder) / "edges.json").read_text(encoding="utf-8"))
    content["cfg"]["neurons_of"] = NEURONS_OF
    for source in edges.graph.sources[1:]:
        content["nodes"][source.name]["neurons"] = _bits(circuit, source.name).tolist()
    write_whole(path, json.dumps(content) + "\n")


def read_mib_units(path: Path, graph: Graph, units: Units) -> tuple[UnitCircuit, Circuit]:
    """The circuit of units of a file of MIB's, and that of edges. A node without `neurons` is in or out whole.

    Raises:
        ValueError: not such a file, one for another model, or bits that do not fit it.
    """
    edges = read_mib(path, graph)
    content = json.loads(path.read_text(encoding="utf-8"))
    if (meant := content["cfg"].get("neurons_of", NEURONS_OF)) != NEURONS_OF:
        raise ValueError(f"{path}: neurons must be of {', '.join(NEURONS_OF.values())}; got {str(meant)[:80]}")
    nodes = content.get("nodes")
    if not isinstance(nodes, dict):
        raise ValueError(f"{path}: must have `nodes`, as MIB writes them")
    found = circuit_of(units, np.zeros(units.n, dtype=bool))
    for source in graph.sources[1:]:
        node, mine = nodes.get(source.name, {}), _bits(found, source.name)
        bits = node.get("neurons", [node.get("in_graph") is True] * len(mine)) if isinstance(node, dict) else None
        if not isinstance(bits, list) or len(bits) != len(mine) or not all(isinstance(bit, bool) for bit in bits):
            raise ValueError(f"{path}: neurons of {source.name} must be {len(mine)} bits; got {str(bits)[:80]}")
        mine[:] = bits
    return found, edges


def _bits(circuit: UnitCircuit, node: str) -> Bool[np.ndarray, " unit"]:
    """The units of a node, a view: `a0.h1` or `m2`."""
    layer, _, head = node[1:].partition(".h")
    return circuit.channels[int(layer), int(head)] if node[0] == "a" else circuit.neurons[int(layer)]
