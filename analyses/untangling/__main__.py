"""Can one task be taken out of a small transformer, while the other one stays?

A model that adds and concatenates is trained, with a sparse autoencoder beside it; parts of it (latents, neurons,
directions, masked units) are taken out that one task needs and the other does not. As more is tolerated more goes:
the answer is the whole curve on held-out pairs of operands, beside that of sets that were not chosen for the task.

    train    train toy models, one a seed, in OUT/ARM-sSEED; resumable
    sweep    the curves of runs, in both directions or one, in OUT/untangling
    report   results of sweeps as one HTML page

    python -m analyses.untangling train --preset tiny --seeds 0 1 2
    python -m analyses.untangling sweep runs/untangling/decoder-n20-* --part all
    python -m analyses.untangling report results/untangling

A CKPT of sweep is a run folder, or a shipped run's name. Each command has --help.

Source: "Untangling Tasks in a Toy Transformer" and "Deeper Untangling" (blog posts, 2026); choices of the source that
change its answer (edits one after the other, judged where chosen, importance on padding) stand beside ours.
"""

import argparse
import contextlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.cli import positive, seed
from analyses.needs import sentence
from sat_lens.commands import Parser, command_parser, refuse_several, run

TASKS = ("sum", "concat")
PRESETS = ("paper", "cpu", "tiny")
NUMBERS = {
    "operands": (int, "numbers are 0 to N - 1 (cpu: 50)"),
    "train_share": (float, "share of the pairs of operands to train on (cpu: 0.85)"),
    "val_share": (float, "share to choose checkpoints and parts on; the rest is the test (cpu: 0.075)"),
    "source_length": (int, "tokens of a problem, padded (cpu: as many as the longest has)"),
    "answer_length": (int, "tokens of an answer, padded (cpu: as many as the longest has)"),
    "data_seed": (int, "of the split (cpu: 0)"),
    "n_layers": (int, "blocks (cpu: 1)"),
    "d_model": (int, "width of the residual stream (cpu: 64)"),
    "n_heads": (int, "heads a layer (cpu: 4)"),
    "d_mlp": (int, "neurons a layer (cpu: 256)"),
    "n_latents": (int, "latents of the autoencoder (cpu: 256)"),
    "alpha": (float, "weight of its reconstruction error (cpu: 1)"),
    "l1": (float, "weight of the sum of its activations (cpu: 0.01)"),
    "sae_steps": (int, "steps of --sae posthoc (cpu: 1000)"),
    "sae_lr": (float, "learning rate of --sae posthoc (cpu: 0.002)"),
    "k_attn": (int, "with a mask: winners among attention's units (cpu: 16)"),
    "k_mlp": (int, "with a mask: winners among the neurons (cpu: 32)"),
    "steps": (int, "optimizer steps (cpu: 4500)"),
    "batch_size": (int, "examples a step (cpu: 256)"),
    "lr": (float, "learning rate at its peak (cpu: 0.003)"),
    "warmup_steps": (int, "steps of linear warm-up (cpu: 50)"),
    "beta2": (float, "of AdamW (cpu: 0.98)"),
    "weight_decay": (float, "of AdamW (cpu: 4)"),
    "grad_clip": (float, "largest norm of the gradient (cpu: 1)"),
    "eval_every": (int, "steps between evaluations, each of which writes `last`, and `best` if it is (cpu: 100)"),
}
NAMES = {
    "arch": (("decoder", "seq2seq"), "what reads the problem (cpu: decoder)"),
    "sae": (("joint", "posthoc", "none"), "the autoencoder, trained with the model or on it finished (cpu: joint)"),
    "mask": (("none", "local", "global", "both"), "self-ablation of a decoder, as in sat_lens.train (cpu: none)"),
    "tokenizer": (("munch", "characters"), "a number as the longest known pieces, or digit by digit (cpu: munch)"),
    "split": (("example", "pair"), "what is held out: problems, or pairs of operands with both tasks (cpu: pair)"),
    "decay": (("matrices", "all"), "what decays: weights, or norms, biases and autoencoder too (cpu: matrices)"),
    "schedule": (("cosine", "constant"), "of the learning rate (cpu: cosine)"),
    "best_by": (("accuracy", "loss"), "which checkpoint is `best`: by the validation's (cpu: accuracy)"),
}
"""Flags of `train`: their types or choices, and what they are; the defaults are those of the preset."""


def parser() -> Parser:
    top = command_parser("analyses.untangling", __doc__, epilog=sentence("untangling"))
    commands = top.add_subparsers(dest="command", required=True, metavar="{train,sweep,report}",
        help="what to do; each has --help")  # fmt: skip
    train = commands.add_parser("train", help="train toy models", argument_default=argparse.SUPPRESS)
    train.add_argument("--preset", choices=PRESETS, default="cpu", help="sizes and settings (default: cpu)")
    train.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="one model each (default: 0)")
    train.add_argument(
        "--out", type=Path, default=Path("runs/untangling"), help="folder of runs (default: runs/untangling)"
    )
    train.add_argument("--resume", action="store_true", default=False, help="go on from `last`, where there is one")
    train.add_argument("--init-from", metavar="RUN", default=None,
        help="with --sae posthoc: the finished run whose model it is trained on; {s} stands for the seed")  # fmt: skip
    train.add_argument("--quiet", action="store_true", default=False, help="no progress on stderr")
    add = train.add_argument_group("in place of the preset's").add_argument
    for name, (choices, words) in NAMES.items():
        add(f"--{name.replace('_', '-')}", choices=choices, help=words)
    for name, (kind, words) in NUMBERS.items():
        add(f"--{name.replace('_', '-')}", type=kind, help=words)
    sweep = commands.add_parser("sweep", help="tolerance curves of runs")
    sweep.add_argument("runs", nargs="+", metavar="CKPT", help="run folder, or the name of a shipped run")
    sweep.add_argument("--target", choices=TASKS, help="the task to remove (default: each in turn)")
    sweep.add_argument("--preserve", choices=TASKS, help="the task to keep (default: the other one)")
    sweep.add_argument("--tau", type=tolerance, nargs="+", metavar="X",
        help="how much worse the kept task may get, nats a token (default: ten values, 0 to 0.5)")  # fmt: skip
    sweep.add_argument(
        "--folds",
        type=positive,
        default=5,
        help="folds of the pairs, to choose on some and judge on others (default: 5)",
    )
    sweep.add_argument("--n", type=positive, default=100, help="pairs of operands at most (default: 100)")
    sweep.add_argument("--part", choices=("val", "test", "train", "all"), default="val",
        help="of the data: what parts are chosen on and judged on, in folds (default: val)")  # fmt: skip
    sweep.add_argument("--ablation", choices=("zero", "mean", "resample"), default="zero",
        help="what replaces a latent (default: zero)")  # fmt: skip
    sweep.add_argument(
        "--show", nargs="+", default=[], metavar="12+7", help="problems whose answers are shown (default: none)"
    )
    sweep.add_argument("--quick", action="store_true", help="no single units, no greedy choice, no relearning")
    sweep.add_argument("--reproduce", action="store_true", help="the source's own experiment beside the published one")
    sweep.add_argument("--seed", type=seed, default=0, help="of examples, folds and draws (default: 0)")
    sweep.add_argument("--out", type=Path, default=Path("results"), help="folder of results (default: results)")
    sweep.add_argument("--name", default="untangling", help="folder under --out (default: untangling)")
    sweep.add_argument("--json", action="store_true", help="print nothing but the result, one JSON line")
    sweep.add_argument("--quiet", action="store_true", help="no progress on stderr")
    sweep.add_argument("--static", action="store_true", help="also write figures as .svg and .pdf")
    report = commands.add_parser("report", help="results as one HTML page")
    report.add_argument("results", nargs="+", type=Path, help="result folders that `sweep` wrote")
    report.add_argument(
        "--html", type=Path, default=Path("results/untangling.html"), help="the page (default: results/untangling.html)"
    )
    return top


def tolerance(text: str) -> float:
    """A number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a tolerance must be a finite number of at least 0 nats; got {text}")
    return value


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    args = top.parse_args(argv)
    if args.command == "sweep":
        if args.target is None and args.preserve is not None:
            args.target = TASKS[1 - TASKS.index(args.preserve)]
        if args.target is not None:
            args.preserve = args.preserve or TASKS[1 - TASKS.index(args.target)]
            if args.target == args.preserve:
                top.error(f"the task to remove and the one to keep must differ; got {args.target!r} for both")
        if Path(args.name).name != args.name or args.name in ("", "..", "."):
            top.error(f"--name must be the name of a folder; got {args.name!r}")
    return args


def train(args: argparse.Namespace) -> None:
    """One run a seed."""
    from sat_lens.toy.config import toy_config
    from sat_lens.toy.training import train_toy

    changes = {name: vars(args)[name] for name in (*NAMES, *NUMBERS) if name in vars(args)}
    configs = [toy_config(args.preset, **changes, seed=seed) for seed in args.seeds]
    for config in configs:
        init_from = None if args.init_from is None else args.init_from.replace("{s}", str(config.seed))
        folder = args.out / config.name
        done = train_toy(config, folder, resume=args.resume, init_from=init_from, progress=not args.quiet)
        last = [line for line in done.history if "val_loss" in line][-1]
        right = ", ".join(f"{task} {last[key]:.3f}" for task in TASKS if (key := f"val_{task}") in last)
        sys.stdout.write(
            f"best at step {done.step} (in {folder / 'best'}); at step {last['step']} validation loss "
            f"{last['val_loss']:.3f} nats a token,\nshare of right answers: {right}\n{folder}\n"
        )
        sys.stdout.flush()


def sweep(args: argparse.Namespace) -> None:
    """Curves, or the reproduction, of runs."""
    from analyses.cli import show
    from sat_lens.toy.runs import load_toy

    with contextlib.redirect_stdout(sys.stderr):
        runs = [load_toy(name) for name in args.runs]
        for one in runs:
            one.data.ask(args.show)  # a problem that cannot be asked is refused before anything is computed
        if args.reproduce:
            from analyses.untangling.figures import reproduction_figures as figures

            result = reproduced(runs, args)
        else:
            from analyses.untangling.figures import untangling_figures as figures

            result = swept(runs, args)
    show(result, figures, args.out / (f"{args.name}.reproduction" if args.reproduce else args.name), args)


def swept(runs: Sequence[Any], args: argparse.Namespace) -> Any:
    from analyses.untangling.answer import untangling
    from analyses.untangling.record import recorded
    from analyses.untangling.sweep import TAUS

    directions = [(args.target, args.preserve)] if args.target else [("concat", "sum"), ("sum", "concat")]
    result = untangling(
        runs, directions, show=args.show, n=args.n, part=args.part, taus=args.tau or TAUS, k=args.folds,
        fill=args.ablation, with_units=not args.quick, with_greedy=not args.quick, with_knowledge=not args.quick,
        seed=args.seed, progress=not args.quiet,
    )  # fmt: skip
    return recorded(result, runs, args)


def reproduced(runs: Sequence[Any], args: argparse.Namespace) -> Any:
    from analyses.untangling.record import recorded
    from analyses.untangling.reproduction import reproduction_result

    return recorded(reproduction_result(runs, args.seed), runs, args)


def report(args: argparse.Namespace) -> None:
    """One page of saved results."""
    from analyses.result import Result
    from analyses.untangling.page import untangling_page
    from sat_lens.files import write_whole

    for folder in args.results:
        if not (folder / "meta.json").is_file():
            raise FileNotFoundError(
                f"{folder} is no result of sweep: it has no meta.json; sweep writes results/untangling"
            )
    results = [Result.load(folder) for folder in args.results]
    write_whole(args.html, untangling_page(results).document)
    sys.stdout.write(f"{args.html}\n")


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    refuse_several("analyses.untangling")
    {"train": train, "sweep": sweep, "report": report}[args.command](args)


if __name__ == "__main__":
    run(main)
