"""Sums of what is measured, by component and text, in float64."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sat_lens.distributed import gather_rows, sum_over_ranks
from sat_lens.repair.effects import FIELDS


class Tally:
    """Takes chunks of copies in; a copy is one text under the ablation of one component.

    Args:
        n_doses, n_components, n_rows: sizes.
        n_columns: downstream components that are told apart; 0: none.
        per_token: whether the values of each selected token are kept, too.
    """

    def __init__(self, n_doses: int, n_components: int, n_rows: int, n_columns: int, per_token: bool) -> None:
        self.sums = torch.zeros(n_doses, n_components, n_rows, len(FIELDS), dtype=torch.float64)
        self.counts = torch.zeros(n_components, n_rows, dtype=torch.float64)
        self.squares = torch.zeros(n_doses, n_components, dtype=torch.float64)
        self.matrix = torch.zeros(n_doses, n_components, n_columns, dtype=torch.float64)
        self.closure = 0.0
        self.per_token = per_token
        self._places: list[Tensor] = []
        self._values: list[Tensor] = []

    def add(
        self,
        dose: int,
        component: Int[Tensor, " copy"],
        row: Int[Tensor, " copy"],
        fields: dict[str, Float[Tensor, "copy pos"]],
        selected: Bool[Tensor, "copy pos"],
        targets: Int[Tensor, "copy pos"],
        s0: Float[Tensor, "copy pos"],
        positions: Int[Tensor, "copy pos"] | None = None,
    ) -> None:
        """A chunk; no token comes twice with the same dose and component.

        Args:
            positions: in the texts; None: 0, 1, ...
        """
        stacked = torch.stack([fields[name] for name in FIELDS], -1)
        component, row = component.cpu(), row.cpu()
        totals = (stacked * selected[..., None]).sum(1).cpu()
        self.sums[dose].index_put_((component, row), totals, accumulate=True)
        if dose == 0:
            self.counts.index_put_((component, row), selected.sum(1).double().cpu(), accumulate=True)
        repair = (fields["dlogit"] - fields["ade"] + fields["de"]).square() * selected
        self.squares[dose].index_add_(0, component, repair.sum(1).cpu())
        if self.per_token:
            copy, pos = selected.nonzero(as_tuple=True)
            where, at = copy.cpu(), pos if positions is None else positions[copy, pos]
            place = (torch.full_like(where, dose), component[where], row[where], at.cpu(), targets[copy, pos].cpu())
            self._places.append(torch.stack(place, -1).int())
            self._values.append(torch.cat([stacked[copy, pos], s0[copy, pos, None]], -1).float().cpu())

    def columns(
        self, dose: int, component: Int[Tensor, " copy"], weight: Float[Tensor, "copy pos"]
    ) -> Callable[[int, Tensor], None]:
        """What takes changes of the score [copy pos column] in, from a first column on, weighted by token."""

        def every(column: int, change: Tensor) -> None:
            sums = torch.einsum("cpk,cp->ck", change.double(), weight).cpu()
            self.matrix[dose, :, column : column + sums.shape[1]].index_add_(0, component.cpu(), sums)

        return every

    def merged(self) -> dict[str, Any]:
        """Everything, of all ranks."""
        found: dict[str, Any] = {
            name: sum_over_ranks(getattr(self, name)) for name in ("sums", "counts", "squares", "matrix")
        }
        found["closure"] = gather_rows(torch.tensor([self.closure], dtype=torch.float64)).max().item()
        if self.per_token:
            places = gather_rows(torch.cat([torch.zeros(0, 5, dtype=torch.int32), *self._places]))
            values = gather_rows(torch.cat([torch.zeros(0, len(FIELDS) + 1), *self._values]))
            order = torch.arange(len(places))
            for column in (3, 2, 1, 0):
                order = order[places[order, column].argsort(stable=True)]
            found["places"], found["values"] = places[order], values[order]
        return found
