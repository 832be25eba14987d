"""Can latents of a model be rewritten by what their explanations say, and what does the model lose?

    python -m analyses.rewriting [STEP] CKPT ...

Without a STEP all of them are done, with rules. The steps:

    coder    a coder of an MLP, and its latents on stories
    explain  explanations, whole and of at most so many bits
    score    how well they predict latents, with floors
    loss     latents replaced by simulations: KL(base or edited), loss
    report   tables and figures; of several runs, arms compared

A step but `coder` takes a run, OUT/rewriting/NAME, or the checkpoint it is of. What is there and fits is not done
again. Explanations
by rules (`--rules token ngram n2g tree`) are no natural language, and are named wherever they are used; a language
model explains and simulates with --explainer http, hf or replay. Flags of a step: `analyses.rewriting STEP --help`.

Source: arXiv 2501.18838 (partially rewriting a transformer in natural language), whose order of things --preset paper
follows; its faults are named in every result and not inherited.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from analyses.cli import refuse_missing_file, result_names
from analyses.rewriting.arguments import arguments
from sat_lens.commands import refuse_several
from sat_lens.commands import run as run_command


def folders(args: argparse.Namespace) -> list[Path]:
    """The run's folder of each target, whether it is there or not."""
    from analyses.rewriting.foreseen import refuse_checkpoint, refuse_run
    from analyses.rewriting.run_folder import is_run, opened

    if args.out.exists() and not args.out.is_dir():
        raise NotADirectoryError(f"--out must be a folder; {args.out} is a file")
    names = result_names(args.checkpoints)
    found = []
    for target, name in zip(args.checkpoints, names, strict=True):
        if is_run(target):
            found.append(Path(target))
            refuse_run(opened(target), args)
            continue
        refuse_missing_file(target)
        refuse_checkpoint(target, args)
        found.append(args.out / "rewriting" / (getattr(args, "name", None) or name + variant(args)))
        if "coder" not in args.steps:
            refuse_run(opened(found[-1]), args)
    return found


def variant(args: argparse.Namespace) -> str:
    """What sets a run apart from the default one of its checkpoint."""
    if not hasattr(args, "kind"):
        return ""
    parts = [] if args.kind == "skip" else [args.kind]
    parts += [f"L{args.layer}"] if args.layer is not None else []
    parts += [".".join(args.site)] if args.site else []
    parts += [] if args.stream == "clean" else [args.stream]
    parts += [Path(args.coder).resolve().name] if args.coder else []
    parts += ["quick"] if args.quick else []
    return "".join(f".{part}" for part in parts)


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv, __doc__)
    refuse_several("analyses.rewriting")
    paths = folders(args)
    from analyses.rewriting.pipeline import pipeline

    command = ["python", "-m", "analyses.rewriting", *(sys.argv[1:] if argv is None else argv)]
    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens prints as it loads
        texts = pipeline(args, paths, command)
    sys.stdout.write("".join(texts))
    sys.stdout.flush()


if __name__ == "__main__":
    run_command(main)
