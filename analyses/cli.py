"""The command line that all questions share: parse, load each checkpoint, answer, write.

Nothing heavy is imported before the arguments are known to be good.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from analyses import needs
from sat_lens.commands import Parser, command_parser
from sat_lens.devices import check_device, known_device

COMPARED = "arms"
"""Folder of what compares several checkpoints."""

TEXT_FILES = (".txt", ".json", ".jsonl", ".parquet")


def question_parser(question: str, description: str | None) -> Parser:
    """A parser with what every question takes; a question adds its own flags."""
    parser = command_parser(f"analyses.{question}", description, epilog=needs.sentence(question))
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CKPT",
        help="checkpoint folder, name of a shipped one, llama2.c .bin, or a model that TransformerLens knows",
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of results (default: results)")
    parser.add_argument("--device", type=device_name, default="cpu", help="cpu, cuda, cuda:N or mps (default: cpu)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of samples and resamples (default: 0)")
    parser.add_argument("--n", type=positive, default=128, help="examples (default: %(default)s)")
    parser.add_argument(
        "--corpus",
        type=corpus_name,
        help="what a question that reads text reads: `stories` (the generator), a .txt, .jsonl, .json or "
        ".parquet file, a Hugging Face name, or a mixture A:0.5+B:0.5 (default: stories)",
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the result, one JSON line a checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument(
        "--static", action="store_true", help="also write figures as .svg and .pdf, by Chrome or else matplotlib"
    )
    return parser


def positive(text: str) -> int:
    """A whole number from 1 to a million."""
    if not (text.isascii() and text.isdigit() and len(text) < 8 and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1 and at most 1,000,000; got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """A whole number from 0 to 2^31 - 1."""
    if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0 and below 2^31; got {text!r}")
    return int(text)


def corpus_name(text: str) -> str:
    """A corpus; what can only be a file must be there."""
    path = Path(text)
    is_a_file = path.is_absolute() or text.startswith(".") or path.suffix in TEXT_FILES
    if is_a_file and not set("+:") & set(text) and not os.path.exists(text):  # the last two make a mixture
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return text


def device_name(text: str) -> str:
    """cpu, cuda, cuda:N or mps."""
    try:
        return known_device(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def result_names(checkpoints: Sequence[str]) -> list[str]:
    """A folder name for each checkpoint: the last part of its path, without `.bin`.

    Raises:
        ValueError: two checkpoints, or one and the comparison, would write to one folder.
    """
    names = []
    for checkpoint in checkpoints:
        path = Path(checkpoint)
        name = (path if path.name and path.name != ".." else path.resolve()).name
        names.append(name.removesuffix(".bin") or "checkpoint")
    if COMPARED in names:
        raise ValueError(f"a checkpoint named {COMPARED!r} would be overwritten by the comparison; rename it")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"checkpoints need different names; {repeated[0]} comes twice; ask for one at a time")
    return names


def check_explainer(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop, before anything heavy is imported, where `--explainer` lacks its endpoint, weights or recorded replies."""
    needed = {"http": ("url", "model"), "hf": ("weights",), "replay": ("cassette",)}.get(args.explainer, ())
    if missing := [name for name in needed if getattr(args, name) is None]:
        parser.error(f"--explainer {args.explainer} needs --{missing[0]}")
    if args.explainer == "http" and not re.match(r"https?://[^/\s]", args.url):
        came = "" if set("@?#") & set(args.url) else f"; got {args.url!r}"  # it may hold a password or a key
        parser.error(f"--url must be http://HOST[:PORT]/PATH or https://...{came}")
    if args.explainer == "hf" and not Path(args.weights).is_dir():
        parser.error(f"--weights must be a folder of local weights; there is no folder {args.weights!r}")
    if args.explainer == "replay" and not Path(args.cassette).is_file():
        parser.error(f"--cassette must be a file of recorded replies; there is no file {args.cassette!r}")


def refuse_missing_file(checkpoint: str) -> None:
    """Raise a FileNotFoundError, before anything heavy is imported, for what can only be a path and is not there."""
    path = Path(checkpoint)
    looks_like_a_path = path.is_absolute() or checkpoint.startswith(".") or len(path.parts) > 2 or path.suffix == ".bin"
    if looks_like_a_path and not path.exists():
        raise FileNotFoundError(f"no checkpoint {checkpoint!r}: there is no such file or folder")


def answer(
    question: str,
    args: argparse.Namespace,
    analyse: Callable[[Any, argparse.Namespace], Any],
    figures: Callable[[Any], Mapping[str, Any]],
    argv: Sequence[str] | None = None,
    compare: Callable[[Sequence[Any]], Any] | None = None,
    compared_figures: Callable[[Any], Mapping[str, Any]] = lambda result: {},
    variant: str = "",
    dealt: bool | Literal["where enough"] = False,
) -> bool:
    """Ask the question of each checkpoint, and write and print what comes; whether this process is the one that wrote.

    Args:
        question: its name, the folder under `--out`.
        args: of `question_parser`.
        analyse: from a model and the arguments, with the checkpoint's `name` among them, to a Result.
        figures: from a Result to its figures by file name.
        argv: the command line, for the record; None: the process's own.
        compare: from the Results of several checkpoints to one that compares them, which goes to the folder
            `arms` beside theirs; not asked for one checkpoint.
        compared_figures: from that Result to its figures.
        variant: of the question, where it has several whose answers should stand side by side: folders are then
            named `CKPTNAME.variant`.
        dealt: among several processes each takes whole checkpoints, in turn, always (True) or where there are at
            least as many as processes; else the question divides its own loops.
    """
    names = result_names(args.checkpoints)
    if args.out.exists() and not args.out.is_dir():
        raise NotADirectoryError(f"--out must be a folder; {args.out} is a file")
    for checkpoint in args.checkpoints:
        refuse_missing_file(checkpoint)
    command = ["python", "-m", f"analyses.{question}", *(sys.argv[1:] if argv is None else argv)]
    found, ending = [], f".{variant}" if variant else ""

    def asked(checkpoint: str, name: str) -> Any:
        with contextlib.redirect_stdout(sys.stderr):  # TransformerLens prints as it loads
            model = load_model(checkpoint, args.device)
            needs.require(model, question, args)
            result = analyse(model, argparse.Namespace(**vars(args) | {"name": name}))
        return with_provenance(result, model, checkpoint, args.seed, command)

    with joined(args):
        answers = in_turns if dealt is True or (dealt and len(names) >= world_size()) else map
        for name, result in zip(names, answers(asked, args.checkpoints, names), strict=True):
            if is_main():
                found.append(result)
                show(result, figures, args.out / question / f"{name}{ending}", args)
    if compare is not None and len(found) > 1:
        compared = with_shared_provenance(compare(found), found)
        show(compared, compared_figures, args.out / question / f"{COMPARED}{ending}", args)
    return bool(found)


def in_turns(ask: Callable[[str, str], Any], checkpoints: Sequence[str], names: Sequence[str]) -> Iterator[Any]:
    """`map`, whose calls are dealt among the processes, a round at a time; rank 0 has all answers, the others none."""
    from analyses.result import Result
    from sat_lens import distributed

    for start in range(0, len(names), n := distributed.world_size()):
        mine, text = start + distributed.rank(), ""
        if mine < len(names):
            with distributed.alone():
                result = ask(checkpoints[mine], names[mine])
            if n == 1:
                yield result
                continue
            text = json.dumps(result.files())
        texts = distributed.gather_texts(text)[: len(names) - start]
        yield from (Result.of_files(json.loads(text)) if is_main() else None for text in texts)


def show(result: Any, figures: Callable[[Any], Mapping[str, Any]], folder: Path, args: argparse.Namespace) -> None:
    """Write a result with its figures, and print it."""
    write_result(result, figures(result), folder, static=args.static)
    sys.stdout.write(f"{result.to_json()}\n" if args.json else summary(result, folder))
    sys.stdout.flush()


@contextlib.contextmanager
def joined(args: argparse.Namespace) -> Iterator[None]:
    """Join the processes that torchrun started, if it did; `args` get this one's device, and all but rank 0 are quiet.

    A question then divides its loop with `sat_lens.distributed.shard`, and sums or gathers at its end.
    """
    from sat_lens.distributed import launched

    check_device(args.device)
    with launched(args.device) as args.device:
        args.quiet = args.quiet or not is_main()
        yield


def is_main() -> bool:
    """Whether this process writes and prints."""
    from sat_lens import distributed

    return distributed.is_main()


def world_size() -> int:
    """Processes that work together."""
    from sat_lens import distributed

    return distributed.world_size()


def load_model(checkpoint: str, device: str) -> Any:
    """The model of a checkpoint, on a device that exists, in evaluation mode; TF32 off."""
    from sat_lens.checkpoint import load_any
    from sat_lens.precision import refuse_tf32

    check_device(device)
    refuse_tf32()
    return load_any(checkpoint, device=device).eval()


def with_provenance(result: Any, model: Any, checkpoint: str, seed: int, command: Sequence[str]) -> Any:
    """The result with what made it added to its meta."""
    import dataclasses

    from analyses.provenance import provenance

    return dataclasses.replace(
        result, meta={**provenance(model, checkpoint, seed=seed, command=command), **result.meta}
    )


def with_shared_provenance(compared: Any, results: Sequence[Any]) -> Any:
    """What compares results, with what made them added to its meta."""
    import dataclasses

    first = results[0].meta
    made = {key: first[key] for key in ("versions", "commit", "command", "date", "seed")}
    made["sha256"] = {result.meta["checkpoint"]: result.meta["checkpoint_sha256"] for result in results}
    return dataclasses.replace(compared, meta={**made, **compared.meta})


def write_result(result: Any, figures: Mapping[str, Any], folder: Path, static: bool = False) -> None:
    """Table, meta and figures as one folder that takes the place of an earlier one, whole or not at all."""
    from analyses.figures import write_figure
    from sat_lens.files import replace_folder, temporary_beside

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    temporary.mkdir()
    try:
        result.save(temporary)
        problems = [
            write_figure(drawn, temporary / "figures" / f"{name}.html", static) for name, drawn in figures.items()
        ]
        if problem := next(filter(None, problems), None):
            sys.stderr.write(f"warning: {problem}\n")
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def summary(result: Any, folder: Path) -> str:
    """What stdout shows of a result, in the terminal's width."""
    from analyses.terminal import shown, width_of_stdout

    return shown(result, folder, width_of_stdout())
