"""What the questions have answered already, and asking them what they have not."""

import argparse
import contextlib
import io
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

FOLDERS = {"sparsity": "{name}", "sae": "{name}", "localization": "{name}.acdc"}
"""Where each question leaves its answer, under its own folder."""
OF_NO_EFFECT = {
    "checkpoints", "out", "device", "json", "quiet", "static", "circuit_out", "no_checks", "force", "no_null",
}  # fmt: skip
"""Settings that change nothing of what the paper shows of an answer."""


def questions(args: argparse.Namespace) -> dict[str, list[str]]:
    """Flags of each question."""
    acdc = ["--method", "acdc", "--no-checks", "--force", "--n", str(args.n), "--task", args.task]
    steps = [] if args.sae_steps is None else ["--steps", str(args.sae_steps)]
    corpus = [] if args.corpus is None else ["--corpus", args.corpus]
    return {
        "sparsity": corpus,
        "localization": [*acdc, *(["--order", "reference"] if args.reproduce else [])],
        "sae": [*corpus, *(["--reproduce"] if args.reproduce else []), *steps],
    }


def ask(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Ask each question of the checkpoints that it has no answer for; one that cannot be asked costs a line.

    Several processes deal these answers among themselves, and go on when all are written.
    """
    from sat_lens.commands import one_line
    from sat_lens.distributed import PeerLost, alone, barrier, dealt

    refuse_unreadable(args)
    asked = questions(args)
    missing = [
        (question, checkpoint)
        for question in asked
        for checkpoint, name in zip(args.checkpoints, names, strict=True)
        if found(args, question, checkpoint, name) is None
    ]
    barrier()  # all have looked before the first writes
    shared = ["--out", str(args.out), "--device", args.device, "--seed", str(args.seed)]
    shared += ["--quiet"] if args.quiet else []
    for question, checkpoint in dealt(missing):
        try:
            with contextlib.redirect_stdout(sys.stderr), alone():
                import_module(f"analyses.{question}.__main__").main([checkpoint, *asked[question], *shared])
        except PeerLost:
            raise
        except ValueError as error:
            sys.stderr.write(f"warning: no {question} of {checkpoint}: {one_line(error)}\n")
    barrier()


def refuse_unreadable(args: argparse.Namespace) -> None:
    """Raise once, before every question warns of the same, where a checkpoint or the corpus cannot be read."""
    from analyses.cli import load_model
    from sat_lens.corpora import read_stories

    with contextlib.redirect_stdout(sys.stderr):  # TransformerLens prints as it loads
        for checkpoint in args.checkpoints:
            load_model(checkpoint, args.device)
    next(iter(read_stories(args.corpus or "stories")), None)


def found(args: argparse.Namespace, question: str, checkpoint: str, name: str) -> Any:
    """The stored answer to a question; None where there is none of these weights or, but for --stored, settings."""
    from analyses.paper.rows import stored

    folder = args.out / question / FOLDERS[question].format(name=name)
    result = stored(folder, weights_hash(checkpoint)) if (folder / "meta.json").is_file() else None
    if result is None or args.stored or asked_so(question, result.meta.get("command"), settings(args, question)):
        return result
    return None


def settings(args: argparse.Namespace, question: str) -> list[str]:
    """A question's own flags and those that all share, as far as its answer depends on them."""
    return [*questions(args)[question], "--seed", str(args.seed)]


def asked_so(question: str, command: Any, flags: Sequence[str]) -> bool:
    """Whether the command that made an answer asked for what these flags ask for."""
    if not isinstance(command, str):
        return False
    try:
        before, now = (_read(question, argv) for argv in (shlex.split(command)[3:], ["none-s0", *flags]))
    except (SystemExit, ValueError):  # not a command of this version
        return False
    return before == now


def _read(question: str, argv: Sequence[str]) -> dict[str, Any]:
    with contextlib.redirect_stderr(io.StringIO()):
        chosen = vars(import_module(f"analyses.{question}.__main__").arguments(argv))
    chosen["corpus"] = chosen["corpus"] or "stories"
    return {name: value for name, value in chosen.items() if name not in OF_NO_EFFECT}


def weights_hash(checkpoint: str) -> str:
    """As results record it; empty where the checkpoint is no folder or file."""
    from sat_lens.checkpoint import checkpoint_hash
    from sat_lens.files import sha256_file

    try:
        return sha256_file(checkpoint) if Path(checkpoint).is_file() else checkpoint_hash(checkpoint)
    except (OSError, ValueError):
        return ""
