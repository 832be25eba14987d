"""Relevance heads and the masks that they choose.

A relevance head is a linear map from the clean residual stream to one score a unit. Local heads
read the stream that enters their own layer, global heads the final normalised stream, and one
forward pass of them scores every layer at once.

Source: arXiv 2505.00509, section 3 and appendix B; scores of "both" are added, as in its code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sat_lens._tl import HookedTransformerConfig
from sat_lens.config import SelfAblation
from sat_lens.products import linear
from sat_lens.winners import SoftMask, k_winners


class LayerUnits(NamedTuple):
    """One tensor for the attention units and one for the neurons of a layer (None: no MLP)."""

    attn: Float[Tensor, "batch pos n_heads unit"]
    mlp: Float[Tensor, "batch pos d_mlp"] | None


class RelevanceHead(nn.Linear):
    """torch.nn.Linear, in the weights' own type whatever autocast says, by the quicker product.

    In bf16, with 8 bits, the k-th and the next score would often tie, and their gap, by which the
    gradient is divided, would be noise.
    """

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch unit"]:
        with torch.autocast(x.device.type, enabled=False):
            return linear(x.to(self.weight.dtype), self.weight, self.bias)


class RelevanceHeads(nn.ModuleDict):
    """The linear heads; keys `local.{layer}.attn`, `local.{layer}.mlp`, `global.attn`, `global.mlp`.

    Rows of a global head are ordered layer, head, channel. Initialised as torch.nn.Linear is.
    """

    def __init__(self, cfg: HookedTransformerConfig, ablation: SelfAblation) -> None:
        super().__init__()
        self.n_layers, self.n_heads = cfg.n_layers, cfg.n_heads
        self.sum_of = {"local": ["local"], "global": ["global"], "both": ["local", "global"]}[ablation.mask]
        widths = {"attn": cfg.n_heads * (cfg.d_head if ablation.unit == "channel" else 1)}
        if not cfg.attn_only and cfg.d_mlp is not None:
            widths["mlp"] = cfg.d_mlp

        def heads(layers: int) -> nn.ModuleDict:
            return nn.ModuleDict(
                {name: RelevanceHead(cfg.d_model, layers * width, dtype=cfg.dtype) for name, width in widths.items()}
            )

        if "local" in self.sum_of:
            self["local"] = nn.ModuleList([heads(1) for _ in range(cfg.n_layers)])
        if "global" in self.sum_of:
            self["global"] = heads(cfg.n_layers)

    def forward(
        self,
        inputs: Sequence[Float[Tensor, "batch pos d_model"]],
        final: Float[Tensor, "batch pos d_model"],
        noise: float = 0.0,
    ) -> list[LayerUnits]:
        """Scores of every layer from the `inputs` of the local heads and the `final` stream.

        Args:
            noise: standard deviation of what is added in training mode, as `SelfAblation.score_noise`.
        """
        scores = [self._of_source(source, inputs, final) for source in self.sum_of]
        noise = noise if self.training else 0.0
        return [self._shaped([source[layer] for source in scores], noise) for layer in range(self.n_layers)]

    def _of_source(self, source: str, inputs: Sequence[Tensor], final: Tensor) -> list[dict[str, Tensor]]:
        if source == "local":
            return [
                {name: head(x) for name, head in heads.items()} for heads, x in zip(self["local"], inputs, strict=True)
            ]
        whole = {name: head(final).chunk(self.n_layers, -1) for name, head in self["global"].items()}
        return [{name: parts[layer] for name, parts in whole.items()} for layer in range(self.n_layers)]

    def _shaped(self, sources: list[dict[str, Tensor]], noise: float) -> LayerUnits:
        total = {name: noisy(sum((s[name] for s in sources[1:]), sources[0][name]), noise) for name in sources[0]}
        return LayerUnits(total["attn"].unflatten(-1, (self.n_heads, -1)), total.get("mlp"))


def noisy(scores: Float[Tensor, "batch pos unit"], noise: float) -> Float[Tensor, "batch pos unit"]:
    """The scores with Gaussian noise, in units of their spread over the units, which no gradient passes."""
    if not noise:
        return scores
    spread = scores.detach().std(-1, keepdim=True, correction=0)
    return scores + noise * spread * torch.randn_like(scores)


def masks(scores: Sequence[LayerUnits], ablation: SelfAblation, d_head: int) -> list[LayerUnits]:
    """k winners take all, for every layer.

    Args:
        scores: relevance of each layer's units, after their hooks.
        d_head: attention masks are broadcast to this many channels when the unit is a head.
    """
    soft = soft_masks(ablation)
    attn = _winners([layer.attn.flatten(-2) for layer in scores], ablation, soft.attn)
    attn = [mask.unflatten(-1, layer.attn.shape[-2:]) for mask, layer in zip(attn, scores, strict=True)]
    attn = [mask.expand(*mask.shape[:-1], d_head) for mask in attn]
    neurons = [layer.mlp for layer in scores if layer.mlp is not None]
    mlp = _winners(neurons, ablation, soft.mlp) if neurons else [None] * len(scores)
    return [LayerUnits(*pair) for pair in zip(attn, mlp, strict=True)]


class SoftMasks(NamedTuple):
    """One for the attention units and one for the neurons."""

    attn: SoftMask
    mlp: SoftMask


def soft_masks(ablation: SelfAblation) -> SoftMasks:
    """What the configuration says of the soft masks."""
    knobs = ablation.estimator, ablation.gap_floor
    of_neurons = ablation.temperature if ablation.temperature_mlp is None else ablation.temperature_mlp
    return SoftMasks(
        SoftMask(ablation.k_attn, ablation.temperature, *knobs), SoftMask(ablation.k_mlp, of_neurons, *knobs)
    )


def _winners(scores: list[Tensor], ablation: SelfAblation, soft: SoftMask) -> list[Tensor]:
    if ablation.detach == "scores":
        scores = [s.detach() for s in scores]
    knobs = {**soft._asdict(), "forward": ablation.forward}
    if ablation.scope == "model":
        return list(k_winners(torch.cat(scores, -1), **knobs).chunk(len(scores), -1))
    return [k_winners(s, **knobs) for s in scores]
