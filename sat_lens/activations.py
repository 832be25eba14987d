"""Activations batch by batch, in inference mode: what an analysis reads without ever holding a whole cache.

    moments = Moments()
    for batch in activations(model, tokens, ["blocks.2.mlp.hook_post"]):
        moments.update(batch.activations["blocks.2.mlp.hook_post"].flatten(0, 1))

`sat_lens.streaming` has the reducers that take them in. Memory: two batches of the named activations,
however many sequences there are.
"""

import contextlib
import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


@contextlib.contextmanager
def inference(model: Any) -> Iterator[None]:
    """torch.inference_mode that leaves no trace on the model.

    TransformerLens lengthens its rotary tables within a pass. Made in inference mode they would end
    the next backward pass with an error, so ordinary copies take their place when the block ends.
    """
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_inference():
                    setattr(module, name, buffer.clone())


class Batch(NamedTuple):
    """The activations of some rows; inference tensors, to be read and not to be kept."""

    rows: Int[Tensor, " batch"]
    activations: dict[str, Tensor]


def activations(
    model: Any,
    tokens: Int[Tensor, "n pos"],
    names: Sequence[str],
    *,
    batch_size: int = 32,
    stream: str = "clean",
    **forward: Any,
) -> Iterator[Batch]:
    """The activations at some hook points, `batch_size` rows at a time.

    Args:
        model: a HookedTransformer, or one with two streams.
        tokens: padded on the right, where at all.
        names: hook points; hooks sit on these alone, and only while a pass runs.
        batch_size: rows a forward pass.
        stream: `clean` stops behind the last layer that is named and computes no logits; `ablated`
            runs both streams, whose hook points all fire.
        forward: passed to the model besides.

    Raises:
        ValueError: a name that is no hook point, or one that does not fire in such a pass.

    Cost: one forward pass over `tokens`, as far as it is needed.
    """
    if unknown := sorted(set(names) - set(model.hook_dict)):
        raise ValueError(f"activations are read at hook points of the model; it has no {unknown[0]!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    if stream == "clean":
        knobs = {"return_type": None, "stop_at_layer": layers_needed(names), "padding_side": "right"}
    else:
        knobs = {"stream": stream}
    return _batches(model, tokens, list(names), batch_size, {**knobs, **forward})


def layers_needed(names: Sequence[str]) -> int | None:
    """How many layers have to run for all of these hook points to fire; None: all, and the final norm."""
    needed = 0
    for name in names:
        if layer := re.match(r"blocks\.(\d+)\.", name):
            needed = max(needed, int(layer[1]) + 1)
        elif name not in ("hook_tokens", "hook_embed", "hook_pos_embed"):
            return None
    return needed


def _record(seen: dict[str, Tensor], name: str, activation: Tensor, hook: Any) -> None:
    """Keep an activation by the name that was asked for: a bridge's hook points call themselves otherwise."""
    seen[name] = activation


def _batches(model: Any, tokens: Tensor, names: list[str], batch_size: int, forward: dict[str, Any]) -> Iterator[Batch]:
    for rows in torch.arange(len(tokens)).split(batch_size):
        seen: dict[str, Tensor] = {}
        hooks = [(name, partial(_record, seen, name)) for name in names]
        with inference(model), model.hooks(fwd_hooks=hooks):
            model(tokens[rows].to(model.cfg.device), **forward)
        if missing := sorted(set(names) - set(seen)):
            raise ValueError(
                f"{missing[0]} did not fire in this forward pass; gates, masks and the ablated stream fire with "
                "stream='ablated'"
            )
        yield Batch(rows, seen)  # outside of inference mode, which would otherwise reach the caller's own code
