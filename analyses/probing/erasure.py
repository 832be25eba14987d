"""LEACE: the least change of the features after which no linear probe can read the labels.

    r(x) = x - W+ P W (x - mean),   W = Cov(x)^(-1/2),   P = projection on the column space of W Cov(x, onehot)

Afterwards the covariance of features and labels is 0, so that every linear probe with a convex loss does best by
ignoring the features, on the rows that the eraser is fitted on; and no other affine map with that property has a
smaller E |r(x) - x|^2, whatever the inner product. Its rank is at most classes - 1.

`random_erasers` remove as many directions, drawn at random in the whitened space: what it costs to lose any
subspace of that rank.

Source: Belrose et al., arXiv 2306.03819, theorem 4.3; in float64, pseudo-inverse at 1e-10 of the largest eigenvalue.
"""

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

RELATIVE = 1e-10


@dataclasses.dataclass(frozen=True)
class Eraser:
    """An affine map that removes a subspace.

    Args:
        mean: of the features.
        projection: x - mean loses `projection @ (x - mean)`.
        rank: of it.
    """

    mean: Float[Tensor, " unit"]
    projection: Float[Tensor, "unit unit"]
    rank: int

    def __call__(self, x: Float[Tensor, "*batch unit"]) -> Float[Tensor, "*batch unit"]:
        """The features without the subspace, in their own type."""
        projection, mean = self.projection.to(x), self.mean.to(x)
        return x - (x - mean) @ projection.T


def leace(x: Float[Tensor, "row unit"], labels: Int[Tensor, " row"], n_classes: int) -> Eraser:
    """The eraser of the labels, from their covariance with the features."""
    mean, apart, whiten, unwhiten = _whitening(x)
    onehot = torch.nn.functional.one_hot(labels, n_classes).double()
    shared = whiten @ (apart.T @ (onehot - onehot.mean(0)) / len(x))
    left, sizes, _ = torch.linalg.svd(shared, full_matrices=False)
    basis = left[:, sizes > 1e-9 * sizes[0]]
    return Eraser(mean, unwhiten @ basis @ basis.T @ whiten, basis.shape[1])


def random_erasers(x: Float[Tensor, "row unit"], rank: int, n: int, seed: int = 0) -> list[Eraser]:
    """Erasers of random subspaces of that rank, as large in the whitened space as that of labels."""
    mean, _, whiten, unwhiten = _whitening(x)
    generator = torch.Generator().manual_seed(seed)
    drawn = whiten @ unwhiten @ torch.randn(n, x.shape[1], rank, generator=generator, dtype=torch.float64)
    bases = torch.linalg.qr(drawn).Q  # the product keeps what varies
    return [Eraser(mean, unwhiten @ basis @ basis.T @ whiten, rank) for basis in bases]


def _whitening(x: Float[Tensor, "row unit"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, centred features, Cov^(-1/2) and Cov^(1/2), on the space in which the features vary."""
    x = x.double()
    mean = x.mean(0)
    apart = x - mean
    values, vectors = torch.linalg.eigh(apart.T @ apart / len(x))
    varies = values > RELATIVE * values[-1]
    values, vectors = values[varies], vectors[:, varies]
    return mean, apart, (vectors / values.sqrt()) @ vectors.T, (vectors * values.sqrt()) @ vectors.T
