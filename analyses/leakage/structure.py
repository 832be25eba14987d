"""Structure: is the ablated stream what it is defined to be, and can it see what it must not?

A leak by the way the model is wired, not by what it learned. Each number is the largest deviation found, as a share of
the largest value that was compared; it has no chance in it and ought to be 0.

    counterfactual        ablated logits at position t, and those of a plain HookedTransformer with z and post masked at
                          t alone, in every layer
    future tokens         both streams' logits at t and before, when the tokens after t are others
    future tokens, masks  masks at t and before, likewise
    later layers          what the ablated attention of block l and of those before it reads, when the clean stream that
                          leaves block l is another; masks held fixed
    later layers, masks   masks of block l and of those before it, likewise; asked only of local masks chosen layer by
                          layer: all others are chosen from what later layers say

Computed by a copy of the model in double precision: there rounding, also where a mask chooses between nearly equal
scores or divides by their gap, stays far below `TOLERANCE`.

Source: self-ablating-transformers' commit b88bc9b, which took keys and values from the clean stream before each block,
no more from after it.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analyses.leakage.finding import Finding
from analyses.leakage.observed import Observed, unit_masks
from analyses.texts import Stories
from sat_lens.activations import inference
from sat_lens.gates import LayerUnits
from sat_lens.model import passing_through

TOLERANCE = 1e-8
"""Of the largest value. Double precision rounds at 2e-16; sums of 1e4 terms in 100 layers make 1e-13 of it, and a gap
of 1e-5 between scores, by which a soft mask divides, 1e-8. The wiring of before b88bc9b gave 1e-2 and more."""
CUTS = 8
"""Positions of each story."""


class Streams(NamedTuple):
    """Both streams of some stories: logits [story pos d_vocab], masks, and z before its mask, layer by layer."""

    clean: Tensor
    masks: list[LayerUnits]
    z: list[Float[Tensor, "story pos n_heads d_head"]]
    ablated: Tensor


def structure(model: Any, stories: Stories, observed: Observed, *, n_stories: int = 4, seed: int = 0) -> list[Finding]:
    """The findings above, of the first `n_stories` stories at `CUTS` positions each.

    Returns:
        `detail` of each: `largest`, the value that the deviation is a share of. Of `later layers` also `masks_moved`:
        the share of positions whose mask in block l or before moves; 0 for local masks.

    Cost: `CUTS` plain passes, and 1 + CUTS + n_layers of both streams, of n_stories stories in double precision.
    """
    model = in_double(model)
    part = stories.subset(torch.arange(min(n_stories, stories.n)))
    tokens = part.tokens[:, : int(part.lengths.max())].to(model.cfg.device)
    draw = np.random.default_rng(seed)
    cuts = np.stack([draw.choice(observed.pos[observed.of_stories([i])], CUTS) for i in range(part.n)])
    cuts = torch.from_numpy(cuts).to(tokens.device)
    noise = torch.Generator().manual_seed(seed)
    with inference(model):
        own = streams(model, tokens)
        return [
            _counterfactual(model, tokens, cuts, own),
            *_future(model, tokens, cuts, own, noise),
            *_depth(model, tokens, own, noise),
        ]


def in_double(model: Any) -> Any:
    """A copy of the model in double precision."""
    found = copy.deepcopy(model, {id(model.tokenizer): model.tokenizer}).double()
    for module in found.modules():
        if hasattr(module, "cfg"):
            module.cfg.dtype = torch.float64
    return found.eval()


def streams(model: Any, tokens: Int[Tensor, "story pos"], masks: list[LayerUnits] | None = None) -> Streams:
    """Both streams, under the model's own masks or, for the ablated one, under these."""
    clean = model.clean_stream(tokens, "logits")
    own = model.masks_of(clean)
    with passing_through({layer: block.ablated.hook_z for layer, block in enumerate(model.blocks)}) as z:
        ablated = model.ablated_stream(clean, own if masks is None else masks).logits
    return Streams(clean.output, own, [z[layer] for layer in range(len(z))], ablated)


def deviation(own: Tensor, other: Tensor, compared: Bool[Tensor, "story pos"]) -> float:
    """Largest difference at the positions compared, as a share of the largest value there; NaN if any value is."""
    own, other = own[compared], other[compared]
    return float((own - other).abs().amax() / own.abs().amax().clamp_min(torch.finfo(own.dtype).tiny))


def _counterfactual(model: Any, tokens: Tensor, cuts: Int[Tensor, "story cut"], own: Streams) -> Finding:
    plain, rows = model.to_hooked_transformer(), torch.arange(len(tokens), device=tokens.device)
    expected, found = [], []
    for columns in cuts.T:

        def masked(mask: Tensor, columns: Tensor = columns) -> Any:
            def hook(x: Tensor, hook: Any) -> Tensor:
                x = x.clone()
                x[rows, columns] *= mask[rows, columns]
                return x

            return hook

        hooks = [(f"blocks.{layer}.attn.hook_z", masked(mask.attn)) for layer, mask in enumerate(own.masks)]
        hooks += [
            (f"blocks.{layer}.mlp.hook_post", masked(mask.mlp))
            for layer, mask in enumerate(own.masks)
            if mask.mlp is not None
        ]
        expected.append(plain.run_with_hooks(tokens, fwd_hooks=hooks)[rows, columns])
        found.append(own.ablated[rows, columns])
    logits = torch.stack(expected)
    everywhere = torch.ones_like(cuts.T, dtype=torch.bool)
    return _finding(
        "counterfactual",
        "ablated logits against a clean run with one position ablated",
        deviation(logits, torch.stack(found), everywhere),
        cuts.numel(),
        len(tokens),
        {"largest": float(logits.abs().max())},
    )


def _future(
    model: Any, tokens: Tensor, cuts: Int[Tensor, "story cut"], own: Streams, noise: torch.Generator
) -> list[Finding]:
    places = torch.arange(tokens.shape[1], device=tokens.device)
    logits, masks, n = [], [], 0
    before = unit_masks(own.masks, model.ablation)
    for columns in cuts.T:
        past = places <= columns[:, None]
        others = (tokens + torch.randint(1, model.cfg.d_vocab, tokens.shape, generator=noise).to(tokens)) % (
            model.cfg.d_vocab
        )
        changed = streams(model, torch.where(past, tokens, others))
        logits += [deviation(own.clean, changed.clean, past), deviation(own.ablated, changed.ablated, past)]
        masks.append(deviation(before, unit_masks(changed.masks, model.ablation), past))
        n += int(past.sum())
    what = "when the tokens after them are others"
    detail = {"largest": float(own.ablated.abs().max())}, {"largest": float(before.abs().max())}
    return [
        _finding("future tokens", f"both streams' logits {what}", _worst(logits), n, len(tokens), detail[0]),
        _finding("future tokens, masks", f"masks {what}", _worst(masks), n, len(tokens), detail[1]),
    ]


def _depth(model: Any, tokens: Tensor, own: Streams, noise: torch.Generator) -> list[Finding]:
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    z, masks, moved = [], [], []
    before = unit_masks(own.masks, model.ablation)
    for layer in range(model.cfg.n_layers):

        def other(x: Tensor, hook: Any) -> Tensor:
            return x + x.std() * torch.randn(x.shape, generator=noise, dtype=x.dtype).to(x.device)

        with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", other)]):
            changed = streams(model, tokens, own.masks)
        z += [deviation(own.z[i], changed.z[i], everywhere) for i in range(layer + 1)]
        after = unit_masks(changed.masks, model.ablation)[:, :, : layer + 1]
        masks.append(deviation(before[:, :, : layer + 1], after, everywhere))
        moved.append(float((before[:, :, : layer + 1] != after).any(-1).any(-1).double().mean()))
    what = "when the clean stream that leaves the block is another"
    n, local = tokens.numel() * len(moved), model.ablation.mask == "local" and model.ablation.scope == "layer"
    detail = {"largest": max(float(x.abs().max()) for x in own.z), "masks_moved": float(np.mean(moved))}
    found = [_finding("later layers", f"a block's ablated attention {what}", _worst(z), n, len(tokens), detail)]
    if local:
        largest = {"largest": float(before.abs().max())}
        found.append(_finding("later layers, masks", f"a block's masks {what}", _worst(masks), n, len(tokens), largest))
    return found


def _worst(deviations: list[float]) -> float:
    return float(np.max(deviations))


def _finding(test: str, measure: str, value: float, n: int, n_stories: int, detail: dict[str, Any]) -> Finding:
    return Finding(
        test,
        f"largest deviation of {measure}",
        value=value,
        null=0.0,
        ci_low=value,
        ci_high=value,
        p=float("nan"),
        unit="share of the largest",
        margin=TOLERANCE,
        relevant=TOLERANCE,
        smallest=TOLERANCE,
        n=n,
        n_stories=n_stories,
        detail=detail,
    )
