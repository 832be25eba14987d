"""One chunk of copies, ablated and run to the end: what changed in the score, by whom."""

import dataclasses
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sat_lens.repair.batch import Batch, Removal, dot
from sat_lens.repair.components import Site, Weights
from sat_lens.repair.downstream import Downstream
from sat_lens.repair.plan import Chunk, Plan
from sat_lens.repair.readout import FinalNorm
from sat_lens.repair.runner import Hooks, Runner

Apart = tuple[Downstream, Callable[[int, Tensor], None]]


@dataclasses.dataclass
class Ablated:
    """The ablated copies, tokens [copy pos] each.

    Args:
        df: change of the score.
        s1: scale of the final norm.
        s_own: the same if only the removal were taken from the clean last stream.
        own, heads, mlps: changes of the score by the removal, by other heads, by other MLPs.
    """

    df: Float[Tensor, "copy pos"]
    s1: Float[Tensor, "copy pos"]
    s_own: Float[Tensor, "copy pos"]
    own: Float[Tensor, "copy pos"]
    heads: Float[Tensor, "copy pos"]
    mlps: Float[Tensor, "copy pos"]


class Watch:
    """Hooks that sum up what attention and MLP layers add to the score beyond the clean pass.

    Args:
        apart: who is told apart, and what is told of the changes of each as they come: (first column, changes
            [copy pos column]).
    """

    def __init__(self, runner: Runner, batch: Batch, chunk: Chunk, v: Tensor, apart: Apart | None) -> None:
        self.batch, self.rows, self.v = batch, chunk.rows, v
        self.heads = torch.zeros_like(v[..., 0])
        self.mlps = torch.zeros_like(self.heads)
        self.hooks: Hooks = []
        self._model = runner.model
        for layer in range(chunk.entry.layer, runner.n_layers):
            self.hooks.append((f"blocks.{layer}.hook_attn_out", self._attn(layer)))
            if runner.has_mlp:
                self.hooks.append((f"blocks.{layer}.hook_mlp_out", self._mlp(layer)))
            if apart is not None:
                self.hooks += self._apart(layer, *apart)

    def _attn(self, layer: int) -> Callable[[Tensor], None]:
        def add(out: Tensor) -> None:
            self.heads += dot(out, self.v) - self.batch.attn[layer][self.rows]

        return add

    def _mlp(self, layer: int) -> Callable[[Tensor], None]:
        def add(out: Tensor) -> None:
            self.mlps += dot(out, self.v) - self.batch.mlps[layer][self.rows]

        return add

    def _apart(self, layer: int, downstream: Downstream, every: Callable[[int, Tensor], None]) -> Hooks:
        """Hooks that tell `every` the changes of a layer's heads, of its MLP and of its neurons."""

        def units(site: Site) -> Callable[[Tensor], None]:
            weights = Weights(self._model, [site])

            def tell(value: Tensor) -> None:
                changed = value - self.batch.clean.sites[site][self.rows]
                every(downstream.first(site), weights.scores(site, changed, self.v))

            return tell

        def mlp(out: Tensor) -> None:
            change = dot(out, self.v) - self.batch.mlps[layer][self.rows]
            every(downstream.first(Site(layer, "mlp_out")), change[..., None])

        hooks: Hooks = [(site.hook, units(site)) for site in downstream.sites if site.layer == layer]
        return [*hooks, (f"blocks.{layer}.hook_mlp_out", mlp)] if layer in self.batch.mlps else hooks


def ablated(
    runner: Runner,
    norm: FinalNorm,
    plan: Plan,
    batch: Batch,
    chunk: Chunk,
    removal: Removal,
    dose: float | int,
    apart: Apart | None = None,
) -> Ablated:
    """Run a chunk.

    Args:
        dose: how much of the removal is done.
        apart: see Watch.
    """
    rows, components = chunk.rows, chunk.components
    v, final = batch.v[rows], batch.clean.final[rows]
    x, taken, edits = _entered(runner, plan, batch, chunk, removal, dose)
    s_own = norm.scale(final + taken)
    del taken
    watch = Watch(runner, batch, chunk, v, apart)
    last = runner.suffix(batch.clean, chunk.entry, x, rows, [*edits, *watch.hooks])
    s1 = norm.scale(last)
    own, late_heads, late_mlps = (
        dose * of[components, rows] for of in (removal.own, removal.late_heads, removal.late_mlps)
    )
    return Ablated(dot(last - final, v), s1, s_own, own, watch.heads - late_heads, watch.mlps - late_mlps)


def _entered(
    runner: Runner, plan: Plan, batch: Batch, chunk: Chunk, removal: Removal, dose: float | int
) -> tuple[Tensor, Tensor, Hooks]:
    """The stream at the entry with what is early put right; the whole removal from the stream; hooks for the rest."""
    x = batch.clean.streams[chunk.entry][chunk.rows]
    taken = torch.zeros_like(x)
    late: dict[Site, list[tuple[slice, Tensor, list[int]]]] = {}
    for component, copies, rows in chunk.segments:
        for write in plan.components[component].writes:
            added = dose * plan.weights.added(write, removal.values[write.site][rows])
            taken[copies] += added
            if plan.is_early(component, write):
                x[copies] += added
            else:
                late.setdefault(write.site, []).append((copies, rows, list(write.units)))
    hooks: Hooks = [(site.hook, _replacing(batch, removal, site, places, dose)) for site, places in late.items()]
    return x, taken, hooks


def _replacing(
    batch: Batch, removal: Removal, site: Site, places: list[tuple[slice, Tensor, list[int]]], dose: float | int
) -> Callable[[Tensor], Tensor]:
    """A hook that gives some units of some copies their replacements."""
    clean, change = batch.clean.sites[site], removal.values[site]

    def replace(value: Tensor) -> Tensor:
        value = value.clone()
        for copies, rows, units in places:
            if site.name == "mlp_out":
                value[copies] = clean[rows] + dose * change[rows]
            else:
                value[copies, :, units] = (clean[rows] + dose * change[rows])[:, :, units]
        return value

    return replace
