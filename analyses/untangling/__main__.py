"""Can one task be taken out of a small transformer, while the other one stays?

A model that adds and concatenates is trained, with a sparse autoencoder beside it; parts of it (latents, neurons,
directions, masked units) are taken out that one task needs and the other does not. As more is tolerated more goes:
the answer is the whole curve on held-out pairs of operands, beside that of sets that were not chosen for the task.

    train    train toy models, one a seed, in OUT/ARM-sSEED; resumable
    sweep    the curves of runs, in both directions or one, in OUT/untangling
    report   results of sweeps as one HTML page

    python -m analyses.untangling train --preset tiny --seeds 0 1 2 --out runs/untangling
    python -m analyses.untangling sweep runs/untangling/decoder-n20-joint-l0.01-s* --part all --out results
    python -m analyses.untangling report results/untangling --html results/untangling.html

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
from sat_lens.commands import Parser, command_parser, run

TASKS = ("sum", "concat")
PRESETS = ("paper", "cpu", "tiny")
NUMBERS = {
    "operands": int, "train_share": float, "val_share": float, "source_length": int, "answer_length": int,
    "data_seed": int, "n_layers": int, "d_model": int, "n_heads": int, "d_mlp": int, "n_latents": int, "alpha": float,
    "l1": float, "sae_steps": int, "sae_lr": float, "k_attn": int, "k_mlp": int, "steps": int, "batch_size": int,
    "lr": float, "warmup_steps": int, "beta2": float, "weight_decay": float, "grad_clip": float, "eval_every": int,
}  # fmt: skip
NAMES = {
    "arch": ("decoder", "seq2seq"), "sae": ("joint", "posthoc", "none"), "mask": ("none", "local", "global", "both"),
    "tokenizer": ("munch", "characters"), "split": ("example", "pair"), "decay": ("matrices", "all"),
    "schedule": ("cosine", "constant"), "best_by": ("accuracy", "loss"),
}  # fmt: skip


def parser() -> Parser:
    top = command_parser("analyses.untangling", __doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="{train,sweep,report}")
    train = commands.add_parser("train", help="train toy models", argument_default=argparse.SUPPRESS)
    train.add_argument("--preset", choices=PRESETS, default="cpu", help="sizes and settings (default: cpu)")
    train.add_argument("--seeds", type=int, nargs="+", default=[0], help="one model each (default: 0)")
    train.add_argument("--out", type=Path, default=Path("runs/untangling"), help="folder of runs (runs/untangling)")
    train.add_argument("--resume", action="store_true", default=False, help="go on from `last`, where there is one")
    train.add_argument("--init-from", metavar="RUN", default=None,
        help="with --sae posthoc: the finished run whose model it is trained on; {s} stands for the seed")  # fmt: skip
    train.add_argument("--quiet", action="store_true", default=False, help="no progress on stderr")
    for name, choices in NAMES.items():
        train.add_argument(f"--{name.replace('_', '-')}", choices=choices)
    for name, kind in NUMBERS.items():
        train.add_argument(f"--{name.replace('_', '-')}", type=kind)
    sweep = commands.add_parser("sweep", help="tolerance curves of runs")
    sweep.add_argument("runs", nargs="+", metavar="CKPT", help="run folder, or the name of a shipped run")
    sweep.add_argument("--target", choices=TASKS, help="the task to remove (default: each in turn)")
    sweep.add_argument("--preserve", choices=TASKS, help="the task to keep (default: the other one)")
    sweep.add_argument("--tau", type=tolerance, nargs="+", help="tolerances, nats a token (default: ten, 0 to 0.5)")
    sweep.add_argument("--folds", type=positive, default=5, help="folds (default: 5)")
    sweep.add_argument("--n", type=positive, default=100, help="pairs of operands at most (default: 100)")
    sweep.add_argument("--part", choices=("val", "test", "train", "all"), default="val",
        help="of the data, that parts are chosen on and judged on in folds (default: val)")  # fmt: skip
    sweep.add_argument("--ablation", choices=("zero", "mean", "resample"), default="zero", help="of latents (zero)")
    sweep.add_argument("--show", nargs="+", default=[], metavar="12+7", help="problems whose answers are shown")
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
    report.add_argument("--html", type=Path, default=Path("results/untangling.html"), help="the page")
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
        reached = ", ".join(f"{key} {last[key]:.3f}" for key in last if key.startswith("val_"))
        sys.stdout.write(f"{folder}: best at step {done.step}; at step {last['step']} {reached}\n")
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

    results = [Result.load(folder) for folder in args.results]
    write_whole(args.html, untangling_page(results).document)
    sys.stdout.write(f"{args.html}\n")


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    {"train": train, "sweep": sweep, "report": report}[args.command](args)


if __name__ == "__main__":
    run(main)
