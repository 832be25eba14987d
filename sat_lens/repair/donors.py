"""Whose activation stands in for whose: for every token the text that its replacement comes from."""

import torch
from jaxtyping import Int
from torch import Tensor

from sat_lens.repair.rows import Rows


def donor_table(rows: Rows, seed: int = 0) -> Int[Tensor, "n pos"]:
    """For each token the row whose activation at the same position replaces it; -1 where there is none.

    All rows stand on one random circle. The donor is the next row on it that has a token at this position and is
    of another document. So a text has one donor for as long as that lasts and then the next; no row meets itself
    or padding; and where documents are single rows, the rows that reach a position replace one another in one
    cycle, each once. Padding has no donor, nor has the end of a text that is longer than all others.

    Raises:
        ValueError: a single document, of which nothing can be resampled.
    """
    if len(rows.documents.unique()) < 2:
        raise ValueError("resampling needs texts of at least 2 documents; all rows are of one")
    circle = torch.randperm(rows.n, generator=torch.Generator().manual_seed(seed))
    lengths, documents = rows.lengths[circle], rows.documents[circle]
    table = torch.full(rows.tokens.shape, -1)
    place, position = torch.arange(rows.tokens.shape[1]).lt(lengths[:, None]).nonzero(as_tuple=True)
    for step in range(1, rows.n):
        other = (place + step) % rows.n
        found = (lengths[other] > position) & (documents[other] != documents[place])
        table[circle[place[found]], position[found]] = circle[other[found]]
        place, position = place[~found], position[~found]
        if not len(place):
            break
    return table
