"""The norms of a HookedTransformer applied to another stream: its weights, without firing its hooks."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


def _identity(x: Tensor) -> Tensor:
    return x


def apply_norm(
    norm: nn.Module,
    x: Float[Tensor, "... d_model"],
    hook_scale: Callable[[Tensor], Tensor] = _identity,
    hook_normalized: Callable[[Tensor], Tensor] = _identity,
) -> Float[Tensor, "... d_model"]:
    """What `norm` (LayerNorm, RMSNorm, their folded `Pre` forms, or Identity) makes of `x`.

    The same operations in the same order as TransformerLens' module, with the caller's hooks.
    """
    if isinstance(norm, nn.Identity):
        return x
    dtype = x.dtype
    if dtype not in (torch.float32, torch.float64):
        x = x.float()
    if "LayerNorm" in type(norm).__name__:
        x = x - x.mean(-1, keepdim=True)
    scale = hook_scale((x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt())
    x = hook_normalized(x / scale).to(dtype)
    if (weight := getattr(norm, "w", None)) is not None:
        x = x * weight
    return x if (bias := getattr(norm, "b", None)) is None else x + bias
