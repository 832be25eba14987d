"""Detection and fuzzing, with the simulator as the judge: one question for rules and language models.

A story falls into windows of WINDOW tokens.

- detection: is the latent active anywhere in the window? Judged by the greatest simulated activation in it.
- fuzzing: within windows in which it is active, is it active at this token? Judged by the simulated activation there.

All windows of the stories count, and all tokens of active windows: nothing is drawn. Average precision is thus at the
latent's own base rate, while balanced accuracy is what a mix of half active ones would give. Counts are kept by group
of stories, for a jackknife over them.

Source: arXiv 2410.13928 (detection, fuzzing by a language model that is shown the explanation); differs: the judge.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from analyses.rewriting.calibration import bins
from analyses.rewriting.counts import Counts
from analyses.rewriting.rewriter import Rewriter, Simulations
from analyses.rewriting.setting import Setting

WINDOW = 32
GROUPS = 10


class Judged(NamedTuple):
    """Counts [group bin unit] of windows, of tokens in active windows, and of all tokens."""

    detection: Counts
    fuzzing: Counts
    tokens: Counts

    def summed(self, without: int | None = None) -> "Judged":
        """Of all groups, or of all but one, [bin unit]."""

        def total(of: Tensor) -> Tensor:
            return of.sum(0) if without is None else of.sum(0) - of[without]

        return Judged(*(Counts(total(counts.active), total(counts.inactive)) for counts in self))


def judged(setting: Setting, rewriter: Rewriter, simulations: Simulations, split: str) -> Judged:
    """Counts over one split.

    Args:
        simulations: of its stories.

    Cost: memory for GROUPS times 1,536 counts a latent.
    """
    rows = getattr(setting.splits, split)
    place = torch.full((setting.stories.n,), -1)
    place[rows] = torch.arange(len(rows))
    groups = torch.arange(len(rows)) * min(GROUPS, len(rows)) // len(rows)
    n_groups, low, high = int(groups.max()) + 1, rewriter.simulator.low, rewriter.simulator.high
    found: list[list[Counts]] = [[] for _ in range(n_groups)]
    order = setting.of(split)
    for group in range(n_groups):
        acts = order.restricted((groups == group).nonzero()[:, 0])
        parts = []
        for batch in acts.batches(rewriter.latents):
            y = simulations.at(place[batch.rows], batch.keep.shape[1])
            parts.append(
                _of_batch(bins(y, low, high), batch.values > 0, ~y.isnan() & batch.keep[..., None], batch.keep)
            )
        found[group] = [sum(kind[1:], kind[0]) for kind in zip(*parts, strict=True)]
    return Judged(
        *(
            Counts(torch.stack([g[i].active for g in found]), torch.stack([g[i].inactive for g in found]))
            for i in range(3)
        )
    )


def _of_batch(at: Tensor, fires: Tensor, known: Tensor, keep: Tensor) -> tuple[Counts, Counts, Counts]:
    n, n_pos, n_units = at.shape
    short = -n_pos % WINDOW
    at, fires, known, keep = (
        torch.cat([of, of.new_zeros(n, short, *of.shape[2:])], 1).unflatten(1, (-1, WINDOW)).flatten(0, 1)
        for of in (at, fires & keep[..., None], known, keep)
    )
    there = keep.any(1)
    at, fires, known, keep = (of[there] for of in (at, fires, known, keep))
    active = fires.any(1)
    whole = (known | ~keep[..., None]).all(1)
    windows = Counts.of(at.where(known, 0).amax(1), active, whole)
    flat = [of.flatten(0, 1) for of in (at, fires, known, (known & active[:, None]))]
    return windows, Counts.of(flat[0], flat[1], flat[3]), Counts.of(flat[0], flat[1], flat[2])
