"""Ablation: what a unit's activation is replaced by, as values and as hooks.

| kind | the unit is replaced by | data it needs |
| --- | --- | --- |
| zero | 0 | none |
| mean | its mean over prompts (and positions, unless kept apart) | `mean_activations` of a set of prompts |
| resample | its activation on another prompt | activations of the counterfactuals, or of `other_rows` |
| optimal | the constant that hurts the task least | `optimal_constants`: gradient steps on the task |

An ablation is used as `model.hooks(fwd_hooks=[(name, ablation.hook(units))])` and leaves no trace.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sat_lens.activations import activations
from sat_lens.streaming import Moments

Kind = Literal["zero", "mean", "resample", "optimal"]


@dataclasses.dataclass(frozen=True)
class Ablation:
    """A replacement for activations: `values` broadcast against [batch pos *unit], or None for zeros."""

    kind: Kind
    values: Tensor | None = None

    def replace(
        self, activation: Float[Tensor, "batch pos *unit"], units: Tensor | None = None
    ) -> Float[Tensor, "batch pos *unit"]:
        """The activation with `units` (a boolean mask that broadcasts against it; None: all) replaced."""
        values = activation.new_zeros(()) if self.values is None else self.values.to(activation)
        try:
            shape = torch.broadcast_shapes(values.shape, activation.shape)
        except RuntimeError:
            shape = None
        if shape != activation.shape:
            raise ValueError(
                f"{self.kind} values must broadcast to the activation's shape {tuple(activation.shape)}; "
                f"got {tuple(values.shape)}"
            )
        return values.expand(shape) if units is None else torch.where(units, values, activation)

    def hook(self, units: Tensor | None = None) -> Callable[..., Tensor]:
        """A hook function that replaces `units` of whatever passes its hook point."""

        def ablated(activation: Tensor, hook: Any = None) -> Tensor:
            return self.replace(activation, units)

        return ablated


def zero() -> Ablation:
    """Replace by 0. Needs no data."""
    return Ablation("zero")


def mean(values: Float[Tensor, "*unit"]) -> Ablation:
    """Replace by a mean. Needs `mean_activations` of one hook: [*unit], or [pos *unit] kept by position."""
    return Ablation("mean", values)


def resample(activations: Float[Tensor, "batch pos *unit"]) -> Ablation:
    """Replace by the activations of other prompts, row by row. Needs those: of the counterfactuals, or of
    the same batch in the order of `other_rows`, so that no row meets itself."""
    return Ablation("resample", activations)


def optimal(constants: Float[Tensor, "*unit"]) -> Ablation:
    """Replace by constants that were fitted to the task. Needs `optimal_constants`."""
    return Ablation("optimal", constants)


def other_rows(n: int, seed: int = 0) -> Int[Tensor, " n"]:
    """For each of `n` rows the index of another one, each used once: one random cycle through all rows.

    Raises:
        ValueError: fewer than 2 rows.
    """
    if n < 2:
        raise ValueError(f"resampling needs at least 2 rows; got {n}")
    cycle = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty(n, dtype=torch.long)
    donors[cycle] = cycle.roll(1)
    return donors


def mean_activations(
    model: Any,
    tokens: Int[Tensor, "n pos"],
    hook_names: Sequence[str],
    *,
    keep: Bool[Tensor, "n pos"] | None = None,
    by_position: bool = False,
    batch: int = 32,
    **forward: Any,
) -> dict[str, Tensor]:
    """Mean activation at each hook point over tokens, in float64 batch by batch.

    Args:
        model: a HookedTransformer, or one with two streams.
        tokens: padded on the right, where at all.
        hook_names: hook points whose activations begin with [batch pos].
        keep: tokens that count, such as those that are no padding; None: all.
        by_position: keep positions apart; one at which no token counts has mean 0.
        batch: rows a forward pass.
        forward: passed to the model, such as `stream="ablated"`.

    Returns:
        By hook name: [*unit], or [pos *unit].

    Cost: one forward pass over `tokens`; memory does not grow with n.
    """
    keep = torch.ones(tokens.shape, dtype=torch.bool) if keep is None else keep.cpu()
    if not keep.any():
        raise ValueError("a mean needs at least 1 token; none is kept")
    moments = {name: Moments() for name in hook_names}
    for rows, batch_activations in activations(model, tokens, hook_names, batch_size=batch, **forward):
        kept = keep[rows]
        for name, values in batch_activations.items():
            if values.shape[:2] != kept.shape:
                raise ValueError(f"{name} must begin with [batch pos]; got {tuple(values.shape)}")
            moments[name].update(*((values, kept) if by_position else (values.flatten(0, 1), kept.flatten())))
    return {name: found.mean.to(model.cfg.dtype) for name, found in moments.items()}


def optimal_constants(
    model: Any,
    hook_name: str,
    loss: Callable[[], Float[Tensor, ""]],
    start: Float[Tensor, "*unit"],
    *,
    units: Bool[Tensor, "*unit"] | None = None,
    steps: int = 100,
    lr: float = 0.05,
) -> Float[Tensor, "*unit"]:
    """The constants, one a unit, that minimise a loss when they replace the units at one hook point.

    All of `units` are replaced together, at every position. What is left of the loss above its
    unablated value is then due to the information in the units, not to their being moved off their
    usual range.

    Args:
        model: whose hook point it is; its weights get no gradient.
        hook_name: hook point with activations [batch pos *unit].
        loss: runs the model on the task and returns the loss, a scalar; called once a step.
        start: where the constants begin, such as the mean.
        units: which to replace; None: all. The others keep their `start`.
        steps: Adam steps.
        lr: of Adam, in units of the activation.

    Returns:
        The best constants met on the way.

    Cost: `steps` + 1 forward and backward passes.

    Source: arXiv 2409.09951 (optimal ablation); differs: the loss is the caller's, and the constants
    are fitted on all of its prompts at each step.
    """
    if steps < 0 or lr <= 0:
        raise ValueError(f"steps must be at least 0 and lr above 0; got {steps} and {lr}")
    constants = start.detach().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([constants], lr=lr)
    best, lowest = start.detach().clone(), float("inf")
    for step in range(steps + 1):
        with torch.enable_grad(), model.hooks(fwd_hooks=[(hook_name, optimal(constants).hook(units))]):
            value = loss()
        if value.item() < lowest:
            best, lowest = constants.detach().clone(), value.item()
        if step < steps:
            (constants.grad,) = torch.autograd.grad(value, [constants])
            optimizer.step()
    return best if units is None else torch.where(units, best, start)
