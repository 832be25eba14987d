"""The steps asked for, of each run; and what is printed of them."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from analyses.cli import COMPARED, summary, with_provenance, with_shared_provenance, write_result
from analyses.explain import load_explanations
from analyses.result import Result
from analyses.rewriting.comparison import rewriting_compared
from analyses.rewriting.figures import arms_figures, rewriting_figures
from analyses.rewriting.latent_page import latent_page
from analyses.rewriting.latents import latents_shown
from analyses.rewriting.run_folder import RunFolder, is_run, opened
from analyses.rewriting.setting import Setting
from analyses.rewriting.steps import coder_step, explain_step, loss_step, names_of, score_step, setting_of
from analyses.rewriting.summed_up import summed_up
from sat_lens.files import locked


def pipeline(args: argparse.Namespace, paths: Sequence[Path], command: Sequence[str]) -> list[str]:
    """Do the steps; what is to be printed.

    Raises:
        ValueError, FileNotFoundError: what a step lacks, or cannot be; a folder that another process writes to.
    """
    said, found = [], []
    for target, path in zip(args.checkpoints, paths, strict=True):
        with locked(path):
            text, result = _steps(target, path, args, command)
        said.append(text)
        found += [] if result is None else [result]
    if len(found) > 1:
        compared = with_shared_provenance(rewriting_compared(found), found)
        folder = args.out / "rewriting" / COMPARED
        write_result(compared, arms_figures(compared), folder, static=args.static)
        said.append(f"{compared.to_json()}\n" if args.json else summary(compared, folder))
    return said


def _steps(target: str, path: Path, args: argparse.Namespace, command: Sequence[str]) -> tuple[str, Result | None]:
    """The steps of one run, whose folder no other process writes to: what is to be printed, and the report if asked."""
    if "coder" in args.steps and not is_run(target):
        run = coder_step(target, path, args)
    else:
        run = opened(path)
    once: list[Setting] = []
    made = partial(_once, once, run, args)
    for step, do in (("explain", explain_step), ("score", score_step), ("loss", loss_step)):
        if step in args.steps:
            do(run, made(), args)
    if "loss" in args.steps:
        _told(run, made(), args, command)
    if "report" not in args.steps:
        return _line(run, args), None
    result = report(run, made, args)
    return f"{result.to_json()}\n" if args.json else summary(result, run.path), result


def _once(kept: list[Setting], run: RunFolder, args: argparse.Namespace) -> Setting:
    if not kept:
        kept.append(setting_of(run, args))
    return kept[0]


def _told(run: RunFolder, made: Setting, args: argparse.Namespace, command: Sequence[str]) -> None:
    """Where the loss comes from, added to it once."""
    folder = run.path / "loss"
    result = Result.load(folder)
    if "checkpoint" not in result.meta:
        seed = run.about["texts"]["seed"]
        with_provenance(result, made.model, run.about["checkpoint"], seed, command).save(folder)


def report(run: RunFolder, made: Callable[[], Setting], args: argparse.Namespace) -> Result:
    """The loss with the scores' means, and all figures, from what is in the folder.

    Raises:
        ValueError: there is no loss yet.
    """
    folder = run.path / "loss"
    if not (folder / "meta.json").is_file():
        raise ValueError(f"{run.path} has no loss; python -m analyses.rewriting loss {run.path} comes before report")
    loss = Result.load(folder)
    names = loss.meta["knobs"]["explanations"]
    result = summed_up(loss, {name: Result.load(run.path / "scores" / name) for name in names}, run.about)
    figures = dict(rewriting_figures(result))
    if not args.no_pages:
        name = names[0]
        settings = {"name": name, "n": args.pages, "after": run.digest("coder", f"explain {name}", f"score {name}")}
        if not run.done("latents", settings, run.path / "latents" / "table.csv"):
            explanations = load_explanations(run.explanations(name))
            scores = Result.load(run.path / "scores" / name)
            latents_shown(made(), explanations, scores, args.pages, loss.meta["checkpoint"]).save(run.path / "latents")
            run.record("latents", settings)
        figures["latents"] = latent_page(Result.load(run.path / "latents"))
    _write(result, figures, run.path, args.static)
    return result


def _write(result: Result, figures: dict[str, Any], folder: Path, static: bool) -> None:
    """Table, meta and figures, each whole or not at all, beside what the steps left."""
    import sys

    from analyses.figures import write_figure

    result.save(folder)
    for name, drawn in figures.items():
        if problem := write_figure(drawn, folder / "figures" / f"{name}.html", static):
            sys.stderr.write(f"warning: {problem}\n")


def _line(run: RunFolder, args: argparse.Namespace) -> str:
    """What a step alone prints."""
    if args.step == "coder":
        found = run.about["steps"]["coder quality"]
        said = (
            f"FVU {found['fvu']:.3f}, {found['l0']:.1f} latents a token, {found['dead_share']:.1%} dead; loss (nats a "
            f"token) {found['ce']['base']:.4f}, with the reconstruction {found['ce']['reconstruction']:.4f}"
        )
    elif args.step == "explain":
        sets = {name: load_explanations(run.explanations(name)) for name in run.names()}
        said = "; ".join(
            f"{name}: {len(of)} latents, {sum(e.bits for e in of) / max(1, len(of)):,.0f} bits each"
            for name, of in sets.items()
        )
    elif args.step == "score":
        parts = []
        for name in names_of(args):
            means = Result.load(run.path / "scores" / name).meta["means"]
            parts += [f"{m['source']} {m['score']} {m['value']:.3f}" for m in means if m["value"] is not None]
        said = "; ".join(parts)
    else:
        said = Result.load(run.path / "loss").meta["summary"]
    return f"{said}\n{run.path}\n"
