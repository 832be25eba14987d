"""How much each edge matters, to first order: edge attribution patching (EAP) and its integrated gradients.

With D_s = what source s writes in the intact run minus what a cut edge carries, and g_d = gradient of
the value with respect to what destination d reads,

    score(s -> d) = mean over prompts of  sum over positions and d_model of  D_s . g_d

the first-order guess of how much the value falls when the edge is cut: positive means that the edge
helps, in the value's unit, as everywhere here. The methods differ in where g_d is taken:

    eap      at one run: the intact one (`clean`) or the one from the other embedding (`other`)
    eap_ig   its mean over runs between the two, so that scores add up to a gap of the value

Signs elsewhere: EAP-IG's code multiplies by other minus clean and takes a metric that is larger when
worse, which gives our sign; with a metric that is larger when better it gives minus ours. The denoising
convention (gradients at the counterfactual run, clean minus corrupt) is `at="other"`, with our sign.

Node scores are those of attribution patching: D_s . gradient with respect to what s writes, which is
the sum of the scores of the edges that leave s.

Source: arXiv 2310.10348 (EAP), 2403.17806 (EAP-IG), 2504.13151 (MIB: along inputs and activations).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from analyses.localization.gradients import input_gradients, steps_of
from analyses.localization.graph import Graph
from analyses.localization.setting import Group, Scores, Setting
from sat_lens.distributed import dealt, sum_over_ranks
from sat_lens.memory import require

AT_ONCE = 2048
"""Tokens of a batch, those of all runs of the path together: more leave the processor's caches."""
POINTS: dict[str, float] = {"left": 0.0, "midpoint": 0.5, "right": 1.0}
"""Where in its share of the path [k/steps, (k + 1)/steps] a quadrature rule takes the gradient."""


def eap(setting: Setting, *, at: str = "clean", progress: bool = False) -> Scores:
    """Edge attribution patching: gradients at one run.

    Args:
        at: `clean`, the intact run; or `other`, the intact model on the other run's embedding, which is
            the counterfactual prompts for `resample` (for means and zeros, on an embedding of means or 0).
        progress: show a bar on stderr, when that is a terminal.

    Returns:
        Scores in the value's unit. Edges into the logits are exact where the read-out is linear
        (`logit_diff`, frozen or no final norm).

    Raises:
        ValueError: an unknown `at`; `kl` at the clean run, where its gradient is 0 for every edge; too
            little memory.

    Cost: one forward and one backward pass over the task, batches dealt among processes.
    """
    if at not in ("clean", "other"):
        raise ValueError(f"at must be clean or other; got {at!r}")
    return _attributed(setting, [1.0 if at == "clean" else 0.0], "inputs", progress)


def eap_ig(
    setting: Setting, *, steps: int = 5, along: str = "inputs", rule: str = "midpoint", progress: bool = False
) -> Scores:
    """Edge attribution patching with integrated gradients: g_d is a mean over `steps` runs of the intact model.

    inputs        the embedding goes in a straight line from what `input` writes in the other run to what
                  it writes in the intact one; everything else follows it.
    activations   for all sources that write at once (the input; the heads of a layer; its MLP; both where
                  they are parallel), what they write goes in a straight line from other to intact,
                  everything before stays intact, everything after follows. Scores are of their own edges.

    Completeness, exact as steps grow (error 1/steps^2 for midpoint, 1/steps for left and right):

        inputs        the scores of the edges that leave `input` add up to the intact value minus the
                      value with exactly these edges cut; that is the other run's for `resample`
        activations   the same for the edges that leave each set of sources that write at once

    With a linear read-out (`logit_diff`, frozen or no final norm) the scores of all edges into the logits
    add up to the value lost when they are cut, for any number of steps.

    Args:
        steps: runs between other and intact.
        rule: the gradient is taken at the `midpoint` of each of `steps` equal shares of the path, or at its
            `left` (other) or `right` (clean) end.
        progress: show a bar on stderr, when that is a terminal.

    Raises:
        ValueError: steps below 1, an unknown path or rule, `kl` at the clean run alone, too little memory.

    Cost: `steps` forward and backward passes over the task for inputs; for activations, that for each set
    of sources that write at once, over what follows them: about n_layers times as much. With `ablation`
    zero the path of inputs begins at norms of 0, and needs more steps.

    Source: arXiv 2403.17806, 2504.13151. Differs: the public code takes k/steps with k from 0 (inputs) or 1
    (activations); along activations it credits every run to every edge and divides by their number,
    which adds up to nothing.
    """
    if isinstance(steps, bool) or steps < 1:
        raise ValueError(f"steps must be 1 or more; got {steps}")
    if along not in ("inputs", "activations"):
        raise ValueError(f"along must be inputs or activations; got {along!r}")
    if rule not in POINTS:
        raise ValueError(f"rule must be {', '.join(POINTS)}; got {rule!r}")
    return _attributed(setting, [(k + POINTS[rule]) / steps for k in range(steps)], along, progress)


def node_attribution(
    setting: Setting, *, steps: int = 1, along: str = "inputs", progress: bool = False
) -> Float[np.ndarray, " source"]:
    """Attribution patching of nodes: how much the value falls, to first order, when all a source's edges are cut.

    Args:
        steps: 1 takes gradients at the intact run; more integrate, as `eap_ig` does with its midpoints.
        along: the path when there is more than one step.

    Raises:
        ValueError: as `eap` and `eap_ig`.
    """
    if steps == 1:
        return np.nansum(eap(setting, progress=progress), 1)
    return np.nansum(eap_ig(setting, steps=steps, along=along, progress=progress), 1)


def edges_from_nodes(graph: Graph, node_scores: Float[np.ndarray, " source"]) -> Scores:
    """Edge scores of which a circuit of the largest is the edges among the largest nodes.

    Size: the smaller |score| of the edge's two ends. Sign: positive where both ends help, negative where
    either hurts. So an edge is above a threshold, signed or by size, exactly when both of its ends are.
    A key or value that heads share has the score of the one with the largest |score|; the logits limit
    nothing.
    """
    ends = np.array([_largest(node_scores[nodes]) for nodes in graph.sources_of_destination])
    size = np.minimum(np.abs(node_scores)[:, None], np.abs(ends)[None])
    signed = np.where((node_scores[:, None] >= 0) & (ends[None] >= 0), size, -size)
    return np.where(graph.possible, signed, np.nan)


def attribution_patching(setting: Setting, *, steps: int = 1, along: str = "inputs", progress: bool = False) -> Scores:
    """Edges ranked by the nodes that they join: `edges_from_nodes` of `node_attribution`."""
    nodes = node_attribution(setting, steps=steps, along=along, progress=progress)
    return edges_from_nodes(setting.graph, nodes)


def _largest(scores: Float[np.ndarray, " node"]) -> float:
    return float(scores[np.abs(scores).argmax()]) if len(scores) else float("inf")


def _attributed(setting: Setting, points: list[float], along: str, progress: bool) -> Scores:
    """Scores with gradients averaged over runs at `points` of the path, 0 the other end and 1 the intact one."""
    if setting.value == "kl" and points == [1.0]:
        raise ValueError("kl has gradient 0 at the intact run, so all scores would be 0; use at='other' or eap_ig")
    graph = setting.graph
    _require_memory(setting, len(points))
    n_starts = 1 if along == "inputs" else len(steps_of(graph))
    total = np.zeros(graph.possible.shape)
    batches = [batch for group in setting.groups for batch in _batches(group, points)]
    mine = list(dealt(itertools.product(batches, range(n_starts))))
    n_runs = sum(len(part.rows) * len(some) for (part, some), _ in mine)
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        tqdm(total=n_runs, unit="run", disable=None if progress else True) as bar,
    ):
        for (part, some), first in mine:
            total += _runs(setting, part, first, some, along)
            bar.update(len(part.rows) * len(some))
    total = sum_over_ranks(torch.from_numpy(total)).numpy()
    return np.where(graph.possible, total / (len(points) * setting.n), np.nan)


def _batch_size(group: Group, n_points: int) -> tuple[int, int]:
    """Prompts and points of a batch: of a prompt as many runs as fit, and prompts spread evenly."""
    n_rows = max(1, AT_ONCE // group.contrast.clean.shape[2])
    n_points = min(n_points, n_rows)
    n_batches = math.ceil(len(group.rows) / (n_rows // n_points))
    return math.ceil(len(group.rows) / n_batches), n_points


def _batches(group: Group, points: list[float]) -> Iterator[tuple[Group, list[float]]]:
    n, n_points = _batch_size(group, len(points))
    for start in range(0, len(group.rows), n):
        at = slice(start, start + n)
        runs = dataclasses.replace(group.contrast, clean=group.contrast.clean[:, at], other=group.contrast.other[:, at])
        ids = group.rows[at], runs, group.answers[at], group.wrong_answers[at]
        part = Group(*ids, group.intact[at], group.other[at])
        for first in range(0, len(points), n_points):
            yield part, points[first : first + n_points]


def _runs(setting: Setting, group: Group, first: int, points: list[float], along: str) -> Scores:
    """Scores of the runs at some points, summed over runs and prompts.

    In a run, what is written just before step `first` is at a point of its way from other to intact. All runs are
    one batch: what edges carry is the same in all, so gradients are summed over runs before the product.
    """
    graph, runs, steps = setting.graph, group.contrast, steps_of(setting.graph)
    written = steps[first - 1].sources if first else [0]
    moved, end = runs.clean - runs.other, runs.clean_input(steps[first].destinations[0][0])
    back = moved[written].sum(0)
    stream = torch.cat([end - (1 - point) * back for point in points])
    scores = np.zeros(graph.possible.shape)
    for destinations, products in input_gradients(setting, group, stream, first):
        n_sources = int(graph.possible[:, destinations[0]].sum())  # sources come in order
        credited = slice(n_sources) if along == "inputs" else slice(written[0], written[-1] + 1)
        scores[credited, destinations] = products(moved[credited]).double().numpy(force=True)
    return scores


def _require_memory(setting: Setting, n_points: int) -> None:
    cfg = setting.parts.cfg
    largest = max(setting.groups, key=lambda group: _floats(setting, group, n_points))
    needed = _floats(setting, largest, n_points) * torch.finfo(cfg.dtype).bits / 8
    n = _batch_size(largest, n_points)[0]
    require(needed, f"gradients of {n} prompts at once", str(cfg.device), "lower the setting's batch")


def _floats(setting: Setting, group: Group, n_points: int) -> int:
    """Numbers held at once: activations of all runs of a batch, what its sources write, gradients of one step."""
    cfg, graph, pos = setting.parts.cfg, setting.graph, group.contrast.clean.shape[2]
    n, n_points = _batch_size(group, n_points)
    n_inputs = graph.n_heads + 2 * graph.n_kv_heads
    kept = 4 * cfg.d_model + graph.n_heads * (8 * cfg.d_head + pos) + 4 * (cfg.d_mlp or 0)
    of_runs = n_points * (pos * (graph.n_layers * kept + 3 * n_inputs * cfg.d_head) + 6 * cfg.d_vocab)
    return n * (of_runs + pos * cfg.d_model * (len(graph.sources) + 2 * n_inputs))
