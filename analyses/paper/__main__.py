"""The paper's table 1 and its claims, from checkpoints: as published, and as sound measures show them.

Collects what analyses.sparsity, analyses.sae and analyses.localization --method acdc have left under OUT for the same
weights and settings, and asks those questions of the checkpoints that have none (--stored: asks nothing, and takes
answers of any settings). Adds the perplexity of both
streams. OUT/paper/CKPT/figures has the mechanism, the training curves of both streams, the circuit, and the masks over
a story. With several checkpoints, arms are compared over seeds, corrected, claim by claim, with the published rows
beside ours: OUT/paper/arms has table1, sound and claims as .tex and .csv, and figures of the tables, the trade-off,
the circuits, the curves, and the mechanism of each kind of mask. --reproduce takes the published procedures (ACDC's
first batch of 64 prompts in the reference's order, SAEs of 100,000 steps: for an accelerator) and keeps everything
under OUT/reproduce.

Source: arXiv 2505.00509, table 1.
"""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.cli import COMPARED, answer, joined, positive, question_parser, refuse_missing_file, result_names
from sat_lens.commands import run
from sat_lens.devices import check_device
from sat_lens.tasks.names import TASKS

PROMPTS = 64


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = question_parser("paper", __doc__)
    parser.set_defaults(n=PROMPTS)
    add = parser.add_argument
    add("--reproduce", action="store_true", help="the published procedures, under OUT/reproduce")
    add("--stored", action="store_true", help="show what is there; ask no question")
    add("--task", default="ioi", help="of the circuits: ioi, or an auto-circuit .json (default: ioi)")
    add("--tokens", type=positive, default=100_000, help="of the corpus, for the perplexity (default: 100,000)")
    add(
        "--sae-steps", type=positive, help="of training of each SAE, where they should be fewer than analyses.sae takes"
    )
    args = parser.parse_args(argv)
    if args.n < 2:
        parser.error(f"--n must be at least 2 prompts, for intervals over prompts; got {args.n}")
    if args.task not in TASKS and not Path(args.task).is_file():
        parser.error(f"--task must be one of {', '.join(TASKS)}, or a file that exists; got {args.task!r}")
    if args.stored and args.sae_steps is not None:
        parser.error("--sae-steps trains SAEs, and --stored asks no question; leave one of them out")
    return args


def short(args: argparse.Namespace) -> list[str]:
    """What --reproduce was told to do otherwise than published."""
    told = [] if args.sae_steps is None else [f"SAEs of {args.sae_steps:,} steps"]
    told += [] if args.n == PROMPTS else [f"{args.n:,} prompts"]
    told += ["the generator's prompts"] if args.task in TASKS else [f"task {Path(args.task).name}"]
    return told + (["the generator's text"] if args.corpus in (None, "stories") else [])


def analyse(model: Any, args: argparse.Namespace) -> Any:
    """The rows of one model, whose answers to the other questions are kept under its name."""
    from analyses.arms import arm_of
    from analyses.paper.asked import FOLDERS, found
    from analyses.paper.circuits import stored_circuit
    from analyses.paper.curves import held_out_curve
    from analyses.paper.mechanism import mechanism
    from analyses.paper.rows import model_rows
    from analyses.paper.story import told_story
    from analyses.provenance import provenance
    from analyses.result import Result
    from sat_lens.checkpoint import LOG, resolve
    from sat_lens.evaluate import corpus_losses

    name = args.name
    checkpoint = args.checkpoints[result_names(args.checkpoints).index(name)]
    losses = corpus_losses(model, args.corpus or "stories", args.tokens)
    answers = {question: found(args, question, checkpoint, name) for question in FOLDERS}
    table = model_rows(losses, answers)
    made = provenance(model, checkpoint, seed=args.seed)
    points: list[dict[str, float]] = []
    with contextlib.suppress(OSError, ValueError):
        points = held_out_curve((resolve(checkpoint) / LOG).read_text(encoding="utf-8"), made["training"])
    arm = arm_of(made)["arm"]
    curves = [{"checkpoint": checkpoint, "arm": arm, "points": points}] if points else []
    circuit = stored_circuit(answers["localization"])
    meta = {
        "reproduce": args.reproduce, "short": short(args), "curves": curves, "losses": losses,
        "mechanism": mechanism(model), "story": told_story(model, args.corpus, args.seed),
        "circuit": None if circuit is None else {"checkpoint": name, "arm": arm, **circuit},
    }  # fmt: skip
    return Result("paper", table, {"n": "stories or prompts"}, meta)


def figures(result: Any) -> Any:
    from analyses.paper.circuits import circuits_figure
    from analyses.paper.figures import training_figure
    from analyses.paper.mechanism_figure import mechanism_figure
    from analyses.paper.story import story_figure

    drawn = {"mechanism": mechanism_figure(result.meta["mechanism"])}
    drawn |= {"training": training_figure(result)} if result.meta["curves"] else {}
    drawn |= {"masks": story_figure(result)} if result.meta["story"] else {}
    return drawn | ({"circuit": circuits_figure([result.meta["circuit"]])} if result.meta["circuit"] else {})


def compare(results: Sequence[Any]) -> Any:
    from analyses.paper.comparison import paper_compared

    return paper_compared(results)


def compared_figures(result: Any) -> Any:
    from analyses.paper.circuits import circuits_figure
    from analyses.paper.figures import trade_off_figure, training_figure
    from analyses.paper.mechanism_figure import mechanism_figure
    from analyses.paper.tables import paper_page

    drawn = {"table": paper_page(result), "trade_off": trade_off_figure(result)}
    drawn |= {"training": training_figure(result)} if result.meta["curves"] else {}
    drawn |= {f"mechanism_{mask}": mechanism_figure(one) for mask, one in result.meta["mechanisms"].items()}
    return drawn | ({"circuits": circuits_figure(result.meta["circuits"])} if result.meta["circuits"] else {})


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    names = result_names(args.checkpoints)
    for checkpoint in args.checkpoints:
        refuse_missing_file(checkpoint)
    if args.out.exists() and not args.out.is_dir():
        raise NotADirectoryError(f"--out must be a folder; {args.out} is a file")
    args.out = args.out / "reproduce" if args.reproduce else args.out
    check_device(args.device)
    with joined(args):
        if not args.stored:
            from analyses.paper.asked import ask

            ask(args, names)
        wrote = answer(
            "paper", args, analyse, figures, argv, compare=compare, compared_figures=compared_figures, dealt=True
        )
    if wrote and len(names) > 1:
        from analyses.paper.tables import write_tables
        from analyses.result import Result

        folder = args.out / "paper" / COMPARED
        write_tables(Result.load(folder), folder)


if __name__ == "__main__":
    run(main)
