"""The methods of finding a circuit, by the names of the command line.

All take a Setting and knobs and give a score an edge; some choose members as well, some score nodes first.

    patching      activation patching of nodes            attribution   the same to first order
    exact         every edge patched by itself            eap, eap-ig   the same to first order, along a path
    acdc          edges cut one after the other           mask          a learned mask of edges
    own-masks     what a self-ablating model's own masks name, no task asked
    random        no method at all: controls              magnitude     how much a source moves, task or not
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from analyses.localization.acdc import acdc
from analyses.localization.attribution import attribution_patching, eap, eap_ig, edges_from_nodes
from analyses.localization.controls import magnitude, random_scores
from analyses.localization.edge_mask import edge_mask
from analyses.localization.exact import exact_patching
from analyses.localization.mask_scores import mask_scores
from analyses.localization.patching import activation_patching
from analyses.localization.setting import Scores, Setting
from sat_lens.distributed import from_main


@dataclasses.dataclass(frozen=True)
class Knobs:
    """What methods can be told; each reads what it knows.

    Args:
        direction: of patching, `noising` or `denoising`.
        steps: of eap-ig's path; None: 5.
        along: eap-ig's path, `inputs` or `activations`.
        tau: of acdc, in the setting's unit.
        order: of acdc's edges, `ours` or `reference`.
        size: edges of a learned mask, share (up to 1) or number; None: 5 %. Its scores are log-odds.
        seed: of what is drawn.
    """

    direction: str = "noising"
    steps: int | None = None
    along: str = "inputs"
    tau: float = 0.03
    order: str = "ours"
    size: float | int | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Found:
    """What a method gives.

    Args:
        scores: one an edge, positive where it helps.
        members: the circuit, where the method chooses one.
        nodes: scores of sources, where the method scores nodes.
        ranking: edges in the order in which circuits of other sizes take them, where it is not that of `scores`.
    """

    scores: Scores
    members: Bool[np.ndarray, "source destination"] | None = None
    nodes: Float[np.ndarray, " source"] | None = None
    ranking: Scores | None = None


def _patching(setting: Setting, knobs: Knobs, progress: bool) -> Found:
    nodes = activation_patching(setting, direction=knobs.direction, progress=progress)
    return Found(edges_from_nodes(setting.graph, nodes), nodes=nodes)


def _acdc(setting: Setting, knobs: Knobs, progress: bool) -> Found:
    members, costs = acdc(setting, tau=knobs.tau, order=knobs.order, progress=progress)
    kept_first = np.where(members, 1 + np.nanmax(np.abs(costs)), 0.0) + costs
    return Found(costs, members, ranking=kept_first)


def _mask(setting: Setting, knobs: Knobs, progress: bool) -> Found:
    n = edges_of_size(0.05 if knobs.size is None else knobs.size, setting.graph.n_edges)
    scores, members = edge_mask(setting, size=n, seed=knobs.seed, progress=progress)
    return Found(scores, members, ranking=scores - np.nanmin(scores))  # log-odds have no size


METHODS: dict[str, Callable[[Setting, Knobs, bool], Found]] = {
    "patching": _patching,
    "attribution": lambda s, k, p: Found(attribution_patching(s, steps=k.steps or 1, progress=p)),
    "exact": lambda s, k, p: Found(exact_patching(s, direction=k.direction, progress=p)),
    "eap": lambda s, k, p: Found(eap(s, at="clean" if s.value == "logit_diff" else "other", progress=p)),
    "eap-ig": lambda s, k, p: Found(eap_ig(s, steps=k.steps or 5, along=k.along, progress=p)),
    "acdc": _acdc,
    "mask": _mask,
    "own-masks": lambda s, k, p: Found(mask_scores(s, progress=p)),
    "magnitude": lambda s, k, p: Found(magnitude(s, progress=p)),
    "random": lambda s, k, p: Found(random_scores(s, seed=k.seed, progress=p)),
}
VALUE_OF = {"acdc": "kl", "mask": "kl"}
"""What a method measures unless told; the others take the logit difference."""


def found_by(method: str, setting: Setting, knobs: Knobs | None = None, *, progress: bool = False) -> Found:
    """What a method finds in a setting.

    Raises:
        ValueError: an unknown method, or knobs that it refuses.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    found = METHODS[method](setting, knobs or Knobs(), progress)
    arrays = {name: value for name, value in vars(found).items() if value is not None}
    return Found(**{name: from_main(torch.from_numpy(value)).numpy() for name, value in arrays.items()})


def chosen(found: Found, setting: Setting, size: float | int | None) -> tuple[Any, str]:
    """Members of the circuit and the rule that chose them.

    The method's own, else the best `size` (a share up to 1, or a number of edges), else the fewest best edges
    that are faithful enough (0.9, `matched_size`).
    """
    from analyses.localization.circuit import largest
    from analyses.localization.matched_size import circuit_at_faithfulness

    graph = setting.graph
    if found.members is not None:
        return found.members, "the method's own choice"
    if size is None:
        matched = circuit_at_faithfulness(setting, found.scores)
        if matched.members.any():
            return matched.members, "fewest best edges with faithfulness of at least 0.9"
        size = 0.05
    n = edges_of_size(size, graph.n_edges)
    return largest(graph, found.scores, n).members, f"the best {n:,} edges by |score|"


def edges_of_size(size: float | int, n_edges: int) -> int:
    """A share up to 1, or a number of edges above it, as a number of edges.

    Raises:
        ValueError: not above 0, above the graph's edges, or a broken number of edges.
    """
    if not 0 < size <= n_edges or (size > 1 and size != int(size)):
        raise ValueError(f"size must be a share up to 1, or a whole number of edges up to {n_edges:,}; got {size:g}")
    return max(1, round(size * n_edges)) if size <= 1 else int(size)
