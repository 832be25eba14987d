"""How well edge scores name a circuit that is known: over all thresholds at once.

    AUROC               chance that an edge of the circuit is scored above one that is not, ties counting half:
                        0.5 says nothing, 1 is a perfect order
    average precision   mean over the circuit's edges of the share of edges in it, among all that are scored
                        as high: the share of edges in the circuit says nothing, 1 is perfect

Edges are ranked by |score|: the truth says which matter, not how. A score below ROUNDING of the largest
is rounding error and counts as 0, so that it ties with the others that are 0. NaN, where there is no
edge, is left out.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from tqdm.auto import tqdm

from analyses.localization.overlap import auroc, average_precision
from analyses.localization.planted import PLANTED, planted
from analyses.localization.setting import Scores, Setting, setting_of

ROUNDING = 1e-12


def edge_auroc(scores: Scores, members: Bool[np.ndarray, "source destination"], *, absolute: bool = True) -> float:
    """Area under the ROC curve of edge scores. 0..1, chance 0.5.

    Args:
        members: the true circuit.
        absolute: rank by |score|, else by score.

    Raises:
        ValueError: an edge of the circuit without a score, all edges in it or none.
    """
    return float(auroc(*_scored(scores, members, absolute))[0])


def edge_average_precision(
    scores: Scores, members: Bool[np.ndarray, "source destination"], *, absolute: bool = True
) -> float:
    """Average precision of edge scores, tied edges taken together. 0..1; arguments and errors as in `edge_auroc`."""
    return float(average_precision(*_scored(scores, members, absolute))[0])


def auroc_table(
    methods: Mapping[str, Callable[[Setting], Scores]],
    models: Sequence[str] = tuple(PLANTED),
    *,
    measure: Callable[[Scores, Bool[np.ndarray, "source destination"]], float] = edge_auroc,
    n: int = 12,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Edge AUROC of each method (columns) on each planted model (rows).

    Args:
        methods: each gives scores for a setting (counterfactual prompts, logit difference).
        measure: what is tabled, `edge_average_precision` for instance.
        n, seed: prompts of a model and their seed, as in `planted`.
        progress: show a bar on stderr, when that is a terminal.
    """
    found = pd.DataFrame(index=pd.Index(models, name="planted"), columns=list(methods), dtype=float)
    for name in tqdm(models, unit="model", disable=None if progress else True):
        known = planted(name, n=n, seed=seed)
        setting, members = setting_of(known.model, known.task), known.members
        for method, scores_of in methods.items():
            found.loc[name, method] = measure(scores_of(setting), members)
    return found


def _scored(
    scores: Scores, members: Bool[np.ndarray, "source destination"], absolute: bool
) -> tuple[Float[np.ndarray, "1 edge"], Bool[np.ndarray, "1 edge"]]:
    """Sizes or scores of all edges, and which are in the circuit, as a ranking of one row."""
    missing = np.isnan(scores)
    if (n := int((missing & members).sum())) > 0:
        raise ValueError(f"every edge of the circuit needs a score; {n} have NaN")
    values, inside = scores[~missing], members[~missing]
    if inside.all() or not inside.any():
        raise ValueError(f"some edges must be in the circuit and some not; of {inside.size} edges {inside.sum()} are")
    size = np.abs(values)
    values = np.where(size > ROUNDING * size.max(), size if absolute else values, 0.0)
    return values[None], inside[None]
