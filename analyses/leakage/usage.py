"""How masks are used: how many there are, how evenly units win, and what the current token says of the mask.

Descriptive: a mask of high entropy could carry a message, and one of low entropy could not; neither has a verdict.
Entropies of whole masks are those of the positions at hand: at most log2 of their number, which they nearly reach
where masks hardly repeat. Sums over units, as if these were independent, have no such ceiling and bound from above.
"""

import numpy as np
from jaxtyping import Float, Int

from analyses.leakage.finding import Finding
from analyses.leakage.observed import Observed
from analyses.metrics import gini


class Description(Finding):
    """A finding without a verdict."""

    def verdict(self, p_corrected: float) -> str:
        """`described`, whatever p is."""
        return "described"


def usage(observed: Observed) -> Description:
    """H(mask | token), bits, and what else there is to say of masks.

    Returns:
        `value` = H(mask | token); `detail`: `entropy`, `entropy_given_token`, `ceiling` (log2 n); `by_units` and
        `by_units_given_token`, sums over units; of each layer `distinct`, `entropies`, `gini` and `dead`, the share of
        units that never win; `distinct` in `whole`.
    """
    token = np.unique(observed.token, return_inverse=True)[1].ravel()
    whole = labels(observed.bits)
    layers = [labels(observed.bits[:, layer : layer + 1]) for layer in range(observed.n_layers)]
    wins, alone, given = _units(observed, token)
    given_token = conditional_entropy(whole, token)
    return Description(
        test="usage",
        measure="entropy of the mask given the current token",
        value=given_token,
        null=0.0,
        ci_low=float("nan"),
        ci_high=float("nan"),
        p=float("nan"),
        unit="bits",
        n=observed.n,
        n_stories=observed.n_stories,
        detail={
            "entropy": entropy(whole),
            "entropy_given_token": given_token,
            "ceiling": float(np.log2(observed.n)),
            "by_units": float(alone.sum()),
            "by_units_given_token": float(given.sum()),
            "whole": int(whole.max()) + 1,
            "distinct": [int(layer.max()) + 1 for layer in layers],
            "entropies": [entropy(layer) for layer in layers],
            "gini": gini(wins).tolist(),
            "dead": [float((layer == 0).mean()) for layer in wins],
        },
    )


def labels(bits: np.ndarray) -> Int[np.ndarray, " position"]:
    """0, 1, ...: equal where the packed masks [position layer byte] are."""
    rows = np.ascontiguousarray(bits.reshape(len(bits), -1))
    return np.unique(rows.view(np.dtype((np.void, rows.shape[1]))).ravel(), return_inverse=True)[1].ravel()


def entropy(label: Int[np.ndarray, " position"]) -> float:
    """Plug-in, bits."""
    share = np.unique(label, return_counts=True)[1] / len(label)
    return float(-(share * np.log2(share)).sum()) + 0.0


def conditional_entropy(label: Int[np.ndarray, " position"], given: Int[np.ndarray, " position"]) -> float:
    """Plug-in H(label | given), bits."""
    return entropy(given.astype(np.int64) * (int(label.max()) + 1) + label) - entropy(given)


def _units(
    observed: Observed, token: Int[np.ndarray, " position"]
) -> tuple[Float[np.ndarray, "layer bit"], Float[np.ndarray, "layer bit"], Float[np.ndarray, "layer bit"]]:
    """Of each unit: how often it wins, the entropy of that, and the same given the token (bits)."""
    counts = np.bincount(token)
    wins = np.zeros((len(counts), observed.n_layers * observed.width))
    for rows in np.array_split(np.argsort(token, kind="stable"), max(1, observed.n // 4096)):
        starts = np.flatnonzero(np.r_[True, np.diff(token[rows]) > 0])
        wins[token[rows][starts]] += np.add.reduceat(
            observed.masks(rows).reshape(len(rows), -1), starts, axis=0, dtype=int
        )
    given = (counts[:, None] * _binary(wins / counts[:, None])).sum(0) / observed.n
    shape = (observed.n_layers, observed.width)
    return tuple(one.reshape(shape) for one in (wins.sum(0), _binary(wins.sum(0) / observed.n), given))  # pyright: ignore[reportReturnType]


def _binary(share: np.ndarray) -> np.ndarray:
    inside = np.clip(share, 1e-300, 1)
    outside = np.clip(1 - share, 1e-300, 1)
    return -(share * np.log2(inside) + (1 - share) * np.log2(outside))
