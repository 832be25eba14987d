"""Which masks the gated stream is run under: the model's own, or controls that no token chose for itself.

| kind | mask of a position | keeps |
| --- | --- | --- |
| `own` | what the model chose there | |
| `dealt` | what it chose at an earlier position of the same text, drawn once a position | how often each unit wins |
| `random` | k winners of random scores, drawn once a position, the same in all texts | how many units win |

What self-ablation training taught the masks is gone from the controls; that units are masked at all is not. Random
masks cannot react to an ablation; dealt ones do.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sat_lens.gates import LayerUnits, masks
from sat_lens.model import CleanStream

KINDS = ("own", "dealt", "random")
MaskRule = Callable[[CleanStream], list[LayerUnits]]


def require_masks(model: Any) -> None:
    """Refuse a model without a gated stream.

    Raises:
        ValueError: a model whose ablation.mask is `none`, or that has no gates at all.
    """
    if getattr(getattr(model, "ablation", None), "mask", "none") == "none":
        raise ValueError("the gated stream needs a model with masks; this one has none: ask for the stream 'clean'")


def mask_rule(model: Any, kind: str = "own", seed: int = 0) -> MaskRule:
    """From the clean stream to the masks of every layer.

    Args:
        model: with masks.
        kind: one of KINDS.
        seed: of the draw.

    Raises:
        ValueError: an unknown kind, or a model without masks.
    """
    require_masks(model)
    if kind == "own":
        return model.masks_of
    n = model.cfg.n_ctx
    draw = torch.Generator().manual_seed(seed)
    if kind == "dealt":
        table = (torch.rand(n, generator=draw) * torch.arange(n)).long()
        return lambda stream: [_at(layer, table) for layer in model.masks_of(stream)]
    if kind == "random":
        fixed = _random_masks(model, n, draw)
        return lambda stream: [_for_texts(layer, *stream.resid_pre[0].shape[:2]) for layer in fixed]
    raise ValueError(f"masks must be one of {', '.join(KINDS)}; got {kind!r}")


def of_rows(units: LayerUnits, rows: Tensor) -> LayerUnits:
    """The masks of some texts."""
    return LayerUnits(units.attn[rows], None if units.mlp is None else units.mlp[rows])


def _at(units: LayerUnits, table: Tensor) -> LayerUnits:
    place = table[: units.attn.shape[1]].to(units.attn.device)
    return LayerUnits(units.attn[:, place], None if units.mlp is None else units.mlp[:, place])


def _for_texts(units: LayerUnits, n: int, n_pos: int) -> LayerUnits:
    def wide(mask: Tensor) -> Tensor:
        return mask[:, :n_pos].expand(n, -1, *mask.shape[2:])

    return LayerUnits(wide(units.attn), None if units.mlp is None else wide(units.mlp))


def _random_masks(model: Any, n: int, draw: torch.Generator) -> list[LayerUnits]:
    cfg, like = model.cfg, model.W_U
    width = cfg.d_head if model.ablation.unit == "channel" else 1

    def scores(*shape: int) -> Tensor:
        return torch.randn(1, n, *shape, generator=draw, dtype=torch.float64).to(like)

    layers = [
        LayerUnits(scores(cfg.n_heads, width), None if cfg.attn_only else scores(cfg.d_mlp))
        for _ in range(cfg.n_layers)
    ]
    return masks(layers, model.ablation, cfg.d_head)
