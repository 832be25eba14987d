"""Which tokens an effect is averaged over, for each component apart. It decides the answer, so captions state it.

On all tokens most heads break more than is repaired; on a head's top tokens by direct effect the logit is large and
so is the norm's share (trap T6 of the field: two selections are two questions).

Selections of a first kind judge a token by itself; those of a second kind rank it among all tokens of the component,
which takes one more clean pass.
"""

import dataclasses
from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sat_lens.distributed import gather_rows, world_size
from sat_lens.streaming import TopExamples


@dataclasses.dataclass(frozen=True)
class All:
    """Every token."""

    name: str = dataclasses.field(default="all tokens", init=False)

    def chosen(self, de: Float[Tensor, "..."], ade: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """True everywhere."""
        return torch.ones_like(de, dtype=torch.bool)


@dataclasses.dataclass(frozen=True)
class AbsDE:
    """Tokens whose direct effect is beyond a threshold, in logits, either way."""

    threshold: float | int = 0.1

    @property
    def name(self) -> str:
        """With the threshold."""
        return f"tokens with |direct effect| > {self.threshold:g} logits"

    def chosen(self, de: Float[Tensor, "..."], ade: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """By the clean direct effect."""
        return de.abs() > self.threshold


@dataclasses.dataclass(frozen=True)
class MinRemoved:
    """Tokens at which the whole ablation removes more than `eps` logits of direct effect, either way."""

    eps: float | int = 0.1

    @property
    def name(self) -> str:
        """With eps."""
        return f"tokens with |removed direct effect| > {self.eps:g} logits"

    def chosen(self, de: Float[Tensor, "..."], ade: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """By what the ablation removes; over several draws by their mean."""
        return (de - ade).abs() > self.eps


@dataclasses.dataclass(frozen=True)
class TopDE:
    """The share q of a component's tokens with the largest direct effect, rounded down, at least one.

    Args:
        q: share of the kept tokens.
        signed: largest, as published; otherwise largest in size.
    """

    q: float | int = 0.02
    signed: bool = True

    def __post_init__(self) -> None:
        _check_share(self.q)

    @property
    def name(self) -> str:
        """With q."""
        return (
            f"top {100 * self.q:g} % of tokens by {'' if self.signed else '|'}direct effect{'' if self.signed else '|'}"
        )

    def rank(self, de: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What is to be largest."""
        return de if self.signed else de.abs()


@dataclasses.dataclass(frozen=True)
class Bottom:
    """The share q of a component's tokens with the lowest signed direct effect: where it suppresses the target."""

    q: float | int = 0.02

    def __post_init__(self) -> None:
        _check_share(self.q)

    @property
    def name(self) -> str:
        """With q."""
        return f"bottom {100 * self.q:g} % of tokens by direct effect"

    def rank(self, de: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What is to be largest."""
        return -de


Selection = All | AbsDE | MinRemoved | TopDE | Bottom


def ranked(select: Selection) -> bool:
    """Whether a selection compares tokens with one another."""
    return isinstance(select, TopDE | Bottom)


def ranking(select: Selection, n_kept: int) -> TopExamples:
    """A reducer that keeps a component's best tokens of `n_kept`; ties go to the first row and position."""
    return TopExamples(max(1, int(select.q * n_kept)))


def chosen_tokens(found: TopExamples, shape: tuple[int, int, int]) -> Bool[Tensor, "component n pos"]:
    """The best tokens of all ranks, as a mask of this shape."""
    for other in _of_other_ranks(found, shape[0]):
        found.absorb(other)
    mask = torch.zeros(shape, dtype=torch.bool)
    which = torch.arange(shape[0]).expand(len(found.rows), -1)
    mask[which, found.rows, found.positions] = True
    return mask


def _of_other_ranks(found: TopExamples, n: int) -> Iterable[TopExamples]:
    """What the ranks have found, where there are several; `found` is emptied into them."""
    if world_size() == 1:
        return []
    fields = (found.values, found.rows, found.positions)
    values, rows, positions = (gather_rows(field.reshape(len(found.rows), n)) for field in fields)
    best = values.argsort(dim=0, descending=True, stable=True)
    found.values, found.rows, found.positions = (part[:0] for part in fields)
    whole = TopExamples(found.k, *(part.gather(0, best) for part in (values, rows, positions)))
    return [whole]


def _check_share(q: float | int) -> None:
    if not 0 < q <= 1:
        raise ValueError(f"the share of tokens must be above 0 and at most 1; got {q}")
