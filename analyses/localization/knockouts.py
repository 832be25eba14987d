"""Sameness under knock-outs: whether a circuit breaks as the model does, prompt by prompt.

Random sets K of all edges are cut from the model (M - K) and from the circuit (C - K). A circuit that is the model's
own computation keeps its values: they correlate over prompts and sets, and differ by little.

The name is auto-circuit's; here the sets are of all edges, of several shares, with random circuits beside.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from analyses.localization.nulls import Members, random_circuits, random_subsets, share_as_large
from analyses.localization.setting import Setting

SHARES = (0.01, 0.05, 0.2, 0.5)


def same_under_knockouts(
    setting: Setting,
    members: Members,
    *,
    shares: tuple[float, ...] = SHARES,
    n_sets: int = 20,
    n_random: int = 19,
    keep: str = "layers",
    seed: int = 0,
) -> pd.DataFrame:
    """How alike circuit and model are when the same edges are cut from both.

    Args:
        shares: chances that an edge is cut; 0 compares the circuit with the intact model.
        n_sets: sets for each share, the same for all circuits.
        n_random: random circuits beside it.
        keep: what they share with this one, see `nulls`.

    Returns:
        One row a share: share, correlation (Pearson, over prompts and sets, -1..1; NaN where either side is constant),
        difference (mean |difference| of values, in the setting's unit); random_correlation, random_difference (means
        over random circuits); correlation_p_value, difference_p_value (share of random circuits that are as alike);
        unit, n_sets, n_random.

    Cost: len(shares) x n_sets x (n_random + 2) forward passes for each prompt.
    """
    draw, every = np.random.default_rng(seed), setting.graph.possible
    others = random_circuits(setting.graph, int(members.sum()), n_random, seed, members, keep)
    rows = []
    for share in shares:
        sets = random_subsets(every, n_sets, draw, share)
        model = setting.values(every & ~sets)
        alike = np.array([_alike(setting.values(circuit & ~sets), model) for circuit in (members, *others)])
        correlation, difference = alike.T
        rows.append(
            {
                "share": share,
                "correlation": correlation[0],
                "difference": difference[0],
                "random_correlation": correlation[1:].mean() if n_random else np.nan,
                "random_difference": difference[1:].mean() if n_random else np.nan,
                "correlation_p_value": share_as_large(correlation[0], correlation[1:]),
                "difference_p_value": share_as_large(-difference[0], -difference[1:]),
            }
        )
    return pd.DataFrame(rows).assign(unit=setting.unit, n_sets=n_sets, n_random=n_random)


def _alike(a: Float[np.ndarray, "set n"], b: Float[np.ndarray, "set n"]) -> tuple[float, float]:
    """Correlation and mean absolute difference."""
    constant = min(np.ptp(a), np.ptp(b)) < 1e-12
    correlation = np.nan if constant else np.corrcoef(a.ravel(), b.ravel())[0, 1]
    return float(correlation), float(np.abs(a - b).mean())
