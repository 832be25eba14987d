"""Examples of every unit from one pass: the greatest by some priority, at most one a story, in bounded memory.

A random choice is the greatest random priority, which a hash of seed, story, position and unit gives, so that the
order of the batches, and how the stories are dealt to them, make no difference.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sat_lens.streaming import Reducer

_LEFT = -7046029254386353131  # the odd constants of splitmix64, as signed 64-bit numbers
_MIX = (-4658895280553007687, -7723592293110705685)
_POSITIONS = 2**24  # a position is below this


def random_priority(
    rows: Int[Tensor, " row"], n_pos: int, n_units: int, seed: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "row pos unit"]:
    """Uniform in 0..1, by hash of seed, row, position and unit alone.

    Source: Steele, Lea, Flood 2014 (the finalizer of splitmix64).
    """
    place = rows.to(device)[:, None] * _POSITIONS + torch.arange(n_pos, device=device)
    at = _mixed(
        _mixed(place + seed % 2**15 * 2**48 + 1)[..., None] ^ _mixed(torch.arange(n_units, device=device) + 1 << 20)
    )
    return _shifted(at, 11).double() / 2**53


def _mixed(x: Int[Tensor, "*axes"]) -> Int[Tensor, "*axes"]:
    x = x * _LEFT
    x = (x ^ _shifted(x, 30)) * _MIX[0]
    x = (x ^ _shifted(x, 27)) * _MIX[1]
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, n: int) -> Tensor:
    """Right, with zeros from the left."""
    return (x >> n) & (2 ** (64 - n) - 1)


@dataclasses.dataclass
class Chosen(Reducer):
    """The `k` tokens of the greatest priority of each unit, at most one a story, in descending order.

    Of equal priorities the smaller row comes first, and within a story the smaller position. Batches must not share
    stories.

    Args:
        k: tokens a unit.
        priority: [seen unit]; -inf where there is none.
        values: activations there.
        rows, positions: where they stand.
    """

    k: int
    priority: Float[Tensor, "seen unit"] = dataclasses.field(default_factory=lambda: torch.zeros(0, 0))
    values: Float[Tensor, "seen unit"] = dataclasses.field(default_factory=lambda: torch.zeros(0, 0))
    rows: Int[Tensor, "seen unit"] = dataclasses.field(default_factory=lambda: torch.zeros(0, 0).long())
    positions: Int[Tensor, "seen unit"] = dataclasses.field(default_factory=lambda: torch.zeros(0, 0).long())

    def update(
        self,
        priority: Float[Tensor, "row pos unit"],
        values: Shaped[Tensor, "row pos unit"],
        rows: Int[Tensor, " row"],
        allowed: Bool[Tensor, "row pos unit"],
    ) -> None:
        """Take a batch in.

        Args:
            allowed: tokens that may be chosen.
        """
        ranked = priority.double().where(allowed, -torch.inf)
        best = ranked.amax(1)
        place = torch.arange(ranked.shape[1], device=ranked.device)[None, :, None]
        position = place.where(ranked == best[:, None], ranked.shape[1]).amin(1)
        found = values.gather(1, position[:, None])[:, 0].double()
        row = rows.to(best.device)[:, None].expand_as(position)
        self.absorb(self.merge(Chosen(self.k, best.cpu(), found.cpu(), row.cpu(), position.cpu())))

    def merge(self, other: "Chosen") -> "Chosen":
        """The chosen of all that both have seen; their k must be equal."""
        if self.k != other.k:
            raise ValueError(f"choices can be merged when k is equal; got {self.k} and {other.k}")
        if not self.priority.numel() or not other.priority.numel():
            one = self if self.priority.numel() else other
            return one._first(one._order())
        both = Chosen(
            self.k,
            *(torch.cat((getattr(self, n), getattr(other, n))) for n in ("priority", "values", "rows", "positions")),
        )
        return both._first(both._order())

    def absorb(self, other: "Chosen") -> None:
        """Become `other`."""
        for name, value in vars(other).items():
            setattr(self, name, value)

    def _order(self) -> Tensor:
        by_row = self.rows.argsort(stable=True, dim=0)
        return by_row.gather(0, self.priority.gather(0, by_row).argsort(stable=True, dim=0, descending=True))

    def _first(self, order: Tensor) -> "Chosen":
        order = order[: self.k]
        return Chosen(self.k, *(p.gather(0, order) for p in (self.priority, self.values, self.rows, self.positions)))


@dataclasses.dataclass
class TokenExtremes:
    """The greatest and the least activation of each unit at each token of a vocabulary, and where each first stands.

    Memory: 4 numbers a token and unit.

    Args:
        ids: tokens that occur, ascending.
        most: -inf where the token was not seen.
        most_at: its place, a number that the caller knows; -1 where the token was not seen.
        negated: minus the least activation; -inf where the token was not seen.
        least_at: the place of the least.
    """

    ids: Int[Tensor, " token"]
    most: Float[Tensor, "token unit"] | None = None
    most_at: Int[Tensor, "token unit"] | None = None
    negated: Float[Tensor, "token unit"] | None = None
    least_at: Int[Tensor, "token unit"] | None = None

    def update(self, values: Shaped[Tensor, "n unit"], tokens: Int[Tensor, " n"], places: Int[Tensor, " n"]) -> None:
        """Take `n` tokens in."""
        if self.most is None:
            shape, device = (len(self.ids), values.shape[1]), values.device
            self.most = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
            self.negated = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
            self.most_at = torch.full(shape, -1, device=device)
            self.least_at = torch.full(shape, -1, device=device)
        at = torch.searchsorted(self.ids, tokens).to(values.device)
        x, places = values.double(), places.to(values.device)
        self.most, self.most_at = _greatest(self.most, self.most_at, x, at, places)
        self.negated, self.least_at = _greatest(self.negated, self.least_at, -x, at, places)


def _greatest(table: Tensor, table_at: Tensor, x: Tensor, at: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The table after x [n unit] came in at rows `at`; of equal values the smallest place."""
    rows = at[:, None].expand_as(x)
    new = table.scatter_reduce(0, rows, x, "amax")
    last = torch.iinfo(torch.long).max
    kept_at = table_at.where((new == table) & (table_at >= 0), last)
    mine = places[:, None].where(x == new[at], last)
    new_at = kept_at.scatter_reduce(0, rows, mine, "amin")
    return new, new_at.where(new_at != last, -1)
