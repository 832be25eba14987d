"""Many independent training runs from one file: every combination of settings, here or on SLURM.

    python -m sat_lens.sweep sweep.yaml --out runs/sweep [--jobs 2] [--slurm]

The YAML file, with the flags of `sat_lens.train` as keys:

    base: {preset: cpu, steps: 4000, corpus: stories}
    grid: {mask: [local, global], k_attn: [2, 4]}
    seeds: [0, 1, 2]
    processes: 1
    slurm: {slurm_partition: gpu, timeout_min: 240}

Of `grid` (or a list of such grids) every combination is trained, once a seed; `processes` are those of each run,
by torchrun; `slurm` are submitit's parameters, for --slurm.

Each run is a folder of --out, named by what it varies. The command can be given again at any time:
finished runs, whose files have the hashes of their manifests, are skipped, others resumed. It ends with
summary.csv: settings and last held-out losses.
--slurm needs the extra `sat_lens[slurm]`; submitit hands jobs over in pickles of its own in OUT/jobs.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_lens import files
from sat_lens.commands import command_parser, run
from sat_lens.manifest import CONFIG, CheckpointError, read_json, verify_files
from sat_lens.settings_file import read_yaml
from sat_lens.train import as_flags, command_line, options, validated

ENTRIES = {"base": dict, "grid": (dict, list), "seeds": list, "processes": int, "slurm": dict}
MOST_RUNS = 10_000
Command = list[str]


@dataclass(frozen=True)
class Run:
    """One training run of a sweep."""

    folder: Path
    varied: dict[str, Any]
    chosen: dict[str, Any]
    command: Command

    def is_finished(self) -> bool:
        """Whether the folder holds this run, trained to its last step, every file as its manifest says.

        Raises:
            ValueError: it holds a run of other settings.
        """
        last = files.recovered(self.folder / "last")
        if not (last / CONFIG).is_file():
            return False
        try:
            training = read_json(last / CONFIG)["training"]
            verify_files(last)
        except CheckpointError:  # which the run itself, that is then started, tells
            return False
        if training["command"] != command_line(self.chosen):
            raise ValueError(f"{self.folder} holds another run ({training['command']}); choose another --out")
        return training["step"] >= training["steps"]

    def last_losses(self) -> dict[str, Any]:
        """Step and held-out losses of the last evaluation in its log, nats a token; empty before the first."""
        log = self.folder / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        evaluations = [line for line in lines if '"held_out_total"' in line and line.endswith("}")]
        return json.loads(evaluations[-1]) if evaluations else {}


def read_sweep(path: Path, out: Path) -> tuple[list[Run], dict[str, Any]]:
    """The runs of a file, all of them checked, and the parameters of SLURM.

    Raises:
        ValueError: an unknown or wrong entry, a setting that `sat_lens.train` does not know, or two runs alike.
    """
    content = read_yaml(path)
    for key, value in content.items():
        if key not in ENTRIES:
            raise ValueError(f"{path}: unknown entry {key!r}; known are {', '.join(ENTRIES)}")
        if not isinstance(value, ENTRIES[key]):
            wanted = "a dict, or a list of them" if key == "grid" else f"a {ENTRIES[key].__name__}"
            raise ValueError(f"{path}: {key} must be {wanted}; got {value!r}")
    base, processes = _dashless(content.get("base", {})), content.get("processes", 1)
    grids = content.get("grid", {})
    grids = grids if isinstance(grids, list) else [grids]
    if not grids or not all(isinstance(grid, dict) for grid in grids):
        raise ValueError(f"{path}: grid must be a dict, or a list of them; got {grids!r}")
    seeds = {"seed": content["seeds"]} if "seeds" in content else {}
    runs = [_run(base, varied, out, processes) for grid in grids for varied in combinations(_dashless(grid) | seeds)]
    if len(runs) > MOST_RUNS:
        raise ValueError(f"a sweep must have at most {MOST_RUNS:,} runs; the grids give {len(runs):,}")
    if len({one.folder for one in runs}) < len(runs):
        raise ValueError(f"{path}: two runs of the grid have the same settings")
    return runs, content.get("slurm", {})


def combinations(grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of one value of each list, the last list varying fastest."""
    n = 1
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid: {key} must be a list of values; got {values!r}")
        n *= len(values)
    if n > MOST_RUNS:
        raise ValueError(f"a sweep must have at most {MOST_RUNS:,} runs; the grid gives {n:,}")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _run(base: Mapping[str, Any], varied: dict[str, Any], out: Path, processes: int) -> Run:
    if taken := {"out", "resume", "config", "dry_run"} & (base.keys() | varied.keys()):
        raise ValueError(f"a sweep sets {sorted(taken)[0]} itself; leave it out")
    folder = out / (run_name(varied) or "run")
    flags = [*as_flags({**base, **varied}), f"--out={folder}"]
    chosen = options(flags, "a run of the sweep")
    validated(chosen)
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"] if processes > 1 else []
    return Run(
        folder, varied, chosen, [sys.executable, "-m", *launcher, "sat_lens.train", *flags, "--resume", "--quiet"]
    )


def run_name(varied: Mapping[str, Any]) -> str:
    """`mask-local_k-attn-4_seed-0`, without characters that a folder's name should not have."""
    parts = [f"{key.replace('_', '-')}-{str(value).rsplit('/', 1)[-1]}" for key, value in varied.items()]
    return re.sub(r"[^\w.+=-]", "-", "_".join(parts))


def _dashless(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key).replace("-", "_"): value for key, value in settings.items()}


def run_here(commands: Sequence[Command], jobs: int) -> Iterator[str | None]:
    """Run the commands, `jobs` at a time: for each, in order, None, or the last line that it said when it failed."""
    started: list[subprocess.Popen[str]] = []

    def finished(command: Command) -> str | None:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        started.append(process)
        said = process.communicate()[1].strip().splitlines()
        return None if process.returncode == 0 else said[-1] if said else f"exit code {process.returncode}"

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(finished, command) for command in commands]
        try:
            yield from (one.result() for one in waiting)
        finally:
            for one in waiting:
                one.cancel()
            for process in started:
                if process.poll() is None:
                    process.terminate()


def run_on_cluster(
    commands: Sequence[Command], jobs: int, folder: Path, parameters: Mapping[str, Any], cluster: str = "slurm"
) -> Iterator[str | None]:
    """The same through submitit, as one array of jobs of which `jobs` run at a time."""
    try:
        from submitit import AutoExecutor
        from submitit.core.utils import FailedJobError, UncompletedJobError
        from submitit.helpers import CommandFunction
    except ImportError:
        raise ValueError("--slurm needs submitit: pip install 'sat-lens[slurm]'") from None
    try:
        executor = AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(name="sat_lens", slurm_array_parallelism=jobs, **parameters)
    except (RuntimeError, NameError) as error:
        raise ValueError(f"submitit: {error}") from None
    with executor.batch():
        submitted = [executor.submit(CommandFunction(command, verbose=False)) for command in commands]
    try:
        for job in submitted:
            try:
                job.result()
                yield None
            except (FailedJobError, UncompletedJobError) as error:
                yield str(error).strip().splitlines()[-1]
    except KeyboardInterrupt:
        for job in submitted:
            job.cancel()
        raise


def summary(runs: Sequence[Run], failures: Mapping[Path, str]) -> str:
    """CSV: run, status, what varies, step and last held-out losses (nats a token)."""
    rows = []
    for one in runs:
        status = "finished" if one.is_finished() else "failed" if one.folder in failures else "unfinished"
        rows.append({"run": one.folder.name, "status": status, **one.varied, **one.last_losses()})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def parser() -> argparse.ArgumentParser:
    p = command_parser("sat_lens.sweep", __doc__)
    p.add_argument("file", type=Path, help="YAML file: base, grid, seeds")
    p.add_argument("--out", type=Path, required=True, help="folder of the runs (needed)")
    p.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    p.add_argument("--slurm", action="store_true", help="submit them to SLURM, and wait")
    p.add_argument("--quiet", action="store_true", help="no line a run on stderr")
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if not 1 <= args.jobs <= 1000:
        raise ValueError(f"--jobs must be between 1 and 1,000; got {args.jobs}")
    runs, parameters = read_sweep(args.file, args.out)
    waiting = [one for one in runs if not one.is_finished()]
    with files.locked(args.out):
        failures = train_all(args, runs, waiting, parameters)
    sys.stdout.write(f"{args.out / 'summary.csv'}\n")
    if failures:
        folder, words = next(iter(failures.items()))
        raise ValueError(f"{len(failures)} of {len(runs)} runs failed; {folder.name}: {words}")


def train_all(
    args: argparse.Namespace, runs: Sequence[Run], waiting: Sequence[Run], parameters: Mapping[str, Any]
) -> dict[Path, str]:
    """Run what waits, and write the summary; what failed, by folder."""
    commands = [one.command for one in waiting]
    ended = (
        run_on_cluster(commands, args.jobs, args.out / "jobs", parameters)
        if args.slurm
        else run_here(commands, args.jobs)
    )
    failures: dict[Path, str] = {}
    try:
        with contextlib.closing(ended):
            for one, failure in zip(waiting, ended, strict=True):
                if failure:
                    failures[one.folder] = failure
                if not args.quiet:
                    sys.stderr.write(f"{one.folder.name}: {failure or 'finished'}\n")
    finally:
        files.write_whole(args.out / "summary.csv", summary(runs, failures))
    return failures


if __name__ == "__main__":
    run(main)
