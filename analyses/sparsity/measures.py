"""Measures of how few entries of a vector matter; each is the same for a vector and a multiple of it.

| measure | of n entries x | range, sparser is |
| --- | --- | --- |
| `hoyer` | (sqrt n - L1 / L2) / (sqrt n - 1) | 0..1, more |
| `gini` | Gini coefficient of the magnitudes | 0..1 - 1/n, more |
| `kurtosis` | E (x - mean)^4 / var^2 - 3 | -2.., more |
| `near_zero` | share of entries below a tenth of the root mean square | 0..1, more |

`effective_rank` is that of a matrix: exp of the entropy of its singular values' shares, 1 to its rank; less is of fewer
directions.

Source: Hoyer 2004 (JMLR 5), arXiv 0811.4706 (Gini coefficient), Roy and Vetterli 2007 (effective rank).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

NEAR = 0.1
"""Of the root mean square: what lies below is near zero."""


def hoyer(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """0 where all entries are as large, 1 where all but one are 0; NaN where all are 0, or there is but one."""
    n = x.shape[-1]
    ratio = _ratio(x.abs().sum(-1), x.norm(dim=-1))
    return (n**0.5 - ratio) / (n**0.5 - 1) if n > 1 else torch.full_like(ratio, torch.nan)


def gini(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """sum_i (2 i - n - 1) |x|_(i) / (n sum |x|), ascending; NaN where all are 0."""
    n = x.shape[-1]
    ranks = 2 * torch.arange(1, n + 1, device=x.device, dtype=x.dtype) - n - 1
    magnitudes = x.abs().sort(-1).values
    return _ratio((magnitudes * ranks).sum(-1), n * magnitudes.sum(-1))


def kurtosis(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Excess kurtosis, 0 for a normal distribution; NaN where entries are all equal."""
    apart = x - x.mean(-1, keepdim=True)
    variance = apart.square().mean(-1)
    flat = variance <= 1e-24 * x.square().mean(-1)
    return _ratio(apart.pow(4).mean(-1), variance.square().masked_fill(flat, 0.0)) - 3


def near_zero(x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Share of entries with |x| < 0.1 times the root mean square; NaN where all are 0."""
    scale = x.square().mean(-1, keepdim=True).sqrt()
    share = (x.abs() < NEAR * scale).to(x.dtype).mean(-1)
    return share.masked_fill(scale[..., 0] == 0, torch.nan)


def effective_rank(singular_values: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """exp H(s / sum s): from 1 to as many values as are not 0; NaN where all are 0."""
    share = singular_values / singular_values.sum(-1, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return entropy.exp()


def singular_values(gram: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n"]:
    """Of A, from A^T A; what rounding makes negative is 0."""
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()


VECTOR: dict[str, Callable[[Tensor], Tensor]] = {
    "hoyer": hoyer,
    "gini": gini,
    "kurtosis": kurtosis,
    "near_zero": near_zero,
}
"""The measures of vectors, by name."""
UNITS = {
    "hoyer": "0..1",
    "gini": "0..1",
    "kurtosis": "excess kurtosis",
    "near_zero": "share of entries",
    "effective_rank": "directions",
    "l0": "units a layer and token",
    "live_units": "share of units",
    "mean_abs_weight": "mean |entry|",
}
"""Every metric of the table and its unit."""


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, NaN where whole is 0."""
    return torch.where(whole == 0, torch.nan, part / whole.where(whole != 0, 1.0))
