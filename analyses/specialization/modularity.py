"""Do a layer's units fall into groups that are active together? Newman's modularity of their co-activation.

The graph: units are nodes, the tokens at which two of them are active together the weight of their edge.
Q = sum over pairs of one community of (A_ij - s_i s_j / 2m) / 2m, with s_i the weights at i and 2m those of all: how
much more weight lies within communities than chance would put there, given how active each unit is.

Source: Newman 2006 (arXiv physics/0602124): communities by bisection along the leading eigenvector, for as long as it
raises Q. Differs: no fine tuning of a bisection, since the null is treated alike.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.linalg import eigh
from torch import Tensor

from sat_lens.streaming import COUNTED

NARROWEST, WIDEST = 16, 1024
"""Units of a layer for which it is asked: fewer have no groups to speak of; more take width^2 numbers a story group."""


def measurable(width: int) -> bool:
    """Whether layers of so many units are asked."""
    return NARROWEST <= width <= WIDEST


def together(active: Bool[Tensor, "token unit"], n_layers: int) -> Float[Tensor, "layer unit_a unit_b"]:
    """Tokens at which both of two units of a layer are active; units layer by layer."""
    width = active.shape[1] // n_layers
    total = torch.zeros(n_layers, width, width, dtype=torch.float32, device=active.device)
    for part in active.split(COUNTED):
        by_layer = part.unflatten(1, (n_layers, width)).permute(1, 0, 2).float()
        total += by_layer.transpose(1, 2) @ by_layer
    return total


def communities(weights: Float[np.ndarray, "node other"]) -> Int[np.ndarray, " node"]:
    """The community of each node, 0, 1, ...; -1 for a node without edges.

    Args:
        weights: symmetric, not negative; the diagonal is not read.
    """
    excess, degree = _excess(weights)
    found = np.where(degree > 0, 0, -1)
    waiting, n = [np.flatnonzero(degree > 0)], 1
    while waiting:
        members = waiting.pop()
        halves = _bisected(excess[np.ix_(members, members)])
        if halves is not None:
            found[members[halves]] = n
            n += 1
            waiting += [members[halves], members[~halves]]
    return found


def modularity(weights: Float[np.ndarray, "node other"], community: Int[np.ndarray, " node"]) -> float:
    """Q of a division into communities; nodes of -1 are alone. 0 for a graph without edges."""
    excess, degree = _excess(weights)
    if not degree.sum():
        return 0.0
    own = np.where(community >= 0, community, community.max() + 1 + np.arange(len(community)))
    return float(excess[own[:, None] == own].sum() / degree.sum())


def _excess(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A - s s^T / 2m and s."""
    edges = np.array(weights, dtype=np.float64)
    np.fill_diagonal(edges, 0.0)
    degree = edges.sum(1)
    return edges - np.outer(degree, degree) / max(degree.sum(), 1e-300), degree


def _bisected(excess: np.ndarray) -> Bool[np.ndarray, " node"] | None:
    """The half to split off, or None where no bisection along the leading eigenvector raises Q."""
    n = len(excess)
    if n < 2:
        return None
    gain = excess - np.diag(excess.sum(1))
    side = eigh(gain, subset_by_index=[n - 1, n - 1])[1][:, 0] > 0
    signs = np.where(side, 1.0, -1.0)
    raises = signs @ gain @ signs > 1e-9 * np.abs(excess).sum()
    return side if raises and 0 < side.sum() < n else None
