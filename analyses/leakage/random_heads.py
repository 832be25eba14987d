"""Masks that cannot be a message: of untrained heads, of the token alone, the same everywhere, or drawn by lot.

Untrained heads hash the clean stream, so that their masks do hold bits about the prediction; but nobody has learned
to read them. The others hold none beyond the current token. All are what a test must not call a leak.
"""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from analyses.leakage.observed import Observed, packed, winners

CHUNK = 4096
"""Rows whose masks are unpacked at once."""


def random_heads(model: Any, seed: int) -> Any:
    """The model with other relevance heads, as torch.nn.Linear starts them: U(-1, 1) / sqrt(inputs).

    Weights of the trunk are shared, not copied; its hook points are, too. No global random state is touched.
    """
    draw = torch.Generator().manual_seed(seed)
    gates = copy.deepcopy(model.gates)
    with torch.no_grad():
        for head in gates.modules():
            if isinstance(head, nn.Linear):
                bound = head.in_features**-0.5
                for parameter in (head.weight, head.bias):
                    values = torch.rand(parameter.shape, generator=draw, dtype=torch.float64)
                    parameter.copy_((2 * values - 1) * bound)
    return _with(model, gates=gates)


def with_forward(model: Any, forward: str) -> Any:
    """The model with `hard` or `soft` masks; everything else is shared."""
    found = _with(model)
    found.ablation = dataclasses.replace(model.ablation, forward=forward)
    return found


def _with(model: Any, **modules: nn.Module) -> Any:
    """A shallow copy that has its own table of modules."""
    found = copy.copy(model)
    found._modules = {**model._modules, **modules}
    return found


def token_masks(observed: Observed, seed: int) -> Observed:
    """The same positions, each with the mask of one row that is drawn for its current token."""
    _, at = np.unique(observed.token, return_inverse=True)
    shuffled = np.random.default_rng(seed).permutation(observed.n)
    chosen = np.empty(int(at.max()) + 1, dtype=int)
    chosen[at[shuffled]] = shuffled
    return observed.with_masks_of(chosen[at])


def random_masks(observed: Observed, ablation: Any, seed: int) -> Observed:
    """The same positions, each with its mask's entries dealt anew among the units that k is chosen from."""
    draw = np.random.default_rng(seed)
    return _with_masks(
        observed,
        lambda rows: dealt(observed.mask_values(rows), observed.attn_width, ablation.scope, draw),
        ablation,
    )


def static_masks(observed: Observed, ablation: Any) -> Observed:
    """The same positions, all with one mask: `static_values`."""
    values = static_values(observed, ablation)
    return _with_masks(observed, lambda rows: np.broadcast_to(values, (len(rows), *values.shape)), ablation)


def static_values(observed: Observed, ablation: Any) -> Float[np.ndarray, "layer bit"]:
    """The units that win most often, as many as a mask has; where masks are soft, the mean weights."""
    total = np.zeros((observed.n_layers, observed.width))
    for rows in _chunks(observed.n):
        total += observed.mask_values(rows).sum(0, dtype=np.float64)
    mean = total / observed.n
    if ablation.forward == "soft":
        return mean.astype(np.float32)
    largest = winners(
        torch.from_numpy(mean)[None, None], dataclasses.replace(ablation, forward="soft"), observed.attn_width
    )
    return largest[0, 0].numpy().astype(np.float32)


def _with_masks(observed: Observed, of_rows: Callable[[np.ndarray], np.ndarray], ablation: Any) -> Observed:
    bits, soft = [], []
    for rows in _chunks(observed.n):
        values = torch.from_numpy(np.ascontiguousarray(of_rows(rows)))
        bits.append(packed(winners(values[:, None], ablation, observed.attn_width)[:, 0]).numpy())
        soft.append(values.half().numpy() if observed.soft is not None else None)
    return dataclasses.replace(
        observed, bits=np.concatenate(bits), soft=None if observed.soft is None else np.concatenate(soft)
    )


def _chunks(n: int) -> list[np.ndarray]:
    return np.array_split(np.arange(n), max(1, n // CHUNK))


def dealt(
    values: Float[np.ndarray, "position layer bit"], attn_width: int, scope: str, draw: np.random.Generator
) -> Float[np.ndarray, "position layer bit"]:
    """The entries of every mask dealt anew, within what k is chosen from: a layer's attention units, its neurons.

    With scope `model` those of all layers together.
    """
    found = []
    for part in np.split(values, [attn_width], axis=-1):
        whole = part.reshape(len(part), 1, -1) if scope == "model" else part
        order = draw.random(whole.shape, dtype=np.float32).argsort(-1)
        found.append(np.take_along_axis(whole, order, -1).reshape(part.shape))
    return np.concatenate(found, -1)
