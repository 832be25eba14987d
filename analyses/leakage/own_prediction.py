"""The own-prediction channel: does the mask come from what the clean stream is about to say?

Out of what the relevance heads read, the direction that the unembedding reads the clean prediction from (the logit
lens) is projected, and the masks are chosen anew; the ablated stream then runs under them, everything else unchanged.
For comparison, as much of the input's norm is taken away along a random direction. If masks pass the prediction on,
they change more, and the loss grows by more, than for the random direction.

Local heads lose the direction from the stream that enters each layer, global ones from the final normalised stream.
Untrained heads lose it too, and their masks change as well; what the ablated stream makes of that, on average
nothing, is the null of the finding.

Source: the logit lens as in arXiv 2303.08112, section 2.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.leakage.calibrated import at_best_scale, scaled_bits
from analyses.leakage.finding import Finding
from analyses.leakage.interventions import Batch, batches, logits_under
from analyses.leakage.judged import judged
from analyses.leakage.observed import Observed, unit_masks, winners
from analyses.leakage.variants import story_means
from analyses.texts import Stories
from sat_lens.activations import inference

DIRECTIONS: tuple[str, ...] = ("prediction", "random", "likeliest")


def own_prediction(
    model: Any, stories: Stories, observed: Observed, heads: Sequence[Any], *, n_alternatives: int = 5, seed: int = 0
) -> Finding:
    """Bits that the ablated stream loses when the heads cannot read the clean prediction.

    Args:
        heads: the model with random heads (`random_heads`), a draw each.
        n_alternatives: likeliest tokens whose directions are all taken away, for `detail`.

    Returns:
        `detail`, each for the prediction's direction, a random one and those of the likeliest tokens: `loss_bits` of
        the ablated stream (and `own`), scaled as `calibrated` says, `kept` (share of the winners that stay) and
        `norm` (share of the input's norm that is taken away).

    Cost: one clean pass, 4 + 3 x number of heads ablated ones, and the masks of each.
    """
    parts: dict[str, list[np.ndarray]] = {}
    read = scaled_bits(observed)
    for number, batch in enumerate(batches(model, stories)):
        with inference(model):
            tokens = likeliest(model, batch, n_alternatives)
            for i, one in enumerate((model, *heads)):
                own = unit_masks(one.masks_of(batch.clean), one.ablation)
                _keep(parts, f"own {i}", read(batch.rows, logits_under(one, batch, own).float()))
                for name in DIRECTIONS if not i else DIRECTIONS[:2]:
                    draw = torch.Generator().manual_seed(seed + number) if name == "random" else None
                    changed, norm = without(one, batch, tokens if name == "likeliest" else tokens[:, :1], draw)
                    masks = unit_masks(one.masks_of(changed), one.ablation)
                    _keep(parts, f"{name} {i}", read(batch.rows, logits_under(one, batch, masks).float()))
                    if not i:
                        _keep(parts, f"norm {name}", norm)
                        _keep(
                            parts, f"kept {name}", overlap(own[batch.keep], masks[batch.keep], one, observed.attn_width)
                        )
    found = {name: np.concatenate(values) for name, values in parts.items()}
    losses, falls = {}, []
    for i in range(1 + len(heads)):
        of_heads = {name: found[f"{name} {i}"] for name in ("own", *DIRECTIONS) if f"{name} {i}" in found}
        scaled, scale = at_best_scale(of_heads, "own")
        losses = losses or {"scale": scale, **{name: float(loss.mean()) for name, loss in scaled.items()}}
        falls.append(story_means(observed, scaled["prediction"] - scaled["random"]))
    return judged(
        "own prediction",
        "bits lost when the heads cannot read the clean prediction, beyond a random direction",
        falls[0],
        falls[1:],
        n=observed.n,
        detail={
            "scale": losses.pop("scale"),
            "loss_bits": losses,
            "kept": {name: float(found[f"kept {name}"].mean()) for name in DIRECTIONS},
            "norm": {name: float(found[f"norm {name}"].mean()) for name in DIRECTIONS},
        },
    )


def _keep(kept: dict[str, list[np.ndarray]], name: str, values: np.ndarray) -> None:
    kept.setdefault(name, []).append(values)


def likeliest(model: Any, batch: Batch, n: int) -> Int[Tensor, "position rank"]:
    """The clean stream's likeliest next tokens at the predicted positions."""
    logits = batch.clean.final[batch.keep] @ model.unembed.W_U + model.unembed.b_U
    return logits.topk(min(n, logits.shape[-1]), -1).indices


def without(
    model: Any, batch: Batch, tokens: Int[Tensor, "position rank"], draw: torch.Generator | None
) -> tuple[Any, Float[np.ndarray, " position"]]:
    """The clean stream, as the heads are shown it, without the directions of these tokens.

    Args:
        draw: a random direction in their place, along which the input has as much of its norm.

    Returns:
        The stream, and the share of the norm that each position lost (mean of the heads' inputs).
    """
    clean, keep, shares = batch.clean, batch.keep, []

    def cut(x: Tensor, directions: Float[Tensor, "position d_model rank"]) -> Tensor:
        rest, share = projected_out(x[keep], directions, draw)
        shares.append(share)
        changed = x.clone()
        changed[keep] = rest
        return changed

    unread = model.unembed.W_U.T - model.unembed.W_U.mean(-1)
    of_final = unread[tokens].transpose(1, 2)
    if model.ablation.mask in ("global", "both"):
        clean = clean._replace(final=cut(clean.final, of_final))
    if model.ablation.mask in ("local", "both"):
        of_stream = before_final_norm(model, of_final)
        clean = clean._replace(resid_pre=[cut(x, of_stream) for x in clean.resid_pre])
    return clean, torch.stack(shares).mean(0).double().numpy(force=True)


def before_final_norm(
    model: Any, directions: Float[Tensor, "position d_model rank"]
) -> Float[Tensor, "position d_model rank"]:
    """Directions of the residual stream that the final norm, its scale aside, turns into these."""
    norm = getattr(model, "ln_final", None)
    if (gain := getattr(norm, "w", None)) is not None:
        directions = directions * gain[:, None]
    return directions - directions.mean(1, keepdim=True) if "LayerNorm" in type(norm).__name__ else directions


def projected_out(
    x: Float[Tensor, "position d_model"],
    directions: Float[Tensor, "position d_model rank"],
    draw: torch.Generator | None = None,
) -> tuple[Float[Tensor, "position d_model"], Float[Tensor, " position"]]:
    """x without its part in the span of the directions, and the share |part| / |x| that was lost.

    With `draw`: without its part along one random direction, which has the same share.
    """
    basis = torch.linalg.qr(directions).Q
    part = (basis @ (basis.mT @ x[..., None]))[..., 0]
    size = x.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    share = part.norm(dim=-1, keepdim=True) / size
    if draw is not None:
        along = x / size
        noise = torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x)
        across = noise - (noise * along).sum(-1, keepdim=True) * along
        direction = share * along + (1 - share**2).clamp(min=0).sqrt() * across / across.norm(dim=-1, keepdim=True)
        part = share * size * direction
    return x - part, share[..., 0]


def overlap(
    one: Float[Tensor, "position layer bit"], other: Float[Tensor, "position layer bit"], model: Any, attn_width: int
) -> Float[np.ndarray, " position"]:
    """Share of one mask's winners that win in the other, too."""
    a, b = (winners(masks[:, None], model.ablation, attn_width)[:, 0].flatten(1) for masks in (one, other))
    return ((a & b).sum(1) / a.sum(1).clamp(min=1)).double().numpy(force=True)
