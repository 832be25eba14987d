"""Gradients of the task's value with respect to what every destination reads, from one forward and one backward.

The model is run from a residual stream of the caller's choice. Nodes that read the same stream are one
step: the heads of a layer, its MLP (both at once where they are parallel), the logits. Going back, a
step turns the gradient g of the stream behind it into one gradient for each of its inputs, as if each
were a tensor of its own; the gradient of the stream before it is g plus their sum. Queries, keys and
values share one normalized stream, so the norm is run once, and pulled back through for all of them in
one batch. Heads that share keys and values sum there.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.localization.graph import QKV, Graph, Kind
from analyses.localization.parts import Parts
from analyses.localization.setting import Group, Setting
from sat_lens.norms import apply_norm

Pull = Callable[[Tensor], Iterator[Tensor]]
"""Gradient of the stream behind a step [n pos d_model] to those of its inputs, [head n pos d_model] each."""


class Step(NamedTuple):
    """Nodes that read the same residual stream, as indices of what they write and of what they read.

    `destinations` are apart by what they are: queries, keys, values, MLP, logits.
    """

    layer: int
    kinds: tuple[Kind, ...]
    sources: list[int]
    destinations: list[list[int]]


def steps_of(graph: Graph) -> list[Step]:
    """In the order of computation; the last reads the logits' input and writes nothing."""
    both: tuple[Kind, ...] = ("attn", "mlp") if graph.has_mlp else ("attn",)
    in_layer = [both] if graph.parallel else [(kind,) for kind in both]
    found = [(layer, kinds) for layer in range(graph.n_layers) for kinds in in_layer]
    return [_step(graph, *key) for key in [*found, (graph.n_layers, ("logits",))]]


def _step(graph: Graph, layer: int, kinds: tuple[Kind, ...]) -> Step:
    sources = [i for i, s in enumerate(graph.sources) if s.layer == layer and s.kind in kinds]
    destinations = [
        [i for i, d in enumerate(graph.destinations) if (d.layer, d.kind, d.qkv) == (layer, kind, qkv)]
        for kind in kinds
        for qkv in (QKV if kind == "attn" else ("",))
    ]
    return Step(layer, kinds, sources, destinations)


@torch.no_grad()
def input_gradients(
    setting: Setting, group: Group, stream: Float[Tensor, "row pos d_model"], first: int = 0
) -> Iterator[tuple[list[int], Float[Tensor, "destination row pos d_model"]]]:
    """Gradient of the value, summed over the group's prompts, from the logits back to step `first`.

    Args:
        stream: the residual stream that step `first` reads, in place of the intact run's; of all prompts, once or
            several times over.

    Yields:
        Destinations, and the gradient with respect to the input of each. Everything behind a destination
        follows its input; parameters are constants, whether or not they require gradients.

    Cost: one forward and one backward pass. Held at once: activations of the pass, and gradients of one step.
    """
    *inner, end = steps_of(setting.graph)[first:]
    pulls = []
    for step in inner:
        written, pull = _run(setting.parts, step, stream)
        pulls.append(pull)
        stream = stream + written
    gradient = _end_gradient(setting, group, stream)
    yield end.destinations[0], gradient[None]
    for step in reversed(inner):
        through = [one for pull in pulls.pop() for one in pull(gradient)]
        for destinations, one in zip(step.destinations, through, strict=True):
            yield destinations, one
            gradient = gradient + one.sum(0)


def _run(parts: Parts, step: Step, stream: Float[Tensor, "n pos d_model"]) -> tuple[Tensor, list[Pull]]:
    """What a step's nodes write, biases and all, and their pull-backs."""
    runs = [(_run_heads if kind == "attn" else _run_mlp)(parts, step.layer, stream) for kind in step.kinds]
    return torch.stack([written for written, _ in runs]).sum(0), [pull for _, pull in runs]


def _run_heads(parts: Parts, layer: int, stream: Float[Tensor, "n pos d_model"]) -> tuple[Tensor, Pull]:
    graph = parts.graph
    normalized, through_norm = normalized_with_pull(parts.model.blocks[layer].ln1, stream)
    inputs = [normalized.expand(n, -1, -1, -1) for n in (graph.n_heads, graph.n_kv_heads, graph.n_kv_heads)]
    written, pull = _vjp(partial(_heads, _reading_normalized(parts, layer), layer), *inputs)
    return written + parts.attn_bias(layer), lambda gradient: map(through_norm, pull(gradient))


def _heads(parts: Parts, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Float[Tensor, "n pos d_model"]:
    n_shared = parts.graph.n_heads // parts.graph.n_kv_heads
    return parts.heads(layer, q, *(x.repeat_interleave(n_shared, 0) for x in (k, v))).sum(0)


def _run_mlp(parts: Parts, layer: int, stream: Float[Tensor, "n pos d_model"]) -> tuple[Tensor, Pull]:
    written, pull = _vjp(partial(parts.mlp, layer), stream)
    return written, lambda gradient: (one[None] for one in pull(gradient))


def normalized_with_pull(
    norm: torch.nn.Module, x: Float[Tensor, "n pos d_model"]
) -> tuple[Float[Tensor, "n pos d_model"], Callable[[Tensor], Tensor]]:
    """The normalized x, and what pulls gradients [any n pos d_model] with respect to it back to x.

    What is pulled back is overwritten. With y = centred x / scale and u = gain * gradient:
    (u - mean(u) - y mean(u y)) / scale, means over d_model; without mean(u) where the norm does not
    centre. Written out because it is for many gradients of one x at once.
    """
    kept: list[Tensor] = []
    normalized = apply_norm(norm, x, lambda scale: kept.append(scale) or scale, lambda y: kept.append(y) or y)
    if not kept:
        return normalized, lambda gradients: gradients
    centres = "LayerNorm" in type(norm).__name__
    return normalized, partial(_through_norm, *kept, getattr(norm, "w", None), centres)


def _through_norm(
    scale: Float[Tensor, "n pos 1"],
    y: Float[Tensor, "n pos d_model"],
    gain: Float[Tensor, " d_model"] | None,
    centres: bool,
    gradients: Float[Tensor, "_ n pos d_model"],
) -> Float[Tensor, "_ n pos d_model"]:
    u = gradients.to(y.dtype)  # in place: these are the largest tensors, and fresh memory costs more than the sums
    if gain is not None:
        u *= gain
    along = torch.einsum("dnpm,npm->dnp", u, y)[..., None] / y.shape[-1]
    if centres:
        u -= u.mean(-1, keepdim=True)
    return u.addcmul_(y, along, value=-1).div_(scale).to(gradients.dtype)


def _reading_normalized(parts: Parts, layer: int) -> Parts:
    """The same parts, but heads of this layer that expect inputs after the norm."""
    bare = copy.copy(parts)
    block = SimpleNamespace(attn=parts.model.blocks[layer].attn, ln1=torch.nn.Identity())
    bare.model = SimpleNamespace(blocks={layer: block})
    return bare


def _end_gradient(setting: Setting, group: Group, stream: Float[Tensor, "n pos d_model"]) -> Tensor:
    """With respect to the logits' input; 0 at all positions but the last."""
    parts, runs = setting.parts, group.contrast
    last = len(parts.graph.destinations) - 1
    scale = parts.final_scale(runs.clean_input(last)[:, -1]) if setting.frozen_norm else None

    def value(end: Tensor) -> Tensor:
        logits = parts.logits(end.unflatten(0, (-1, runs.n)), scale)
        return setting.measured(logits, group).sum()

    found, pull = _vjp(value, stream[:, -1])
    gradient = torch.zeros_like(stream)
    gradient[:, -1] = pull(torch.ones_like(found))[0]
    return gradient


def _vjp(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """torch.func.vjp, which builds no graph over parameters under no_grad."""
    value, pull = torch.func.vjp(function, *inputs)[:2]
    return value, pull
