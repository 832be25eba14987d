"""What a command line asks for that cannot be, as far as that is known before anything heavy is imported."""

import argparse
import json
import os
import re
from pathlib import Path
from typing import Any

from analyses.rewriting.choices import CODER_FLAGS, HTTP_FLAGS, OF_THE_TEXTS
from analyses.rewriting.run_folder import RunFolder

CODER_FILES = ("MANIFEST.json", "sae_weights.safetensors", "sae.safetensors")
"""One of them is in a coder's folder: ours, that of sae-lens, that of sparsify."""
SHIPPED = Path(__file__).resolve().parents[2] / "data" / "checkpoints"


def flags_that_say_nothing(args: argparse.Namespace) -> str:
    """Why a flag of the explanations can be of no use here; nothing where all can."""
    for name in HTTP_FLAGS:
        if getattr(args, name) is not None and args.explainer != "http":
            return f"--{name.replace('_', '-')} goes with --explainer http; got --explainer {args.explainer}"
    if args.weights is not None and args.explainer != "hf":
        return f"--weights goes with --explainer hf; got --explainer {args.explainer}"
    if args.cassette is not None and args.explainer == "rules":
        return "--cassette goes with --explainer http, hf or replay; got --explainer rules"
    return ""


def refuse_sources(args: argparse.Namespace) -> None:
    """Raise where a key, weights, a cassette, a coder or a text is not there, or is none.

    Raises:
        FileNotFoundError, ValueError: in one line.
    """
    if (coder := getattr(args, "coder", None)) and not any((Path(coder) / name).is_file() for name in CODER_FILES):
        raise ValueError(f"--coder must be a coder's folder; {coder} has none of {', '.join(CODER_FILES)}")
    if args.corpus is not None:
        _refuse_corpus(args.corpus)
    if getattr(args, "key_variable", None) is not None and not os.environ.get(args.key_variable, "").strip():
        named = args.key_variable if re.fullmatch(r"[A-Z0-9_]{1,40}", args.key_variable) else "it names"  # or a key
        raise ValueError(f"--key-variable: the environment variable {named} must hold the key; it is not set")
    if getattr(args, "weights", None) and not any(Path(args.weights).glob("*.safetensors")):
        raise ValueError(f"--weights must be a folder with *.safetensors; {args.weights} has none")
    if getattr(args, "explainer", None) == "replay":
        with open(args.cassette, "rb") as file:
            if b'"sat_lens cassette 1"' not in file.read(2**12):
                raise ValueError(f"--cassette must be a file of recorded replies; {args.cassette} is none")


def _refuse_corpus(corpus: str) -> None:
    from sat_lens.corpora import is_mixture, mixture_parts

    for name in [name for name, _ in mixture_parts(corpus)] if is_mixture(corpus) else [corpus]:
        if (Path(name).is_absolute() or name.startswith(".") or Path(name).suffix == ".txt") and not Path(
            name
        ).exists():
            raise FileNotFoundError(f"no such corpus file: {name}")


def refuse_run(run: RunFolder, args: argparse.Namespace) -> None:
    """Raise where a run's folder is given together with flags of the coder, which it has, or lacks what a step needs.

    Raises:
        ValueError: in one line.
    """
    given = [name for name in CODER_FLAGS if getattr(args, name, None) not in (None, CODER_FLAGS[name])]
    if given:
        raise ValueError(f"{run.path} has its coder; --{given[0]} is for a checkpoint's first step")
    for name in OF_THE_TEXTS:
        wanted, there = getattr(args, name), run.about["texts"].get(name)
        if wanted is not None and wanted != there:
            raise ValueError(f"{run.path} is of {name}={there!r}; got --{name} {wanted}; the coder's step chooses them")
    needed = {"score": "explain", "loss": "explain", "report": "loss"}.get(args.step)
    if needed == "explain":
        for name in (args.rules or ["ngram"]) if args.explainer == "rules" else [args.explainer]:
            if not run.explanations(name).is_file():
                there = ", ".join(run.names()) or "none"
                raise ValueError(f"{run.path} has no explanations {name!r} (there are: {there}); explain comes before")
    if args.step == "report" and not (run.path / "loss" / "meta.json").is_file():
        raise ValueError(f"{run.path} has no loss; python -m analyses.rewriting loss {run.path} comes before report")


def refuse_checkpoint(checkpoint: str, args: argparse.Namespace) -> None:
    """Raise where a checkpoint's config.json says that it has no such layer, stream, or number of neurons.

    Raises:
        ValueError: in one line.
    """
    config = _config(checkpoint)
    n_layers, n_neurons = (config.get("model", {}).get(name) for name in ("n_layers", "d_mlp"))
    layer, k = getattr(args, "layer", None), getattr(args, "k", None)
    named = [
        int(found[1]) for site in getattr(args, "site", None) or () if (found := re.match(r"blocks\.(\d+)\.", site))
    ]
    for number in [*([] if layer is None else [layer]), *named]:
        if isinstance(n_layers, int) and number >= n_layers:
            raise ValueError(f"layer must be one of 0 to {n_layers - 1}; got {number}")
    if k and getattr(args, "kind", None) == "neurons" and isinstance(n_neurons, int) and k > n_neurons:
        raise ValueError(f"--k must be at most the {n_neurons} neurons; got {k}")
    if getattr(args, "stream", "clean") == "ablated" and config.get("ablation", {}).get("mask") == "none":
        raise ValueError("this model has no ablated stream; take stream='clean'")


def _config(checkpoint: str) -> dict[str, Any]:
    """Its config.json; empty where there is none that can be read: who loads it then says why."""
    given = Path(checkpoint)
    for folder in (given, given / "best", given / "last", SHIPPED / given.name):
        try:
            found = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        parts = [found.get(name, {}) for name in ("model", "ablation")] if isinstance(found, dict) else [None]
        return found if all(isinstance(part, dict) for part in parts) else {}
    return {}
