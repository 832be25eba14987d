"""Which parts to take out, so that one task goes and the other stays.

The source's rule takes each part by itself, from its importance T for the task that is to go and P for the other:

    P <= 0 < T,   or   0 < P < tau and P < T

tau is in nats a token, a mean over examples; the source's is on the sum over its n examples: tau = tau_sum / n.
Parts that each do no harm can do much together. `greedy` therefore measures anew after each part that it takes, and
holds the harm of the whole set below tau.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.untangling.bench import Bench
from analyses.untangling.importance import importance


def checked_tau(tau: float) -> float:
    """A tolerance. Raises: ValueError below 0, or not a number."""
    if not tau >= 0 or math.isinf(tau):
        raise ValueError(f"a tolerance must be a finite number of at least 0 nats; got {tau}")
    return tau


def checked_tasks(target: str, preserved: str) -> None:
    """Raises: ValueError where the task to remove is the one to keep."""
    if target == preserved:
        raise ValueError(f"the task to remove and the one to keep must differ; got {target!r} for both")


def tolerated(target: Float[Tensor, " part"], preserved: Float[Tensor, " part"], tau: float) -> list[int]:
    """Parts that the source's rule takes, the most important for the target first.

    Args:
        target, preserved: importances, both means or both sums over examples.
        tau: in the same unit.
    """
    checked_tau(tau)
    free = (target > 0) & (preserved <= 0)
    cheap = (target > 0) & (preserved > 0) & (preserved < tau) & (preserved < target)
    order = target.argsort(descending=True, stable=True)
    return order[(free | cheap)[order]].tolist()


def greedy(
    bench: Bench, target: Bool[Tensor, " example"], preserved: Bool[Tensor, " example"], tau: float, most: int = 60
) -> list[int]:
    """Parts in the order taken: at each step the one that hurts the target most, the set's harm staying within tau.

    Args:
        target, preserved: rows of the examples of each task.
        tau: most that the mean loss of the preserved task may rise by, all taken parts together, nats a token.
        most: parts at most.

    Cost: an importance of all parts a step.
    """
    checked_tau(tau)
    chosen: list[int] = []
    kept = bench.losses()[preserved].mean()
    while len(chosen) < most:
        change = importance(bench, given=chosen)
        harm = bench.losses(chosen)[preserved].mean() - kept + change[:, preserved].mean(1)
        gain = change[:, target].mean(1).masked_fill(harm > tau, -torch.inf)
        gain[chosen] = -torch.inf
        if (best := int(gain.argmax())) in chosen or not gain[best] > 0:
            break
        chosen.append(best)
    return chosen
