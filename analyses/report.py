"""What is known of these checkpoints, on one page: losses, task accuracy, where the task is done, masks on a story.

`OUT/report.html` holds its figures, tables and scripts itself, and is read without a network. A
localization under `OUT/localization/` is taken over where it is one of the same weights, prompts, seed and
knobs; else it is computed, and kept there where none was. A circuit that --method eap-ig has left there, and what
analyses.leakage, analyses.specialization, analyses.probing, analyses.self_repair and analyses.rewriting have left under
OUT, are shown.
The story comes from --corpus (default: the generator); --n is the number of IOI prompts. `--json` prints the table of
the checkpoints.

Source: arXiv 2505.00509.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from analyses.cli import is_main, joined, load_model, question_parser, result_names, write_result
from sat_lens.commands import one_line, run

TASK = "ioi"
KNOBS = {"ablation": "mean", "stream": "clean", "positions": "all"}
CIRCUIT_METHOD = "eap-ig"
"""Whose circuit is shown where there is one."""
TRIED = 200
"""Stories that are looked through for one that fits the context."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    return question_parser("report", __doc__).parse_args(argv)


def entries(args: argparse.Namespace, names: Sequence[str], command: Sequence[str]) -> Iterator[Any]:
    """What the page says of each checkpoint; text and models are read before the first is analysed."""
    from analyses.provenance import provenance
    from analyses.report_page import Entry
    from analyses.texts import HELD_OUT_SEED
    from sat_lens.corpora import read_stories

    texts = list(islice(read_stories(args.corpus or "stories", seed=HELD_OUT_SEED + args.seed), TRIED))
    models = [load_model(checkpoint, args.device) for checkpoint in args.checkpoints]
    for checkpoint, name, model in zip(args.checkpoints, names, models, strict=True):
        config, log = stored(checkpoint)
        made = provenance(model, checkpoint, seed=args.seed, command=command)
        yield Entry(
            name=name,
            config=config,
            held_out=held_out_losses(log, config),
            provenance=made,
            n_parameters=sum(p.numel() for p in model.parameters()),
            n_gate_parameters=sum(p.numel() for key, p in model.named_parameters() if key.startswith("gates.")),
            localization=_or_why_not(localization, model, args, name, made),
            story=_or_why_not(story, model, texts),
            circuit=_or_why_not(stored_circuit, args.out / "localization" / f"{name}.{CIRCUIT_METHOD}", made),
            leakage=_or_why_not(stored_leakage, args.out / "leakage" / name, made),
            specialization=_or_why_not(stored_specialization, args.out / "specialization" / name, made),
            explainability=_or_why_not(stored_specialization, args.out / "specialization" / f"{name}.explained", made),
            probing=_or_why_not(stored_probing, args.out / "probing" / name, made),
            self_repair=_or_why_not(stored_self_repair, args.out / "self_repair" / name, made),
            rewriting=_or_why_not(stored_rewriting, args.out / "rewriting" / name, made),
        )


def _or_why_not(part: Callable[..., Any], *arguments: Any) -> Any:
    """A part of the page, or why this checkpoint has none (no gates, no tokenizer, a short context)."""
    from sat_lens.distributed import PeerLost

    try:
        return part(*arguments)
    except PeerLost:
        raise
    except ValueError as error:
        return one_line(error)


def stored(checkpoint: str) -> tuple[dict[str, Any], str]:
    """config.json and log.jsonl of a checkpoint folder; empty for other kinds of checkpoint."""
    from sat_lens.checkpoint import LOG, read_config, resolve

    try:
        folder = resolve(checkpoint)
    except (OSError, ValueError):  # a .bin, or a model that TransformerLens knows
        return {}, ""
    log = folder / LOG
    return read_config(folder), log.read_text(encoding="utf-8") if log.is_file() else ""


def held_out_losses(log: str, config: dict[str, Any]) -> dict[str, float]:
    """Held-out losses (nats a token) by stream at the checkpoint's step, else the last ones in the log.

    Lines that are no log lines are passed over: a log is shown, never relied upon.
    """
    found: dict[str, float] = {}
    for line in log.splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            row = json.loads(line)
            now = {s: float(row[f"held_out_{s}"]) for s in ("clean", "ablated") if f"held_out_{s}" in row}
            found = now or found
            if now and row.get("step") == config.get("training", {}).get("step"):
                return now
    return found


def localization(model: Any, args: argparse.Namespace, name: str, made: dict[str, Any]) -> Any:
    """The stored localization where it answers this very question, else a new one."""
    from analyses.localization import unit_effects, unit_figures
    from sat_lens.tasks import load_task

    folder = args.out / "localization" / name
    if (earlier := stored_localization(folder, made, args.n)) is not None:
        return earlier
    task = load_task(TASK, model.tokenizer, n=args.n, seed=args.seed)
    result = unit_effects(model, task, seed=args.seed, progress=not args.quiet, **KNOBS)
    result = dataclasses.replace(result, meta={**made, **result.meta})
    if is_main() and not folder.exists():
        write_result(result, unit_figures(result), folder, static=args.static)
    return result


def stored_localization(folder: Path, made: dict[str, Any], n: int) -> Any:
    """The result in a folder if it was made from the same weights, prompts, seed and knobs; else None."""
    from analyses.result import Result

    try:
        result = Result.load(folder)
    except (OSError, ValueError):
        return None
    task, knobs = result.meta.get("task", {}), result.meta.get("knobs", {})
    wanted = {**KNOBS, "mean_over": "task", "units": ["head", "channel", "neuron"]}
    same = (
        all(result.meta.get(key) == made[key] for key in ("checkpoint_sha256", "seed"))
        and (task.get("name"), task.get("n")) == (TASK, n)
        and all(knobs.get(key) == value for key, value in wanted.items())
        and _shown(result)
    )
    return result if same else None


def _shown(result: Any) -> bool:
    """Whether the page can show a localization: one that is damaged, or of another version, is made again."""
    from analyses.report_page import NO_SUCH_RESULT, comparison_html, localization_html

    try:
        return bool(localization_html(result) + comparison_html([("", result)]))
    except NO_SUCH_RESULT:
        return False


def stored_circuit(folder: Path, made: dict[str, Any]) -> Any:
    """The circuit in a folder, if it is one of the same weights.

    Raises:
        ValueError: there is none.
    """
    from analyses.localization.stored_circuit import circuit_of

    command = f"python -m analyses.localization {made['checkpoint']} --method {CIRCUIT_METHOD}"
    return _stored(folder, made, command, circuit_of)


def stored_leakage(folder: Path, made: dict[str, Any]) -> Any:
    """What the battery of leakage found, if it was asked of the same weights.

    Raises:
        ValueError: it was not, or the checkpoint has no masks.
    """
    if (made["ablation"] or {"mask": "none"})["mask"] == "none":
        raise ValueError("this checkpoint has no masks")
    command = f"python -m analyses.leakage {made['checkpoint']}"
    return _stored(folder, made, command, lambda result: result.meta["summary"])


def stored_specialization(folder: Path, made: dict[str, Any]) -> Any:
    """What units are selective for, or how well they are explained, if it was asked of the same weights.

    Raises:
        ValueError: it was not.
    """
    explain = " --explain" if folder.name.endswith(".explained") else ""
    command = f"python -m analyses.specialization {made['checkpoint']}{explain}"
    return _stored(folder, made, command, lambda result: result.meta["means"])


def stored_probing(folder: Path, made: dict[str, Any]) -> Any:
    """What probes read where, if it was asked of the same weights.

    Raises:
        ValueError: it was not.
    """
    return _stored(
        folder, made, f"python -m analyses.probing {made['checkpoint']}", lambda result: result.meta["targets"]
    )


def stored_self_repair(folder: Path, made: dict[str, Any]) -> Any:
    """What later parts make up for, if it was asked of the same weights.

    Raises:
        ValueError: it was not.
    """
    command = f"python -m analyses.self_repair {made['checkpoint']}"
    return _stored(folder, made, command, lambda result: result.meta["halves"])


def stored_rewriting(folder: Path, made: dict[str, Any]) -> Any:
    """What rewriting latents by their explanations costs, if it was asked of the same weights; else a quick run of it.

    Raises:
        ValueError: it was not.
    """
    quick = folder.with_name(f"{folder.name}.quick")
    folder = folder if (folder / "meta.json").is_file() or not (quick / "meta.json").is_file() else quick
    command = f"python -m analyses.rewriting {made['checkpoint']}"
    return _stored(folder, made, command, lambda result: result.meta["by_loss"])


def _stored(folder: Path, made: dict[str, Any], command: str, read: Callable[[Any], Any]) -> Any:
    from analyses.result import Result

    place = f"{folder.parent.name}/{folder.name}"
    try:
        result = Result.load(folder)
        read(result)
    except (OSError, ValueError, KeyError):
        raise ValueError(f"no result is in {place}; {command} makes one") from None
    if result.meta.get("checkpoint_sha256") != made["checkpoint_sha256"]:
        raise ValueError(f"the result in {place} is of other weights; {command} makes one")
    return result


def story(model: Any, texts: Sequence[str]) -> Any:
    """The masks on the first of the texts that fits the model's context whole.

    Raises:
        ValueError: a model without gates or tokenizer, or no text that fits.
    """
    from analyses.masks import story_masks, story_tokens

    if getattr(getattr(model, "ablation", None), "mask", "none") == "none":
        raise ValueError("this checkpoint has no gates")
    if model.tokenizer is None:
        raise ValueError("this checkpoint has no tokenizer")
    rows = (story_tokens(text, model.tokenizer) for text in texts)
    fitting = next((row for row in rows if 2 <= len(row) <= model.cfg.n_ctx), None)
    if fitting is None:
        raise ValueError(f"none of the first {len(texts)} stories fits the context of {model.cfg.n_ctx} tokens")
    return story_masks(model, fitting)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    names = result_names(args.checkpoints)
    command = ["python", "-m", "analyses.report", *(sys.argv[1:] if argv is None else argv)]
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens prints as it loads
        from analyses.report_page import checkpoints_result, report_html
        from sat_lens.files import write_whole

        with joined(args):
            found = list(entries(args, names, command))
            if not is_main():
                return
        write_whole(args.out / "report.html", report_html(found))
        result = checkpoints_result(found)
    sys.stdout.write(f"{result.to_json()}\n" if args.json else f"{args.out / 'report.html'}\n")


if __name__ == "__main__":
    run(main)
