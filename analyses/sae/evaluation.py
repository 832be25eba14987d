"""What an SAE loses, and how many latents it takes, story by story.

| number | what it is | unit |
| --- | --- | --- |
| `l0` | latents that are not 0 | latents a token |
| `fvu` | sum (x - x_hat)^2 / sum (x - mean x)^2 | share |
| `ce_score` | (CE_zero - CE_sae) / (CE_zero - CE_clean) | share |
| `dead` | latents that are 0 on all of these tokens | share |

CE is the next-token loss of the clean model with the site as it is, as the SAE gives it, and zero. The null of the CE
score is that of the mean in the place of every output: what needs no latent at all. Losses are sae-lens'
(`get_recons_loss`); sums are by story, for a bootstrap over stories.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.texts import Stories
from sat_lens.activations import activations

RATIOS = ("l0", "fvu", "ce_score", "ce_clean", "ce_sae", "ce_zero")
UNITS = {
    "l0": "latents a token",
    "fvu": "share",
    "ce_score": "share",
    "ce_clean": "nats a token",
    "ce_sae": "nats a token",
    "ce_zero": "nats a token",
    "dead": "share of latents",
    "l0_matched": "latents a token",
    "ce_score_matched": "share",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An SAE on some stories: sums over the tokens of each.

    Args:
        n, n_predicted: tokens at the site, and predictions.
        l0, error, squares: of active latents, (x - x_hat)^2, x^2.
        sums: of x.
        losses: nats, by `clean`, `sae`, `zero` and `mean`.
        latents: tokens at which each latent is not 0.
    """

    n: Float[np.ndarray, " story"]
    n_predicted: Float[np.ndarray, " story"]
    l0: Float[np.ndarray, " story"]
    error: Float[np.ndarray, " story"]
    squares: Float[np.ndarray, " story"]
    sums: Float[np.ndarray, "story d_in"]
    losses: dict[str, Float[np.ndarray, " story"]]
    latents: Float[np.ndarray, " latent"]

    def numbers(self, weights: Float[np.ndarray, "resample story"] | None = None) -> dict[str, np.ndarray]:
        """Every number of RATIOS, [resample]; without weights, of the stories as they are, [1]."""
        w = np.full((1, len(self.n)), 1 / len(self.n)) if weights is None else weights
        n, predicted = w @ self.n, w @ self.n_predicted
        variance = w @ self.squares - ((w @ self.sums) ** 2).sum(-1) / n
        ce = {name: (w @ values) / predicted for name, values in self.losses.items()}
        return {
            "l0": (w @ self.l0) / n,
            "fvu": (w @ self.error) / variance,
            "ce_score": (ce["zero"] - ce["sae"]) / (ce["zero"] - ce["clean"]),
            "ce_clean": ce["clean"],
            "ce_sae": ce["sae"],
            "ce_zero": ce["zero"],
        }

    @property
    def dead(self) -> float:
        """Share of latents that no token here makes active."""
        return float((self.latents == 0).mean())

    @property
    def mean_score(self) -> float:
        """The CE score of the mean output."""
        ce = {name: values.sum() for name, values in self.losses.items()}
        return float((ce["zero"] - ce["mean"]) / (ce["zero"] - ce["clean"]))


def evaluated(
    model: Any, sae: Any, hook: str, stories: Stories, *, separator: int | None = None, batch: int = 32
) -> Evaluation:
    """Measure an SAE of sae-lens.

    Args:
        model: a HookedTransformer.
        stories: held out.
        separator: a token that the SAE was not trained on: it keeps its activations, and is not measured.
        batch: stories a pass.

    Cost: four passes of the model, two as far as the site.
    """
    from sae_lens.evals import get_recons_loss
    from sae_lens.training.activation_scaler import ActivationScaler

    inside = torch.arange(stories.tokens.shape[1]) < stories.lengths[:, None]
    kept = inside if separator is None else inside & (stories.tokens != separator)
    ignored = None if separator is None else [separator]
    n, width = stories.n, model.cfg.d_model
    found = {name: np.zeros(n) for name in ("l0", "error", "squares")}
    sums, latents = np.zeros((n, width)), np.zeros(int(sae.cfg.d_sae))
    for part in activations(model, stories.tokens, [hook], batch_size=batch):
        rows, keep = part.rows.numpy(), kept[part.rows]
        x = part.activations[hook].clone()
        with torch.no_grad():
            z = sae.encode(x)
            error = (x - sae.decode(z)).double().square().sum(-1)
        x, active = x.double(), z != 0
        for name, values in (("l0", active.sum(-1)), ("error", error), ("squares", x.square().sum(-1))):
            found[name][rows] = _summed(values, keep)
        sums[rows] = (x * keep[..., None].to(x.device)).sum(1).cpu().numpy()
        latents += active[keep.to(active.device)].sum(0).double().cpu().numpy()
    n_kept = kept.sum(1).numpy().astype(float)
    mean = torch.from_numpy(sums.sum(0) / n_kept.sum())
    losses = {name: np.zeros(n) for name in ("clean", "sae", "zero", "mean")}
    names = {"clean": "ce_loss_without_sae", "sae": "ce_loss_with_sae", "zero": "ce_loss_with_ablation"}
    for rows in torch.arange(n).split(batch):
        tokens, predicted = stories.tokens[rows].to(model.cfg.device), stories.predicted[rows][:, :-1]
        by_token = get_recons_loss(sae, model, ActivationScaler(), tokens, compute_kl=False, compute_ce_loss=True,
                                   ignore_tokens=ignored, hook_name=hook)  # fmt: skip
        for name, theirs in names.items():
            losses[name][rows.numpy()] = _summed(by_token[theirs], predicted)
        losses["mean"][rows.numpy()] = _summed(_loss_with(model, tokens, hook, mean), predicted)
    n_predicted = stories.predicted.sum(1).numpy().astype(float)
    return Evaluation(n_kept, n_predicted, **found, sums=sums, losses=losses, latents=latents)


def _loss_with(model: Any, tokens: Tensor, hook: str, output: Tensor) -> Float[Tensor, "row pos"]:
    """The loss with one output everywhere."""

    def replaced(activation: Tensor, hook: Any) -> Tensor:
        return output.to(activation).expand_as(activation)

    with torch.no_grad():
        return model.run_with_hooks(tokens, return_type="loss", loss_per_token=True, fwd_hooks=[(hook, replaced)])


def _summed(values: Float[Tensor, "row pos"] | Any, keep: Bool[Tensor, "row pos"]) -> Float[np.ndarray, " row"]:
    return (values.cpu().double() * keep).sum(1).numpy()
