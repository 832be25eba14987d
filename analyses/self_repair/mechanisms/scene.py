"""Texts through a model batch by batch, with a component taken out and others held fast: what the studies stand on.

A Scene is a model, its texts and what is measured of them; a Take is one batch of it: the clean pass, the readout,
and runs of the rest of the model in which some activations are replaced.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from analyses.texts import Stories
from sat_lens.repair.ablations import Resample, Source
from sat_lens.repair.components import Component, Site, Weights
from sat_lens.repair.readout import Readout
from sat_lens.repair.rows import Rows, as_rows
from sat_lens.repair.runner import Clean, FullRunner, Hooks, Point, make_runner

Values = Mapping[Site, Tensor]


@dataclasses.dataclass
class Take:
    """One batch.

    Args:
        scene: what it is a batch of.
        rows: indices of its stories.
        clean: streams before every layer, z of every head, what each attention and MLP layer adds.
        keep: tokens that are measured.
        v: directions of the readout.
        f0, s0: clean score and scale of the final norm.
    """

    scene: "Scene"
    rows: Int[Tensor, " batch"]
    clean: Clean
    keep: Bool[Tensor, "batch pos"]
    v: Float[Tensor, "batch pos d_model"]
    f0: Float[Tensor, "batch pos"]
    s0: Float[Tensor, "batch pos"]

    def run(
        self,
        layer: int,
        hooks: Hooks,
        x: Float[Tensor, "copy pos d_model"] | None = None,
        copies: Int[Tensor, " copy"] | None = None,
    ) -> Float[Tensor, "copy pos d_model"]:
        """The last residual stream when the model goes on from `layer` with these hooks.

        Args:
            layer: where it goes on.
            hooks: on what runs; each is given a value and returns another one, or None.
            x: the stream there; None: the clean one.
            copies: row of this batch that each copy stands for; None: each row once.
        """
        runner, clean = self.scene.runner, self.clean
        copies = torch.arange(len(self.rows), device=self.v.device) if copies is None else copies
        stream = clean.streams[Point(layer)][copies] if x is None else x
        if x is not None and isinstance(runner, FullRunner):  # it starts at the tokens, whatever the stream
            hooks = [(f"blocks.{layer}.hook_resid_pre", lambda value: x), *hooks]
        return runner.suffix(clean, Point(layer), stream, copies, hooks)

    def dlogit(self, final: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        """Change of the target's centred logit."""
        return self.score(final) / self.scene.readout.norm.scale(final) - self.f0 / self.s0

    def score(self, final: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos"]:
        """x . v, the logit times the scale."""
        return torch.einsum("btd,btd->bt", final, self.v)

    def unit_effects(self, site: Site, values: Tensor) -> Float[Tensor, "batch pos unit"]:
        """Direct effects of a site's units at these values, or of a change by these values, in logits."""
        return self.scene.weights(site).scores(site, values, self.v) / self.s0[..., None]

    def own(self, component: Component, change: Values) -> Float[Tensor, "batch pos"]:
        """Direct effect of a component at these values of its sites, or of a change by these values, in logits."""
        return sum(
            (self.unit_effects(site, change[site])[..., list(units)].sum(-1) for site, units in component.writes),
            torch.zeros_like(self.f0),
        )

    def written(self, component: Component, values: Values) -> dict[Site, Float[Tensor, "batch pos d_model"]]:
        """What a component adds to the stream at each of its sites at these values."""
        return {
            write.site: self.scene.weights(write.site).added(write, values[write.site]) for write in component.writes
        }

    def clean_values(self, component: Component) -> dict[Site, Tensor]:
        """Of a component's sites."""
        return {write.site: self.value(write.site) for write in component.writes}

    def value(self, site: Site) -> Tensor:
        """Clean activation of a site."""
        return self.clean.mlp_out[site.layer] if site.name == "mlp_out" else self.clean.sites[site]


class Scene:
    """A model, its texts, an ablation and a readout.

    Args:
        model: a HookedTransformer, a self-ablating model (clean stream) or a TransformerBridge.
        stories: texts.
        ablation: of `sat_lens.repair.ablations`; None: one resampling.
        target: whose logit, or a Readout.
        keep: tokens that may be measured; None: all from position 1 on that have a target and a replacement.
        batch_size: rows a batch; changes nothing but cost.
        progress: a bar on stderr, where that is a terminal.

    Raises:
        ValueError: no token to measure; a model that self-repair is not defined for.

    Cost: memory of one batch's streams and activations. Under torchrun every rank does the whole work.
    """

    def __init__(
        self,
        model: Any,
        stories: Stories,
        *,
        ablation: Any = None,
        target: Any = "next_token",
        keep: Bool[Tensor, "story pos"] | None = None,
        batch_size: int = 16,
        progress: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        self.model, self.runner, self.batch_size, self.progress = model, make_runner(model), batch_size, progress
        self.ablation = Resample() if ablation is None else ablation
        self.readout = target if isinstance(target, Readout) else Readout(model, target)
        rows = as_rows(stories.tokens, stories.lengths, keep, None, needs_next=self.readout.needs_next)
        measurable = self.ablation.measurable(rows) & self.readout.defined(rows.tokens)
        self.rows: Rows = dataclasses.replace(rows, keep=rows.keep & measurable)
        if not self.rows.keep.any():
            raise ValueError("a study needs at least 1 token with a target and a replacement; there is none")
        self._weights: dict[Site, Weights] = {}

    @property
    def n(self) -> int:
        """Stories."""
        return self.rows.n

    @property
    def n_layers(self) -> int:
        """Of the model."""
        return self.runner.n_layers

    @property
    def has_mlp(self) -> bool:
        """Whether the model has MLPs."""
        return self.runner.has_mlp

    def weights(self, site: Site) -> Weights:
        """The linear map from a site to the stream."""
        if site not in self._weights:
            self._weights[site] = Weights(self.model, [site])
        return self._weights[site]

    def fitted(self, components: Sequence[Component]) -> Source:
        """The ablation's replacements for these texts."""
        return self.ablation.fitted(self.runner, self.rows, components, self.batch_size)

    def takes(self, tokens: Bool[Tensor, "story pos"] | None = None, sites: Iterable[Site] = ()) -> Iterator[Take]:
        """The batches that hold one of these tokens (None: a kept one), in inference mode.

        Args:
            tokens: what `keep` of the takes is.
            sites: kept beside z and mlp_out (neurons).
        """
        rows = self.rows if tokens is None else dataclasses.replace(self.rows, keep=tokens & self.rows.keep)
        device, points = self.model.W_U.device, [Point(layer) for layer in range(self.n_layers)]
        every = [Site(layer, "z") for layer in range(self.n_layers)]
        every += [site for site in sites if site.name == "post" and site not in every]
        batches = list(rows.batches(self.batch_size))
        with self.runner.ready():
            for batch in tqdm(batches, desc="mechanism", disable=None if self.progress else True):
                ids = rows.cut(batch).to(device)
                clean = self.runner.clean(ids, every, points, outputs=True)
                targets = self.readout.targets(batch, ids, clean.final)
                v = self.readout.directions(batch, ids, targets)
                keep = rows.keep[batch, : ids.shape[1]].to(device) & (targets >= 0)
                f0 = torch.einsum("btd,btd->bt", clean.final, v)
                yield Take(self, batch, clean, keep, v, f0, self.readout.norm.scale(clean.final))

    def replacements(
        self, take: Take, components: Sequence[Component], source: Source, draw: int
    ) -> dict[Site, Tensor]:
        """What the sites of these components are replaced by."""
        sites = {write.site: take.value(write.site) for one in components for write in one.writes}
        return dict(source(take.rows, Clean(sites=sites), draw))


def replacing(component: Component, values: Values) -> Hooks:
    """Hooks that give a component these values; the other units of its sites keep theirs."""

    def hook_of(site: Site, units: list[int]) -> Callable[[Tensor], Tensor]:
        def replace(value: Tensor) -> Tensor:
            if site.name == "mlp_out":
                return values[site]
            value = value.clone()
            value[:, :, units] = values[site][:, :, units]
            return value

        return replace

    return [(site.hook, hook_of(site, list(units))) for site, units in component.writes]


def adding(layer: int, name: str, what: Tensor) -> Hooks:
    """A hook that adds to what a layer's attention (`z`) or MLP writes to the stream."""
    point = "hook_attn_out" if name == "z" else "hook_mlp_out"
    return [(f"blocks.{layer}.{point}", lambda value: value + what)]


def capturing(name: str, into: dict[Any, Tensor], key: Any) -> Hooks:
    """A hook that keeps what passes."""

    def keep(value: Tensor) -> None:
        into[key] = value

    return [(name, keep)]


def clean_scale(take: Take, layer: int) -> Tensor | None:
    """Scale of the norm before a layer's attention, [batch pos 1]; None where the model has no norm.

    Raises:
        ValueError: a norm without the hook point `hook_scale`.
    """
    if take.scene.model.cfg.normalization_type is None:
        return None
    name, found = _scale_point(layer), {}
    with contextlib.suppress(KeyError, AttributeError):
        take.run(layer, capturing(name, found, "scale"))
    if "scale" not in found:
        raise ValueError(f"a norm's scale can be held only where {name} fires; in this model it does not")
    return found["scale"]


def holding_scale(layer: int, scale: Tensor | None) -> Hooks:
    """A hook that gives the norm before a layer's attention this scale."""
    return [] if scale is None else [(_scale_point(layer), lambda value: scale)]


def _scale_point(layer: int) -> str:
    return f"blocks.{layer}.ln1.hook_scale"
