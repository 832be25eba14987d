"""Prices from measurements: what one unit of each term costs, at least nothing.

A measured value (seconds, bytes) is taken to be a sum of terms, each with a price of 0 or more. Prices
minimise the sum of squared relative errors, so that small runs count as much as large ones.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

FOLDS = 4


@dataclasses.dataclass(frozen=True)
class Fit:
    """Prices and how well they hold.

    Args:
        coefficients: the price of each term, in units of the value.
        r2: share of the values' variance that is explained.
        max_error: largest |fitted - measured| / measured.
        held_out_error: the same, each quarter of the points predicted from the other three.
        median_held_out_error: the median of those.
        n: points.
    """

    coefficients: dict[str, float]
    r2: float
    max_error: float
    held_out_error: float
    median_held_out_error: float
    n: int


def fitted(terms: Sequence[Mapping[str, Any]], values: Sequence[Any]) -> Fit:
    """The prices of terms.

    Args:
        terms: of each point; a term that is missing is 0.
        values: measured, above 0.

    Raises:
        ValueError: fewer points than terms, or a value that is not above 0.
    """
    names = sorted({name for point in terms for name in point})
    measured = np.asarray(values, dtype=np.float64)
    if len(measured) < len(names) or len(measured) != len(terms):
        raise ValueError(f"a fit of {len(names)} terms needs at least as many points; got {len(measured)}")
    if not (np.isfinite(measured).all() and (measured > 0).all()):
        raise ValueError(f"measured values must be above 0; got {measured.min()}")
    matrix = np.array([[float(point.get(name, 0.0)) for name in names] for point in terms])
    prices = _prices(matrix, measured)
    errors = np.abs(matrix @ prices / measured - 1)
    held_out = _held_out_errors(matrix, measured)
    unexplained = ((matrix @ prices - measured) ** 2).sum() / max(((measured - measured.mean()) ** 2).sum(), 1e-300)
    return Fit(
        dict(zip(names, prices.tolist(), strict=True)),
        float(1 - unexplained),
        float(errors.max()),
        float(held_out.max()),
        float(np.median(held_out)),
        len(measured),
    )


def _prices(
    matrix: Float[np.ndarray, "point term"], measured: Float[np.ndarray, " point"]
) -> Float[np.ndarray, " term"]:
    relative = matrix / measured[:, None]
    largest = np.maximum(relative.max(0), 1e-300)  # terms differ by ten powers of ten
    return nnls(relative / largest, np.ones(len(measured)))[0] / largest


def _held_out_errors(
    matrix: Float[np.ndarray, "point term"], measured: Float[np.ndarray, " point"]
) -> Float[np.ndarray, " point"]:
    fold = np.arange(len(measured)) % FOLDS
    errors = np.empty(len(measured))
    for held in range(FOLDS):
        out = fold == held
        errors[out] = np.abs(matrix[out] @ _prices(matrix[~out], measured[~out]) / measured[out] - 1)
    return errors
