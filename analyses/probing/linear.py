"""The linear probe: multinomial logistic regression, many problems on the same features at once.

A problem is a set of labels, rows to train on and a penalty. It minimises the mean of

    cross-entropy(softmax(x W + b), label) + (c |W|^2 + BIAS |b|^2) / (2 n)

over its n training rows (nats a row). c is scikit-learn's 1/C. The bias carries a weak prior of its own, so that a
class that is missing among the training rows keeps a probability above 0: prequential codes need that.

Folds, penalties, control labels and shuffles are columns of one product, [row unit] x [unit problem class]. Each
problem has its own L-BFGS (6 pairs, Armijo backtracking); it starts from the inverse of Boehning's bound of the
Hessian, X'X / 2n + c/n, which no softmax regression exceeds, so that a first step of 1 never overshoots. A problem
that has reached the tolerance leaves the product.

Chosen over ridge to one-hot labels: its probabilities are what description lengths are made of.
Source: D. Boehning, Annals of the Institute of Statistical Mathematics 44 (1992); Liu and Nocedal 1989.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

BIAS = 1.0
"""Penalty of the bias: a normal prior of standard deviation 1."""
TOLERANCE = 3e-4
"""Largest entry of the gradient (nats a row) at which a probe counts as converged.

Held-out losses of neurons are then within 0.0002 nats of those at 1e-5, at half the cost."""
PAIRS, STEPS, SHORTEST = 6, 200, 2.0**-12
ELEMENTS = 2**24
"""Logits that are held at once, 64 MiB in float32; more problems than that are fitted one part after the other."""


@dataclasses.dataclass(frozen=True)
class Probes:
    """Fitted probes of one set of features.

    Args:
        weights: of the features, and in the last place the bias.
        gradient: largest entry of the gradient where the fit ended, nats a row.
        converged: whether that is within the tolerance.
    """

    weights: Float[Tensor, "class problem unit"]
    gradient: Float[Tensor, " problem"]
    converged: Bool[Tensor, " problem"]

    def log_probabilities(self, x: Float[Tensor, "row unit"], problems: Tensor | slice = slice(None)) -> Tensor:
        """Nats, [class problem row]."""
        w = self.weights[:, problems]
        logits = (w.flatten(0, 1)[:, :-1] @ x.T).view(*w.shape[:2], -1) + w[..., -1:]
        return logits.log_softmax(0)


def fit(
    x: Float[Tensor, "row unit"],
    labels: Int[Tensor, "problem row"],
    train: Shaped[Tensor, "problem row"],
    penalty: Float[Tensor, " problem"],
    n_classes: int,
    *,
    support: Bool[Tensor, "problem unit"] | None = None,
    tolerance: float = TOLERANCE,
    max_steps: int = STEPS,
) -> Probes:
    """Fit every problem to the tolerance.

    Args:
        x: features; centred, or the bias has to make up for it slowly.
        labels: class of each row; anything at rows that do not train.
        train: weight of each row, 0 where it is held out.
        penalty: c, from 0 up.
        n_classes: classes.
        support: units that a problem may use; columns of `x` should then be about orthogonal. None: all.

    Cost: about 20 to 60 passes over `x` a problem.
    """
    per_part = max(1, ELEMENTS // max(1, n_classes * len(x)))
    parts = [
        _fit(x, labels[p], train[p].to(x.dtype), penalty[p].to(x.dtype), n_classes,
             None if support is None else support[p], tolerance, max_steps)
        for p in torch.arange(len(labels)).split(per_part)
    ]  # fmt: skip
    weights, gradients = torch.cat([w for w, _ in parts], 1), torch.cat([g for _, g in parts])
    return Probes(weights, gradients, gradients <= tolerance)


@dataclasses.dataclass
class _Objective:
    """Value and gradient of some problems; `keep` leaves only some of them."""

    x1: Tensor  # [row unit+1], the last column 1
    labels: Tensor
    train: Tensor
    ridge: Tensor  # [problem unit+1], penalties over n
    allowed: Tensor | None  # [problem unit+1]

    def __call__(self, w: Tensor) -> tuple[Tensor, Tensor]:
        k, p, d = w.shape
        logits = (w.view(k * p, d) @ self.x1.T).view(k, p, -1)
        top = logits.amax(0)
        right = logits.gather(0, self.labels[None])[0]
        total = logits.sub_(top).exp_().sum(0)
        loss = ((total.log() + top - right) * self.train).sum(-1)
        residual = logits.mul_((self.train / total)[None])
        residual.scatter_add_(0, self.labels[None], -self.train[None])
        gradient = (residual.view(k * p, -1) @ self.x1).view(k, p, d) + self.ridge * w
        if self.allowed is not None:
            gradient = gradient * self.allowed
        return loss + (self.ridge * w.square()).sum((0, 2)) / 2, gradient

    def keep(self, rows: Tensor) -> "_Objective":
        allowed = None if self.allowed is None else self.allowed[rows]
        return _Objective(self.x1, self.labels[rows], self.train[rows], self.ridge[rows], allowed)


@dataclasses.dataclass
class _Curvature:
    """L-BFGS' memory: pairs (step, change of gradient, 1 / their product), 0 where a problem did not step."""

    basis: Tensor | None  # [unit unit] eigenvectors of the features' second moments; None: the identity
    scale: Tensor  # [problem unit+1] inverse of the bound along them
    pairs: list[tuple[Tensor, Tensor, Tensor]]

    def direction(self, gradient: Tensor) -> Tensor:
        q, alphas = gradient.clone(), []
        for s, y, rho in reversed(self.pairs):
            alphas.append(rho * (s * q).sum((0, 2)))
            q -= alphas[-1][:, None] * y
        q = self.bounded(q)
        for (s, y, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
            q += (alpha - rho * (y * q).sum((0, 2)))[:, None] * s
        return -q

    def bounded(self, q: Tensor) -> Tensor:
        if self.basis is None:
            return q * self.scale
        along = torch.cat([q[..., :-1] @ self.basis, q[..., -1:]], -1) * self.scale
        return torch.cat([along[..., :-1] @ self.basis.T, along[..., -1:]], -1)

    def add(self, s: Tensor, y: Tensor, moved: Tensor) -> None:
        product = (s * y).sum((0, 2))
        rho = torch.where(moved & (product > 0), 1 / product.clamp(min=torch.finfo(s.dtype).tiny), 0.0)
        self.pairs = [*self.pairs, (s, y, rho)][-PAIRS:]

    def keep(self, rows: Tensor) -> "_Curvature":
        pairs = [(s[:, rows], y[:, rows], rho[rows]) for s, y, rho in self.pairs]
        return _Curvature(self.basis, self.scale[rows], pairs)


def _fit(
    x: Tensor, labels: Tensor, train: Tensor, penalty: Tensor, n_classes: int, support: Tensor | None,
    tolerance: float, max_steps: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    p, d = len(labels), x.shape[1]
    n = train.sum(1).clamp(min=1)
    ridge = torch.cat([penalty[:, None].expand(p, d), torch.full_like(penalty, BIAS)[:, None]], 1) / n[:, None]
    allowed = None if support is None else torch.cat([support, torch.ones_like(support[:, :1])], 1).to(x.dtype)
    objective = _Objective(
        torch.cat([x, torch.ones_like(x[:, :1])], 1), labels.clamp(min=0), train / n[:, None], ridge, allowed
    )
    curvature = _Curvature(*_bound(x, ridge, support is None), [])
    found = x.new_zeros(n_classes, p, d + 1)
    reached = x.new_zeros(p)
    alive = torch.arange(p)
    w, step = found.clone(), x.new_ones(p)
    value, gradient = objective(w)
    for _ in range(max_steps):
        direction = curvature.direction(gradient)
        slope = (gradient * direction).sum((0, 2))
        trial = w + step[:, None] * direction
        new_value, new_gradient = objective(trial)
        slack = 8 * torch.finfo(x.dtype).eps * value.abs()  # where rounding is larger than what can still be gained
        moved = new_value <= value + 1e-4 * step * slope + slack
        where = moved[:, None]
        curvature.add(torch.where(where, trial - w, 0), torch.where(where, new_gradient - gradient, 0), moved)
        w, gradient = torch.where(where, trial, w), torch.where(where, new_gradient, gradient)
        value, step = torch.where(moved, new_value, value), torch.where(moved, 1.0, step / 2)
        largest = gradient.abs().amax((0, 2))
        ended = (largest <= tolerance) | (step < SHORTEST)
        if ended.sum() * 4 >= len(alive):
            gone, left = ended.nonzero()[:, 0], (~ended).nonzero()[:, 0]
            found[:, alive[gone]], reached[alive[gone]] = w[:, gone], largest[gone]
            if not len(left):
                return found, reached
            objective, curvature, alive = objective.keep(left), curvature.keep(left), alive[left]
            w, gradient, value, step = w[:, left], gradient[:, left], value[left], step[left]
    found[:, alive], reached[alive] = w, gradient.abs().amax((0, 2))
    return found, reached


def _bound(x: Tensor, ridge: Tensor, rotated: bool) -> tuple[Tensor | None, Tensor]:
    """Eigenvectors of the features' second moments, and the inverse of half of them plus the penalty."""
    if rotated:
        values, basis = torch.linalg.eigh(x.T.double() @ x.double() / len(x))
        values, basis = values.clamp(min=0).to(x.dtype), basis.to(x.dtype)
    else:
        values, basis = x.square().mean(0), None
    moments = torch.cat([values, values.new_ones(1)])
    return basis, 1 / (moments / 2 + ridge).clamp(min=1e-6)
