"""ACDC: walk the graph from the logits back, and cut every edge whose loss is below a threshold.

An edge is cut for good when cutting it raises the metric by less than `tau`, given all cuts so far:

    KL           mean over prompts of KL(intact model || circuit), nats
    logit_diff   fall of the mean logit difference (answer minus wrong answer), logits

Edges are taken in the order of their destinations from the logits back (in a layer: MLP, values, keys,
queries), and for each destination from the latest source to the earliest. The answer depends on that
order, as it does in every greedy search.

The search computes only what a cut can change (`increments`), and it guesses: it asks about several
edges of one destination at once, as if all before them had been cut, and rolls back to the first whose
loss was too large. The edges kept are those of one edge at a time.

Source: arXiv 2304.14997. Differs: all prompts count, and the order within a layer is stated.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from analyses.localization.increments import CircuitRun
from analyses.localization.runner import Contrast
from analyses.metrics import kl_divergence, logit_difference

Metric = Callable[[Tensor, int], Tensor]
"""Logits at the end [variant n d_vocab] and which contrast they are of, to [variant n]; larger is worse."""
LARGEST_GUESS = 64


def kl_from(intact: Sequence[Float[Tensor, "_ d_vocab"]]) -> Metric:
    """KL(intact || circuit) in nats; one tensor of logits a contrast."""
    return lambda logits, i: kl_divergence(intact[i].expand_as(logits), logits)


def fall_from(
    intact: Sequence[Float[Tensor, "_ d_vocab"]],
    answers: Sequence[Int[Tensor, " _"]],
    wrong: Sequence[Int[Tensor, " _"]],
) -> Metric:
    """Intact minus circuit's logit difference, logits."""

    def fall(logits: Tensor, i: int) -> Tensor:
        ids = (answers[i].expand(logits.shape[:-1]), wrong[i].expand(logits.shape[:-1]))
        return logit_difference(intact[i], answers[i], wrong[i]) - logit_difference(logits, *ids)

    return fall


def acdc(
    contrasts: Sequence[Contrast], metric: Metric, tau: float, *, guess: int = 16, progress: bool = False
) -> tuple[Bool[np.ndarray, "source destination"], Float[np.ndarray, "source destination"]]:
    """The circuit that the search leaves, and what cutting each edge cost when it was asked about.

    Args:
        contrasts: the prompts, one entry for each length.
        metric: larger is worse.
        tau: an edge stays when cutting it costs at least that much.
        guess: edges asked about at once, to begin with; doubled while guesses come true.
        progress: show a bar on stderr, when that is a terminal.

    Returns:
        Members, and costs in the metric's unit: 0 for edges that could not matter any more, NaN where there is no edge.

    Raises:
        ValueError: tau is not a number above 0.

    Cost: a forward pass over what follows the destination, for each edge into a node that still matters.
    """
    if not 0 < tau < float("inf"):
        raise ValueError(f"tau must be a number above 0, in the metric's unit; got {tau}")
    with torch.inference_mode():
        search = _Search(contrasts, metric, tau, guess)
        for destination in tqdm(search.order(), unit="destination", disable=None if progress else True):
            search.prune(destination)
    return search.runs[0].members, search.costs


class _Search:
    def __init__(self, contrasts: Sequence[Contrast], metric: Metric, tau: float, guess: int) -> None:
        self.runs = [CircuitRun(contrast) for contrast in contrasts]
        self.graph, self.metric, self.tau = self.runs[0].graph, metric, tau
        self.guess = self.first_guess = max(1, guess)
        self.costs = np.where(self.graph.possible, 0.0, np.nan)
        last = len(self.graph.destinations) - 1
        self.now = self._value([run.end_logits(last, run.inputs[last][None]) for run in self.runs])[0]

    def order(self) -> list[int]:
        """Destinations from the logits back."""
        return list(reversed(range(len(self.graph.destinations))))

    def prune(self, destination: int) -> None:
        """Ask about every edge into the destination."""
        sources = np.flatnonzero(self.graph.possible[:, destination])[::-1].copy()
        if not self.runs[0].matters(destination):
            for run in self.runs:
                run.take(destination, sources)
            return
        while len(sources):
            asked = sources[: self.guess]
            values = self._values_without(destination, asked)
            rises = np.diff(values, prepend=self.now)
            refused = np.flatnonzero(rises >= self.tau)
            n_cut = int(refused[0]) if len(refused) else len(asked)
            self.costs[asked[: n_cut + 1], destination] = rises[: n_cut + 1]
            if n_cut:
                for run in self.runs:
                    run.take(destination, asked[:n_cut])
                self.now = values[n_cut - 1]
            if len(refused):
                self.guess = max(1, self.guess // 2)
            else:
                self.guess = min(LARGEST_GUESS, self.guess * 2)
            sources = sources[n_cut + bool(len(refused)) :]

    def _values_without(self, destination: int, sources: np.ndarray) -> Float[np.ndarray, " guess"]:
        """The metric after cutting the first, the first two, ... of the sources."""
        logits = []
        for run in self.runs:
            inputs = run.inputs[destination] - run.moved[sources].cumsum(0)
            logits.append(run.end_logits(destination, inputs))
        return self._value(logits)

    def _value(self, logits: Sequence[Float[Tensor, "variant _ d_vocab"]]) -> Float[np.ndarray, " variant"]:
        per_prompt = torch.cat([self.metric(part, i) for i, part in enumerate(logits)], -1)
        return per_prompt.double().mean(-1).cpu().numpy()
