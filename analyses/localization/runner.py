"""A model run with any set of its edges cut: the definition of a circuit, for many circuits at once.

An edge from s to d that is in the circuit carries what s writes in this very run; an edge that is cut
carries what s wrote in another run (`other`: the corrupted prompts, a mean, zero). So the input of d is

    x_d = x_d(other) + sum over s of [s -> d in the circuit] (out_s - out_s(other))

and the nodes are run in the order of the graph. All edges give the clean model, no edge the other
run. Biases of attention outputs belong to no edge and always stay.

Source: the patchable model of auto-circuit and MIB's evaluation say the same; theirs run one circuit.
"""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.localization.parts import Parts

BYTES = 256 * 2**20
"""What the source outputs of the circuits of one pass may take, about."""


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Prompts of equal length and what cut edges carry, both taken apart by source.

    Args:
        parts: of the model.
        clean: what every source writes on the prompts.
        other: what a cut edge carries in its place; broadcasts over n and pos.
    """

    parts: Parts
    clean: Float[Tensor, "source n pos d_model"]
    other: Float[Tensor, "source n pos d_model"]

    @property
    def n(self) -> int:
        """Prompts."""
        return self.clean.shape[1]

    def other_input(self, destination: int) -> Float[Tensor, "n pos d_model"]:
        """What the destination reads when all edges are cut."""
        return self._total(self.other, destination)

    def clean_input(self, destination: int) -> Float[Tensor, "n pos d_model"]:
        """What the destination reads in the intact model."""
        return self._total(self.clean, destination)

    def _total(self, outputs: Tensor, destination: int) -> Tensor:
        graph = self.parts.graph
        reach = torch.as_tensor(graph.possible[:, destination], device=outputs.device)
        return outputs[reach].sum(0) + self.biases(destination)

    def biases(self, destination: int) -> Float[Tensor, " d_model"]:
        """Biases of the attention outputs that have been added before the destination reads."""
        graph = self.parts.graph
        d = graph.destinations[destination]
        n = min(d.layer + (d.kind == "mlp" and not graph.parallel), graph.n_layers)
        total = self.clean.new_zeros(self.clean.shape[-1])
        return total + sum(self.parts.attn_bias(layer) for layer in range(n))


def contrast(
    parts: Parts,
    clean: Int[Tensor, "n pos"],
    corrupt: Int[Tensor, "n_corrupt pos_corrupt"] | None = None,
    kind: str = "resample",
) -> Contrast:
    """Run prompts, and what cut edges carry: the `corrupt` prompts (`resample`), `mean` or `positional_mean`
    of the corrupt prompts' (without them: the prompts' own) source outputs, or `zero`.

    Raises:
        ValueError: prompts and counterfactuals of unequal shape, or none where they are needed.
    """
    if kind not in ("resample", "mean", "positional_mean", "zero"):
        raise ValueError(f"kind must be resample, mean, positional_mean or zero; got {kind!r}")
    if corrupt is not None and corrupt.shape != clean.shape:
        raise ValueError(
            f"clean and corrupt prompts must have the same length; got {tuple(clean.shape)} and {tuple(corrupt.shape)}"
        )
    if kind == "resample" and corrupt is None:
        raise ValueError("kind 'resample' needs corrupt prompts; pass them, or use mean or zero")
    outputs = source_outputs(parts, clean)
    if kind == "zero":
        return Contrast(parts, outputs, torch.zeros_like(outputs))
    other = outputs if corrupt is None else source_outputs(parts, corrupt)
    if kind != "resample":
        other = other.mean((1, 2) if kind == "mean" else (1,), keepdim=True).expand_as(outputs)
    return Contrast(parts, outputs, other)


def source_outputs(parts: Parts, tokens: Int[Tensor, "n pos"]) -> Float[Tensor, "source n pos d_model"]:
    """What every source writes in the intact model."""
    graph = parts.graph
    resid = parts.embedding(tokens)
    found = [resid]
    for layer in range(graph.n_layers):
        x = resid[None]
        heads = parts.heads(layer, x, x, x)
        found += heads.unbind(0)
        after = resid + heads.sum(0) + parts.attn_bias(layer)
        if graph.has_mlp:
            found.append(parts.mlp(layer, resid if graph.parallel else after))
            after = after + found[-1]
        resid = after
    return torch.stack(found)


def end_logits(
    contrast: Contrast,
    members: Bool[Tensor, "circuit source destination"] | Float[Tensor, "circuit source destination"],
    frozen_norm: bool = False,
) -> Float[Tensor, "circuit n d_vocab"]:
    """Logits at the last position, of each circuit; differentiable.

    Args:
        members: which edges are in each circuit; entries that are no edges are ignored. Numbers are shares: an
            edge of 0.3 carries three tenths of what its source writes now and seven of what it wrote in the other run.
        frozen_norm: divide by the clean run's scale in the final norm, not by the circuit's own.

    Cost: about a forward pass for each circuit and prompt, plus source x destination x n x pos x d_model
    multiplications; memory is bounded by BYTES and a few times it.
    """
    one = contrast.clean.numel() * contrast.clean.element_size()
    size = max(1, int(BYTES // one))
    return torch.cat([_end_logits(contrast, part, frozen_norm) for part in members.split(size)])


def _end_logits(contrast: Contrast, members: Tensor, frozen_norm: bool) -> Tensor:
    graph, parts, n_circuits = contrast.parts.graph, contrast.parts, len(members)
    weights = members.to(contrast.other.dtype) * torch.as_tensor(graph.possible, device=members.device)
    moved = (contrast.clean[0] - contrast.other[0]).expand(1, n_circuits, -1, -1, -1)  # of the sources so far

    def inputs(columns: list[int], n_sources: int) -> Float[Tensor, "destination row pos d_model"]:
        carried = torch.einsum("csd,scnpm->dcnpm", weights[:, :n_sources][:, :, columns], moved[:n_sources])
        return (carried + contrast.other_input(columns[0])).flatten(1, 2)  # of one layer: the same base

    def grown(written: Float[Tensor, "_ row pos d_model"]) -> Float[Tensor, "_ circuit n pos d_model"]:
        other = contrast.other[len(moved) : len(moved) + len(written), None]
        return torch.cat([moved, written.unflatten(1, (n_circuits, contrast.n)) - other])

    for layer in range(graph.n_layers):
        first = len(moved)
        q, k, v = (inputs(columns, first) for columns in _columns(graph, layer))
        n_shared = graph.n_heads // graph.n_kv_heads
        k, v = (x.repeat_interleave(n_shared, 0) for x in (k, v))
        moved = grown(parts.heads(layer, q, k, v))
        if graph.has_mlp:
            x = inputs([graph.destination_index[f"m{layer}"]], first if graph.parallel else len(moved))
            moved = grown(parts.mlp(layer, x))
    last = len(graph.destinations) - 1
    end = torch.einsum("cs,scnm->cnm", weights[:, :, last], moved[:, :, :, -1]) + contrast.other_input(last)[:, -1]
    scale = parts.final_scale(contrast.clean_input(last)[:, -1]) if frozen_norm else None
    return parts.logits(end, scale)


def _columns(graph: object, layer: int) -> Iterator[list[int]]:
    """Destinations of a layer's queries, keys and values."""
    for qkv in ("q", "k", "v"):
        n = graph.n_heads if qkv == "q" else graph.n_kv_heads
        yield [graph.destination_index[f"a{layer}.h{head}<{qkv}>"] for head in range(n)]
