"""What both streams do at every position of a set of stories, masks kept as bits.

The mask of a position is one row of bits: layer by layer, the attention units and then the neurons. 4 layers
of 64 channels and 256 neurons are 160 bytes a token: 16 MB for 100,000 tokens, in place of 512.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.metrics import cross_entropy
from analyses.texts import Stories
from sat_lens.activations import inference
from sat_lens.distributed import gather_rows, shard, world_size
from sat_lens.gates import LayerUnits
from sat_lens.memory import require


@dataclasses.dataclass(frozen=True)
class Observed:
    """One row a predicted position, story by story.

    Args:
        story: which story.
        pos: which position in it.
        token: that was read there.
        target: the token that came next.
        prediction: the clean stream's most likely next token.
        loss_clean, loss_ablated: of `target`, nats.
        bits: which units win, packed: [position, layer, byte].
        soft: the weights of soft masks, half precision: [position, layer, bit]; None where masks are hard.
        width: bits of a layer: attention units, then neurons.
        attn_width: how many of them are attention units.
        d_vocab: of the model.
    """

    story: Int[np.ndarray, " position"]
    pos: Int[np.ndarray, " position"]
    token: Int[np.ndarray, " position"]
    target: Int[np.ndarray, " position"]
    prediction: Int[np.ndarray, " position"]
    loss_clean: Float[np.ndarray, " position"]
    loss_ablated: Float[np.ndarray, " position"]
    bits: np.ndarray
    soft: np.ndarray | None
    width: int
    attn_width: int
    d_vocab: int

    @property
    def n(self) -> int:
        """Predicted positions."""
        return len(self.story)

    @property
    def n_layers(self) -> int:
        return self.bits.shape[1]

    @cached_property
    def n_stories(self) -> int:
        return len(np.unique(self.story))

    def masks(
        self, rows: Any = slice(None), layers: Sequence[int] | None = None
    ) -> Bool[np.ndarray, "position layer bit"]:
        """The masks of some positions, unpacked: as many bytes as bits, so ask for what is needed."""
        chosen = self.bits[rows] if layers is None else self.bits[rows][:, list(layers)]
        return np.unpackbits(chosen, axis=-1, count=self.width).astype(bool)

    def mask_values(self, rows: Any = slice(None)) -> Float[np.ndarray, "position layer bit"]:
        """What the ablated stream is multiplied by there: the weights of soft masks, 0 and 1 of hard ones."""
        return (self.masks(rows) if self.soft is None else self.soft[rows]).astype(np.float32)

    def of_stories(self, stories: Any) -> Int[np.ndarray, " row"]:
        """Rows whose story is one of these."""
        return np.flatnonzero(np.isin(self.story, np.asarray(stories)))

    def with_masks_of(self, rows: Int[np.ndarray, " position"]) -> "Observed":
        """The same positions, each with the mask of another row: a control."""
        soft = None if self.soft is None else self.soft[rows]
        return dataclasses.replace(self, bits=self.bits[rows], soft=soft)


def observed(model: Any, stories: Stories, *, batch: int = 16) -> Observed:
    """Run both streams over stories, in inference mode.

    Args:
        model: with masks.
        stories: rows of tokens.
        batch: stories a pass.

    Raises:
        ValueError: a model without masks, or too little memory.

    Cost: one pass of both streams, its batches divided among processes; n_layers x width / 8 bytes a position
    (2 x n_layers x width more where masks are soft), and about 60 besides.
    """
    if getattr(getattr(model, "ablation", None), "mask", "none") == "none":
        raise ValueError("leakage is asked of a model with masks; this one has none")
    cfg, n = model.cfg, int(stories.predicted.sum())
    attn_width = cfg.n_heads * (cfg.d_head if model.ablation.unit == "channel" else 1)
    width = attn_width + (0 if cfg.attn_only else int(cfg.d_mlp))
    a_bit = 0.125 if model.ablation.forward == "hard" else 2.125
    copies = 2 if world_size() == 1 else 3
    require(int(copies * n * (60 + cfg.n_layers * width * a_bit)), f"masks of {n:,} positions", "cpu", "lower --n")
    found: dict[str, list[Tensor]] = {}
    batches = torch.arange(stories.n).split(batch)
    mine = shard(len(batches))
    for rows in batches[mine.start : mine.stop] or batches[:1]:  # a rank without any keeps no row of the first
        columns = _pass(model, stories.subset(rows), attn_width)
        columns["story"] += int(rows[0])
        for name, values in columns.items():
            found.setdefault(name, []).append(values.cpu() if mine else values[:0].cpu())
    whole = {name: gather_rows(torch.cat(found.pop(name))).numpy() for name in list(found)}
    return Observed(**{"soft": None, **whole}, width=width, attn_width=attn_width, d_vocab=cfg.d_vocab)


def _pass(model: Any, part: Stories, attn_width: int) -> dict[str, Tensor]:
    """The columns of one batch."""
    width = int(part.lengths.max())
    tokens, keep = part.tokens[:, :width].to(model.cfg.device), part.predicted[:, :width]
    targets = tokens.roll(-1, 1)
    with inference(model):
        clean = model.clean_stream(tokens, "logits")
        masks = model.masks_of(clean)
        ablated = model.ablated_stream(clean, masks).logits
        columns = {
            "token": tokens,
            "target": targets,
            "prediction": clean.output.argmax(-1),
            "loss_clean": cross_entropy(clean.output.float(), targets),
            "loss_ablated": cross_entropy(ablated.float(), targets),
        }
        kept = {name: values.cpu()[keep] for name, values in columns.items()}
        values = unit_masks(masks, model.ablation)
        bits = packed(winners(values, model.ablation, attn_width).cpu()[keep])
        soft = {} if model.ablation.forward == "hard" else {"soft": values.half().cpu()[keep]}
    story, pos = keep.nonzero(as_tuple=True)
    return {"story": story, "pos": pos, **kept, "bits": bits, **soft}


def unit_masks(masks: Sequence[LayerUnits], ablation: Any) -> Float[Tensor, "batch pos layer bit"]:
    """Masks as one row a layer, attention units first; attention units that are heads are one entry each."""
    layers = []
    for layer in masks:
        attn = (layer.attn if ablation.unit == "channel" else layer.attn[..., :1]).flatten(-2)
        layers.append(attn if layer.mlp is None else torch.cat([attn, layer.mlp], -1))
    return torch.stack(layers, -2)


def winners(values: Float[Tensor, "batch pos layer bit"], ablation: Any, attn_width: int) -> Bool[Tensor, "..."]:
    """Which units win, of the rows of `unit_masks`: those that are not 0, or the k largest where masks are soft."""
    if ablation.forward == "hard":
        return values != 0
    parts = zip(values.tensor_split([attn_width], -1), (ablation.k_attn, ablation.k_mlp), strict=True)
    return torch.cat([_largest(part, k, ablation.scope) for part, k in parts if part.shape[-1]], -1)


def _largest(values: Float[Tensor, "batch pos layer unit"], k: int, scope: str) -> Bool[Tensor, "batch pos layer unit"]:
    rows = values.flatten(-2) if scope == "model" else values
    chosen = torch.zeros_like(rows, dtype=torch.bool).scatter_(-1, rows.topk(k, -1).indices, True)
    return chosen.view(values.shape)


def packed(bits: Bool[Tensor, "row layer bit"]) -> Tensor:
    """Eight bits a byte, along the last axis."""
    return torch.from_numpy(np.packbits(bits.numpy(force=True), axis=-1))


def layer_units(values: Any, model: Any, attn_width: int) -> list[LayerUnits]:
    """Rows [batch pos layer bit] as the masks that the ablated stream takes: the way back from `unit_masks`."""
    cfg = model.cfg
    values = torch.as_tensor(values).to(cfg.device, cfg.dtype)
    heads = values[..., :attn_width].unflatten(-1, (cfg.n_heads, -1))
    return [
        LayerUnits(heads[:, :, layer], None if cfg.attn_only else values[:, :, layer, attn_width:])
        for layer in range(cfg.n_layers)
    ]
