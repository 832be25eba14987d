"""Which contexts a rule lists: the list of least description length among all subsets of the tree of contexts.

    sum of squared errors / (2 variance ln 2)  +  bits of the list         (of tokens in the stories to explain)

is minimized exactly, for all units at once: F(c, a), the least cost of all tokens at context c when its nearest
listed ancestor is a, is a sum over the children of c, each listed or not. The variance is that of what the list
leaves unexplained (`analyses.explain.shortest`).

Source: Csiszar, Talata 2006 (trees of contexts by description length); Katz 1987 for backing off.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.explain.contexts import ContextSums
from analyses.explain.rule import LEVELS
from analyses.explain.shortest import Pruned, shortest

RISES = 24
"""Of the price of a bit by the square root of 2, for units whose list is too long."""


def backoff_means(sums: ContextSums, kappa: float | int) -> list[Float[Tensor, "_ unit"]]:
    """Estimates by order, from 0 (the mean, one row) up.

    Of a context c from the n(c) tokens at which it was read and its parent, the context without its oldest token:
    E(c) = (sum of activations + kappa E(parent)) / (n(c) + kappa); E of no context is the mean.
    """
    found = [sums.mean[None]]
    for order in range(1, sums.order + 1):
        parent = found[0] if order == 1 else found[-1][sums.parents(order)]
        n = sums.n[order - 1][:, None]
        found.append((sums.total[order - 1] + kappa * parent) / (n + kappa))
    return found


def listed_gains(
    sums: ContextSums, estimates: list[Float[Tensor, "_ unit"]], bits: list[float], most: int
) -> list[Float[Tensor, "_ unit"]]:
    """What listing each context saves, in bits, below its nearest listed ancestor; -inf where it is not listed.

    Args:
        estimates: by order, from 0 up.
        bits: that an entry of each order costs, from order 1 up.
        most: entries that will be taken. While a list is longer, the price of its bits rises; the gains of the last
            list that is too long stay, of which the greatest are the best to take.
    """
    gains = _shortest_lists(sums, estimates, bits)
    long = _too_long(gains, most)
    for rise in range(1, RISES + 1):
        if not len(long):
            break
        dearer = [2 ** (rise / 2) * b for b in bits]
        again = _shortest_lists(sums.of(long), [e[:, long] for e in estimates], dearer)
        still = _too_long(again, most)
        long = long[still]
        gains = [g.index_copy(1, long, new[:, still]) for g, new in zip(gains, again, strict=True)]
    return gains


def _too_long(gains: list[Tensor], most: int) -> Tensor:
    listed = torch.stack([(g > 0).sum(0) for g in gains]).sum(0)
    return (listed > most).nonzero()[:, 0]


def _shortest_lists(sums: ContextSums, estimates: list[Tensor], bits: list[float]) -> list[Tensor]:
    variance = (sums.square_all / sums.n_all - sums.mean.square()).clamp(min=0)
    step = torch.stack([e.abs().amax(0) for e in estimates if len(e)]).amax(0) / LEVELS
    free = pruned(sums, estimates, [0.0] * sums.order, torch.ones_like(variance))[1] / sums.n_all
    floor = step.square() / 12  # of the rounding to levels
    return shortest(lambda price: pruned(sums, estimates, bits, price), [variance, free], floor, sums.n_all)


def pruned(
    sums: ContextSums, estimates: list[Float[Tensor, "_ unit"]], bits: list[float], unit_bits: Float[Tensor, " unit"]
) -> Pruned:
    """The gains, the sum of squared errors and the bits of the best list, when a squared error costs `unit_bits`.

    least[o][a] are the least bits of all tokens at contexts of order o whose nearest listed ancestor, or the context
    itself, is of order a. Errors are counted less the sum of squares, which no choice changes.
    """
    top = sums.order
    least: list[list[Tensor]] = [[] for _ in range(top + 1)]
    for order in range(top, 0, -1):
        n, total = sums.n[order - 1][:, None], sums.total[order - 1]
        rest_n, rest = n.clone(), total.clone()
        up = sums.parents(order + 1) if order < top else torch.zeros(0, dtype=torch.long)
        if order < top:
            rest_n = rest_n.index_add(0, up, -sums.n[order][:, None])
            rest = rest.index_add(0, up, -sums.total[order])
        for level in range(order + 1):
            value = _ancestor(sums, estimates, order, level)
            cost = (rest_n * value.square() - 2 * value * rest) * unit_bits
            if order < top:
                cost = cost.index_add(0, up, torch.minimum(least[order + 1][level], least[order + 1][-1] + bits[order]))
            least[order].append(cost)
    every = torch.minimum(least[1][0], least[1][1] + bits[0]).sum(0)
    gains, effective, list_bits = [], torch.zeros(1, len(unit_bits), dtype=torch.long), torch.zeros_like(unit_bits)
    for order in range(1, top + 1):
        own = least[order][order]
        above = effective.expand(len(own), -1) if order == 1 else effective[sums.parents(order)]
        without = torch.stack(least[order][:order]).gather(0, above[None])[0]
        gain = without - own - bits[order - 1]
        listed: Bool[Tensor, "_ unit"] = gain > 0
        gains.append(gain.where(listed, -torch.inf))
        effective = above.where(~listed, order)
        list_bits = list_bits + bits[order - 1] * listed.sum(0)
    mean, rest_n = estimates[0][0], sums.n_all - sums.n[0].sum()
    rest = sums.total_all - sums.total[0].sum(0)
    errors = (every - list_bits) / unit_bits + rest_n * mean.square() - 2 * mean * rest + sums.square_all
    return gains, errors, list_bits


def _ancestor(sums: ContextSums, estimates: list[Tensor], order: int, level: int) -> Tensor:
    """The estimate of each context's ancestor of a lower order (or its own)."""
    if level == 0:
        return estimates[0]
    row = torch.arange(len(sums.keys[order - 1]))
    for o in range(order, level, -1):
        row = sums.parents(o)[row]
    return estimates[level][row]
