"""Restoration: whether a circuit stays faithful when parts of the rest are put back.

Cutting everything outside a circuit is one state of the rest, which a search for small circuits can exploit: the
circuit may work only in the company of cut edges. So random sets S of the rest carry the clean run again,

    f(C + S)

and a circuit that the model computes with has f near 1 for all of them: `stochastic_restoration` draws sets,
`adversarial_restoration` searches for the worst. Random circuits are put to the same test.

Source: stochastic and adversarial ablation of arXiv 2506.20790 (SPD); differs: edges of a given circuit, cut or whole.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from analyses.localization.faithfulness import TAILS, Gap
from analyses.localization.nulls import Members, random_circuits, random_subsets, share_as_large
from analyses.localization.setting import Setting

SHARES = (0.01, 0.05, 0.2, 0.5, 0.8)


def stochastic_restoration(
    setting: Setting,
    members: Members,
    gap: Gap,
    *,
    shares: tuple[float, ...] = SHARES,
    n_sets: int = 50,
    n_random: int = 19,
    keep: str = "layers",
    seed: int = 0,
) -> pd.DataFrame:
    """Faithfulness with random sets of the rest put back.

    Args:
        gap: of the setting (`faithfulness.gap_of`).
        shares: chances that an edge of the rest is put back.
        n_sets: sets for each share, the same for all circuits.
        n_random: random circuits beside it.
        keep: what they share with this one, see `nulls`.

    Returns:
        One row a share: share, faithfulness (mean over sets), low, high (central 95 % of the sets), worst (f of the
        set furthest from 1), distance (mean |1 - f|), random_distance (mean over random circuits), p_value (share of
        random circuits whose distance is as small), n_sets, n_random.

    Cost: len(shares) x n_sets x (n_random + 1) forward passes for each prompt.
    """
    draw, every = np.random.default_rng(seed), setting.graph.possible
    others = random_circuits(setting.graph, int(members.sum()), n_random, seed, members, keep)
    rows = []
    for share in shares:
        sets = random_subsets(every, n_sets, draw, share)
        f = np.stack([gap.faithfulness(setting.values(circuit | sets)) for circuit in (members, *others)])
        distance = np.abs(1 - f).mean(1)
        low, high = np.quantile(f[0], TAILS)
        rows.append(
            {
                "share": share,
                "faithfulness": f[0].mean(),
                "low": low,
                "high": high,
                "worst": f[0, np.abs(1 - f[0]).argmax()],
                "distance": distance[0],
                "random_distance": distance[1:].mean() if n_random else np.nan,
                "p_value": share_as_large(-distance[0], -distance[1:]),
            }
        )
    return pd.DataFrame(rows).assign(n_sets=n_sets, n_random=n_random)


class Adversary(NamedTuple):
    """The worst set found: `restored` edges, f of the circuit with them, and f furthest from 1 after each step."""

    restored: Members
    faithfulness: float
    trace: tuple[float, ...]


def adversarial_restoration(
    setting: Setting,
    members: Members,
    gap: Gap,
    *,
    steps: int = 30,
    width: int = 16,
    share: float | None = None,
    seed: int = 0,
) -> Adversary:
    """A set of the rest that, put back, takes the circuit far from f = 1: random sets, then a local search.

    The worst of `width` random sets is changed in `width` ways a step, by putting in or taking out a random share
    of the rest (at first a quarter; halved whenever nothing got worse, down to about one edge), and the worst is
    kept. A lower bound on what an adversary can do; more steps never find less.

    Args:
        gap: of the setting (`faithfulness.gap_of`); without one, f is NaN and the set is the first drawn.
        share: of the rest in the first sets; None: drawn from 0 to 1 for each.

    Raises:
        ValueError: steps below 0 or width below 1.

    Cost: (steps + 1) x width forward passes for each prompt.
    """
    if steps < 0 or width < 1:
        raise ValueError(f"steps must be at least 0 and width at least 1; got {steps} and {width}")
    draw = np.random.default_rng(seed)
    rest = setting.graph.possible & ~members
    best, worst, trace, rate = np.zeros_like(rest), 1.0, [], 0.25
    candidates = random_subsets(rest, width, draw, share)
    for step in range(steps + 1):
        if step:
            candidates = best ^ random_subsets(rest, width, draw, rate)
        f = gap.faithfulness(setting.values(members | candidates))
        furthest = int(np.abs(1 - f).argmax())
        if step == 0 or abs(1 - f[furthest]) > abs(1 - worst):
            best, worst = candidates[furthest], float(f[furthest])
        else:
            rate = max(rate / 2, 1 / max(1, int(rest.sum())))
        trace.append(worst)
    return Adversary(best, worst, tuple(trace))
