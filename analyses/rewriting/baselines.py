"""What rewriting is compared with: the coder alone, nothing at all, and latents that are right but for the context.

| baseline | the latents, or the output |
| --- | --- |
| `reconstruction` | the true latents |
| `zero latents` | none; skip connection and bias stay |
| `zero output` | nothing leaves the site |
| `mean output` | its mean over the stories to explain from |
| `mean latents` | each latent's mean over them |
| `permuted latents` | the true values, each given to a random other latent |
| `resampled latents` | the true latents of a random other token |

All but the outputs are decoded from the dense form, as plans are, so that a plan that changes nothing is exactly
`reconstruction`, and one that says 0 everywhere exactly `zero latents`.

Source: arXiv 2501.18838 (reconstruction, zero, random); differs: its code gave random latents an index for a value.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from analyses.rewriting.setting import Setting
from sat_lens.coders.evaluate import site_mean
from sat_lens.coders.sites import SiteBatch
from sat_lens.coders.substitute import Edit, constant_output, edited_latents, zero_output

RECONSTRUCTION, ZERO = "reconstruction", "zero latents"
BASELINES = (
    RECONSTRUCTION,
    ZERO,
    "zero output",
    "mean output",
    "mean latents",
    "permuted latents",
    "resampled latents",
)
RESAMPLED = 1024
"""Tokens whose latents are drawn from."""


def baselines(setting: Setting) -> dict[str, Edit]:
    """All of them, by name. Cost: a pass over the stories to explain from."""
    coder, rows = setting.coder, setting.splits.explain
    tokens, keep = setting.stories.tokens[rows], setting.keep[rows]
    mean = site_mean(setting.model, coder.cfg, tokens, keep)
    latents = {
        RECONSTRUCTION: lambda site, z: z,
        ZERO: lambda site, z: torch.zeros_like(z),
        "mean latents": _constant(mean_latents(setting)),
        "permuted latents": _permuted(setting.n_latents, setting.seed),
        "resampled latents": _resampled(some_tokens(setting), setting.seed),
    }
    found = {name: edited_latents(coder, change) for name, change in latents.items()}
    found |= {"zero output": zero_output(), "mean output": constant_output(mean.float())}
    return {name: found[name] for name in BASELINES}


def mean_latents(setting: Setting) -> Float[Tensor, " latent"]:
    """Over the tokens to explain from."""
    acts = setting.of("explain")
    index = acts.index.to(torch.int32).long()
    total = torch.zeros(acts.n_latents, dtype=torch.float64).index_add_(0, index, acts.value.double())
    return total / max(1, acts.n_tokens)


def some_tokens(setting: Setting) -> Float[Tensor, "token latent"]:
    """True latents of tokens drawn from the stories to calibrate on, at most RESAMPLED."""
    acts, draw = setting.of("calibrate"), torch.Generator().manual_seed(setting.seed)
    chosen = torch.randperm(acts.n_tokens, generator=draw)[:RESAMPLED].sort().values
    found, first = [], 0
    for batch in acts.batches():
        values = batch.values[batch.keep]
        here = chosen[(chosen >= first) & (chosen < first + len(values))] - first
        found.append(values[here])
        first += len(values)
    return torch.cat(found)


def _constant(value: Tensor) -> Callable[[SiteBatch, Tensor], Tensor]:
    return lambda site, z: value.to(z).expand_as(z)


def _permuted(n: int, seed: int) -> Callable[[SiteBatch, Tensor], Tensor]:
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))

    def change(site: SiteBatch, z: Tensor) -> Tensor:
        """A random order of all latents, turned by a random number of places at each token."""
        shift = torch.randint(1, max(2, n), z.shape[:2], generator=_generator(site, seed))
        at = order[(order.argsort() + shift[..., None]) % n]
        return z.gather(-1, at.to(z.device))

    return change


def _resampled(pool: Float[Tensor, "token latent"], seed: int) -> Callable[[SiteBatch, Tensor], Tensor]:
    def change(site: SiteBatch, z: Tensor) -> Tensor:
        drawn = torch.randint(len(pool), z.shape[:2], generator=_generator(site, seed + 1))
        return pool[drawn].to(z)

    return change


def _generator(site: SiteBatch, seed: int) -> torch.Generator:
    """The same for the same rows, whatever else is edited."""
    return torch.Generator().manual_seed(seed * 1_000_003 + int(site.rows[0]))
