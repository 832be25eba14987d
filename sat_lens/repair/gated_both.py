"""Both streams of a self-ablating model ablated at once: the masks see it, and react.

An ablation takes a component out of the clean stream, from which masks, keys and values come, and out of the gated
stream, whose logits are read. The gated stream is then run twice:

    frozen   under the masks of the clean model; heads, MLPs and norm have their shares here
    live     under the masks that the ablated clean stream chooses

    sr_gate = logit(live) - logit(frozen)        self-repair = heads + MLPs + norm + sr_gate

Masks of layers before the component react as well where they are chosen from the last stream or over all layers; the
live run then begins at the first layer. A head is taken out before its mask, so its own mask reacts, too.

Source: arXiv 2402.15390 (definitions); masks as a share of their own are ours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from sat_lens.gates import LayerUnits
from sat_lens.model import CleanStream, passing_through
from sat_lens.repair.ablations import Ablation, Source, Values
from sat_lens.repair.batch import Batch, Removal, check_writes, dot, read_batch, removal
from sat_lens.repair.components import Component, Site
from sat_lens.repair.effects import effects
from sat_lens.repair.gated import UNMASKED, GatedRunner, masked, twin
from sat_lens.repair.gated_masks import of_rows
from sat_lens.repair.plan import Chunk, Plan, chunks
from sat_lens.repair.readout import FinalNorm
from sat_lens.repair.rows import Rows
from sat_lens.repair.runner import Clean, HookedRunner, Hooks, Point
from sat_lens.repair.suffixes import ablated
from sat_lens.repair.tally import Tally


class BothRunner(GatedRunner):
    """The gated stream, entered where a component's first layer begins, for its past changes there."""

    def entry(self, component: Component) -> Point:
        return Point(component.layer)

    @property
    def reads_all_layers(self) -> bool:
        """Whether what a layer does may change the masks of earlier ones."""
        return self.model.ablation.mask != "local" or self.model.ablation.scope == "model"


class _Copies(GatedRunner):
    """Runs copies of the gated stream whose keys, values and masks are given, a copy each."""

    def __init__(self, runner: BothRunner, stream: CleanStream, masks: list[LayerUnits]) -> None:
        super().__init__(runner.model, runner.rule)
        self.stream, self.masks = stream, masks

    def suffix(self, clean: Clean, entry: Point, x: Tensor, rows: Tensor, hooks: Hooks) -> Tensor:
        with self.hooked(hooks):
            return self.gated(entry.layer, x, self.stream.k, self.stream.v, self.masks)


@dataclasses.dataclass
class Taken:
    """What a draw takes out of a batch.

    Args:
        gated: of the gated stream, under the clean masks.
        before: activation and its change before the masks, by site, in the gated stream.
        clean: the same in the clean stream.
    """

    gated: Removal
    before: tuple[Values, Values]
    clean: tuple[Values, Values]


class Sources:
    """Replacements for both streams, of the same donors."""

    def __init__(
        self, runner: BothRunner, ablation: Ablation, rows: Rows, components: Sequence[Component], batch_size: int
    ) -> None:
        self.rows = rows
        self.before, self.plain = runner.before_masks(), HookedRunner(runner.model)
        self._of_gated: Source = ablation.fitted(self.before, rows, components, batch_size)
        self._of_clean: Source = ablation.fitted(self.plain, rows, components, batch_size)

    def taken(self, batch: Batch, plan: Plan, draw: int) -> Taken:
        """What this draw takes out."""
        tokens = self.rows.cut(batch.rows).to(batch.v.device)
        before = self.before.clean(tokens, plan.sites).sites
        clean = self.plain.clean(tokens, plan.sites).sites
        new = self._of_gated(batch.rows, Clean(sites=before), draw)
        new_clean = self._of_clean(batch.rows, Clean(sites=clean), draw)
        under = masked(new, batch.clean.replay.masks)
        gated = removal(batch, plan, lambda rows, clean, draw: under, draw)
        return Taken(gated, (before, _change(new, before)), (clean, _change(new_clean, clean)))


def measure_both(
    question: Any,
    rows: Int[Tensor, " batch"],
    sources: Sources,
    table: Bool[Tensor, "component n pos"] | None,
    most: int,
    tally: Tally,
    first: bool,
    tolerance: float,
) -> None:
    """One batch into the tally, as `measure` does it for one stream.

    Args:
        question: what is asked, with a BothRunner.
        tolerance: of the check of writes, on the first batch.
    """
    runner, plan = question.runner, question.plan
    batch = read_batch(runner, question.readout, question.rows, rows, plan, question.downstream)
    if first:
        question.readout.verify(runner.model, question.rows.cut(rows).to(batch.v.device), batch.clean.final)
        check_writes(runner, batch, tolerance)
    taken = [sources.taken(batch, plan, draw) for draw in range(question.draws)]
    if table is None:
        ade = batch.de + sum(one.gated.own for one in taken) / len(taken) / batch.s0
        selected = question.select.chosen(batch.de, ade) & batch.keep
    else:
        selected = table[:, rows, : batch.keep.shape[1]].to(batch.keep.device) & batch.keep
    for chunk in chunks(plan, selected, most):
        for dose, strength in enumerate(question.doses):
            _chunk(question, batch, chunk, taken, selected, (dose, strength), tally)


def _chunk(
    question: Any,
    batch: Batch,
    chunk: Chunk,
    taken: list[Taken],
    selected: Bool[Tensor, "component batch pos"],
    dose: tuple[int, float | int],
    tally: Tally,
) -> None:
    rows, components, norm = chunk.rows, chunk.components, question.readout.norm
    number, strength = dose
    mine = selected[components, rows]
    f0, s0 = batch.f0[rows].double(), batch.s0[rows].double()
    de = batch.de[components, rows].double()
    mean: dict[str, Tensor] = {}

    every = tally.columns(number, components, mine / s0 / question.draws)
    apart = (question.downstream, every) if question.downstream else None
    for one in taken:
        stream = ablated_clean(question.runner, batch, chunk, swaps(question.plan, chunk, one.clean, strength))
        frozen = _Copies(question.runner, stream, [of_rows(units, rows) for units in batch.clean.replay.masks])
        found = ablated(frozen, norm, question.plan, batch, chunk, one.gated, strength, apart)
        f1, s1 = f0 + found.df, found.s1.double()
        fields, error = effects(
            f0=f0, f1=f1, s0=s0, s1=s1, s_own=found.s_own.double(), de=de,
            own=found.own.double(), heads=found.heads.double(), mlps=found.mlps.double(), order=question.order,
        )  # fmt: skip
        question._assert_closed(error, fields, mine, tally)
        f_live, s_live = _live(question, batch, chunk, stream, one, strength, norm)
        fields["sr_gate"] = (f0 + f_live) / s_live - f1 / s1
        fields["dlogit"] = fields["dlogit"] + fields["sr_gate"]
        for name, value in fields.items():
            mean[name] = mean.get(name, 0) + value / len(taken)
    tally.add(number, components, batch.rows.to(rows.device)[rows], mean, mine, batch.targets[rows], s0)


def _live(
    question: Any, batch: Batch, chunk: Chunk, stream: CleanStream, one: Taken, strength: float | int, norm: FinalNorm
) -> tuple[Tensor, Tensor]:
    """Change of the score from the clean one, and scale, under the masks of the ablated clean stream."""
    runner, rows = question.runner, chunk.rows
    start = Point(0) if runner.reads_all_layers else chunk.entry
    y = stream.resid_pre[0] if start.layer == 0 else batch.clean.streams[start][rows]
    copies = _Copies(runner, stream, runner.rule(stream))
    hooks = swaps(question.plan, chunk, one.before, strength)
    with runner.model.hooks(fwd_hooks=[(twin(name, UNMASKED), _plain(function)) for name, function in hooks]):
        last = copies.gated(start.layer, y, stream.k, stream.v, copies.masks)
    return dot(last - batch.clean.final[rows], batch.v[rows]).double(), norm.scale(last).double()


def ablated_clean(runner: BothRunner, batch: Batch, chunk: Chunk, hooks: Hooks) -> CleanStream:
    """The clean stream of each copy when its component is taken out there, too."""
    model, rows, first = runner.model, chunk.rows, chunk.entry.layer
    known: CleanStream = batch.clean.replay.stream
    points: dict[Any, Any] = {"final": model.ln_final} if model.cfg.normalization_type is not None else {}
    for layer in range(first, runner.n_layers):
        block = model.blocks[layer]
        points["resid_pre", layer], points["resid_post", layer] = block.hook_resid_pre, block.hook_resid_post
        points["k", layer] = getattr(block.attn, "hook_rot_k", block.attn.hook_k)
        points["v", layer] = block.attn.hook_v
    with model.hooks(fwd_hooks=[(name, _plain(function)) for name, function in hooks]), passing_through(points) as seen:
        model(known.resid_pre[first][rows], start_at_layer=first, return_type=None)

    def layers(name: str, of: list[Tensor]) -> list[Tensor]:
        return [of[layer][rows] if layer < first else seen[name, layer] for layer in range(runner.n_layers)]

    lists = [layers(name, getattr(known, name)) for name in CleanStream._fields[:4]]
    return CleanStream(*lists, seen.get("final", lists[1][-1]), None)


def swaps(plan: Plan, chunk: Chunk, values: tuple[Values, Values], dose: float | int) -> Hooks:
    """Hooks that give each copy's component its replacement: value + dose * change."""
    at, change = values
    places: dict[Site, list[tuple[slice, Tensor, list[int]]]] = {}
    for component, copies, rows in chunk.segments:
        for write in plan.components[component].writes:
            places.setdefault(write.site, []).append((copies, rows, list(write.units)))

    def swap(site: Site) -> Callable[[Tensor], Tensor]:
        def replace(value: Tensor) -> Tensor:
            value = value.clone()
            for copies, rows, units in places[site]:
                new = at[site][rows] + dose * change[site][rows]
                if site.name == "mlp_out":
                    value[copies] = new
                else:
                    value[copies, :, units] = new[:, :, units]
            return value

        return replace

    return [(site.hook, swap(site)) for site in places]


def _change(new: Values, old: Values) -> Values:
    return {site: new[site] - value for site, value in old.items()}


def _plain(function: Callable[[Tensor], Any]) -> Callable[..., Any]:
    def hook(value: Tensor, hook: Any = None) -> Any:
        return function(value)

    return hook
