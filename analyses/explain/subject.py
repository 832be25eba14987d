"""The model as Neuron2Graph asks it: what is a unit's activation after these tokens, and what would come next?"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.texts import Stories
from analyses.unit_streams import Units, unit_batches
from sat_lens.activations import inference
from sat_lens.tasks.encoding import start_ids


@runtime_checkable
class Subject(Protocol):
    """Answers for rows of tokens of one length; what begins every text is put before them."""

    def activations(self, tokens: Int[Tensor, "row pos"], units: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Of each row's own unit, at its last token."""
        ...

    def predictions(self, tokens: Int[Tensor, "row pos"], n: int) -> Int[Tensor, "row n"]:
        """The `n` most likely next tokens of each row, which may be empty."""
        ...


class ModelSubject(ABC):
    """A subject that is a model. Equal rows are run once, for all units that ask.

    Args:
        batch: rows a forward pass.
    """

    def __init__(self, model: Any, batch: int = 256) -> None:
        self.model, self.batch = model, batch
        self._start = torch.tensor(start_ids(model.tokenizer) if model.tokenizer else [], dtype=torch.long)

    @abstractmethod
    def last(self, tokens: Int[Tensor, "row pos"]) -> Iterator[tuple[Tensor, Float[Tensor, "_ unit"]]]:
        """Row numbers, ascending, and all units at the last token of these rows; some rows at a time."""

    def activations(self, tokens: Int[Tensor, "row pos"], units: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """Of each row's own unit, at its last token. Cost: a forward pass over the rows that differ."""
        rows, which = torch.unique(tokens, dim=0, return_inverse=True)
        order = which.argsort(stable=True)
        found = torch.zeros(len(tokens))
        for numbers, values in self.last(self._begun(rows)):
            first, end = (
                int(torch.searchsorted(which[order], edge, right=right))
                for edge, right in ((numbers[0], False), (numbers[-1], True))
            )
            asking = order[first:end]
            local = which[asking] - numbers[0]
            found[asking] = values.float().cpu()[local, units[asking]]
        return found

    def predictions(self, tokens: Int[Tensor, "row pos"], n: int) -> Int[Tensor, "row n"]:
        """By the clean stream. No predictions (-1) where neither the row nor its beginning has a token."""
        rows, which = torch.unique(tokens, dim=0, return_inverse=True) if tokens.shape[1] else (tokens[:1], None)
        begun = self._begun(rows)
        if not begun.shape[1]:
            return torch.full((len(tokens), n), -1)
        found = []
        for part in begun.split(self.batch):
            with inference(self.model):
                found.append(self.model(part.to(self.model.cfg.device))[:, -1].topk(n).indices.cpu())
        likely = torch.cat(found).clone()
        return likely.expand(len(tokens), n) if which is None else likely[which]

    def _begun(self, rows: Tensor) -> Tensor:
        return torch.cat([self._start.expand(len(rows), -1), rows], 1)


class UnitSubject(ModelSubject):
    """Units of a model, in the order of `units.table`."""

    def __init__(self, model: Any, units: Units, batch: int = 256) -> None:
        super().__init__(model, batch)
        self.units = units

    def last(self, tokens: Int[Tensor, "row pos"]) -> Iterator[tuple[Tensor, Float[Tensor, "_ unit"]]]:
        """See `ModelSubject`."""
        texts = Stories(tokens, torch.full((len(tokens),), tokens.shape[1]))
        for batch in unit_batches(self.model, texts, self.units, self.batch):
            yield batch.rows, batch.values[:, -1]
