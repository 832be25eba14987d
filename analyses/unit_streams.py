"""Values of the model's units, story by story: what questions about neurons, z channels, heads and masks read.

| kind | a unit | its value | name |
| --- | --- | --- | --- |
| `neuron` | one of the MLP's neurons | its activation, which `W_out` reads | `L2.N17` |
| `channel` | one channel of a head's z | z, which `W_O` reads | `L0.H3.Z5` |
| `head` | a head | L2 norm of what it writes, z W_O | `L1.H2` |
| `mask_neuron` | one neuron's entry in the mask | 0 or 1, or the weight of a soft mask | `L2.M17` |
| `mask_channel` | one channel's entry (or one head's, where the model masks heads) | the same | `L0.H3.M5`, `L0.M3` |

In the ablated stream neurons, channels and heads have their values behind the mask. Masks gate that stream
alone, so their units are of it, whichever stream was asked for.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.texts import Stories
from sat_lens.activations import activations
from sat_lens.memory import require
from sat_lens.tasks.encoding import start_ids

KINDS = ("neuron", "channel", "head", "mask_neuron", "mask_channel")
STREAMS = ("clean", "ablated")
POINTS = {
    ("neuron", "clean"): "mlp.hook_post",
    ("channel", "clean"): "attn.hook_z",
    ("head", "clean"): "attn.hook_z",
    ("neuron", "ablated"): "mlp.hook_gated_post",
    ("channel", "ablated"): "attn.hook_gated_z",
    ("head", "ablated"): "attn.hook_gated_z",
    ("mask_neuron", "ablated"): "mlp.hook_mask",
    ("mask_channel", "ablated"): "attn.hook_mask",
}
"""Hook point of each kind and stream, within a block."""
GATED = {"neuron": ("ablated.hook_post", "mlp.hook_mask"), "channel": ("ablated.hook_z", "attn.hook_mask")}
"""What is multiplied to make the ablated stream's value: activation and mask."""


@dataclasses.dataclass(frozen=True)
class Units:
    """Units of one kind in one stream.

    Args:
        kind, stream: see the module.
        table: one row a unit, in the order of `UnitBatch.values`: `unit` (its name), `layer`, `index` (of the neuron
            or head in its layer; of a channel head x d_head + channel), `head` and `channel` (-1 where it has none).
        layers: whose units these are, ascending.
    """

    kind: str
    stream: str
    table: pd.DataFrame
    layers: tuple[int, ...]

    @property
    def n(self) -> int:
        """Units."""
        return len(self.table)

    @property
    def width(self) -> int:
        """Units of a layer."""
        return self.n // len(self.layers)


class UnitBatch(NamedTuple):
    """Some stories; `pos` ends where the longest of them does.

    Args:
        rows: which stories, ascending.
        values: of the units, in the order of `Units.table`, in the model's type and on its device.
        keep: real tokens: no padding, and not the beginning-of-text token, at which many units do what they do
            nowhere else.
        ungated, masks: whose product `values` are; None where that was not asked for.
    """

    rows: Int[Tensor, " row"]
    values: Float[Tensor, "row pos unit"]
    keep: Bool[Tensor, "row pos"]
    ungated: Float[Tensor, "row pos unit"] | None = None
    masks: Float[Tensor, "row pos unit"] | None = None


def units_of(model: Any, kind: str, stream: str = "clean", layers: Sequence[int] | None = None) -> Units:
    """The units of one kind.

    Args:
        model: a HookedTransformer, or one with two streams.
        kind, stream: see the module.
        layers: whose units; None: all.

    Raises:
        ValueError: an unknown kind, stream or layer, or one that the model does not have.
    """
    cfg = model.cfg
    if kind not in KINDS:
        raise ValueError(f"a kind of unit must be one of {', '.join(KINDS)}; got {kind!r}")
    if stream not in STREAMS:
        raise ValueError(f"a stream must be one of {', '.join(STREAMS)}; got {stream!r}")
    if kind.startswith("mask"):
        stream = "ablated"
    ablation = getattr(model, "ablation", None)
    if stream == "ablated" and getattr(ablation, "mask", "none") == "none":
        what = "masks" if kind.startswith("mask") else "ablated stream"
        raise ValueError(f"this model has no {what}; take neurons, channels or heads of the clean stream")
    chosen = tuple(range(cfg.n_layers)) if layers is None else tuple(sorted(set(layers)))
    if not chosen or chosen[0] < 0 or chosen[-1] >= cfg.n_layers:
        raise ValueError(f"layers must be some of 0 to {cfg.n_layers - 1}; got {list(chosen)}")
    if kind.endswith("neuron") and (cfg.attn_only or cfg.d_mlp is None):
        raise ValueError("this model has no neurons: it is attention only; take channels or heads")
    points = [f"blocks.{layer}.{POINTS[kind, stream]}" for layer in chosen]
    if missing := [point for point in points if point not in model.hook_dict]:
        raise ValueError(f"units of kind {kind} are read at {missing[0]}, which this model does not have")
    by_head = kind == "head" or (kind == "mask_channel" and ablation.unit == "head")
    rows = [row for layer in chosen for row in _layer_rows(kind, layer, cfg, by_head)]
    return Units(kind, stream, pd.DataFrame(rows, columns=["unit", "layer", "index", "head", "channel"]), chosen)


def _layer_rows(kind: str, layer: int, cfg: Any, by_head: bool) -> list[tuple[str, int, int, int, int]]:
    if kind.endswith("neuron"):
        letter = "N" if kind == "neuron" else "M"
        return [(f"L{layer}.{letter}{i}", layer, i, -1, -1) for i in range(cfg.d_mlp)]
    if by_head:
        letter = "H" if kind == "head" else "M"
        return [(f"L{layer}.{letter}{head}", layer, head, head, -1) for head in range(cfg.n_heads)]
    letter = "Z" if kind == "channel" else "M"
    return [
        (f"L{layer}.H{head}.{letter}{channel}", layer, head * cfg.d_head + channel, head, channel)
        for head in range(cfg.n_heads)
        for channel in range(cfg.d_head)
    ]


def real_tokens(model: Any, stories: Stories) -> Bool[Tensor, "story pos"]:
    """Tokens that are no padding, and not the beginning-of-text token that begins a story."""
    keep = torch.arange(stories.tokens.shape[1]) < stories.lengths[:, None]
    if model.tokenizer is not None and (start := start_ids(model.tokenizer)):
        keep[:, 0] &= stories.tokens[:, 0] != start[0]
    return keep


def unit_batches(
    model: Any,
    stories: Stories,
    units: Units,
    batch: int = 16,
    *,
    rows: Sequence[int] | None = None,
    gates: bool = False,
) -> Iterator[UnitBatch]:
    """The values of all units, some stories at a time, in inference mode.

    Args:
        model: whose units.
        stories: rows of tokens.
        units: of `units_of`.
        batch: stories a pass.
        rows: which stories, ascending; None: all.
        gates: whether to give `ungated` and `masks` too: of neurons and channels of the ablated stream.

    Raises:
        ValueError: a batch below 1, gates of units that have none, or too little memory.

    Cost: one forward pass over the stories, as far as the last layer asked for (both streams whole for the ablated
    one). Memory: two batches of the hook points.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1 story; got {batch}")
    if gates and (units.stream != "ablated" or units.kind not in GATED):
        raise ValueError(f"only neurons and channels of the ablated stream are gated; got {units.kind}, {units.stream}")
    width = model.cfg.d_head * model.cfg.n_heads if units.kind == "head" else units.width
    numbers = batch * stories.tokens.shape[1] * len(units.layers) * width * (7 if gates else 3)
    require(numbers * model.cfg.dtype.itemsize, f"{units.n:,} units of {batch} stories", str(model.cfg.device),
            "take a smaller batch or fewer layers")  # fmt: skip
    chosen = torch.arange(stories.n) if rows is None else torch.as_tensor(list(rows), dtype=torch.long)
    return _batches(model, stories, units, chosen.split(batch), gates)


def _batches(model: Any, stories: Stories, units: Units, parts: Sequence[Tensor], gates: bool) -> Iterator[UnitBatch]:
    sites = [POINTS[units.kind, units.stream], *(GATED[units.kind] if gates else ())]
    by_site = [[f"blocks.{layer}.{site}" for layer in units.layers] for site in sites]
    names = [name for names in by_site for name in names]
    kept = real_tokens(model, stories)
    for rows in parts:
        if not len(rows):
            continue
        pos = int(stories.lengths[rows].max())
        tokens = stories.tokens[rows, :pos]
        seen = next(iter(activations(model, tokens, names, batch_size=len(rows), stream=units.stream))).activations
        found = [
            torch.cat(
                [_values(seen[name], units, model, layer) for name, layer in zip(names, units.layers, strict=True)], -1
            )
            for names in by_site
        ]
        yield UnitBatch(rows, found[0], kept[rows, :pos].to(found[0].device), *found[1:])


def _values(activation: Tensor, units: Units, model: Any, layer: int) -> Float[Tensor, "row pos unit"]:
    """The values of one layer's units, from its hook point."""
    if units.kind == "head":
        W_O = model.blocks[layer].attn.W_O.detach()
        gram = W_O @ W_O.transpose(-1, -2)  # |z W_O|^2 = z (W_O W_O^T) z, with no [pos, head, d_model]
        return torch.einsum("bphc,hcd,bphd->bph", activation, gram, activation).clamp(min=0).sqrt()
    if units.kind == "mask_channel" and units.width == model.cfg.n_heads < activation.shape[-1] * model.cfg.n_heads:
        return activation[..., 0]
    return activation.flatten(2)
