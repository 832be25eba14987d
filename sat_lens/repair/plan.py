"""Before a run: where each component enters the stream, and which units are its."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sat_lens.repair.components import Component, Site, Weights, Write, sites_of
from sat_lens.repair.runner import Point, Runner


@dataclasses.dataclass(frozen=True)
class Plan:
    """How components are ablated by a runner.

    A write is early if the stream at the component's entry holds it already: it is put right there. The others are
    replaced by hooks on the modules that run.

    Args:
        sites: where the components write.
        groups: components by entry; those of one group share forward passes.
        members: 1 where a unit is a component's, [unit component]; units are those of all `sites`, one after another.
        late_heads, late_mlps: the same for writes that are not early, by what they are.
    """

    components: Sequence[Component]
    sites: Sequence[Site]
    weights: Weights
    groups: dict[Point, list[int]]
    members: Float[Tensor, "unit component"]
    late_heads: Float[Tensor, "unit component"]
    late_mlps: Float[Tensor, "unit component"]
    early: frozenset[tuple[int, Site]]

    def is_early(self, component: int, write: Write) -> bool:
        """Whether the stream at the entry holds it."""
        return (component, write.site) in self.early

    def scores(self, values: dict[Site, Tensor], v: Tensor) -> Float[Tensor, "batch pos unit"]:
        """What each unit adds to x . v."""
        return torch.cat([self.weights.scores(site, values[site], v) for site in self.sites], -1)


def planned(runner: Runner, components: Sequence[Component]) -> Plan:
    """The plan for these components."""
    cfg, like = runner.model.cfg, runner.model.W_U
    sites = sites_of(components)
    widths = [{"z": cfg.n_heads, "mlp_out": 1, "post": cfg.d_mlp}[site.name] for site in sites]
    starts = dict(zip(sites, [sum(widths[:i]) for i in range(len(widths))], strict=True))
    members = torch.zeros(sum(widths), len(components), dtype=like.dtype, device=like.device)
    late_heads, late_mlps = torch.zeros_like(members), torch.zeros_like(members)
    groups: dict[Point, list[int]] = {}
    early = set()
    for i, component in enumerate(components):
        entry = runner.entry(component)
        groups.setdefault(entry, []).append(i)
        for site, units in component.writes:
            places = [starts[site] + unit for unit in units]
            members[places, i] = 1
            if runner.written(site) <= entry:
                early.add((i, site))
            else:
                (late_heads if site.name == "z" else late_mlps)[places, i] = 1
    return Plan(
        components, sites, Weights(runner.model, sites), groups, members, late_heads, late_mlps, frozenset(early)
    )


class Segment(NamedTuple):
    """Copies of one component in a chunk: its index, which copies they are, and their rows of the batch."""

    component: int
    copies: slice
    rows: Int[Tensor, " copy"]


class Chunk(NamedTuple):
    """Copies that go through the layers together."""

    entry: Point
    segments: list[Segment]

    @property
    def rows(self) -> Int[Tensor, " copy"]:
        """Of the batch, a copy each."""
        return torch.cat([segment.rows for segment in self.segments])

    @property
    def components(self) -> Int[Tensor, " copy"]:
        """Indices of components, a copy each."""
        return torch.cat([torch.full_like(segment.rows, segment.component) for segment in self.segments])


def chunks(plan: Plan, selected: Bool[Tensor, "component batch pos"], most: int) -> Iterator[Chunk]:
    """The copies that have a selected token, at most `most` at a time, but at least those of one component."""
    wanted = selected.any(-1)
    for entry, group in plan.groups.items():
        segments: list[Segment] = []
        n = 0
        for component in group:
            rows = wanted[component].nonzero().flatten()
            if not len(rows):
                continue
            if segments and n + len(rows) > most:
                yield Chunk(entry, segments)
                segments, n = [], 0
            segments.append(Segment(component, slice(n, n + len(rows)), rows))
            n += len(rows)
        if segments:
            yield Chunk(entry, segments)


def copies_at_once(
    model: Any, n_pos: int, batch_size: int, head_chunk: Any, free: float | int | None, neurons: bool = False
) -> int:
    """Copies a chunk.

    `auto`: as many as keep a core's products busy and fit a quarter of the free memory; a number: so many
    components with all rows of a batch.

    Args:
        neurons: whether those behind are told apart.

    Raises:
        ValueError: neither `auto` nor a number from 1 on.
    """
    if head_chunk == "auto":
        tokens = 6144 if torch.device(model.W_U.device).type == "cpu" else 131072
        most = max(1, tokens // n_pos)
        if free is not None:
            most = min(most, max(1, int(free / 4 / (token_bytes(model, n_pos, neurons) * n_pos))))
        return most
    if not isinstance(head_chunk, int) or head_chunk < 1:
        raise ValueError(f"head_chunk must be 'auto' or at least 1 component; got {head_chunk!r}")
    return head_chunk * batch_size


def token_bytes(model: Any, n_pos: int, neurons: bool = False) -> int:
    """What a token of a copy takes while a suffix runs, about: streams, a layer's activations, scores of attention.

    Where neurons are told apart also their changes, thrice, and once in float64.
    """
    cfg = model.cfg
    d_mlp = cfg.d_mlp or 0
    numbers = 9 * cfg.d_model + 4 * cfg.n_heads * cfg.d_head + 3 * d_mlp + 2 * cfg.n_heads * n_pos
    apart = d_mlp * (3 * model.W_U.element_size() + 8) if neurons else 0
    return numbers * model.W_U.element_size() + apart
