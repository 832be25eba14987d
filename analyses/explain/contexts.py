"""Sums of all units' activations by what was read: the token, the last two tokens, the last three.

Contexts are numbers: token + d_vocab x the token before + d_vocab^2 x the one before that. Those that stand fewer
than twice in the stories have no row. Memory: contexts x units float64; contexts are at most half the tokens.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.explain.splits import Source
from sat_lens.memory import require

LEAST = 2
"""Times that a context must be seen."""


@dataclasses.dataclass(frozen=True)
class ContextSums:
    """Of each order (1: the token alone), its contexts, ascending.

    Args:
        keys: numbers of the contexts of each order.
        n: tokens at which each context was read, all of them kept ones.
        total: activation of each unit, summed over these tokens.
        n_all, total_all, square_all: over all kept tokens: their number, sum and sum of squares of each unit.
        d_vocab: of the numbers.
    """

    keys: tuple[Int[Tensor, "_"], ...]
    n: tuple[Float[Tensor, "_"], ...]
    total: tuple[Float[Tensor, "_ unit"], ...]
    n_all: float
    total_all: Float[Tensor, " unit"]
    square_all: Float[Tensor, " unit"]
    d_vocab: int

    @property
    def order(self) -> int:
        """Tokens of the longest contexts."""
        return len(self.keys)

    @property
    def mean(self) -> Float[Tensor, " unit"]:
        """Of each unit, over all kept tokens."""
        return self.total_all / max(self.n_all, 1)

    def parents(self, order: int) -> Int[Tensor, " context"]:
        """Row, among the contexts of the order below, of each context without its oldest token."""
        return torch.searchsorted(self.keys[order - 2], self.keys[order - 1] % self.d_vocab ** (order - 1))

    def of(self, units: Int[Tensor, " chosen"]) -> "ContextSums":
        """The sums of these units alone."""
        return dataclasses.replace(
            self,
            total=tuple(total[:, units] for total in self.total),
            total_all=self.total_all[units],
            square_all=self.square_all[units],
        )

    def tokens(self, order: int, row: int) -> list[int]:
        """The tokens of one context, in reading order."""
        key = int(self.keys[order - 1][row])
        return [key // self.d_vocab**back % self.d_vocab for back in reversed(range(order))]


def context_keys(tokens: Int[Tensor, "story pos"], order: int, d_vocab: int) -> Int[Tensor, "story pos"]:
    """Number of the last `order` tokens at each token; -1 where the story has not as many yet."""
    if d_vocab**order >= 2**63:
        raise ValueError(f"contexts of {order} tokens of {d_vocab:,} have no 64-bit number; take a lower order")
    keys = tokens.clone()
    for back in range(1, order):
        keys[:, back:] += tokens[:, :-back] * d_vocab**back
    keys[:, : order - 1] = -1
    return keys


def context_sums(source: Source, tokens: Int[Tensor, "story pos"], order: int, d_vocab: int) -> ContextSums:
    """One pass over the source.

    Args:
        source: batches whose rows are rows of `tokens`.
        order: tokens of the longest contexts, from 1 up.
        d_vocab: greater than any token.

    Raises:
        ValueError: a source without tokens, an order too great for 64 bits, or too little memory.
    """
    orders = range(1, order + 1)
    kept = torch.zeros(tokens.shape, dtype=torch.bool)
    counted, sums = False, []
    all_keys = [context_keys(tokens, o, d_vocab) for o in orders]
    keys, total_all, square_all, n_all = [], torch.zeros(()), torch.zeros(()), 0.0
    for batch in source():
        values, n_pos = batch.values, batch.values.shape[1]
        if not counted:
            seen = [all_keys_of.unique(return_counts=True) for all_keys_of in all_keys]
            keys = [k[(count >= LEAST) & (k >= 0)] for k, count in seen]
            n_units, device = values.shape[-1], values.device
            needed = sum(len(k) for k in keys) * n_units * 8 * 2
            require(needed, f"{sum(map(len, keys)):,} contexts of {n_units:,} units", str(device), "take fewer units")
            sums = [torch.zeros(len(k) + 1, n_units, dtype=torch.float64, device=device) for k in keys]
            counted = True
        keep = batch.keep.cpu()
        kept[batch.rows, :n_pos] |= keep
        x = values[batch.keep].double()
        for o, own in enumerate(keys):
            at = _row_of(own, all_keys[o][batch.rows, :n_pos][keep])
            sums[o].index_add_(0, at.to(x.device), x)
        total_all, square_all = total_all + x.sum(0).cpu(), square_all + x.square().sum(0).cpu()
        n_all += len(x)
    if not n_all:
        raise ValueError("explanations need at least 1 token to be made from; the source gave none")
    ns = [_row_of(own, k[kept]).bincount(minlength=len(own) + 1) for own, k in zip(keys, all_keys, strict=True)]
    often = [n[:-1] >= LEAST for n in ns]
    return ContextSums(
        tuple(k[o] for k, o in zip(keys, often, strict=True)),
        tuple(n[:-1][o].double() for n, o in zip(ns, often, strict=True)),
        tuple(total[:-1].cpu()[o] for total, o in zip(sums, often, strict=True)),
        n_all,
        total_all,
        square_all,
        d_vocab,
    )


def _row_of(keys: Tensor, wanted: Tensor) -> Tensor:
    """Place of each wanted number among the keys; the number of keys where it is none of them."""
    if not len(keys):
        return torch.zeros_like(wanted)
    at = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
    return at.where(keys[at] == wanted, len(keys))
