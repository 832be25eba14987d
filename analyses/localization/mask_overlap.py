"""Does the mask know the circuit? The units that masks name on a task, against the units that do the task.

A circuit is the `size` units with the largest scores; a mask ranks units by usage (`mask_usage`). Their
overlap is auroc, average_precision and jaccard (`overlap`), beside those of other rankings:

    random         the mask's usage with the units of each layer and site dealt anew: chance, given how many
                   units a mask must name in each layer
    matched        dealt anew among units of about the same mean |activation| of a layer and site
    magnitude      mean |activation| on the task, in place of usage
    other_text     the mask's usage on the counterfactual prompts, or on stories
    other_prompts  (prompt_auroc) the mask of another prompt: does a mask know its own prompt's circuit?

And the masks are run as circuits: faithfulness and size against the smallest circuits by attribution of
the same faithfulness (`mask_circuits`).

Source: arXiv 2505.00509 (the masks, and smaller circuits as its claim); the measures are our own.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from analyses.localization.mask_circuits import circuit_table, counted
from analyses.localization.mask_rankings import Rows, overlap_table
from analyses.localization.mask_usage import POSITIONS, compared_usage, refuse_without_masks, text_masks
from analyses.localization.setting import UNITS
from analyses.localization.unit_attribution import unit_attribution
from analyses.localization.unit_setting import UnitSetting, unit_activations, unit_setting_of
from analyses.localization.units import unit_effects
from analyses.result import Result
from analyses.texts import Stories
from sat_lens.tasks import Task

SCORES = ("attribution", "exact")
COLUMNS = (
    "measure", "positions", "by", "scores", "size", "site", "layer", "value", "ci_low", "ci_high", "unit",
    "difference", "difference_low", "difference_high", "p", "n",
)  # fmt: skip


def mask_overlap(
    model: Any,
    task: Task,
    *,
    other: Stories | None = None,
    ablation: str = "zero",
    value: str = "logit_diff",
    positions: tuple[str, ...] = ("all", "end"),
    scores: tuple[str, ...] = ("attribution",),
    size: int | None = None,
    absolute: bool = True,
    steps: int = 5,
    n_shuffles: int = 1000,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Overlap of masks and circuit on a task, and masks as circuits.

    Args:
        model: a SelfAblatingTransformer with a mask; circuits are those of its clean stream.
        task: prompts with counterfactuals.
        other: stories whose masks are compared; None: the counterfactual prompts.
        ablation, value: of circuits, as in `unit_setting`. Zeros are what masks put in the place of a unit, so that
            at `end` the circuit `mask` is the ablated stream itself.
        positions: where units are taken out and masks are read: `all` tokens, or the `end` of a prompt.
        scores: of units: `attribution` (integrated gradients, prompt by prompt), `exact` (each unit ablated
            alone, `units.unit_effects`; only with `logit_diff`).
        size: of the circuit, units; None: as many as the masks name at a token.
        absolute: rank units by |score|, as `circuit.largest` does; else those that help most. The latter leave out
            what balances them: their circuits are often worth less as they grow.
        steps: of the attribution.
        n_shuffles: of the units, for `random` and `matched`, and of the labels for `other_text`.
        n_bootstrap, seed: of 95 % intervals over prompts. For `random`, `matched` and `other_prompts` the interval
            is the null's own 95 % range.
        progress: show a bar on stderr, when that is a terminal.

    Returns:
        One row a measure, `by` whom and where: value, interval, `unit`; `difference` (mask minus this row) with
        its interval, `p` (one-sided, of the mask being no better than this null), n prompts. Overlap rows are of
        all units, of the `site` attn or mlp, and (auroc, mask and random) of a layer's site; intervals are for
        the circuit as it is, whose own jaccard with itself over resamples is the row by `circuit`. The other
        rows are those of `mask_circuits.circuit_table`.

    Raises:
        ValueError: a model without masks, an unknown choice.

    Cost: for each kind of position about 130 forward passes over the task, and for `exact` units / 3 more;
    memory n x pos x units x 4 bytes and a few times n_bootstrap x units x 8.
    """
    refuse_without_masks(model)
    for name, asked, known in (("positions", positions, POSITIONS), ("scores", scores, SCORES)):
        if not asked or set(asked) - set(known):
            raise ValueError(f"{name} must be some of {', '.join(known)}; got {', '.join(asked) or 'none'}")
    if "exact" in scores and value != "logit_diff":
        raise ValueError(f"exact scores are of logit_diff; got value {value!r}")
    named = text_masks(model, task.clean)
    tables, values = [], {}
    for where in positions:
        setting = unit_setting_of(model, task, ablation=ablation, value=value, positions=where)
        values[where] = {"intact": setting.intact_values.mean(), "empty": setting.empty_values.mean()}
        named_a_token = named[counted(named, task.lengths, where)].sum(-1).double().mean().item()
        k = round(named_a_token) if size is None else size
        if not 0 < k < setting.units.n:
            raise ValueError(f"size must be between 1 and {setting.units.n - 1:,} units; got {k:,}")
        compared, magnitude = compared_usage(model, task, where, other, named), _magnitude(setting)
        attributed = unit_attribution(setting, steps=steps, progress=progress).by_prompt
        by_kind = {"attribution": attributed}
        if "exact" in scores:
            by_kind["exact"] = _exact(model, task, setting, progress)[None]
        for kind in scores:
            rows = Rows(compared.task, compared.other, magnitude, by_kind[kind])
            table = overlap_table(rows, setting.units, k, absolute, n_shuffles, n_bootstrap, seed)
            tables.append(table.assign(positions=where, scores=kind, size=k))
        circuits = circuit_table(
            setting, task.lengths, named, {kind: by_prompt.mean(0) for kind, by_prompt in by_kind.items()},
            absolute=absolute, steps=steps, n_bootstrap=n_bootstrap, seed=seed,
        )  # fmt: skip
        tables.append(circuits.assign(positions=where))
    table = pd.concat(tables, ignore_index=True).reindex(columns=list(COLUMNS))
    knobs = {
        "ablation": ablation, "value": value, "positions": list(positions), "scores": list(scores), "size": size,
        "absolute": absolute, "steps": steps, "other": "counterfactuals" if other is None else "stories",
        "n_shuffles": n_shuffles, "n_bootstrap": n_bootstrap, "seed": seed,
    }  # fmt: skip
    meta = {
        "task": {"name": task.name, "n": task.n, "values": values, "unit": UNITS[value]},
        "knobs": knobs,
        "ablation": model.ablation.to_dict(),
    }
    table = table.astype(dict.fromkeys(("layer", "size"), "Int64"))
    return Result("mask_overlap", table, {"size": "units", "p": "probability", "n": "prompts"}, meta)


def _magnitude(setting: UnitSetting) -> Float[np.ndarray, "n unit"]:
    found = np.empty((setting.n, setting.units.n))
    with torch.no_grad():
        for group in setting.groups:
            seen = unit_activations(setting.model, group.tokens).abs()
            seen = seen[:, -1] if setting.positions == "end" else seen.mean(1)
            found[group.rows.numpy()] = seen.double().numpy(force=True)
    return found


def _exact(model: Any, task: Task, setting: UnitSetting, progress: bool) -> Float[np.ndarray, " unit"]:
    kinds = ("channel", "neuron") if setting.units.d_mlp else ("channel",)
    table = unit_effects(
        model, task, units=kinds, ablation=setting.ablation, positions=setting.positions,
        reference=(task.corrupt, task.lengths), n_bootstrap=1, progress=progress,
    ).table  # fmt: skip
    found = np.empty(setting.units.n)
    for row in table.itertuples():
        channel = row.kind == "channel"
        name = f"a{row.layer}.h{row.head}.c{row.channel}" if channel else f"m{row.layer}.n{row.neuron}"
        found[setting.units.index[name]] = row.effect_logit_diff
    return found
