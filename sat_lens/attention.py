"""The ablated stream's attention: the past is clean, the present is its own.

The query of the ablated stream at position t attends to the clean stream's keys and values at
positions before t, and to its own key and value at t. So the ablated stream at t is the answer to
"what if only position t were ablated?", for all t in one pass.

Source: arXiv 2505.00509 and its code (commit b88bc9b, which takes keys and values from the clean
stream before the block); differs: the own key is placed on the diagonal, without a `where`.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def own_key_pattern(
    q: Float[Tensor, "batch pos n_heads d_head"],
    k_clean: Float[Tensor, "batch pos n_heads d_head"],
    k_own: Float[Tensor, "batch pos n_heads d_head"],
    scale: float,
    window: int | None = None,
) -> Float[Tensor, "batch n_heads pos pos"]:
    """Attention pattern [query, key]; column t of row t belongs to the own key.

    Args:
        scale: scores are divided by it.
        window: a query sees only the last `window` positions, itself included; None: all.
    """
    n = q.shape[1]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k_clean) / scale
    own = torch.einsum("bqhd,bqhd->bhq", q, k_own) / scale
    seen = torch.ones(n, n, dtype=torch.bool, device=q.device).tril(-1)
    if window is not None:
        seen = seen.triu(1 - window)
    scores = scores.masked_fill(~seen, -torch.inf)
    return torch.diagonal_scatter(scores, own, dim1=-2, dim2=-1).softmax(-1)


def mixed_values(
    pattern: Float[Tensor, "batch n_heads pos pos"],
    v_clean: Float[Tensor, "batch pos n_heads d_head"],
    v_own: Float[Tensor, "batch pos n_heads d_head"],
) -> Float[Tensor, "batch pos n_heads d_head"]:
    """z: clean values of the past and the own value of the present, weighted by the pattern."""
    own_weight = pattern.diagonal(dim1=-2, dim2=-1).transpose(1, 2).unsqueeze(-1)
    return torch.einsum("bhqk,bkhd->bqhd", pattern, v_clean) + own_weight * (v_own - v_clean)
