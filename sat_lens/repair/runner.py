"""Running a model from the middle: the clean pass, and what follows when a stream is changed.

A Runner knows two things. `clean` runs rows of tokens once and keeps what is asked for. `suffix` takes copies of the
residual stream as they stand at some Point, runs what comes after it, and gives the last residual stream.

| runner | model | a suffix costs |
| --- | --- | --- |
| `HookedRunner` | HookedTransformer, SelfAblatingTransformer (clean stream) | the modules behind the change |
| `BridgeRunner` | TransformerBridge | the blocks from the change on, replayed one by one |
| `FullRunner` | anything with TransformerLens' hook points | a whole forward pass with logits |

The stream of a self-ablating model that carries gates has to be run by a runner of its own with these two methods.
"""

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from sat_lens._tl import HookedTransformer
from sat_lens.activations import inference
from sat_lens.repair.components import Component, Site
from sat_lens.repair.quick_blocks import bare, fires, normed, plain_block, quick

Hooks = list[tuple[str, Callable[[Tensor], Tensor | None]]]


class Point(NamedTuple):
    """A place in the residual stream: where a layer begins, or (`half`) between its attention and its MLP."""

    layer: int
    half: bool = False


@dataclasses.dataclass
class Clean:
    """What a clean pass was asked to keep.

    Args:
        sites: activations by site, [batch pos *unit].
        streams: the residual stream by point, [batch pos d_model].
        attn_out, mlp_out: what each layer adds to the stream; empty unless asked for.
        final: the last residual stream, before the final norm; empty where the pass stopped earlier.
        replay: what the runner needs to go on from the middle.
    """

    sites: dict[Site, Tensor] = dataclasses.field(default_factory=dict)
    streams: dict[Point, Tensor] = dataclasses.field(default_factory=dict)
    attn_out: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    mlp_out: dict[int, Tensor] = dataclasses.field(default_factory=dict)
    final: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))
    replay: Any = None


class Runner(ABC):
    """What the runners share: where components write, and which hooks a clean pass needs."""

    starts_half = False
    """Whether a suffix can begin between attention and MLP."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.n_layers: int = model.cfg.n_layers
        self.has_mlp = not getattr(model.cfg, "attn_only", False)
        self.sequential = self.has_mlp and not getattr(model.cfg, "parallel_attn_mlp", False)

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Inference mode, within which `clean` and `suffix` are to be called; leaves no trace on the model.

        Products of float32 numbers are made in float32, whatever the process allows: what TF32 and bfloat16 round off
        is as large as many shares.
        """
        allowed = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with inference(self.model):
                yield
        finally:
            torch.set_float32_matmul_precision(allowed)

    def written(self, site: Site) -> Point:
        """From where on the stream holds what the site writes, and the rest of the layer has not read it."""
        return Point(site.layer, True) if site.name == "z" and self.sequential else Point(site.layer + 1)

    def entry(self, component: Component) -> Point:
        """Where the suffix of a component begins: as late as possible."""
        first = min(self.written(write.site) for write in component.writes)
        return Point(first.layer) if first.half and not self.starts_half else first

    @abstractmethod
    def clean(
        self,
        tokens: Int[Tensor, "batch pos"],
        sites: Iterable[Site],
        points: Iterable[Point] = (),
        outputs: bool = False,
    ) -> Clean:
        """One pass over clean tokens.

        Args:
            sites, points: what is kept.
            outputs: whether each layer's attn_out and mlp_out are kept, too. Without points and outputs the pass
                may stop behind the last site.
        """

    @abstractmethod
    def suffix(
        self,
        clean: Clean,
        entry: Point,
        x: Float[Tensor, "copy pos d_model"],
        rows: Int[Tensor, " copy"],
        hooks: Hooks,
    ) -> Float[Tensor, "copy pos d_model"]:
        """The last residual stream when the stream at `entry` is x.

        Args:
            rows: of the clean pass that each copy stands for.
            hooks: on the modules that run; each is given a value and returns another one, or None.
        """

    def narrowed(
        self, batch: Any, removals: list[Any], selected: Tensor, most: int
    ) -> tuple[Any, list[Any], Tensor, int]:
        """A batch, what is taken out of it, the selected tokens and copies a chunk, with what need not be run left out.

        All of it, for most models: what an ablation changes at a position changes the later ones, too.
        """
        return batch, removals, selected, most

    def recording(self, kept: Clean, sites: Iterable[Site], points: Iterable[Point], outputs: bool) -> Hooks:
        """Hooks that fill `kept`."""

        def into(place: dict[Any, Tensor], key: Any) -> Callable[[Tensor], None]:
            def record(value: Tensor) -> None:
                place[key] = value

            return record

        hooks: Hooks = [(site.hook, into(kept.sites, site)) for site in sites]
        for point in points:
            name = "hook_resid_mid" if point.half else "hook_resid_pre"
            if point.layer < self.n_layers:
                hooks.append((f"blocks.{point.layer}.{name}", into(kept.streams, point)))
        for layer in range(self.n_layers) if outputs else ():
            hooks.append((f"blocks.{layer}.hook_attn_out", into(kept.attn_out, layer)))
            if self.has_mlp:
                hooks.append((f"blocks.{layer}.hook_mlp_out", into(kept.mlp_out, layer)))
        return hooks

    def hooked(self, hooks: Hooks) -> Any:
        """The model with these hooks for a while. They are told apart by closure: a bridge renames hook points."""
        return self.model.hooks(fwd_hooks=[(name, _plain(function)) for name, function in hooks])


class HookedRunner(Runner):
    """HookedTransformer: starts at any layer, and after an attention layer by itself."""

    starts_half = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._bare = False

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        with super().ready(), quick(self.model.blocks):
            self._bare = bare(self.model)
            yield

    def clean(
        self,
        tokens: Int[Tensor, "batch pos"],
        sites: Iterable[Site],
        points: Iterable[Point] = (),
        outputs: bool = False,
    ) -> Clean:
        sites, points, kept = list(sites), list(points), Clean()
        whole = bool(points) or outputs
        stop = self.n_layers if whole else 1 + max((site.layer for site in sites), default=-1)
        with self.hooked(self.recording(kept, sites, points, outputs)):
            last = self.model(tokens, return_type=None, stop_at_layer=stop, padding_side="right")
        if whole:
            kept.final = kept.streams[Point(self.n_layers)] = last
        return kept

    def suffix(
        self,
        clean: Clean,
        entry: Point,
        x: Float[Tensor, "copy pos d_model"],
        rows: Int[Tensor, " copy"],
        hooks: Hooks,
    ) -> Float[Tensor, "copy pos d_model"]:
        quickly = self._bare and all(map(fires, (name for name, _ in hooks)))
        with self.hooked(hooks):
            if entry.half:
                block = self.model.blocks[entry.layer]
                x = x + block.apply_mlp(normed(block.ln2, x) if quickly else block.ln2(x))
            start = entry.layer + entry.half
            if not quickly:
                return self.model(x, start_at_layer=start, stop_at_layer=self.n_layers)
            for block in self.model.blocks[start:]:
                x = plain_block(block, x)
        return x


class FullRunner(Runner):
    """Any model with TransformerLens' hook points: whole forward passes over repeated tokens."""

    def entry(self, component: Component) -> Point:
        return Point(0)

    def clean(
        self,
        tokens: Int[Tensor, "batch pos"],
        sites: Iterable[Site],
        points: Iterable[Point] = (),
        outputs: bool = False,
    ) -> Clean:
        kept = Clean(replay=tokens)
        hooks = self.recording(kept, sites, points, outputs)
        with self.hooked([*hooks, self._last(kept)]):
            self.model(tokens)
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
        kept = Clean()
        with self.hooked([*hooks, self._last(kept)]):
            self.model(clean.replay[rows])
        return kept.final

    def _last(self, kept: Clean) -> tuple[str, Callable[[Tensor], None]]:
        def record(value: Tensor) -> None:
            kept.final = value

        return f"blocks.{self.n_layers - 1}.hook_resid_post", record


def make_runner(model: Any, stream: str = "clean") -> Runner:
    """The quickest runner for a model.

    Raises:
        ValueError: a stream other than the clean one, weights of low precision, or blocks in which what a head adds
            to the stream is no linear map of its z (norms behind attention or MLP).
    """
    if stream != "clean":
        raise ValueError(f"this runner knows the stream 'clean'; got {stream!r}")
    if model.W_U.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"self-repair needs float32 or float64 weights (shares drown in less); got {model.W_U.dtype}")
    if isinstance(model, HookedTransformer):
        cfg = model.cfg
        if cfg.use_normalization_before_and_after or cfg.original_architecture in POST_NORM_ARCHITECTURES:
            raise ValueError(
                "self-repair needs heads that write to the stream linearly; this model has norms behind them"
            )
        whole = cfg.positional_embedding_type == "shortformer" or cfg.n_devices > 1
        return FullRunner(model) if whole else HookedRunner(model)
    from transformer_lens.model_bridge import TransformerBridge

    from sat_lens.repair.bridge_runner import BridgeRunner

    return BridgeRunner(model) if isinstance(model, TransformerBridge) else FullRunner(model)


def _plain(function: Callable[[Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
    def hook(value: Tensor, hook: Any = None) -> Tensor | None:
        return function(value)

    return hook
