"""Gradients of the task's value with respect to what every destination reads, from one forward and one backward.

The model is run from a residual stream of the caller's choice. Nodes that read the same stream are one
step: the heads of a layer, its MLP (both at once where they are parallel), the logits. Going back, a
step turns the gradient g of the stream behind it into the gradients of its inputs, as if each were a
tensor of its own; the gradient of the stream before it is g plus their sum. Those of heads stay factors
(`head_gradients`), so what is asked of them is their products with what sources write.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.localization.graph import Graph, Kind
from analyses.localization.head_gradients import Products, heads_with_pull
from analyses.localization.parts import Parts
from analyses.localization.setting import Group, Setting

Pull = Callable[[Tensor], tuple[Tensor, Products]]
"""Gradient of the stream behind a step [row pos d_model] to the summed one of its inputs, and products with each."""


class Step(NamedTuple):
    """Nodes that read the same residual stream, as indices of what they write and of what they read.

    `destinations` are apart by kind; of heads first all queries, then keys, then values.
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
        [i for i, d in enumerate(graph.destinations) if (d.layer, d.kind) == (layer, kind)] for kind in kinds
    ]
    return Step(layer, kinds, sources, destinations)


@torch.no_grad()
def input_gradients(
    setting: Setting, group: Group, stream: Float[Tensor, "row pos d_model"], first: int = 0
) -> Iterator[tuple[list[int], Products]]:
    """Gradient of the value, summed over the group's prompts, from the logits back to step `first`.

    Args:
        stream: the residual stream that step `first` reads, in place of the intact run's; of all prompts, once or
            several times over.

    Yields:
        Destinations, and what gives the products of tensors of the prompts with the gradient with respect to
        the input of each, summed over the runs of a prompt. Everything behind a destination follows its
        input; parameters are constants, whether or not they require gradients.

    Cost: one forward and one backward pass. Held at once: activations of the pass, and gradients of one step.
    """
    *inner, end = steps_of(setting.graph)[first:]
    pulls: list[list[Pull]] = []
    for step in inner:
        runs = [RUNS[kind](setting.parts, step.layer, stream) for kind in step.kinds]
        pulls.append([pull for _, pull in runs])
        for written, _ in runs:
            stream = stream + written
    gradient = _end_gradient(setting, group, stream)
    yield end.destinations[0], partial(_products, gradient)
    for step in reversed(inner):
        behind = gradient
        for destinations, pull in zip(step.destinations, pulls.pop(), strict=True):
            one, products = pull(behind)
            yield destinations, products
            gradient = gradient + one


def _run_heads(parts: Parts, layer: int, stream: Float[Tensor, "row pos d_model"]) -> tuple[Tensor, Pull]:
    written, pull = heads_with_pull(parts, layer, stream)
    return written + parts.attn_bias(layer), pull


def _run_mlp(parts: Parts, layer: int, stream: Float[Tensor, "row pos d_model"]) -> tuple[Tensor, Pull]:
    written, pull = _vjp(partial(parts.mlp, layer), stream)

    def pulled(gradient: Tensor) -> tuple[Tensor, Products]:
        (one,) = pull(gradient)
        return one, partial(_products, one)

    return written, pulled


RUNS: dict[Kind, Callable[[Parts, int, Tensor], tuple[Tensor, Pull]]] = {"attn": _run_heads, "mlp": _run_mlp}
"""What the nodes of a step write, biases and all, and their pull-back."""


def _products(
    gradient: Float[Tensor, "row pos d_model"], moved: Float[Tensor, "source n pos d_model"]
) -> Float[Tensor, "source 1"]:
    summed = gradient.unflatten(0, (-1, moved.shape[1])).sum(0)
    return moved.flatten(1) @ summed.flatten()[:, None]


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
