"""How selective is each unit, for what, and how much more than a unit of the same sparsity would be?"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analyses import needs
from analyses.labels import Labels
from analyses.result import Result
from analyses.specialization.activity import Activity, activity_of
from analyses.specialization.logit_weights import logit_weights, token_lists
from analyses.specialization.means import layer_means, summary_line
from analyses.specialization.measured import measured_of, modularities, of_weights
from analyses.specialization.measures import NONE
from analyses.specialization.observation import Observation, Target, observation, target_of
from analyses.specialization.preferences import preferences
from analyses.specialization.rows import COLUMNS, ORDER, layer_rows, live_rows, rows, spoken
from analyses.texts import Stories
from analyses.unit_streams import Units, real_tokens, units_of

COLUMN_UNITS = {
    **dict.fromkeys(("value", "ci_low", "ci_high", "null", "null_sd", "excess"), "that of the metric"),
    **dict.fromkeys(("p", "q"), "probability"),
    "layer": "index",
    "lift": "times",
    "n": "tokens",
}
FEWEST_STORIES = 8
LOGITS = "logits"
"""Target of the rows about what a unit writes."""


def unit_selectivity(
    model: Any,
    stories: Stories,
    labels: Sequence[Labels],
    *,
    kinds: Sequence[str] = ("neuron",),
    stream: str = "clean",
    n_draws: int = 20,
    n_mask_draws: int = 8,
    n_groups: int = 16,
    seed: int = 0,
    batch: int = 32,
    progress: bool = False,
) -> Result:
    """Every measure of every unit, each against nulls of the same sparsity.

    Args:
        model: a HookedTransformer, or one with two streams.
        stories: what it reads.
        labels: of these stories; `effective contexts` needs `current_token` among them.
        kinds: see `analyses.unit_streams`.
        stream: `clean` or `ablated`.
        n_draws: of labels dealt out anew, at least 2.
        n_mask_draws: of the masks of other tokens, at least 2.
        n_groups: of stories, left out in turn; fewer where there are fewer stories.
        seed: of the draws.
        batch: stories a forward pass, at most.
        progress: show a bar on stderr, when that is a terminal.

    Returns:
        One row a unit, metric, target (the labels; "-" where there are none) and null (`against`, see `nulls`; "-"
        where there is none). `value` with a 95 % interval over stories, `null` and `null_sd` over draws, `excess` =
        value - null, so that the interval of the excess is that of the value less `null`. `p` two-sided, against the
        null; `q` the false discovery rate among units of the same kind, metric, target and null. `label` and `lift`
        = P(active | label) / P(active) of the class that the unit speaks for most; of `logit kurtosis` the tokens
        that it promotes (+) and suppresses (-). `n` tokens (with a label). `modularity` has a row a layer.
        `metric`s and their units: `measures.UNITS`. `live stories` of 0 is a dead unit; its `ci_high` says how often
        it may be active all the same.
        meta["means"]: each metric's mean over live units, by layer and over all (layer -1), with an interval over
        stories: what arms are compared by. meta["preferences"]: classes that the units which know most prefer.
        meta["targets"], meta["kinds"]: what was asked, and when a unit is active.

    Raises:
        ValueError: a kind or stream that the model does not have, fewer than 8 stories, too few draws.

    Cost: one pass over the stories (and 32 of them twice) for each kind; for each batch and draw a sum by class.
        1,024 neurons, 300 stories of 100 tokens and five targets take about half a minute on one core. Memory: sums of
        n_groups + n_draws (+ n_mask_draws) slots, each 2 x classes x units numbers.
    """
    needs.require(model, "specialization")
    if stories.n < FEWEST_STORIES:
        raise ValueError(f"intervals over stories need at least {FEWEST_STORIES} stories; got {stories.n}")
    if min(n_draws, n_mask_draws, n_groups) < 2:
        raise ValueError(
            f"n_draws, n_mask_draws and n_groups must be at least 2; got {n_draws}, {n_mask_draws} and {n_groups}"
        )
    if not labels:
        raise ValueError("selectivity is for something: at least one target; got none")
    asked = list(dict.fromkeys(units_of(model, kind, stream).kind for kind in kinds))
    targets = [target_of(one, real_tokens(model, stories)) for one in labels]
    knobs = {"n_draws": n_draws, "n_mask_draws": n_mask_draws, "n_groups": min(n_groups, stories.n), "seed": seed}
    tables, means, preferred, about = [], [], [], []
    for kind in asked:
        units = units_of(model, kind, stream)
        activity = activity_of(model, stories, units)
        seen = observation(model, stories, units, activity, targets, batch=batch, progress=progress, **knobs)
        found, of_layers, prefer = answers(model, seen, targets, stories.n)
        tables.append(found)
        means += of_layers
        preferred += prefer
        about.append(_about(units, activity, int((seen.live == 0).sum())))
    meta = {
        "knobs": {**knobs, "n_stories": stories.n, "stream": stream, "kinds": asked},
        "kinds": about,
        "targets": [{"name": t.name, "source": t.source, "n_classes": len(t.classes), "n": t.n} for t in targets],
        "means": means,
        "preferences": preferred,
        "summary": "\n".join(summary_line(one, means) for one in about),
    }
    return Result("specialization", pd.concat(tables, ignore_index=True), COLUMN_UNITS, meta)


def _about(units: Units, activity: Activity, n_dead: int) -> dict[str, Any]:
    """What was asked of one kind, and when its units are active."""
    threshold = "0.9-quantile" if activity.by_quantile else float(activity.threshold[0])
    return {"kind": units.kind, "stream": units.stream, "n_units": units.n, "n_dead": n_dead, "rule": activity.rule,
            "threshold": threshold}  # fmt: skip


def answers(
    model: Any, seen: Observation, targets: Sequence[Target], n_stories: int
) -> tuple[pd.DataFrame, list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of one kind's units, its means by layer, and what its units prefer."""
    units, total = seen.units, seen.observed.total
    measured = measured_of(seen)
    live = (seen.live > 0).numpy(force=True)
    n_of = {NONE: int(total["n"]), **{target.name: target.n for target in targets}}
    labelled = {target.name: spoken(total, target) for target in targets}
    frames = [live_rows(units, seen, n_stories, n_of[NONE])]
    if not units.kind.startswith("mask"):
        weights = logit_weights(model, units)
        measured["logit kurtosis", LOGITS] = of_weights(weights)
        n_of[LOGITS], labelled[LOGITS] = model.cfg.d_vocab, {"label": np.array(token_lists(weights, model.tokenizer))}
    frames += [
        rows(units, key, one, against, labelled.get(key[1], {}), n_of[key[1]])
        for key, one in measured.items()
        for against in (one.null or (NONE,))
    ]
    grouped = modularities(seen)
    frames += [layer_rows(units, grouped, n_of[NONE])] if grouped is not None else []
    table = pd.concat([frame.reindex(columns=COLUMNS) for frame in frames], ignore_index=True)
    table["metric"] = pd.Categorical(table.metric, ORDER)
    table = table.sort_values(["metric", "target", "against", "excess"], ascending=[True, True, True, False],
                              kind="stable", ignore_index=True)  # fmt: skip
    table["metric"] = table.metric.astype(str)
    table["label"] = table.label.astype(object).where(table.label.notna(), np.nan)  # one kind of missing
    floats = table.select_dtypes("float").columns
    table[floats] = table[floats].map(lambda x: float(f"{x:.6g}"))
    return table, layer_means(units, measured, live, grouped), preferences(seen, targets, measured)
