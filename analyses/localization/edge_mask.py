"""A learned edge mask: gates on all edges at once, trained to keep the value with few edges open.

Every edge has a gate z between 0 and 1, drawn anew at each step from the hard concrete distribution

    u ~ U(0, 1);  s = sigmoid((log u - log(1 - u) + log_alpha) / beta);  z = clip(s (zeta - gamma) + gamma, 0, 1)
    P(z > 0) = sigmoid(log_alpha - beta log(-gamma / zeta))

which is 0 or 1 with positive probability and differentiable in log_alpha between. An edge carries z parts
of what its source writes in this run and 1 - z parts of what it wrote in the other one. Minimised is

    fall of the value + l1 d + l2 d^2,    d = expected number of open gates / target - 1

with Adam for log_alpha, and gradient ascent for the multipliers l1 and l2, so that the constraint
holds at the end whatever the unit of the value. The target falls from all edges to `size` in the
first `warm_up` share of the steps. With `value="kl"` the fall is KL(intact model || circuit); with
`logit_diff` edges that work against the answer are worth cutting.

Unlike a greedy search, this sees edges that only count together, and what one does when another is gone.

Source: arXiv 1712.01312 (gates), 2406.16778 (edge pruning: the constraint), 2104.03514 (masks on a frozen model).
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm.auto import tqdm

from analyses.localization.circuit import largest
from analyses.localization.runner import end_logits
from analyses.localization.setting import Scores, Setting
from sat_lens.distributed import rank, sum_gradients, world_size
from sat_lens.memory import require

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
SHIFT = BETA * math.log(-GAMMA / ZETA)
MULTIPLIER_RATE = 0.05
"""Of the multipliers' ascent, in units of the fall when every edge is cut, a step."""


def edge_mask(
    setting: Setting,
    *,
    size: float | int,
    steps: int = 600,
    lr: float = 0.1,
    warm_up: float = 0.5,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Scores, Bool[np.ndarray, "source destination"]]:
    """Train gates until about `size` of them are open.

    Args:
        setting: its value is what must not fall, its final norm live or frozen.
        size: the circuit's edges: a number (int) or a share of all (float).
        steps: of Adam; each draws one circuit for each group of prompts.
        lr: of log_alpha.
        warm_up: share of the steps in which the target falls to `size`.
        seed: of the gates drawn.
        progress: show a bar on stderr, when that is a terminal.

    Returns:
        Scores: log odds that the gate is open, log(P(z > 0) / P(z = 0)); positive: more likely kept than not.
        NaN where there is no edge. Members: exactly `size` edges, those of the largest scores.

    Raises:
        ValueError: a size, rate or number of steps that is none; too little memory.

    Cost: steps x a forward and backward pass on every prompt, groups of them dealt among processes; memory about
        12 x destination x n x pos x d_model of the largest group, estimated, and refused before it is started.
    """
    n_edges = setting.graph.n_edges
    target = _target(size, n_edges)
    if steps < 1 or not 0 < lr < math.inf or not 0 <= warm_up <= 1:
        raise ValueError(f"steps and lr must be above 0, warm_up in 0..1; got {steps}, {lr} and {warm_up}")
    _require_memory(setting)
    device = setting.groups[0].intact.device
    generator = torch.Generator(device).manual_seed(seed)
    possible = torch.as_tensor(setting.graph.possible, device=device)
    log_alpha = torch.full((n_edges,), 3.0, device=device, requires_grad=True)
    optimizer = torch.optim.Adam([log_alpha], lr=lr)
    rate = MULTIPLIER_RATE * abs(float((setting.intact_values - setting.other_values).mean()))
    linear = square = 0.0
    for step in tqdm(range(steps), unit="step", disable=None if progress else True):
        goal = n_edges + (target - n_edges) * min(1.0, (step + 1) / max(1, warm_up * steps))
        log_alpha.grad = torch.zeros_like(log_alpha)
        for i, group in enumerate(setting.groups):
            drawn = hard_concrete(log_alpha, generator)
            if i % world_size() != rank():
                continue
            gates = torch.zeros(possible.shape, device=device).masked_scatter(possible, drawn)
            logits = end_logits(group.contrast, gates[None].to(group.intact.dtype), setting.frozen_norm)
            (-setting.measured(logits, group).sum() / setting.n).backward(inputs=[log_alpha])
        sum_gradients([log_alpha])
        excess = open_probability(log_alpha).sum() / goal - 1
        (linear * excess + square * excess**2).backward()
        optimizer.step()
        linear += rate * excess.item()
        square += rate * excess.item() ** 2
    scores = np.full(setting.graph.possible.shape, np.nan)
    scores[setting.graph.possible] = (log_alpha.detach() - SHIFT).double().numpy(force=True)
    return scores, largest(setting.graph, scores, target, absolute=False).members


def hard_concrete(log_alpha: Float[Tensor, " edge"], generator: torch.Generator) -> Float[Tensor, " edge"]:
    """One draw of every gate, in 0..1; differentiable in log_alpha."""
    u = torch.rand(log_alpha.shape, generator=generator, device=log_alpha.device).clamp(1e-6, 1 - 1e-6)
    s = torch.sigmoid((torch.logit(u) + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(log_alpha: Float[Tensor, " edge"]) -> Float[Tensor, " edge"]:
    """P(z > 0) of every gate; the sum is the expected number of edges."""
    return torch.sigmoid(log_alpha - SHIFT)


def _target(size: float | int, n_edges: int) -> int:
    """A number of edges."""
    number = size * n_edges if isinstance(size, float) else size
    if not 0.5 < number < n_edges + 0.5:  # as NaN is not
        raise ValueError(f"size must be a share in 0..1 or 1 to {n_edges:,} edges; got {size}")
    return round(number)


def _require_memory(setting: Setting) -> None:
    clean = max((group.contrast.clean for group in setting.groups), key=Tensor.numel)
    need = 12 * setting.graph.possible.shape[1] * clean[0].numel() * clean.element_size()
    what = f"the gradient of {len(clean[0])} prompts with respect to {setting.graph.n_edges:,} edges"
    require(need, what, str(setting.parts.cfg.device), "take a smaller batch")
