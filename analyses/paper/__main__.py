"""The paper's table 1 and its claims, from checkpoints: as published, and as sound measures show them.

Collects what analyses.sparsity, analyses.sae and analyses.localization --method acdc have left under OUT for the same
weights, and asks those questions of the checkpoints that have none (--stored: does not). Adds the perplexity of both
streams. With several checkpoints, arms are compared over seeds, corrected, claim by claim, with the published rows
beside ours: OUT/paper/arms has table1, sound and claims as .tex and .csv, and figures/table.html. --reproduce takes the
published procedures (ACDC's first batch of 64 prompts in the reference's order, SAEs of 100,000 steps: for an
accelerator) and keeps everything under OUT/reproduce.

Source: arXiv 2505.00509, table 1.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from analyses.cli import COMPARED, answer, is_main, positive, question_parser, refuse_missing_file, result_names
from sat_lens.commands import run

FOLDERS = {"sparsity": "{name}", "sae": "{name}", "localization": "{name}.acdc"}
"""Where each question leaves its answer, under its own folder."""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("paper", __doc__)
    parser.set_defaults(n=64)
    add = parser.add_argument
    add("--reproduce", action="store_true", help="the published procedures, under OUT/reproduce")
    add("--stored", action="store_true", help="show what is there; ask no question")
    add("--task", default="ioi", help="of the circuits: ioi, or the customized prompts as an auto-circuit .json")
    add("--tokens", type=positive, default=100_000, help="of the corpus, for the perplexity (default: 100,000)")
    return parser.parse_args(argv)


def questions(args: argparse.Namespace) -> dict[str, list[str]]:
    """Flags of each question."""
    acdc = ["--method", "acdc", "--no-checks", "--force", "--n", str(args.n), "--task", args.task]
    corpus = [] if args.corpus is None else ["--corpus", args.corpus]
    return {
        "sparsity": corpus,
        "localization": [*acdc, *(["--order", "reference"] if args.reproduce else [])],
        "sae": [*corpus, *(["--reproduce"] if args.reproduce else [])],
    }


def ask(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Ask each question of the checkpoints that it has no answer for; one that cannot be asked costs a line."""
    from sat_lens.commands import one_line

    for question, flags in questions(args).items():
        missing = [c for c, name in zip(args.checkpoints, names, strict=True) if found(args, question, c, name) is None]
        if not missing:
            continue
        shared = ["--out", str(args.out), "--device", args.device, "--seed", str(args.seed)]
        shared += ["--quiet"] if args.quiet else []
        for checkpoint in missing:
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    import_module(f"analyses.{question}.__main__").main([checkpoint, *flags, *shared])
            except ValueError as error:
                sys.stderr.write(f"warning: no {question} of {checkpoint}: {one_line(error)}\n")


def found(args: argparse.Namespace, question: str, checkpoint: str, name: str) -> Any:
    """The stored answer to a question, None where there is none of these weights."""
    from analyses.paper.rows import stored

    folder = args.out / question / FOLDERS[question].format(name=name)
    return stored(folder, weights_hash(checkpoint)) if (folder / "meta.json").is_file() else None


def weights_hash(checkpoint: str) -> str:
    """As results record it; empty where the checkpoint is no folder or file."""
    from sat_lens.checkpoint import checkpoint_hash
    from sat_lens.files import sha256_file

    try:
        return sha256_file(checkpoint) if Path(checkpoint).is_file() else checkpoint_hash(checkpoint)
    except (OSError, ValueError):
        return ""


def analyse_named(names: Sequence[str]) -> Any:
    """The rows of one model after the other, whose answers are kept under these names."""
    coming = iter(names)

    def analyse(model: Any, args: argparse.Namespace) -> Any:
        from analyses.arms import arm_of
        from analyses.paper.curves import held_out_curve
        from analyses.paper.rows import model_rows
        from analyses.provenance import provenance
        from analyses.result import Result
        from sat_lens.checkpoint import LOG, resolve
        from sat_lens.evaluate import corpus_losses

        name = next(coming)
        checkpoint = args.checkpoints[names.index(name)]
        losses = corpus_losses(model, args.corpus or "stories", args.tokens)
        table = model_rows(losses, {question: found(args, question, checkpoint, name) for question in FOLDERS})
        made = provenance(model, checkpoint, seed=args.seed)
        points: list[dict[str, float]] = []
        with contextlib.suppress(OSError, ValueError):
            points = held_out_curve((resolve(checkpoint) / LOG).read_text(encoding="utf-8"), made["training"])
        curves = [{"checkpoint": checkpoint, "arm": arm_of(made)["arm"], "points": points}] if points else []
        meta = {"reproduce": args.reproduce, "curves": curves, "losses": losses}
        return Result("paper", table, {"n": "stories or prompts"}, meta)

    return analyse


def figures(result: Any) -> Any:
    from analyses.paper.figures import training_figure

    return {"training": training_figure(result)} if result.meta["curves"] else {}


def compare(results: Sequence[Any]) -> Any:
    from analyses.paper.comparison import paper_compared

    return paper_compared(results)


def compared_figures(result: Any) -> Any:
    from analyses.paper.figures import trade_off_figure
    from analyses.paper.tables import paper_page

    return {"table": paper_page(result), "trade_off": trade_off_figure(result), **figures(result)}


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    names = result_names(args.checkpoints)
    for checkpoint in args.checkpoints:
        refuse_missing_file(checkpoint)
    args.out = args.out / "reproduce" if args.reproduce else args.out
    if not args.stored:
        ask(args, names)
    answer("paper", args, analyse_named(names), figures, argv, compare=compare, compared_figures=compared_figures)
    if len(names) > 1 and is_main():
        from analyses.paper.tables import write_tables
        from analyses.result import Result

        folder = args.out / "paper" / COMPARED
        write_tables(Result.load(folder), folder)


if __name__ == "__main__":
    run(main)
