"""Running a model from a coder's site on: the prefix once, what comes after it for each output that is tried.

The clean stream goes on as a HookedTransformer's does. In the ablated stream of a self-ablating model the output of the
site is another one there alone: masks, keys and values are the clean stream's, which is left as it is.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from sat_lens.activations import inference
from sat_lens.coders.coder import CoderConfig
from sat_lens.coders.sites import check_site, flat
from sat_lens.model import ablated_block
from sat_lens.norms import apply_norm
from sat_lens.repair.quick_blocks import bare, plain_block, quick

DIRECT = {"hook_mlp_out": 1, "hook_resid_post": 1, "hook_resid_pre": 0}
"""Outputs from which the stream that enters a layer follows by adding at most; how many layers further on."""


@dataclasses.dataclass
class Prefix:
    """What a pass as far as the site leaves.

    Args:
        x, y: at the hook points that the coder reads and writes.
        before: the stream that the MLP's output is added to, or that enters the site's layer.
        shape: of `y` as its hook point has it.
        masks, k, v: of the ablated stream's layers.
    """

    x: Float[Tensor, "row pos d_in"]
    y: Float[Tensor, "row pos d_out"]
    before: Float[Tensor, "row pos d_model"]
    shape: torch.Size
    masks: Any = None
    k: Any = None
    v: Any = None


class Suffix:
    """A model, cut at a coder's site.

    Args:
        model: a HookedTransformer, or one with two streams.
        cfg: of the coder.

    Raises:
        ValueError: a site that is not the model's, or not in one of its layers.
    """

    def __init__(self, model: Any, cfg: CoderConfig) -> None:
        check_site(model, cfg)
        ablated = cfg.stream == "ablated"
        place = re.fullmatch(r"blocks\.(\d+)\.(ablated\.)?(.+)", cfg.hook_out)
        if place is None or bool(place[2]) != ablated and not _gated(cfg.hook_out, ablated):
            where = "the ablated stream, blocks.L.ablated.*" if ablated else "a layer of the clean stream, blocks.L.*"
            raise ValueError(f"an output is replaced in {where}; got {cfg.hook_out}")
        if model.cfg.positional_embedding_type == "shortformer" or model.cfg.n_devices > 1:
            raise ValueError("the model cannot be run from its middle: shortformer positions, or several devices")
        self.model, self.cfg, self.layer, self.name = model, cfg, int(place[1]), place[3]
        self.stream = f"blocks.{self.layer}." + ("ablated." if ablated else "")
        arch = model.cfg.original_architecture
        self._norm_behind = model.cfg.use_normalization_before_and_after or arch in POST_NORM_ARCHITECTURES
        self._bare = False

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Inference mode and quick blocks, within which the rest is to be called; leaves no trace on the model."""
        with inference(self.model), quick(self.model.blocks):
            self._bare = bare(self.model) and not self._norm_behind
            yield

    def prefix(self, tokens: Int[Tensor, "row pos"]) -> Prefix:
        """One pass as far as the site."""
        before = [self.stream + name for name in self._before()]
        seen: dict[str, Tensor] = {}

        def record(value: Tensor, hook: Any) -> None:
            seen[hook.name] = value

        names = {*before, self.cfg.hook_in, self.cfg.hook_out}
        extra: dict[str, Any] = {}
        with self.model.hooks(fwd_hooks=[(name, record) for name in sorted(names)]):
            if self.cfg.stream == "clean":
                self.model(tokens, return_type=None, stop_at_layer=self.layer + 1, padding_side="right")
            else:
                clean = self.model.clean_stream(tokens)
                extra = {"masks": self.model.masks_of(clean), "k": clean.k, "v": clean.v}
                self._ablated(0, self.layer + 1, clean.resid_pre[0], **extra)
        if missing := sorted(names - seen.keys()):
            raise ValueError(f"{missing[0]} did not fire as far as layer {self.layer}; a coder reads before it writes")
        y = seen[self.cfg.hook_out]
        stream = seen[before[0]] if len(before) == 1 else seen[before[0]] + seen[before[1]]
        return Prefix(flat(seen[self.cfg.hook_in]), flat(y), stream, y.shape, **extra)

    @property
    def _direct(self) -> bool:
        return self.name in DIRECT and not self._norm_behind

    def _before(self) -> tuple[str, ...]:
        """Hook points whose sum the MLP's output is added to, or the stream that enters the layer."""
        if not self._direct or self.name != "hook_mlp_out":
            return ("hook_resid_pre",)
        return ("hook_resid_pre", "hook_attn_out") if self.model.cfg.parallel_attn_mlp else ("hook_resid_mid",)

    def final(self, prefix: Prefix, y: Float[Tensor, "row pos d_out"]) -> Float[Tensor, "row pos d_model"]:
        """The last residual stream, before the final norm, when `y` is what leaves the site."""
        y = y.to(prefix.y.dtype).view(prefix.shape)
        if self._direct:
            x = prefix.before + y if self.name == "hook_mlp_out" else y
            return self._run(self.layer + DIRECT[self.name], x, prefix)
        with self.model.hooks(fwd_hooks=[(self.cfg.hook_out, lambda value, hook: y)]):
            return self._run(self.layer, prefix.before, prefix, hooked=True)

    def logits(
        self, final: Float[Tensor, "row pos d_model"], at: Bool[Tensor, "row pos"]
    ) -> Float[Tensor, "token d_vocab"]:
        """Logits at some tokens."""
        model, x = self.model, final[at]
        if model.cfg.normalization_type is not None:
            x = apply_norm(model.ln_final, x)
        logits = F.linear(x, model.unembed.W_U.T, model.unembed.b_U)
        cap = model.cfg.output_logits_soft_cap
        return cap * torch.tanh(logits / cap) if cap > 0 else logits

    def _run(self, layer: int, x: Tensor, prefix: Prefix, hooked: bool = False) -> Tensor:
        n_layers = self.model.cfg.n_layers
        if self.cfg.stream == "ablated":
            return self._ablated(layer, n_layers, x, prefix.masks, prefix.k, prefix.v)
        if self._bare and not hooked:
            for block in self.model.blocks[layer:]:
                x = plain_block(block, x)
            return x
        if layer == n_layers:
            return x
        return self.model(x, start_at_layer=layer, stop_at_layer=n_layers)

    def _ablated(self, start: int, stop: int, x: Tensor, masks: Any, k: Any, v: Any) -> Tensor:
        for layer in range(start, stop):
            x = ablated_block(self.model.blocks[layer], x, k[layer], v[layer], masks[layer])
        return x


def _gated(hook_out: str, ablated: bool) -> bool:
    """Whether a hook point without `ablated` in its name is the ablated stream's."""
    return ablated and re.search(r"hook_gated_(z|post)$|ablated", hook_out) is not None
