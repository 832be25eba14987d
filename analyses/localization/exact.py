"""Exact edge patching: what each edge does by itself, every edge asked about in a run of its own.

    noising      value(intact model) - value(intact model with this one edge cut)
                 is the edge necessary, while all others are there?
    denoising    value(other run with this one edge restored) - value(other run)
                 is the edge sufficient, to move the other run towards the clean one?

Positive means that the edge helps, in both. Backups hide an edge from noising (another path does its
work); an edge whose partner is missing hides from denoising (the AND of two paths needs both).

A restored edge gives its destination what the source wrote in the clean run:

    x_d = x_d(other) + out_s(clean) - out_s(other)

and whatever follows from that is carried along every edge: a later source writes out(other) plus what
its node's output changes by. With counterfactual prompts this is the corrupted run with one input of
one node corrected. It is not the circuit that has this edge alone: there the source is run on what it
reads in the circuit, the other run, so the edge carries nothing unless it comes from the input.

Source: arXiv 2404.15255 (what each direction shows), 2309.16042; differs: an edge, not a node, is patched.
"""

import numpy as np
import torch
from tqdm.auto import tqdm

from analyses.localization.increments import CircuitRun
from analyses.localization.runner import BYTES
from analyses.localization.setting import Group, Scores, Setting
from sat_lens.distributed import dealt, sum_over_ranks

SIGNS = {"noising": -1, "denoising": 1}
"""Of (clean - other) in what is patched, and of the value's change in the score."""


def sign_of(direction: str) -> int:
    """-1 where the clean run loses what is patched, 1 where the other run gets it.

    Raises:
        ValueError: neither noising nor denoising.
    """
    if direction not in SIGNS:
        raise ValueError(f"direction must be {' or '.join(SIGNS)}; got {direction!r}")
    return SIGNS[direction]


def exact_patching(setting: Setting, *, direction: str = "noising", progress: bool = False) -> Scores:
    """Every edge's effect on the value, alone.

    Args:
        direction: `noising` cuts the edge in the intact model, `denoising` restores it in the other run.
        progress: show a bar on stderr, when that is a terminal.

    Returns:
        Means over prompts, in the setting's unit; positive: the edge helps. NaN where there is no edge.

    Raises:
        ValueError: an unknown direction.

    Cost: for each edge and prompt the nodes that follow its destination, in chunks of BYTES, about, destinations
        dealt among processes; what the run itself keeps is destination x n x pos x d_model of a group.
    """
    sign, graph = sign_of(direction), setting.graph
    scores = torch.zeros(graph.possible.shape, dtype=torch.float64)
    mine = list(dealt(range(len(graph.destinations))))
    steps = len(setting.groups) * len(mine)
    with torch.inference_mode(), tqdm(total=steps, unit="destination", disable=None if progress else True) as bar:
        for group in setting.groups:
            run, moved = _run(setting, group, sign), group.contrast.clean - group.contrast.other
            last = len(graph.destinations) - 1
            start = setting.measured(run.end_logits(last, run.inputs[last][None]), group)
            for destination in mine:
                sources = np.flatnonzero(graph.possible[:, destination])
                at = slice(-1, None) if destination == last else slice(None)
                for part in torch.as_tensor(sources).split(_at_once(run, destination)):
                    inputs = run.inputs[destination][:, at] + sign * moved[part][:, :, at]
                    change = setting.measured(run.end_logits(destination, inputs), group) - start
                    scores[part, destination] += sign * change.double().sum(-1).cpu()
                bar.update()
    return np.where(graph.possible, sum_over_ranks(scores).numpy() / setting.n, np.nan)


def _run(setting: Setting, group: Group, sign: int) -> CircuitRun:
    """The run that is patched: the intact model's, or the other one, whose changes then reach everything."""
    if sign < 0:
        return CircuitRun(group.contrast, frozen_norm=setting.frozen_norm)
    run = CircuitRun(group.contrast, np.zeros_like(setting.graph.possible), setting.frozen_norm)
    run.members = setting.graph.possible.copy()  # all nodes have run on the other run's inputs; changes go everywhere
    return run


def _at_once(run: CircuitRun, destination: int) -> int:
    """How many inputs of a destination are run at once: each is carried to all that follows."""
    n, pos, d_model = run.contrast.clean.shape[1:]
    nodes = run.graph.sources_of_destination[destination]
    later = len(run.graph.sources) - int(nodes.min()) if len(nodes) else 0
    later += len(run.graph.destinations) - destination
    one = n * (pos * d_model * later + 4 * run.parts.cfg.d_vocab) * run.contrast.clean.element_size()
    return max(1, int(BYTES // one))
