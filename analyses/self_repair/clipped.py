"""Shares of the direct effect, token by token: the published kind, which clips each to 0..1, and medians beside it.

    mean over tokens of clip(share / direct effect, 0, 1)      above 0 for pure noise: noise of half the effect gives .2

`mlps_of_repair_clipped` is clip(MLPs' share / self-repair, 0, 1) at tokens with self-repair above 0, averaged: the
published percentage of self-repair that is the MLPs'. Ratios of sums stand beside them (`sr_mlps / de`).

Source: arXiv 2402.15390, sections 4 and 5; it calls clipped means what "up to 30 %" says of the norm.
"""

from typing import Any

import numpy as np
import pandas as pd

from sat_lens.repair.effects import FIELDS

KINDS = {"sr_heads": "heads", "sr_mlps": "mlps", "sr_ln": "ln", "self_repair": "sr"}
"""Columns of effects, and what the columns of their shares begin with."""
UNITS = {
    **{f"{name}_frac_clipped": "mean of ratios clipped to 0..1, biased upwards" for name in ("heads", "mlps", "sr")},
    **{f"{name}_frac_median": "median of ratios" for name in ("heads", "mlps", "sr")},
    "mlps_of_repair_clipped": "mean of ratios clipped to 0..1 where self-repair > 0",
}


def clipped_shares(found: Any) -> pd.DataFrame:
    """A row a component with the columns of UNITS; NaN where it has no token (with self-repair above 0).

    Args:
        found: a SelfRepairResult with values by token, undosed.
    """
    component = found.places[:, 1].long().numpy()
    of = dict(zip(FIELDS, found.values[:, : len(FIELDS)].double().numpy().T, strict=True))
    of["self_repair"] = of["dlogit"] - of["ade"] + of["de"]
    n, columns = len(found.components), {}
    for effect, name in KINDS.items():
        if name == "ln":  # the library's own columns
            continue
        share = np.divide(of[effect], of["de"], out=np.zeros(len(component)), where=of["de"] != 0)
        by_component = pd.Series(share).groupby(component)
        columns[f"{name}_frac_clipped"] = pd.Series(share.clip(0, 1)).groupby(component).mean().reindex(range(n))
        columns[f"{name}_frac_median"] = by_component.median().reindex(range(n))
    rises = of["self_repair"] > 0
    part = (of["sr_mlps"][rises] / of["self_repair"][rises]).clip(0, 1)
    columns["mlps_of_repair_clipped"] = pd.Series(part).groupby(component[rises]).mean().reindex(range(n))
    return pd.DataFrame({name: columns[name] for name in UNITS})
