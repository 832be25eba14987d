"""What a coder learns: the fraction of variance that it leaves unexplained, and where it starts.

    FVU = sum (y - y_hat)^2 / sum (y - mean y)^2

over the tokens of a batch. AuxK asks dead latents to explain what is left: with e = y - y_hat taken as given, and e_hat
decoded from the k_aux = d_out / 2 largest activations of dead latents, it is min(1, dead / k_aux) times
sum (e - e_hat)^2 / sum (y - mean y)^2.

Source: arXiv 2406.04093 (AuxK), 2501.18823 (skip transcoders) and its code; differs: e_hat has no b_dec, which e is
already free of.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sat_lens.coders.coder import Coder
from sat_lens.coders.latents import Latents, top_latents


def fvu(y: Float[Tensor, "token d_out"], y_hat: Float[Tensor, "token d_out"]) -> Float[Tensor, ""]:
    """Fraction of the variance of `y` that `y_hat` leaves unexplained."""
    return (y - y_hat).square().sum() / variance(y)


def variance(y: Float[Tensor, "token d_out"]) -> Float[Tensor, ""]:
    """Summed squared distance from the mean token; never 0."""
    return (y - y.mean(0)).square().sum().clamp_min(torch.finfo(y.dtype).tiny)


def losses(
    coder: Coder,
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    dead: Bool[Tensor, " latent"] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Latents]:
    """FVU, AuxK (0 without dead latents), and the latents.

    Args:
        dead: latents that have not been active for long; None: AuxK is not wanted.
    """
    pre = coder.pre(x)
    latents = top_latents(pre.relu(), coder.cfg.k)
    y_hat = coder.decode(latents, x)
    aux = pre.new_zeros(())
    if dead is not None and (n_dead := int(dead.sum())):
        k_aux = max(1, coder.cfg.d_out // 2)
        of_dead = top_latents(pre.where(dead, 0.0).relu(), min(k_aux, n_dead))
        error = (y - y_hat).detach()
        e_hat = coder.decode(of_dead, skip=False, bias=False)
        aux = min(1.0, n_dead / k_aux) * (error - e_hat).square().sum() / variance(y)
    return fvu(y, y_hat), aux, latents


@torch.no_grad()
def initialise(coder: Coder, x: Float[Tensor, "token d_in"], y: Float[Tensor, "token d_out"], seed: int) -> None:
    """Weights before the first step, from the first tokens.

    Encoder rows are uniform within 1 / sqrt(d_in), b_enc = -W_enc mean(x), b_dec = mean(y). The decoder is 0 but for
    an SAE, whose decoder has the encoder's rows at unit norm; W_skip is 0.
    """
    bound = 1 / math.sqrt(coder.cfg.d_in)
    drawn = torch.rand(coder.W_enc.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    coder.W_enc.copy_((2 * drawn - 1) * bound)
    coder.b_enc.copy_(-coder.W_enc @ x.to(coder.W_enc.dtype).mean(0))
    coder.b_dec.copy_(y.mean(0))
    if coder.cfg.kind == "sae":
        coder.W_dec.copy_(F.normalize(coder.W_enc, dim=-1))


@torch.no_grad()
def remove_parallel_gradient(coder: Coder) -> None:
    """Take from each decoder row's gradient what would only change the row's norm."""
    grad = coder.W_dec.grad
    if grad is not None:
        grad -= (grad * coder.W_dec).sum(-1, keepdim=True) * coder.W_dec


@torch.no_grad()
def unit_rows(coder: Coder) -> None:
    """Decoder rows of norm 1, as SAEs keep them."""
    coder.W_dec.copy_(F.normalize(coder.W_dec, dim=-1))
