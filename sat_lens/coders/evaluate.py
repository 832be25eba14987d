"""What a coder loses: at its site, and in what the model predicts.

| number | what it is | unit |
| --- | --- | --- |
| FVU | sum (y - y_hat)^2 / sum (y - mean y)^2 over the tokens | share |
| L0 | latents that are not 0 | a token |
| dead | latents that are never active on these tokens | share |
| density | L0 / n_latents | share |
| CE | next-token loss with base, reconstruction, zero latents, zero output, mean output | nats a token |
| CE score | (zero output - reconstruction) / (zero output - base) | share |

Every sum is by story, for a bootstrap over stories.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sat_lens.coders.coder import Coder, CoderConfig
from sat_lens.coders.neurons import NeuronCoder
from sat_lens.coders.sites import kept_tokens, site_batches
from sat_lens.coders.substitute import (
    Substituted,
    constant_output,
    reconstruction,
    substituted,
    zero_latents,
    zero_output,
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A coder on some stories.

    Args:
        squared_error, squared_distance: sums of (y - y_hat)^2 and (y - mean y)^2.
        active: latents that are not 0, summed over tokens.
        n_tokens: tokens at the site.
        latent_counts: tokens at which each latent is not 0, over all stories.
        mean: of the output, which "mean output" puts in its place.
        predictions: losses and KLs of `reconstruction`, `zero latents`, `zero output` and `mean output`.
    """

    squared_error: Float[Tensor, " story"]
    squared_distance: Float[Tensor, " story"]
    active: Float[Tensor, " story"]
    n_tokens: Float[Tensor, " story"]
    latent_counts: Int[Tensor, " latent"]
    mean: Float[Tensor, " d_out"]
    predictions: Substituted

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return (self.squared_error.sum() / self.squared_distance.sum()).item()

    @property
    def l0(self) -> float:
        """Latents that are not 0, a token."""
        return (self.active.sum() / self.n_tokens.sum()).item()

    @property
    def density(self) -> float:
        """Share of latents that is not 0 at a token."""
        return self.l0 / len(self.latent_counts)

    @property
    def dead_share(self) -> float:
        """Share of latents that no token here makes active."""
        return (self.latent_counts == 0).double().mean().item()

    @property
    def ce(self) -> dict[str, float]:
        """Next-token loss by edit, `base` first; nats a token."""
        losses = {"base": self.predictions.base, **self.predictions.loss}
        return {name: values.double().mean().item() for name, values in losses.items()}

    @property
    def kl(self) -> dict[str, float]:
        """KL(base || edited) by edit, nats a token."""
        return {name: values.double().mean().item() for name, values in self.predictions.kl.items()}

    @property
    def ce_score(self) -> float:
        """How much of what the loss of the whole output costs is not lost: 1 for the true output."""
        return self.recovered("zero output")

    def recovered(self, baseline: str) -> float:
        """The same against another baseline; NaN where that costs nothing."""
        ce = self.ce
        cost = ce[baseline] - ce["base"]
        return (ce[baseline] - ce["reconstruction"]) / cost if cost else float("nan")


def evaluate_coder(
    model: Any,
    coder: Coder | NeuronCoder,
    tokens: Int[Tensor, "story pos"],
    *,
    lengths: Int[Tensor, " story"] | None = None,
    keep: Bool[Tensor, "story pos"] | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Evaluation:
    """Measure a coder.

    Args:
        lengths, keep: tokens that count at the site, are replaced and are measured (see `substituted`).

    Raises:
        ValueError: no token that counts, a site that is not the model's, too little memory.

    Cost: two passes as far as the site, one whole pass, and four of the layers above the site.
    """
    kept = kept_tokens(tokens, lengths, keep)
    if not kept.any():
        raise ValueError("a coder is evaluated on tokens that count; there are none")
    mean = site_mean(model, coder.cfg, tokens, kept, batch_size)
    sums = torch.zeros(3, len(tokens), dtype=torch.float64)
    counts = torch.zeros(coder.cfg.n_latents, dtype=torch.long)
    for batch in site_batches(model, coder.cfg, tokens, None, kept, batch_size):
        x, y = batch.x[batch.keep], batch.y[batch.keep].double()
        with torch.no_grad():
            latents = coder.encode(x)
            y_hat = coder.decode(latents, x)
        there = latents.values != 0
        story = batch.rows[batch.keep.cpu().nonzero()[:, 0]]
        by_token = ((y - y_hat).square().sum(-1), (y - mean.to(y)).square().sum(-1), there.sum(-1))
        for total, values in zip(sums, by_token, strict=True):
            total.index_add_(0, story, values.double().cpu())
        counts += torch.bincount(latents.indices[there].cpu(), minlength=coder.cfg.n_latents)
    edits = {
        "reconstruction": reconstruction(coder),
        "zero latents": zero_latents(coder),
        "zero output": zero_output(),
        "mean output": constant_output(mean),
    }
    predictions = substituted(
        model, coder.cfg, tokens, edits, lengths=lengths, keep=keep, batch_size=batch_size, progress=progress
    )
    return Evaluation(*sums, kept.sum(1).double(), counts, mean, predictions)


def site_mean(
    model: Any,
    cfg: CoderConfig,
    tokens: Int[Tensor, "story pos"],
    kept: Bool[Tensor, "story pos"],
    batch_size: int = 32,
) -> Float[Tensor, " d_out"]:
    """The mean of what leaves a site, over tokens that count; float64."""
    total, n = torch.zeros(cfg.d_out, dtype=torch.float64), 0
    for batch in site_batches(model, cfg, tokens, None, kept, batch_size):
        y = batch.y[batch.keep].double()
        total += y.sum(0).cpu()
        n += len(y)
    return total / max(1, n)
