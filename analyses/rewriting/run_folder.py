"""The folder of a run: what every step left, and by what settings, so that what is there and fits is not done again.

    OUT/rewriting/NAME/
        run.json                    checkpoint, texts, coder and settings of every step
        coder/                      see `sat_lens.coders.folder`; none of neurons
        latents.safetensors         of all stories
        explanations/NAME.json      of all latents, or of a sample; NAME.bBITS.json: shortened
        replies/                    of language models, one file a request
        scores/NAME/                a Result: one row a latent
        loss/                       a Result: one row a baseline or plan
        latents/                    a Result: what the page of latents shows
        table.csv, meta.json, figures/      the loss with the scores' means, and all figures

A step is done again when its settings, or what it is made from, are others. A coder is not: that takes another folder.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from sat_lens.files import LOCK, write_whole

RUN = "run.json"
FORMAT = "sat_lens rewriting 1"
FIELDS = {"format": str, "checkpoint": str, "sha256": str, "texts": dict, "coder": dict, "steps": dict}
LATENTS = "latents.safetensors"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Args:
        path: of the folder.
        about: what run.json says.
    """

    path: Path
    about: dict[str, Any]

    @property
    def coder(self) -> Path:
        """Folder of the coder."""
        return self.path / "coder"

    @property
    def latents(self) -> Path:
        """File of the latents."""
        return self.path / LATENTS

    def explanations(self, name: str) -> Path:
        """File of a set of explanations."""
        return self.path / "explanations" / f"{name}.json"

    def names(self) -> list[str]:
        """Sets of explanations that are there."""
        return sorted(path.stem for path in (self.path / "explanations").glob("*.json"))

    def done(self, step: str, settings: dict[str, Any], *files: Path) -> bool:
        """Whether a step was done by these settings, and left these files."""
        return self.about["steps"].get(step) == _plain(settings) and all(path.exists() for path in files)

    def record(self, step: str, settings: dict[str, Any]) -> None:
        """A step was done."""
        self.about["steps"][step] = _plain(settings)
        self.save()

    def save(self) -> None:
        """Write run.json."""
        write_whole(self.path / RUN, json.dumps(self.about, indent=2, allow_nan=False) + "\n")

    def digest(self, *steps: str) -> str:
        """Of the settings of some steps, which those of a later one name."""
        known = {step: self.about["steps"].get(step) for step in steps}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def is_run(target: str | Path) -> bool:
    """Whether it is the folder of a run."""
    return (Path(target) / RUN).is_file()


def opened(path: str | Path) -> RunFolder:
    """A run that is there.

    Raises:
        ValueError: a file that is no run's.
        FileNotFoundError: none is there.
    """
    path = Path(path)
    if not is_run(path):
        raise FileNotFoundError(
            f"{path} is no run's folder: it has no {RUN}; python -m analyses.rewriting coder makes one"
        )
    try:
        about = json.loads((path / RUN).read_bytes())
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ValueError(f"{path / RUN} must be a run's: its format is not {FORMAT!r}")
    wrong = [name for name, kind in FIELDS.items() if not isinstance(about.get(name), kind)]
    if wrong or set(about) != set(FIELDS):
        raise ValueError(f"{path / RUN} must have {', '.join(FIELDS)}; {(wrong or ['another entry'])[0]} is wrong")
    return RunFolder(path, about)


def started(path: Path, checkpoint: str, sha256: str, texts: dict[str, Any], coder: dict[str, Any]) -> RunFolder:
    """A new run, or the one that is there, of the same model, texts and coder.

    Raises:
        ValueError: one of others is there.
    """
    about = {"sha256": sha256, "texts": _plain(texts), "coder": _plain(coder)}
    if is_run(path):
        run = opened(path)
        for name, value in about.items():
            if run.about[name] != value:
                raise ValueError(f"{path} holds a run of {_apart(run.about[name], value, name)}; choose another --name")
        return run
    if path.exists() and any(inside.name != LOCK for inside in path.iterdir()):
        raise ValueError(f"{path} exists and is no run's folder; choose another --name")
    run = RunFolder(path, {"format": FORMAT, "checkpoint": checkpoint, **about, "steps": {}})
    run.save()
    return run


def _apart(there: Any, wanted: Any, name: str) -> str:
    """The first thing that differs."""
    if isinstance(there, dict) and isinstance(wanted, dict):
        key = next(key for key in sorted({*there, *wanted}) if there.get(key) != wanted.get(key))
        return f"{name} with {key}={there.get(key)!r}; got {wanted.get(key)!r}"
    return f"{name} {there!r}; got {wanted!r}"


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(value))
