"""What made a result of several toy runs: their weights, the command, versions."""

import argparse
import dataclasses
import datetime
import json
import shlex
import sys
from collections.abc import Sequence

from analyses.provenance import commit, versions
from analyses.result import Result
from sat_lens.toy.runs import MANIFEST, ToyRun


def recorded(result: Result, runs: Sequence[ToyRun], args: argparse.Namespace) -> Result:
    """The result with the runs' hashes, the command, versions, the commit and the date in its meta."""
    hashes = {}
    for run in runs:
        if run.folder is not None:
            files = json.loads((run.folder / MANIFEST).read_text(encoding="utf-8"))
            hashes[run.name] = {name: value for name, value in files.items() if name.endswith(".safetensors")}
    made = {
        "sha256": hashes, "versions": versions(), "commit": commit(),
        "command": shlex.join(["python", "-m", "analyses.untangling", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    return dataclasses.replace(result, meta={**made, **result.meta})
