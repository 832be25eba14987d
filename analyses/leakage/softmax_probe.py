"""The softmax probe: logits of the bigram plus a linear map of low rank of the features.

    log p(class) = log bigram(class | token) + (x - mean of x with that token) D W + b, normalised

D [feature, rank]: the canonical directions between what features and classes have beyond the current token, closed
form. W, b: softmax regression by Adam, in batches, from the closed-form solution times one of `SCALES`. Scale, rank
and how long Adam runs are those with the least loss on the `inner` rows; at rank 0 the probe is the bigram.
Capacity: rank x (features + classes), rank <= 64, no hidden layer. Regularisation: rank, stopping early, `RIDGE`.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import linalg, sparse

from analyses.leakage.conditional import Fold
from analyses.leakage.observed import Observed

RANKS: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 24, 64)
RIDGE = 0.1
"""Added to the covariance of the features, in units of their mean variance."""
PULL = 3.0
"""Weight of the mean of all positions in the mean of a token's, in sightings of the token."""
SCALES: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0)
EPOCHS, PATIENCE, RATE, ROWS = 40, 2, 0.01, 512
WORTH = 0.001
"""Of Adam: passes at most; passes without a loss that is better by `WORTH` nats; rate (falls as 1 / sqrt(pass)); rows
a step."""


def mask_features(observed: Observed, layers: Any = None) -> Any:
    """Masks as rows of features: sparse bits where masks are hard, weights where they are soft."""
    chosen = list(range(observed.n_layers)) if layers is None else list(layers)
    if observed.soft is not None:
        return standardized(observed.soft[:, chosen].reshape(observed.n, -1).astype(np.float32))
    parts = np.array_split(np.arange(observed.n), max(1, observed.n // 4096))
    bits = [observed.masks(rows, chosen).reshape(len(rows), -1).astype(np.float32) for rows in parts]
    return sparse.csr_array(sparse.vstack([sparse.csr_array(part) for part in bits], format="csr"))


def standardized(x: Float[np.ndarray, "position feature"]) -> Float[np.ndarray, "position feature"]:
    """Mean 0 and standard deviation 1, but less for features that hardly vary."""
    spread = x.std(0)
    return ((x - x.mean(0)) / (spread + 0.1 * spread.max() + 1e-9)).astype(np.float32)


def probe_bits(x: Any, fold: Fold, seed: int = 0) -> tuple[Float[np.ndarray, " judged_row"], int]:
    """Loss of the judged rows under the probe fitted on the others, bits; and its rank.

    Args:
        x: features of all rows, dense or `scipy.sparse.csr_array`.
    """
    z, closed = directions(x, fold)
    best, chosen = float(fold.bits(fold.inner).mean() * np.log(2)), closed[:0]
    for rank in sorted({min(rank, len(closed)) for rank in RANKS} - {0}):
        weights, loss = _fitted(z[:, :rank], closed[:rank], fold, seed)
        if loss < best:
            best, chosen = loss, weights
    if not len(chosen):
        return fold.bits(fold.judged), 0
    rank = len(chosen) - 1
    return _losses(z[:, :rank], fold, fold.judged, chosen) / np.log(2), rank


def directions(x: Any, fold: Fold) -> tuple[Float[np.ndarray, "position rank"], Float[np.ndarray, "rank class_"]]:
    """The features along their canonical directions, strongest first, and the closed-form weights of the classes.

    Each direction has a spread of 1 or less on the rows `fit`, given the token. The weights are those of a linear
    discriminant: (mean of the class) / (covariance), as far as the directions reach.
    """
    xf, token = x[fold.fit], fold.token[fold.fit]
    n = np.bincount(token, minlength=fold.n_tokens).astype(np.float32)
    of_token = sparse.csr_array(
        (np.ones(len(token), dtype=np.float32), (token, np.arange(len(token)))), shape=(fold.n_tokens, len(token))
    )
    sums = _dense(of_token @ xf)
    mean = (sums + PULL * sums.sum(0) / len(token)) / (n + PULL)[:, None]
    crossed = sums.T @ mean
    scatter = _dense(xf.T @ xf) - crossed - crossed.T + (mean.T * n) @ mean
    scatter /= len(token)
    scatter.flat[:: len(scatter) + 1] += RIDGE * max(float(np.trace(scatter)) / len(scatter), 1e-6)
    residual = -np.exp(fold.offset(fold.fit))
    residual[np.arange(len(token)), fold.label[fold.fit]] += 1
    shared = (xf.T @ residual - mean.T @ (of_token @ residual)) / len(token)
    lower = np.linalg.cholesky(scatter.astype(np.float64))
    scaled = linalg.solve_triangular(lower, shared * np.exp(-fold.unigram / 2), lower=True)
    values, vectors = np.linalg.eigh(scaled.T @ scaled)
    last = max(1, min(RANKS[-1], x.shape[1], fold.n_classes - 1))
    strength = np.sqrt(np.maximum(values[::-1][:last], 0))
    right, strength = vectors[:, ::-1][:, :last][:, strength > 1e-6], strength[strength > 1e-6]
    along = linalg.solve_triangular(lower.T, scaled @ right / strength, lower=False).astype(np.float32)
    closed = (right * strength).T * np.exp(-fold.unigram / 2)
    return (x @ along - (mean @ along)[fold.token]).astype(np.float32), closed.astype(np.float32)


def _dense(x: Any) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else x


def _fitted(
    z: Float[np.ndarray, "position rank"], closed: Float[np.ndarray, "rank class_"], fold: Fold, seed: int
) -> tuple[np.ndarray, float]:
    """Weights (last row: b) with the least loss (nats) on the inner rows, and that loss."""
    draw = np.random.default_rng(seed)
    starts = [np.concatenate([scale * closed, 0 * closed[:1]]).astype(np.float32) for scale in SCALES]
    losses = [float(_losses(z, fold, fold.inner, start).mean()) for start in starts]
    weights = starts[int(np.argmin(losses))]
    first, second = np.zeros_like(weights), np.zeros_like(weights)
    best, kept, waited, step = min(losses), weights.copy(), 0, 0
    for epoch in range(EPOCHS):
        for rows in np.array_split(draw.permutation(fold.fit), max(1, len(fold.fit) // ROWS)):
            step += 1
            logits = _logits(z, fold, rows, weights)
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(rows)), fold.label[rows]] -= 1
            gradient = np.concatenate([z[rows].T @ p, p.sum(0)[None]]) / np.float32(len(rows))
            first += 0.1 * (gradient - first)
            second += 0.01 * (gradient**2 - second)
            size = RATE / np.sqrt(epoch + 1) * np.sqrt(1 - 0.99**step) / (1 - 0.9**step)
            weights -= np.float32(size) * first / (np.sqrt(second) + 1e-8)
        loss = float(_losses(z, fold, fold.inner, weights).mean())
        waited += 1
        if loss < best - WORTH:
            best, kept, waited = loss, weights.copy(), 0
        if waited >= PATIENCE:
            break
    return kept, best


def _logits(z: np.ndarray, fold: Fold, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return fold.offset(rows) + z[rows] @ weights[:-1] + weights[-1]


def _losses(z: np.ndarray, fold: Fold, rows: np.ndarray, weights: np.ndarray) -> Float[np.ndarray, " row"]:
    """Nats."""
    logits = _logits(z, fold, rows, weights)
    top = logits.max(1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return (total - logits[np.arange(len(rows)), fold.label[rows]]).astype(np.float64)
