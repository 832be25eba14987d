"""A transformer whose weights are written down by hand, in directions that have names.

The residual stream is divided into slots, each a few orthogonal directions: `token` (one a vocabulary
item), `position` (one a position), `one` (1 at every position) and those that a model adds. Weights say
which slot is read and which is written; what is not written down is 0.

A direction is a pair of neighbouring entries (+1, -1), read by (+1/2, -1/2): its mean is 0, so that
LayerNorm's centring does nothing, and all numbers stay exact. Gains of norms are such that a normalized
stream has the length of two directions.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sat_lens._tl import HookedTransformerConfig, hooked_transformer

D_HEAD = 24
N_NEURONS = 32
Reading = tuple[str, str, Float[Tensor, "_ _"]]
"""A slot that is read, a slot, and a matrix from the one to the other."""


class Handmade:
    """A HookedTransformer of zeros in float64, to be filled in.

    Args:
        n_layers, n_heads, d_vocab, n_ctx: counts.
        slots: sizes of the slots that are added to `token`, `position` and `one`.
        norm: normalization_type; None for none.
        attn_only: without MLPs; those have N_NEURONS neurons and ReLU.
    """

    def __init__(
        self,
        *,
        n_layers: int,
        n_heads: int,
        d_vocab: int,
        n_ctx: int,
        slots: dict[str, int],
        norm: str | None = None,
        attn_only: bool = False,
    ) -> None:
        self.at: dict[str, slice] = {}
        n = 0
        for name, size in {"token": d_vocab, "position": n_ctx, "one": 1, **slots}.items():
            self.at[name], n = slice(n, n + size), n + size
        self._write = torch.eye(n, dtype=torch.float64).repeat_interleave(2, 1)
        self._write[:, 1::2] *= -1
        cfg = HookedTransformerConfig(
            n_layers=n_layers, n_heads=n_heads, d_model=2 * n, d_head=D_HEAD, d_mlp=None if attn_only else N_NEURONS,
            d_vocab=d_vocab, n_ctx=n_ctx, act_fn="relu", attn_only=attn_only, normalization_type=norm,
            use_attn_scale=False, init_weights=False, dtype=torch.float64, device="cpu",
        )  # fmt: skip
        self.model: Any = hooked_transformer(cfg).eval()
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.fill_(2 / math.sqrt(n) if name.endswith(".w") else 0.0)
            self.model.embed.W_E.add_(self._written("token", torch.eye(d_vocab)))
            self.model.embed.W_E.add_(self._written("one", torch.ones(d_vocab, 1)))
            self.model.pos_embed.W_pos.add_(self._written("position", torch.eye(n_ctx)))

    def head(
        self, layer: int, head: int, *, match: Sequence[Reading] = (), value: Sequence[Reading] = (), rest: float = 0.0
    ) -> None:
        """Write a head down.

        Args:
            match: attention scores (before the softmax) are sums of query slot x matrix x key slot.
            value: what it moves: from slot, to slot, matrix.
            rest: added to the score of the first token (id 0).
        """
        attn = self.model.blocks[layer].attn
        if rest:
            first = torch.zeros(1, self._size("token"))
            first[0, 0] = rest
            match = [*match, ("one", "token", first)]
        with torch.no_grad():
            for block, query, key, left, right in _factors(match):
                attn.W_Q[head, :, block] += self._read(query, left)
                attn.W_K[head, :, block] += self._read(key, right.T)
            for block, source, target, left, right in _factors(value):
                attn.W_V[head, :, block] += self._read(source, left)
                attn.W_O[head, block] += self._written(target, right)

    def mlp(
        self,
        layer: int,
        *,
        read: Sequence[tuple[str, Float[Tensor, "_ neuron"]]],
        bias: Float[Tensor, " neuron"],
        write: tuple[str, Float[Tensor, "neuron _"]],
        first: int = 0,
    ) -> None:
        """Write neurons of an MLP down, from neuron `first` on: write of relu(sum of what they read + bias)."""
        mlp, neurons = self.model.blocks[layer].mlp, slice(first, first + len(bias))
        with torch.no_grad():
            for slot, matrix in read:
                mlp.W_in[:, neurons] += self._read(slot, matrix)
            mlp.b_in[neurons] += bias
            mlp.W_out[neurons] += self._written(*write)

    def unembed(self, slot: str, matrix: Float[Tensor, "slot d_vocab"]) -> None:
        """Logits that are read from a slot."""
        with torch.no_grad():
            self.model.unembed.W_U.add_(self._read(slot, matrix))

    def noise_head(self, layer: int, head: int, to: str, generator: torch.Generator, attends: bool = True) -> None:
        """A head of random weights that reads every direction and writes to one slot."""
        attn, n, size = self.model.blocks[layer].attn, len(self._write), self._size(to)
        with torch.no_grad():
            for weight in (attn.W_Q, attn.W_K, attn.W_V):
                random = 0.3 * _normal(n, D_HEAD, generator=generator)
                if attends or weight is attn.W_V:
                    weight[head] += self._write.T / 2 @ random
            attn.W_O[head] += self._written(to, 0.2 * _normal(D_HEAD, size, generator=generator))

    def noise_mlp(self, layer: int, to: str, generator: torch.Generator, first: int = 0) -> None:
        """Neurons of random weights, from `first` on, that read every direction and write to one slot."""
        mlp, size = self.model.blocks[layer].mlp, self._size(to)
        n = N_NEURONS - first
        with torch.no_grad():
            mlp.W_in[:, first:] += self._write.T / 2 @ _normal(len(self._write), n, generator=generator) / 2
            mlp.b_in[first:] += _normal(n, generator=generator) / 4
            mlp.W_out[first:] += self._written(to, _normal(n, size, generator=generator) / 4)

    def _size(self, slot: str) -> int:
        return self.at[slot].stop - self.at[slot].start

    def _read(self, slot: str, matrix: Float[Tensor, "slot k"]) -> Float[Tensor, "d_model k"]:
        return self._write[self.at[slot]].T / 2 @ matrix.double()

    def _written(self, slot: str, matrix: Float[Tensor, "k slot"]) -> Float[Tensor, "k d_model"]:
        return matrix.double() @ self._write[self.at[slot]]


def _factors(readings: Sequence[Reading]) -> Iterator[tuple[slice, str, str, Tensor, Tensor]]:
    """Each reading's dimensions of the head, its slots, and two matrices through them whose product is its own."""
    first = 0
    for source, target, matrix in readings:
        width = min(matrix.shape)
        if first + width > D_HEAD:
            raise ValueError(f"what a head reads must fit its {D_HEAD} dimensions; got {first + width} or more")
        narrow = torch.eye(width)
        sides = (matrix, narrow) if width == matrix.shape[1] else (narrow, matrix)
        yield slice(first, first + width), source, target, *sides
        first += width


def _normal(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
