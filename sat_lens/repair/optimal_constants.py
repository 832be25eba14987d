"""Optimal constants for many components at once: in every step each row ablates one of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sat_lens.repair.components import Component, Site
from sat_lens.repair.rows import Rows


def fitted_constants(
    model: Any,
    rows: Rows,
    components: Sequence[Component],
    start: Mapping[Site, Tensor],
    spread: Mapping[Site, Tensor],
    steps: int,
    lr: float | int,
    batch: int,
    seed: int,
) -> dict[Site, Tensor]:
    """The constants, by site, that minimise the mean loss on next tokens when one component is replaced by its own.

    Every step draws `batch` rows and deals the components to them, so that all are fitted in the same passes:
    the loss is a sum over rows, and each row's depends on one component's constants alone. What is returned
    is the mean of the second half of the steps, which is steadier than the last one.

    Args:
        start: where the constants begin.
        spread: standard deviation of each activation, the unit of `lr`.
        steps: of Adam; 0 gives `start`.

    Cost: `steps` forward and backward passes over `batch` rows.
    """
    if steps < 0 or lr <= 0 or batch < 1:
        raise ValueError(f"steps must be at least 0, lr above 0 and batch at least 1; got {steps}, {lr} and {batch}")
    moved = {site: torch.zeros_like(value, requires_grad=True) for site, value in start.items()}
    average = {site: torch.zeros_like(value) for site, value in start.items()}
    adam = torch.optim.Adam(list(moved.values()), lr=lr)
    draw = torch.Generator().manual_seed(seed)
    units = {site: _members(components, site, value) for site, value in start.items()}
    device = model.W_U.device
    for step in range(steps):
        picked = torch.randint(rows.n, (batch,), generator=draw)
        given = torch.randperm(batch, generator=draw) % len(components)
        if len(components) > batch:
            given = torch.randperm(len(components), generator=draw)[:batch]
        constants = {site: start[site] + moved[site] * spread[site] for site in start}
        hooks = [(site.hook, _replaced(units[site][given.to(device)], constants[site])) for site in start]
        tokens, real = rows.cut(picked).to(device), rows.real[picked].to(device)
        with torch.enable_grad(), model.hooks(fwd_hooks=hooks):
            log_probs = model(tokens)[:, :-1].log_softmax(-1)
        nats = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
        nats = nats[real[:, 1 : tokens.shape[1]]]
        gradients = torch.autograd.grad(nats.mean(), list(moved.values()), allow_unused=True)
        for value, gradient in zip(moved.values(), gradients, strict=True):
            value.grad = gradient
        adam.step()
        if step >= steps // 2:
            for site in average:
                average[site] += moved[site].detach() / (steps - steps // 2)
    return {site: start[site] + average[site] * spread[site] for site in start}


def _members(components: Sequence[Component], site: Site, value: Tensor) -> Tensor:
    """Which units of a site each component has, with an axis for position and for each of the unit's own."""
    n = 1 if site.name == "mlp_out" else value.shape[0]
    mask = torch.zeros(len(components), n, dtype=torch.bool, device=value.device)
    for i, component in enumerate(components):
        for write in component.writes:
            if write.site == site:
                mask[i, list(write.units)] = True
    return mask[:, None, :, None] if site.name == "z" else mask[:, None]


def _replaced(units: Tensor, constants: Tensor) -> Any:
    """A hook that replaces these units from position 1 on."""

    def hook(value: Tensor, hook: Any = None) -> Tensor:
        changed = torch.where(units, constants, value)
        return torch.cat([value[:, :1], changed[:, 1:]], 1)

    return hook
