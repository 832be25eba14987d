"""The report as HTML: a pure function of what is known of each checkpoint."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from analyses.figures import curve
from analyses.leakage.report_part import leakage_html
from analyses.localization import concentration_figure, head_figure
from analyses.localization.circuit_drawing import drawing_html
from analyses.localization.circuit_figures import faithfulness_figure
from analyses.masks import StoryMasks, masks_html
from analyses.metrics import concentration_curve
from analyses.page import (
    details_html,
    document,
    encodable,
    escaped,
    figure_html,
    interval,
    number,
    pairs_html,
    table_html,
)
from analyses.probing.report_part import probing_html
from analyses.result import Result
from analyses.rewriting.report_part import rewriting_html
from analyses.self_repair.report_part import self_repair_html
from analyses.specialization.report_part import explainability_html, specialization_html
from sat_lens.commands import one_line

KINDS = {"head": "heads", "channel": "z channels", "neuron": "neurons"}
LARGEST = 5
"""Units of a kind in the table of a checkpoint."""
NO_SUCH_RESULT = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What drawing raises of a result that holds other things than its question writes."""
WHOLE = ("k_attn", "k_mlp", "seed", "n_parameters", "n_gate_parameters", "tokens_seen", "n")
UNITS = {
    **dict.fromkeys(("n_parameters", "n_gate_parameters"), "weights"),
    "tokens_seen": "tokens",
    **dict.fromkeys(("held_out_clean", "held_out_ablated"), "nats a token"),
    **dict.fromkeys(("ioi_accuracy", "ci_low", "ci_high"), "share of prompts"),
    "n": "prompts",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the page says of one checkpoint.

    Args:
        name: of the checkpoint, as results are filed.
        config: its config.json; empty for a checkpoint that is no folder.
        held_out: loss by stream, nats a token; empty where the log has none.
        provenance: of `analyses.provenance`.
        n_parameters: all weights, gates included, tied ones once.
        n_gate_parameters: those of the gates.
        localization: its Result, or why there is none.
        story: its masks on a story, or why there are none.
        circuit: a circuit of the task that was found before, or why there is none.
        leakage: whether its masks are a message, as found before, or why that is not known.
        specialization: what its units are selective for, as found before, or why that is not known.
        explainability: how well its units are explained, as found before, or why that is not known.
        probing: what can be read where, as found before, or why that is not known.
        self_repair: what later parts make up for, as found before, or why that is not known.
        rewriting: what latents rewritten by their explanations cost, as found before, or why that is not known.
    """

    name: str
    config: dict[str, Any]
    held_out: dict[str, float]
    provenance: dict[str, Any]
    n_parameters: int
    n_gate_parameters: int
    localization: Result | str
    story: StoryMasks | str
    circuit: Result | str = "none was looked for"
    leakage: Result | str = "it was not asked"
    specialization: Result | str = "it was not asked"
    explainability: Result | str = "it was not asked"
    probing: Result | str = "it was not asked"
    self_repair: Result | str = "it was not asked"
    rewriting: Result | str = "it was not asked"


def checkpoints_result(entries: Sequence[Entry]) -> Result:
    """One row a checkpoint: arm, size, training, held-out loss, accuracy on IOI with its 95 % interval and n."""
    table = pd.DataFrame([_row(entry) for entry in entries])
    table = table.astype(dict.fromkeys(WHOLE, "Int64"))
    meta: dict[str, Any] = {key: entries[0].provenance[key] for key in ("versions", "commit", "command", "date")}
    meta["checkpoints"] = {entry.name: entry.provenance["checkpoint_sha256"] for entry in entries}
    return Result("report", table, UNITS, meta)


def _row(entry: Entry) -> dict[str, Any]:
    ablation, training = entry.provenance["ablation"] or {"mask": "none"}, entry.config.get("training", {})
    gated = ablation["mask"] != "none"
    task = {} if isinstance(entry.localization, str) else entry.localization.meta["task"]
    return {
        "checkpoint": encodable(entry.name),
        "mask": ablation["mask"],
        "k_attn": ablation["k_attn"] if gated else None,
        "k_mlp": ablation["k_mlp"] if gated else None,
        "seed": whole(training.get("seed")),
        "n_parameters": entry.n_parameters,
        "n_gate_parameters": entry.n_gate_parameters,
        "tokens_seen": tokens_seen(training),
        "held_out_clean": entry.held_out.get("clean"),
        "held_out_ablated": entry.held_out.get("ablated") if gated else None,
        "ioi_accuracy": task.get("accuracy"),
        "ci_low": task.get("accuracy_low"),
        "ci_high": task.get("accuracy_high"),
        "n": task.get("n"),
    }


def tokens_seen(training: Mapping[str, Any]) -> int | None:
    """Of all runs that the weights went through; None where no run was recorded."""
    seen, before = (whole(training.get(key)) for key in ("tokens_seen", "tokens_seen_before"))
    return None if seen is None else seen + (before or 0)


def whole(value: Any) -> int | None:
    """A whole number that a table can hold; what is none, as a configuration by hand may have, is left out."""
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None


def report_html(entries: Sequence[Entry]) -> str:
    """The whole page."""
    links = "".join(f'<li><a href="#c{i}">{escaped(entry.name)}</a></li>' for i, entry in enumerate(entries))
    parts = [checkpoint_html(entry, f"c{i}") for i, entry in enumerate(entries)]
    return document(
        "Self-ablating transformers: report",
        "<p>A self-ablating transformer chooses, for every token, the few attention channels and neurons that "
        "matter, and learns to predict from these alone in a second, ablated stream. In use it is an ordinary "
        f"transformer, its clean stream.</p>\n<nav><ul>{links}</ul></nav>\n"
        + summary_html(entries)
        + comparison_html([(e.name, e.localization) for e in entries if isinstance(e.localization, Result)])
        + "".join(parts)
        + environment_html(entries[0].provenance),
    )


def summary_html(entries: Sequence[Entry]) -> str:
    header = (
        "checkpoint", "mask", "k attention", "k MLP", "seed", "parameters", "of them gates", "tokens seen",
        "held-out loss, clean", "held-out loss, ablated", "IOI accuracy [95 %]", "n",
    )  # fmt: skip
    rows = []
    for row in checkpoints_result(entries).table.astype(object).to_dict(orient="records"):
        losses = (number(row[f"held_out_{stream}"]) for stream in ("clean", "ablated"))
        accuracy = interval(row["ioi_accuracy"], row["ci_low"], row["ci_high"])
        whole = [number(row[column]) for column in WHOLE[:-1]]
        rows.append((row["checkpoint"], row["mask"], *whole, *losses, accuracy, number(row["n"])))
    caption = (
        "Losses in nats a token on held-out text, as logged in training. IOI: indirect object identification on "
        "pairs of names that the generator holds out; accuracy is the share of n prompts whose answer has a larger "
        "logit than the wrong name, clean stream, chance 0.5, Wilson's interval."
    )
    return f"<h2>Checkpoints</h2>\n{table_html(header, rows, caption)}"


def comparison_html(answered: Sequence[tuple[str, Result]]) -> str:
    """How concentrated the effects are, side by side; empty when nothing was localized."""
    if not answered:
        return ""
    header = ("checkpoint", *(f"Gini of {kind} [95 %]" for kind in KINDS.values()), "n")
    rows = []
    for name, result in answered:
        gini = {row["kind"]: row for row in result.meta["concentration"] if row["metric"] == "gini"}
        cells = [
            [gini[kind][key] for key in ("value", "ci_low", "ci_high")] if kind in gini else [None] * 3
            for kind in KINDS
        ]
        rows.append((name, *(interval(*cell, digits=2) for cell in cells), number(result.meta["task"]["n"])))
    caption = (
        f"Gini coefficient of |effect on the logit difference|, {_ablation(answered[0][1])}: 0 when all units matter "
        "alike, near 1 when one has it all. Bootstrap over n prompts, which evens effects out: an interval may lie "
        "below its value. One checkpoint an arm shows a difference between checkpoints, not between arms."
    )
    series = {
        escaped(name): concentration_curve(effects)
        for name, result in answered
        if len(effects := result.table.loc[result.table.kind == "neuron", "effect_logit_diff"].to_numpy(dtype=float))
    }
    if not series:
        return f"<h2>How few units do the task</h2>\n{table_html(header, rows, caption)}"
    drawn = curve(series, title="", x_title="share of neurons", y_title="share of the total |effect|", diagonal=True)
    how = (
        "A curve that rises sooner needs fewer neurons: its height at x is the share of the summed |effect| "
        f"(logits) that the x of the neurons with the largest effects hold. {_ablation(answered[0][1], capital=True)}."
    )
    figure = figure_html(drawn, "Concentration of the effect over neurons", how)
    return f"<h2>How few units do the task</h2>\n{table_html(header, rows, caption)}{figure}"


def checkpoint_html(entry: Entry, anchor: str) -> str:
    sections: tuple[tuple[str, Any, Callable[[Any], str], str], ...] = (
        ("Where the task is done", entry.localization, localization_html, "No localization"),
        ("A circuit of the task", entry.circuit, circuit_html, "No circuit"),
        ("A story with its masks", entry.story, masks_html, "No masks"),
        ("Is the mask a message?", entry.leakage, leakage_html, "Not known"),
        ("What single units are selective for", entry.specialization, specialization_html, "Not known"),
        ("How well single units are explained", entry.explainability, explainability_html, "Not known"),
        ("What can be read where", entry.probing, probing_html, "Not known"),
        ("Do later parts repair an ablation?", entry.self_repair, self_repair_html, "Not known"),
        ("Can latents be replaced by their explanations?", entry.rewriting, rewriting_html, "Not known"),
    )
    parts = (f"<h3>{title}</h3>\n{part_html(answer, html, without)}" for title, answer, html, without in sections)
    return f'<h2 id="{anchor}">{escaped(entry.name)}</h2>\n{"".join(parts)}{configuration_html(entry)}'


def part_html(answer: Any, html: Callable[[Any], str], without: str) -> str:
    """A part, or why there is none; a stored result may be damaged, or be of another version."""
    if not isinstance(answer, str):
        try:
            return html(answer)
        except NO_SUCH_RESULT as error:
            answer = (
                f"what is stored cannot be shown ({type(error).__name__}: {one_line(error)}); ask the question again"
            )
    return f"<p>{without}: {escaped(answer)}.</p>\n"


def localization_html(result: Result) -> str:
    """Heat map of heads, concentration curve, and the units with the largest effects."""
    task = result.meta["task"]
    accuracy = interval(task["accuracy"], task["accuracy_low"], task["accuracy_high"])
    solved = (
        f"<p>Accuracy on {escaped(task['name'])}: {accuracy} (n = {number(task['n'])}); mean logit difference "
        f"{number(task['logit_diff'], 2)} logits.</p>\n"
    )
    if not task["solved"]:
        solved += (
            '<p class="warning">Chance (0.5) is not ruled out: this checkpoint does not solve the task, and the '
            "effects below are no circuit.</p>\n"
        )
    figures = []
    made_with = f"{_ablation(result, capital=True)}, n = {task['n']} prompts"
    if (result.table.kind == "head").any():
        how = (
            "Blue heads help: without them the logit of the answer falls against that of the wrong name, by so many "
            f"logits. Orange heads hurt; those without colour do nothing. "
            f"The scale is this checkpoint's own. {made_with}."
        )
        figures.append(figure_html(head_figure(result), "Effect of ablating one head", how))
    how = (
        "The largest units first: a curve that leaves the dotted line (all units alike) sooner means that fewer "
        f"units do the task. Units are ablated one at a time. {made_with}."
    )
    figures.append(figure_html(concentration_figure(result), "Concentration of the effect", how))
    return f'{solved}<div class="figures">{"".join(figures)}</div>\n{largest_html(result)}'


def circuit_html(result: Result) -> str:
    """How far the circuit can be trusted, its graph, its faithfulness by size."""
    meta = result.meta
    circuit, task, matched = meta["circuit"], meta["task"], meta["matched"]
    areas = {(row["area"], row["sign"], row["axis"]): row for row in meta["areas"]}
    rows = [
        (f"edges of the circuit ({escaped(meta['rule'])})", f"{circuit['n_edges']:,} of {meta['graph']['n_edges']:,}"),
        ("faithfulness [95 %]", interval(circuit["faithfulness"], circuit["ci_low"], circuit["ci_high"], digits=2)),
        ("edges needed for faithfulness 0.9 [95 %]", interval(matched["n_edges"], matched["low"], matched["high"], 0)),
    ]
    for name in ("CPR", "CMD"):
        for sign in ("absolute", "signed"):
            row = areas[name, sign, "share"]
            rows.append((f"{name}, edges by {sign} score [95 %]", interval(row["value"], row["low"], row["high"], 3)))
    for keep, chance in meta.get("checks", {}).get("against_random", {}).items():
        said = f"{number(chance['random'], 2)} (p = {number(chance['p_value'], 2)}, {chance['n_random']} circuits)"
        rows.append((f"faithfulness of random circuits with the same {escaped(keep)}", said))
    caption = (
        f"Method {escaped(meta['method'])}, {escaped(meta['knobs']['ablation'])} ablation, n = {task['n']} prompts of "
        f"{escaped(task['name'])}. Faithfulness: share of the logit difference that the circuit keeps; bootstrap over "
        "prompts."
    )
    drawn, _ = drawing_html(result)
    how = "Grey: random circuits of the same size, central 95 %. Band: 95 % bootstrap over prompts."
    figure = figure_html(faithfulness_figure(result), "Faithfulness by size", how)
    return f"{table_html(('measure', 'value'), rows, caption)}{drawn}{figure}"


def largest_html(result: Result) -> str:
    largest = result.table.groupby("kind", sort=False).head(LARGEST).to_dict(orient="records")
    rows = [
        (
            unit_name(row),
            interval(row["effect_logit_diff"], row["ci_low"], row["ci_high"]),
            interval(row["effect_loss"], row["loss_ci_low"], row["loss_ci_high"]),
            f"{row['p_holm']:.2g}",
            row["n"],
        )
        for row in largest
    ]
    header = ("unit", "effect on logit difference, logits [95 %]", "effect on loss, nats [95 %]", "p (Holm)", "n")
    caption = (
        f"The {LARGEST} units of each kind with the largest |effect|; positive: the unit helps. "
        f"{_ablation(result, capital=True)}. Bootstrap over n prompts; p: sign-flip test, corrected within the kind."
    )
    return table_html(header, rows, caption)


def unit_name(row: dict[str, Any]) -> str:
    """`head 2.3`, `channel 2.3.11`, `neuron 1.200`: the layer first."""
    index = {"head": ("head",), "channel": ("head", "channel"), "neuron": ("neuron",)}[row["kind"]]
    return f"{row['kind']} {'.'.join(str(row[column]) for column in ('layer', *index))}"


def _ablation(result: Result, capital: bool = False) -> str:
    knobs = result.meta["knobs"]
    text = f"{knobs['ablation']} ablation at {knobs['positions']} positions, {knobs['stream']} stream"
    return text[0].upper() + text[1:] if capital else text


def configuration_html(entry: Entry) -> str:
    """What the checkpoint is, how it was trained, where its numbers come from; folded."""
    made = entry.provenance
    parts = [
        pairs_html("Self-ablation", made["ablation"] or {"mask": "none"}),
        pairs_html("Model", made["model"]),
        *(pairs_html(part.capitalize(), pairs) for part in ("training", "data") if (pairs := entry.config.get(part))),
        pairs_html(f"sha256 of {made['checkpoint_sha256_of']}", {"sha256": made["checkpoint_sha256"]}),
    ]
    if not isinstance(entry.localization, str):
        kept = ("date", "commit", "command", "versions", "knobs")
        parts.append(pairs_html("Localization was made by", {key: entry.localization.meta.get(key) for key in kept}))
    if entry.config:
        whole = json.dumps(entry.config, indent=1, sort_keys=True, ensure_ascii=False)
        parts.append(details_html("config.json, whole", f"<pre>{escaped(whole).replace('↵', '')}</pre>"))
    return f"<h3>Configuration</h3>\n{details_html('Configuration, training and provenance', ''.join(parts))}"


def environment_html(made: dict[str, Any]) -> str:
    pairs = {key: made[key] for key in ("command", "date", "commit", "device", "dtype", "n_threads", "seed")}
    pairs["commit"] = made["commit"] or "not in a git repository"
    return f"<h2>Environment</h2>\n{pairs_html('This page was made by', {**pairs, **made['versions']})}"
