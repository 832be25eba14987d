"""The whole answer: curves of all runs in both directions, their areas, the final numbers, and what figures need."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from analyses import needs
from analyses.result import Result, plain
from analyses.statistics import share_interval
from analyses.untangling.bench import bench
from analyses.untangling.controls import magnitude_matched
from analyses.untangling.examples import matched_examples
from analyses.untangling.importance import importance
from analyses.untangling.knowledge import knowledge
from analyses.untangling.pareto import front_area
from analyses.untangling.parts import Directions, latents
from analyses.untangling.selection import tolerated
from analyses.untangling.sweep import UNITS, tolerance_sweep
from sat_lens.toy.arithmetic import TASKS, Problems
from sat_lens.toy.model import answer_logits, counted, exact_match, greedy
from sat_lens.toy.runs import ToyRun

SHOWN_LATENTS, SHOWN_TOKENS, SHOWN_ANSWERS = 48, 24, 12
CURVE = ["run", "arm", "seed", "target", "preserved", "method"]


def untangling(
    runs: Sequence[ToyRun], directions: Sequence[tuple[str, str]], *, show: Sequence[str] = (), n: int = 100,
    part: str = "val", with_knowledge: bool = True, seed: int = 0, progress: bool = True, **options: Any,
) -> Result:  # fmt: skip
    """The tolerance curves of several runs as one Result.

    Args:
        directions: (task to remove, task to keep).
        show: problems (`12+7`) whose answers are shown before and after; none: some of the test part.
        n, part, seed, options: see `tolerance_sweep`.
        with_knowledge: also ask whether what was removed is gone (a probe and a short relearning a run).

    Cost: seconds to a minute a run and direction, most of it forward passes for single units.
    """
    for run in runs:
        needs.require(run, "untangling")
    tables, extra = [], {"knowledge": [], "importance": [], "states": [], "answers": []}
    bar = tqdm([(run, *d) for run in runs for d in directions], unit="curve", disable=None if progress else True)
    measured: dict[str, dict[str, Tensor]] = {}
    for run, target, preserved in bar:
        known = measured.setdefault(run.name, {})
        tables.append(tolerance_sweep(run, target, preserved, n=n, part=part, seed=seed, measured=known, **options))
        if run.sae is None:
            continue
        final = finals(tables[-1])
        tau = next(row["tau"] for row in final if row["method"] == "latents")
        problems = matched_examples(run.toy, run.data, part, n, seed)
        judged = bench(run.toy, latents(run.sae, run.toy.site), problems)
        chosen, points = choice_of(judged, target, preserved, tau)
        if (target, preserved) == directions[0]:
            extra["importance"].append({"run": run.name, "arm": run.config.arm, **points})
            extra["states"].append({"run": run.name, "l1": run.config.l1, **state_sample(run, problems)})
        extra["answers"] += answers(run, judged.parts, chosen, target, tau, show, seed)
        if with_knowledge and chosen:
            other = magnitude_matched(judged.magnitude(), chosen)
            asked = judged.problems.of(target)
            extra["knowledge"] += knowledge(run, judged.parts, chosen, other, target, asked, seed=seed)
    table = pd.concat(tables, ignore_index=True)
    meta = {
        "runs": [described(run) for run in runs], "areas": areas(table), "final": finals(table), "part": part,
        "n_pairs": n, "seed": seed, "options": {k: v for k, v in options.items() if k != "taus"}, **extra,
    }  # fmt: skip
    return Result("untangling", table, UNITS, plain({**meta, "summary": summary(meta)}))


def described(run: ToyRun) -> dict[str, Any]:
    """A run's configuration, what it reached on every part, and its history."""
    reached = {}
    for part in ("train", "val", "test", "all"):
        problems = run.data.part(part)
        if len(problems):
            right = exact_match(answer_logits(run.toy, problems), problems.answer)
            for i, task in enumerate(TASKS):
                rows = problems.task == i
                low, high = share_interval(int(right[rows].sum()), int(rows.sum()))
                share = right[rows].double().mean().item()
                reached[f"{part}_{task}"] = {"accuracy": share, "ci_low": low, "ci_high": high, "n": int(rows.sum())}
    return {"name": run.name, "arm": run.config.arm, "config": run.config.to_dict(), "step": run.step,
            "reached": reached, "history": run.history}  # fmt: skip


def areas(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Area under each curve's front on held-out examples: mean of a run's folds, then of an arm's seeds with its
    interval (95 %, Student's t over seeds; none for fewer than 3)."""
    held = table[table.split == "held_out"]
    of_fold = held.groupby([*CURVE, "fold"], sort=False, dropna=False).apply(
        lambda part: front_area(1 - part.target_accuracy, part.preserved_accuracy), include_groups=False
    )
    of_run = of_fold.groupby(CURVE, sort=False).mean()
    rows = []
    for key, part in of_run.groupby(["arm", "target", "preserved", "method"], sort=False):
        arm, target, preserved, method = cast(tuple[str, ...], key)
        low, high = t_interval(part.to_numpy())
        rows.append({"arm": arm, "target": target, "preserved": preserved, "method": method, "area": float(part.mean()),
                     "ci_low": low, "ci_high": high, "n_seeds": len(part), "by_seed": part.tolist()})  # fmt: skip
    return rows


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean over seeds; NaN for fewer than 3 of them."""
    if len(values) < 3:
        return float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
    return float(values.mean()) - half, float(values.mean()) + half


def finals(table: pd.DataFrame) -> list[dict[str, Any]]:
    """For each curve the tolerance that was best on held-out folds (kept minus left), and its accuracies on `test`.

    Wilson intervals over examples; without a test part the accuracies are missing.
    """
    rows = []
    for key, part in table.groupby(CURVE, sort=False):
        held = part[part.split == "held_out"].groupby("tau")[["target_accuracy", "preserved_accuracy"]].mean()
        tau = float((held.preserved_accuracy - held.target_accuracy).idxmax())
        row = {**dict(zip(CURVE, key, strict=True)), "tau": tau}
        for tested in part[(part.split == "test") & (part.tau == tau)].itertuples():
            for name in ("target", "preserved"):
                share, count = getattr(tested, f"{name}_accuracy"), getattr(tested, f"n_{name}")
                low, high = share_interval(round(share * count), count)
                row |= {f"{name}_accuracy": share, f"{name}_low": low, f"{name}_high": high, f"n_{name}": count}
            row["n_removed"] = tested.n_removed
        rows.append(row)
    return rows


def choice_of(judged: Any, target: str, preserved: str, tau: float) -> tuple[list[int], dict[str, Any]]:
    """What the rule chooses on all the examples, and both importances of each latent that is ever active."""
    values = importance(judged)
    by_task = {task: values[:, judged.of_task(task)].mean(1) for task in TASKS}
    chosen = tolerated(by_task[target], by_task[preserved], tau)
    alive = (values != 0).any(1).nonzero().flatten().tolist()
    points = {task: [round(float(by_task[task][j]), 7) for j in alive] for task in TASKS}
    asked = {"tau": tau, "target": target, "preserved": preserved}
    return chosen, {**asked, "latent": alive, "chosen": sorted(chosen), **points}


def state_sample(run: ToyRun, problems: Problems) -> dict[str, Any]:
    """Latents before and after the ReLU at some answer tokens of both tasks; the latents with the largest values."""
    judged = bench(run.toy, latents(run.sae, run.toy.site), problems)
    half = SHOWN_TOKENS // 2
    rows = torch.cat([judged.of_task(task).nonzero().flatten()[:half] for task in TASKS])
    assert run.sae is not None and judged.state is not None and isinstance(judged.parts, Directions)
    pre = (judged.state[rows, 0] @ run.sae.W_enc + run.sae.b_enc).detach()
    latent = pre.relu().amax(0).argsort(descending=True)[:SHOWN_LATENTS]
    density = (judged.parts.activations(judged.state[counted(problems.answer)]) > 0).double().mean(0)
    return {"latent": latent.tolist(), "pre": rounded(pre[:, latent]), "texts": problems.subset(rows).texts(),
            "density": rounded(density.sort(descending=True).values)}  # fmt: skip


def rounded(x: Tensor) -> Any:
    return [[round(v, 4) for v in row] for row in x.tolist()] if x.ndim > 1 else [round(v, 5) for v in x.tolist()]


def answers(
    run: ToyRun, parts: Any, chosen: list[int], target: str, tau: float, show: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """What the model writes, intact and without the chosen latents."""
    if show:
        problems = run.data.ask(show)
    else:
        pool = run.data.part("test") if len(run.data.part("test")) >= SHOWN_ANSWERS else run.data.part("val")
        generator = torch.Generator().manual_seed(seed)
        problems = pool.subset(torch.randperm(len(pool), generator=generator)[:SHOWN_ANSWERS])
    written = [greedy(run.toy, problems, hooks) for hooks in ((), parts.hooks(run.toy, chosen))]
    texts = [[until_end(run, row) for row in tokens.tolist()] for tokens in (problems.answer, *written)]
    return [
        {"run": run.name, "removed": target, "tau": tau, "n_removed": len(chosen), "problem": asked, "right": right,
         "intact": intact, "edited": edited}
        for asked, right, intact, edited in zip(problems.texts(), *texts, strict=True)
    ]  # fmt: skip


def until_end(run: ToyRun, ids: list[int]) -> str:
    """The text of an answer up to its E, exclusive."""
    return run.data.tokenizer.decode(ids).split("E")[0]


def summary(meta: dict[str, Any]) -> str:
    """The areas of the main methods in a line each."""
    lines = []
    for row in meta["areas"]:
        if row["method"] in ("latents", "random", "neurons", "units", "masks"):
            by = "" if row["ci_low"] != row["ci_low"] else f" [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
            lines.append(f"{row['arm']}, {row['method']}, removing {row['target']}: area {row['area']:.2f}{by}")
    return "\n".join(lines)
