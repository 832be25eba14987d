"""Self-repair of the two halves of the layers as one number each: sums over components, ratios with intervals.

    sum of self-repair / sum of removed direct effect        1: all is made up for; 0: nothing; below: more breaks

The norm of direct effects differs between models, so that self-repair in logits compares nothing; this ratio does, and
it is the shares' sum: heads + MLPs + norm + own + masks, all over the same removed direct effect. The later half is
the one to ask: before it most of what an ablation changes is damage, not failed repair.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyses.statistics import bootstrap_weights

SHARES = ("sr_heads", "sr_mlps", "sr_ln", "sr_own", "sr_gate")
SUMS = ("self_repair", "removed", "de", "ln_own", *SHARES)


def sums_by_story(result: Any, layers: Sequence[int]) -> dict[str, np.ndarray]:
    """The SUMS of all components of some layers by story, logits; and their `n` of selected tokens."""
    from sat_lens.repair.effects import FIELDS

    rows = [i for i, component in enumerate(result.components) if component.layer in set(layers)]
    sums = result.sums[0, rows].sum(0).numpy()
    of = dict(zip(FIELDS, sums.T, strict=True))
    of["removed"] = of["de"] - of["ade"]
    of["self_repair"] = of["dlogit"] + of["removed"]
    return {**{name: of[name] for name in SUMS}, "n": result.counts[rows].sum(0).numpy()}


def halves(n_layers: int) -> dict[str, list[int]]:
    """Layers of the first and of the second half; of an odd number the middle one is in the second."""
    return {"first": list(range(n_layers // 2)), "second": list(range(n_layers // 2, n_layers))}


def ratios(by_story: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Each share and self-repair over the removed direct effect, with intervals over stories.

    Returns:
        `{name: {"value", "ci_low", "ci_high"}}`, and `n` tokens; None where nothing was removed.
    """
    removed = np.asarray(by_story["removed"], dtype=np.float64)
    weights = bootstrap_weights(len(removed), seed=seed)
    below, found = weights @ removed, {}
    for name in ("self_repair", "ln_own", *SHARES):
        values = np.asarray(by_story[name], dtype=np.float64)
        if removed.sum() == 0:
            found[name] = dict.fromkeys(("value", "ci_low", "ci_high"))
            continue
        draws = (weights @ values)[below != 0] / below[below != 0]
        low, high = np.quantile(draws, [0.025, 0.975])
        found[name] = {"value": values.sum() / removed.sum(), "ci_low": low, "ci_high": high}
    return {**found, "n": int(np.sum(by_story["n"]))}
