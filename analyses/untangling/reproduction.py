"""The source's own experiment, and what each of its choices is worth.

50 sums of the validation part and the concatenations of the same operands; importance summed over them, on all
positions (the padding behind an answer too, where there is any); chosen and judged on the same examples; the
concatenation removed with a hook a feature, one after the other. Beside it the same set edited jointly, and its
accuracy on other examples, drawn in the same way.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from analyses.result import Result
from analyses.untangling.bench import accuracies, bench
from analyses.untangling.examples import source_examples
from analyses.untangling.importance import importance, summed
from analyses.untangling.parts import latents
from analyses.untangling.published import EXACT_MATCH, NON_ZERO, POINTS
from analyses.untangling.selection import tolerated
from sat_lens.toy.runs import ToyRun

N = 50
"""Sums, as published."""


def reproduction(run: ToyRun, seed: int = 0, n: int = N) -> pd.DataFrame:
    """Accuracies at the published tolerances, beside the published ones.

    Returns:
        `source` (`published`, or the run), `order`, `judged_on` (`selection`, `held_out`), `tau_sum` (nats, summed over
        the examples of a task), `tau` (the same as a mean), `n_removed`, `target_accuracy`, `preserved_accuracy`.

    Raises:
        ValueError: a run without an autoencoder.
    """
    if run.sae is None:
        raise ValueError(f"--reproduce needs runs with an autoencoder; {run.name} has none")
    target, preserved = "concat", "sum"
    problems = [source_examples(run.toy, run.data, n, seed, others=others) for others in (False, True)]
    parts = latents(run.sae, run.toy.site)
    chosen_on, held_out = (bench(run.toy, parts, part, padding=True) for part in problems)
    if not all(part.of_task(task).any() for part in (chosen_on, held_out) for task in (target, preserved)):
        raise ValueError(f"{run.name} answers no validation example of one of the tasks rightly; train it longer")
    values = importance(chosen_on)
    rows: list[dict[str, Any]] = []
    for tau in POINTS.tau_sum:
        by_task = [summed(values[:, chosen_on.of_task(task)]) for task in (target, preserved)]
        chosen = tolerated(by_task[0], by_task[1], float(tau))
        for order in ("sequential", "joint"):
            for name, judged in (("selection", chosen_on), ("held_out", held_out)):
                found = accuracies(judged.right(chosen, order), judged.problems)
                rows.append({
                    "source": run.name, "order": order, "judged_on": name, "tau_sum": tau,
                    "tau": tau / int(chosen_on.of_task(preserved).sum()), "n_removed": len(chosen),
                    "target_accuracy": found[target], "preserved_accuracy": found[preserved],
                })  # fmt: skip
    columns = ["source", "order", "tau_sum", "target_accuracy", "preserved_accuracy"]
    return pd.concat([POINTS[columns].assign(judged_on="selection"), pd.DataFrame(rows)], ignore_index=True)


UNITS = {
    "tau_sum": "nats, summed over the examples of a task", "tau": "nats, mean over the examples",
    "n_removed": "latents", "target_accuracy": "exact match of concatenations, 0..1",
    "preserved_accuracy": "exact match of sums, 0..1",
}  # fmt: skip


def reproduction_result(runs: Sequence[ToyRun], seed: int = 0, n: int = N) -> Result:
    """The reproduction of several runs, the published points first."""
    tables = [reproduction(run, seed, n) for run in runs]
    ours = [table[table.source != "published"] for table in tables]
    table = pd.concat([tables[0][tables[0].source == "published"], *ours], ignore_index=True)
    meta = {
        "published_exact_match": EXACT_MATCH,
        "published_non_zero": {str(k): v for k, v in NON_ZERO.items()},
        "n": N,
    }
    return Result("untangling_reproduction", table, UNITS, {**meta, "seed": seed})
