"""The few latents that are active at a token: which ones, and how much."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Latents(NamedTuple):
    """Active latents, the largest first, equal ones by index.

    Args:
        indices: of a row no two are equal. Where fewer than k are active, the rest have value 0 and any index.
        values: of each.
    """

    indices: Int[Tensor, "*batch k"]
    values: Float[Tensor, "*batch k"]

    def dense(self, n_latents: int) -> Float[Tensor, "*batch latent"]:
        """All latents, 0 where not active."""
        zeros = self.values.new_zeros(*self.values.shape[:-1], n_latents)
        return zeros.scatter(-1, self.indices, self.values)


def top_latents(activations: Float[Tensor, "*batch latent"], k: int | None, signed: bool = False) -> Latents:
    """The k largest activations, equal ones by index.

    Args:
        activations: at least 0, unless `signed`.
        k: None: as many as the token with the most that are not 0.
        signed: the largest by magnitude; values keep their signs.
    """
    n = activations.shape[-1]
    size = activations.abs() if signed else activations
    if k is None:
        k = max(1, int((size > 0).sum(-1).max())) if size.numel() else 1
        if k == n:  # all of them: in their own order
            everything = torch.arange(n, device=size.device).expand(size.shape)
            return Latents(everything, activations)
    found, indices = size.topk(min(k + 1, n), dim=-1)  # one more shows whether the last place is contested
    ties = ((found[..., 1:] == found[..., :-1]) & (found[..., 1:] > 0)).any(-1)
    indices = indices[..., :k]
    if ties.any():
        indices[ties] = size[ties].sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return Latents(indices, activations.gather(-1, indices))
