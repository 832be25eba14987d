"""Stability: whether the same circuit is found on other prompts, and stays faithful under other ablations.

    inclusion     share of bootstrap resamples of the prompts on which an edge is found again
    sensitivity   faithfulness of one circuit by what cut edges carry, final norm live or frozen

An edge that is in the circuit by the luck of the sample has an inclusion far from 1.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from tqdm.auto import tqdm

from analyses.localization.circuit import largest
from analyses.localization.faithfulness import SIGNS, gap_of
from analyses.localization.graph import Graph
from analyses.localization.nulls import Members
from analyses.localization.runner import Contrast
from analyses.localization.setting import Group, Setting, setting_of
from analyses.localization.similarity import expected_jaccard, jaccard
from sat_lens.tasks import Task

Method = Callable[[Setting], np.ndarray]
"""Scores of edges, or the members of a circuit."""


def resampled(setting: Setting, rows: Int[np.ndarray, " row"]) -> Setting:
    """The setting of these prompts, in this order, any of them more than once.

    Cut edges carry what they carried: constants and means stay those of the whole sample.

    Raises:
        ValueError: no rows, or rows that are no prompts of the setting.
    """
    if not len(rows) or rows.min() < 0 or rows.max() >= setting.n:
        raise ValueError(f"rows must name prompts 0 to {setting.n - 1}; got {len(rows)} rows: {rows[:5]}")
    groups = [_group_of(group, rows) for group in setting.groups]
    return dataclasses.replace(setting, groups=tuple(group for group in groups if len(group.rows)))


def _group_of(group: Group, rows: Int[np.ndarray, " row"]) -> Group:
    """The group's prompts that are asked for, each as often as it is."""
    own = group.rows.numpy(force=True)
    place = np.full(max(int(own.max()), int(rows.max())) + 1, -1)
    place[own] = np.arange(len(own))
    asked = np.flatnonzero(place[rows] >= 0)
    at = torch.as_tensor(place[rows[asked]], device=group.answers.device)
    return Group(
        rows=torch.as_tensor(asked),
        contrast=Contrast(group.contrast.parts, group.contrast.clean[:, at], group.contrast.other[:, at]),
        answers=group.answers[at],
        wrong_answers=group.wrong_answers[at],
        intact=group.intact[at],
        other=group.other[at],
    )


@dataclasses.dataclass(frozen=True)
class Inclusion:
    """A circuit found again and again on resampled prompts.

    Args:
        graph: of the model.
        members: of the circuit on all prompts.
        found: of the circuits on the resamples.
    """

    graph: Graph
    members: Members
    found: Bool[np.ndarray, "resample source destination"]

    @property
    def share(self) -> Float[np.ndarray, "source destination"]:
        """Of the resamples in which each edge is found; NaN where there is no edge."""
        return np.where(self.graph.possible, self.found.mean(0), np.nan)

    @property
    def jaccard(self) -> float:
        """Mean over pairs of resamples. They overlap in about 0.4 of their prompts, new samples do not."""
        pairs = [(a, b) for i, a in enumerate(self.found) for b in self.found[:i]]
        return float(np.mean([jaccard(a, b) for a, b in pairs])) if pairs else float("nan")

    @property
    def expected_jaccard(self) -> float:
        """The same for random circuits of these sizes."""
        sizes = [int(members.sum()) for members in self.found]
        pairs = [(a, b) for i, a in enumerate(sizes) for b in sizes[:i]]
        expected = {pair: expected_jaccard(*pair, self.graph.n_edges) for pair in set(pairs)}
        return float(np.mean([expected[pair] for pair in pairs])) if pairs else float("nan")

    def table(self) -> pd.DataFrame:
        """Edges found at least once or in the circuit, most often found first: edge, inclusion, in_circuit."""
        seen = np.argwhere(self.graph.possible & (self.members | self.found.any(0)))
        frame = pd.DataFrame(
            {
                "edge": [self.graph.edge_name(i, j) for i, j in seen.tolist()],
                "inclusion": self.share[tuple(seen.T)],
                "in_circuit": self.members[tuple(seen.T)],
            }
        )
        return frame.sort_values("inclusion", ascending=False, kind="stable", ignore_index=True)


def bootstrap_inclusion(
    setting: Setting,
    method: Method,
    *,
    n_edges: int | None = None,
    sign: str = "absolute",
    n_bootstrap: int = 20,
    seed: int = 0,
    progress: bool = False,
) -> Inclusion:
    """Run a method again on resampled prompts.

    Args:
        method: of the setting alone (`functools.partial` for its knobs); gives scores, or a circuit's members.
        n_edges: size of the circuit of best edges; None for a method that gives members.
        sign: best by |score| (`absolute`) or by score (`signed`).
        n_bootstrap: resamples of all prompts, with replacement.
        seed: of the resampling; the prompts of one seed are the same for every method.
        progress: show a bar on stderr, when that is a terminal.

    Raises:
        ValueError: another sign, scores without `n_edges` or members with it.

    Cost: n_bootstrap + 1 runs of the method; a copy of what sources write on the prompts.
    """
    if sign not in SIGNS:
        raise ValueError(f"sign must be {' or '.join(SIGNS)}; got {sign!r}")

    def circuit(setting: Setting) -> Members:
        found = method(setting)
        if (found.dtype == bool) != (n_edges is None):
            raise ValueError(f"n_edges is for a method that gives scores; got {n_edges} and {found.dtype} from it")
        return found if n_edges is None else largest(setting.graph, found, n_edges, sign == "absolute").members

    draw = np.random.default_rng(seed)
    samples = [draw.integers(setting.n, size=setting.n) for _ in range(n_bootstrap)]
    bar = tqdm(samples, unit="resample", disable=None if progress else True)
    found = np.array([circuit(resampled(setting, rows)) for rows in bar], dtype=bool)
    return Inclusion(setting.graph, circuit(setting), found.reshape(-1, *setting.graph.possible.shape))


def sensitivity(
    model: Any,
    task: Task,
    members: Members,
    *,
    ablations: Sequence[str] = ("resample", "mean", "positional_mean", "zero"),
    frozen_norm: Sequence[bool] = (False, True),
    value: str = "logit_diff",
    batch: int = 64,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Faithfulness of one circuit by what its cut edges carry, and with the final norm live or frozen.

    Args:
        ablations, value, batch: as in `setting_of`.
        frozen_norm: of both, or one.
        n_bootstrap, seed: resamples of the prompts.

    Returns:
        One row a combination: ablation, frozen_norm, faithfulness, low, high (95 % over prompts), value, gap (intact
        minus other run; both in `unit`), unit, n, note.

    Cost: two forward passes over the task for each ablation, and three for each row.
    """
    rows = []
    for ablation in ablations:
        setting = setting_of(model, task, ablation=ablation, value=value, batch=batch)
        for frozen in frozen_norm:
            now = dataclasses.replace(setting, frozen_norm=frozen)
            gap, values = gap_of(now, n_bootstrap=n_bootstrap, seed=seed), now.values(members[None])
            low, high = gap.interval(values)[:, 0].tolist()
            f = float(gap.faithfulness(values)[0])
            numbers = {"faithfulness": f, "low": low, "high": high, "value": values.mean(), "gap": gap.size}
            said = {"unit": now.unit, "n": now.n, "note": gap.note}
            rows.append({"ablation": ablation, "frozen_norm": frozen} | numbers | said)
    return pd.DataFrame(rows)
