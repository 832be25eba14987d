"""Texts as rows of tokens, and which of their tokens count."""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Rows:
    """Texts, a row each, padded on the right with anything.

    Args:
        tokens: of all rows.
        lengths: tokens of each row that are no padding.
        keep: tokens that are measured.
        documents: a label a row; rows of one label are parts of one text and do not stand in for one another.
    """

    tokens: Int[Tensor, "n pos"]
    lengths: Int[Tensor, " n"]
    keep: Bool[Tensor, "n pos"]
    documents: Int[Tensor, " n"]

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.tokens)

    @property
    def real(self) -> Bool[Tensor, "n pos"]:
        """Tokens that are no padding."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def batches(self, size: int) -> Iterator[Int[Tensor, " batch"]]:
        """Rows with a kept token, of about one length together, the longest first; ascending within a batch."""
        rows = torch.where(self.keep.any(1), self.lengths, -1).argsort(descending=True, stable=True)
        rows = rows[: int(self.keep.any(1).sum())]
        for batch in rows.split(size):
            yield batch.sort().values

    def cut(self, rows: Int[Tensor, " batch"]) -> Int[Tensor, "batch pos"]:
        """The tokens of these rows without what is padding in all of them."""
        return self.tokens[rows, : int(self.lengths[rows].max())]


def as_rows(
    tokens: Int[Tensor, "n pos"],
    lengths: Int[Tensor, " n"] | None = None,
    keep: Bool[Tensor, "n pos"] | None = None,
    documents: Int[Tensor, " n"] | None = None,
    *,
    skip_bos: bool = True,
    needs_next: bool = True,
) -> Rows:
    """Rows, checked. Counted is what `keep` names (None: everything) and is no padding.

    Args:
        skip_bos: position 0 does not count.
        needs_next: the last token of each row does not count, for nothing is known to follow it.

    Raises:
        ValueError: shapes that do not fit, a length beyond the row, or no token left.
    """
    tokens = tokens.cpu()
    n, n_pos = tokens.shape
    lengths = torch.full((n,), n_pos) if lengths is None else lengths.cpu().long()
    if len(lengths) != n or not ((lengths >= 1) & (lengths <= n_pos)).all():
        raise ValueError(f"lengths must be {n} numbers between 1 and {n_pos}; got {lengths.tolist()[:8]}")
    if keep is not None and keep.shape != tokens.shape:
        raise ValueError(f"keep must have the tokens' shape {tuple(tokens.shape)}; got {tuple(keep.shape)}")
    if documents is not None and len(documents) != n:
        raise ValueError(f"documents must be {n} labels, one a row; got {len(documents)}")
    position = torch.arange(n_pos)
    counted = (position < lengths[:, None] - int(needs_next)) & (position >= int(skip_bos))
    counted = counted if keep is None else counted & keep.cpu()
    if not counted.any():
        raise ValueError("self-repair needs at least 1 token to measure; none is kept")
    documents = torch.arange(n) if documents is None else documents.cpu().long()
    return Rows(tokens, lengths, counted, documents)
