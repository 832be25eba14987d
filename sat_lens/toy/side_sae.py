"""A sparse autoencoder beside a model: it reads the last residual stream, and the logits do not pass through it.

    a = ReLU(W_enc x + b_enc)        recons = W_dec a + b_dec
    loss = alpha mean (recons - x)^2 + l1 mean_positions sum_latents a

Trained with the model (`joint`), its loss moves the model as well. Hook points are those of sae-lens.

Source: "Untangling Tasks in a Toy Transformer"; no unit norm of the decoder and no bias before the encoder, as there.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint


class SideSAE(HookedRootModule):
    """The autoencoder.

    Args:
        d_in: width of what it reads.
        n_latents: its latents.
        seed: of its weights.
    """

    def __init__(self, d_in: int, n_latents: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.W_enc = nn.Parameter(uniform(generator, (d_in, n_latents), d_in))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.W_dec = nn.Parameter(uniform(generator, (n_latents, d_in), n_latents))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.hook_sae_input = HookPoint()  # [batch, pos, d_in]
        self.hook_sae_acts_pre = HookPoint()  # [batch, pos, latent]
        self.hook_sae_acts_post = HookPoint()  # [batch, pos, latent]
        self.hook_sae_recons = HookPoint()  # [batch, pos, d_in]
        self.setup()

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """Activations of the latents."""
        pre = self.hook_sae_acts_pre(self.hook_sae_input(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(F.relu(pre))

    def decode(self, acts: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch d_in"]:
        return self.hook_sae_recons(acts @ self.W_dec + self.b_dec)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return self.decode(self.encode(x))

    def loss(
        self, x: Float[Tensor, "batch pos d_in"], counts: Bool[Tensor, "batch pos"], alpha: float, l1: float
    ) -> Float[Tensor, ""]:
        """alpha MSE + l1 mean ||a||_1 over the positions that count."""
        x = x[counts]
        acts = self.encode(x)
        return alpha * F.mse_loss(self.decode(acts), x) + l1 * acts.sum(-1).mean()


def uniform(generator: torch.Generator, shape: Sequence[int], fan_in: int) -> Tensor:
    """Weights as torch.nn.Linear begins with."""
    return (2 * torch.rand(*shape, generator=generator) - 1) / fan_in**0.5


def sae_figures(sae: SideSAE, x: Float[Tensor, "token d_in"]) -> dict[str, float | list[float]]:
    """How sparse and how true the autoencoder is on some states.

    Returns:
        l0 (active latents a token), non_zero (their share of all, 0..1), alive (latents active at all), fvu (share of
        the variance around the mean that the reconstruction leaves), density (share of tokens on which each latent is
        active, sorted, largest first).
    """
    with torch.no_grad():
        acts = sae.encode(x)
        error = ((sae.decode(acts) - x) ** 2).sum()
        spread = ((x - x.mean(0)) ** 2).sum()
        density = (acts > 0).float().mean(0)
    return {
        "l0": float(density.sum()), "non_zero": float(density.mean()), "alive": int((density > 0).sum()),
        "fvu": float(error / spread.clamp(min=1e-12)), "density": density.sort(descending=True).values.tolist(),
    }  # fmt: skip
