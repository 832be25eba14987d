"""A circuit from masks alone: what a self-ablating model names as relevant, taken as a method like the others.

The score of a head or MLP is how many of its units the masks name at a token, mean over the tokens of the prompts; that
of an edge is the smaller of its two ends (`edges_from_nodes`), so that a circuit has the edges among the nodes that are
named most. Nothing is ablated and no answer is known. Where a method that knows the answer needs fewer edges for
the same faithfulness, the masks do not know the circuit.

Source: own; the masks are those of arXiv 2505.00509.
"""

import numpy as np
import torch
from jaxtyping import Float

from analyses.localization.attribution import edges_from_nodes
from analyses.localization.setting import Group, Scores, Setting
from sat_lens.model import CleanStream


def mask_scores(setting: Setting, *, positions: str = "all", progress: bool = False) -> Scores:
    """Edges by how often masks name units of their ends.

    Args:
        positions: tokens whose masks count: `all`, or the last (`end`).
        progress: not used; one forward pass of the gates.

    Returns:
        Units a token; the input counts as named as often as the node that is named most.

    Raises:
        ValueError: a model without masks, or other positions.
    """
    model = setting.parts.model
    if getattr(getattr(model, "ablation", None), "mask", "none") == "none":
        raise ValueError("the masks' circuit is asked of a model with masks; this one has none")
    if positions not in ("all", "end"):
        raise ValueError(f"positions must be all or end; got {positions!r}")
    with torch.inference_mode():
        total = sum(_named(setting, group, positions) * len(group.rows) for group in setting.groups)
    scores = np.asarray(total) / setting.n
    scores[0] = scores[1:].max()
    return edges_from_nodes(setting.graph, scores)


def _named(setting: Setting, group: Group, positions: str) -> Float[np.ndarray, " source"]:
    """Named units a token of every source, mean over the group's prompts; 0 for the input."""
    graph, runs, model = setting.graph, group.contrast, setting.parts.model
    resid_pre = [runs.clean_input(graph.destination_index[f"a{layer}.h0<q>"]) for layer in range(graph.n_layers)]
    final = runs.clean_input(len(graph.destinations) - 1)
    final = final if model.cfg.normalization_type is None else model.ln_final(final)
    masks = model.masks_of(CleanStream(resid_pre, [], [], [], final, None))
    at = slice(-1, None) if positions == "end" else slice(None)
    found = np.zeros(len(graph.sources))
    for layer, units in enumerate(masks):
        named = (units.attn[:, at] != 0).sum(-1).double().mean((0, 1))
        for head, mean in enumerate(named.tolist()):
            found[graph.source_index[f"a{layer}.h{head}"]] = mean
        if units.mlp is not None:
            found[graph.source_index[f"m{layer}"]] = (units.mlp[:, at] != 0).sum(-1).double().mean().item()
    return found
