"""The gated stream of a self-ablating model, as a model whose heads and MLPs are ablated like any other's.

A head's activation there is its z under the mask; what replaces it is another z under the same mask, so that a head
which the mask silences has no direct effect before or after. The clean stream is left alone, hence the masks cannot
react, and keys and values of the past are clean: the effect of an ablation at a position is that position's alone.

Source: arXiv 2402.15390 (definitions), arXiv 2505.00509 (the two streams); putting them together is our own.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sat_lens.gates import LayerUnits
from sat_lens.model import CleanStream, ablated_block
from sat_lens.repair.ablations import Ablation, Source, Values
from sat_lens.repair.components import Component, Site, sites_of
from sat_lens.repair.gated_alone import MOST, AloneReplay, last_of_tokens, narrowed
from sat_lens.repair.gated_masks import MaskRule, of_rows
from sat_lens.repair.readout import Readout
from sat_lens.repair.rows import Rows
from sat_lens.repair.runner import Clean, Hooks, Point, Runner, quick

GATED = {
    "attn.hook_z": "attn.hook_gated_z",
    "mlp.hook_post": "mlp.hook_gated_post",
    "hook_attn_out": "ablated.hook_attn_out",
    "hook_mlp_out": "ablated.hook_mlp_out",
    "hook_resid_pre": "ablated.hook_resid_pre",
}
"""Hook points of a block and their twins in the gated stream."""
UNMASKED = {**GATED, "attn.hook_z": "ablated.hook_z", "mlp.hook_post": "ablated.hook_post"}
"""The same before the masks."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """What a pass of both streams leaves for the gated one: the clean stream, and the masks."""

    stream: CleanStream
    masks: list[LayerUnits]


class GatedRunner(Runner):
    """Runs the gated stream.

    Args:
        model: with masks.
        rule: the masks.
        unmasked: z and post are read before the mask.
    """

    def __init__(self, model: Any, rule: MaskRule, unmasked: bool = False) -> None:
        super().__init__(model)
        self.rule, self.twins = rule, UNMASKED if unmasked else GATED

    def before_masks(self) -> "GatedRunner":
        """The same, reading z and post before the mask."""
        return GatedRunner(self.model, self.rule, unmasked=True)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with super().ready(), quick(self.model.blocks):
            yield

    def hooked(self, hooks: Hooks) -> Any:
        return super().hooked([(twin(name, self.twins), function) for name, function in hooks])

    def clean(
        self,
        tokens: Int[Tensor, "batch pos"],
        sites: Iterable[Site],
        points: Iterable[Point] = (),
        outputs: bool = False,
    ) -> Clean:
        stream = self.model.clean_stream(tokens)
        kept = Clean(replay=Replay(stream, self.rule(stream)))
        with self.hooked(self.recording(kept, sites, points, outputs)):
            kept.final = self.gated(0, stream.resid_pre[0], stream.k, stream.v, kept.replay.masks)
        kept.streams[Point(self.n_layers)] = kept.final
        return kept

    def suffix(
        self,
        clean: Clean,
        entry: Point,
        x: Float[Tensor, "copy pos d_model"],
        rows: Int[Tensor, " copy"],
        hooks: Hooks,
    ) -> Float[Tensor, "copy pos d_model"]:
        replay: Replay | AloneReplay = clean.replay
        if isinstance(replay, AloneReplay):
            with self.hooked(hooks):
                return last_of_tokens(self.model, entry.layer, x, replay, rows)
        k, v = (
            [None if layer < entry.layer else of[rows] for layer, of in enumerate(lists)]
            for lists in (replay.stream.k, replay.stream.v)
        )
        masks = [of_rows(units, rows) for units in replay.masks]
        with self.hooked(hooks):
            return self.gated(entry.layer, x, k, v, masks)

    def narrowed(
        self, batch: Any, removals: list[Any], selected: Tensor, most: int
    ) -> tuple[Any, list[Any], Tensor, int]:
        """Single tokens, where few are selected."""
        copies = int(selected.any(-1).sum()) * selected.shape[-1]
        if int(selected.sum()) > MOST * copies:
            return batch, removals, selected, most
        return *narrowed(batch, removals, selected), most * selected.shape[-1]

    def gated(self, start: int, y: Tensor, k: Sequence[Any], v: Sequence[Any], masks: Sequence[LayerUnits]) -> Tensor:
        """The last gated stream when it is y where layer `start` begins; k and v are the clean stream's, by layer."""
        for layer in range(start, self.n_layers):
            y = ablated_block(self.model.blocks[layer], y, k[layer], v[layer], masks[layer])
        return y


class GatedReadout(Readout):
    """The readout of the gated stream: the clean one's, but checked against the gated logits."""

    def __init__(self, model: Any, rule: MaskRule, target: Any = "next_token") -> None:
        super().__init__(model, target)
        self.rule = rule

    def verify(self, model: Any, tokens: Int[Tensor, "n pos"], final: Float[Tensor, "n pos d_model"]) -> float:
        def logits(tokens: Tensor) -> Tensor:
            stream = model.clean_stream(tokens)
            return model.ablated_stream(stream, self.rule(stream)).logits

        return super().verify(logits, tokens, final)


@dataclasses.dataclass(frozen=True)
class UnderOwnMask:
    """An ablation whose replacements of z and post stand under the mask of the token that they come to.

    Cost: a pass of both streams a batch and draw, besides what it is of.
    """

    of: Ablation

    @property
    def name(self) -> str:
        """Of what it is of."""
        return self.of.name

    @property
    def draws(self) -> int:
        """Of what it is of."""
        return self.of.draws

    def measurable(self, rows: Rows) -> Bool[Tensor, "n pos"]:
        """Of what it is of."""
        return self.of.measurable(rows)

    def fitted(self, runner: Runner, rows: Rows, components: Sequence[Component], batch_size: int) -> Source:
        """Fitted to the activations before the masks."""
        assert isinstance(runner, GatedRunner)
        before, sites = runner.before_masks(), sites_of(components)
        source = self.of.fitted(before, rows, components, batch_size)

        def values(batch: Tensor, clean: Clean, draw: int) -> Values:
            n_pos = next(iter(clean.sites.values())).shape[1]
            own = before.clean(rows.tokens[batch, :n_pos].to(runner.model.W_U.device), sites)
            return masked(source(batch, Clean(sites=own.sites), draw), own.replay.masks)

        return values


def masked(values: Values, masks: Sequence[LayerUnits]) -> Values:
    """Activations from before the masks as they stand behind them; mlp_out has none of its own."""
    of = {"z": lambda units: units.attn, "post": lambda units: units.mlp}
    return {
        site: value * of[site.name](masks[site.layer]) if site.name in of else value for site, value in values.items()
    }


def twin(name: str, twins: dict[str, str]) -> str:
    """`blocks.3.hook_attn_out` -> `blocks.3.ablated.hook_attn_out`, and the like."""
    blocks, layer, rest = name.split(".", 2)
    return f"{blocks}.{layer}.{twins[rest]}"
