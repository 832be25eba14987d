"""Bring a model in: reference `.pt` files, GPT-Neo folders, llama2.c `.bin` files.

    python -m sat_lens.convert model.pt OUT --config config.yaml
    python -m sat_lens.convert GPT_NEO_FOLDER OUT
    python -m sat_lens.convert stories260K.bin OUT --tokenizer tok512.bin

OUT becomes a checkpoint folder. Nothing is unpickled beyond tensors (`weights_only=True`).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sat_lens.commands import command_parser, run


def __getattr__(name: str) -> Any:
    """`from_reference`, `from_gpt_neo` and `from_llama2c`, imported when asked for."""
    from importlib import import_module

    homes = {"from_reference": "reference", "from_gpt_neo": "gpt_neo", "from_llama2c": "llama2c"}
    if name not in homes:
        raise AttributeError(f"module 'sat_lens.convert' has no attribute {name!r}")
    return getattr(import_module(f"sat_lens.{homes[name]}"), name)


def parser() -> argparse.ArgumentParser:
    p = command_parser("sat_lens.convert", __doc__)
    p.add_argument("source", type=Path, help="a .pt or .safetensors file, a GPT-Neo folder, or a llama2.c .bin file")
    p.add_argument("out", type=Path, help="checkpoint folder to write; must be empty or not there")
    p.add_argument("--config", type=Path, help="for a .pt file: the run's YAML or JSON configuration "
        "(default: the file beside the source)")  # fmt: skip
    p.add_argument("--tokenizer", help="shipped name, file, folder or Hugging Face name "
        "(default: what lies beside the source)")  # fmt: skip
    return p


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if not args.source.exists():
        raise FileNotFoundError(f"no such file or folder: {args.source}")
    if args.out.is_file():
        raise NotADirectoryError(f"OUT must be a folder to write; {args.out} is a file")
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} exists and is not empty; choose another name")
    from sat_lens import checkpoint
    from sat_lens.tokenizers import load_tokenizer

    model = _read(args.source, args.config)
    tokenizer = args.tokenizer or _tokenizer_beside(args.source)
    if tokenizer is not None:
        model.tokenizer = load_tokenizer(tokenizer)
        if len(model.tokenizer) > model.cfg.d_vocab:
            raise ValueError(f"{tokenizer} has {len(model.tokenizer)} ids, the model only {model.cfg.d_vocab}")
    checkpoint.save(model, args.out, data={"converted_from": args.source.name})
    sys.stdout.write(f"{args.out}\ncheck it: python -m sat_lens.doctor {args.out}\n")


def _read(source: Path, config: Path | None) -> Any:
    from sat_lens import gpt_neo, llama2c, reference

    if source.is_dir():
        return gpt_neo.from_gpt_neo(source)
    if source.suffix == ".bin":
        return llama2c.from_llama2c(source)
    if source.suffix in (".pt", ".pth", ".safetensors"):
        return reference.from_reference(reference.read_state(source), reference.read_config(source, config))
    raise ValueError(f"{source}: must be a .pt, .safetensors or .bin file or a GPT-Neo folder")


def _tokenizer_beside(source: Path) -> Path | None:
    folder = source if source.is_dir() else source.parent
    names = ("tokenizer.json",) if source.is_dir() else ("tok512.bin", "tokenizer.bin")
    return next((folder / name for name in names if source.suffix != ".pt" and (folder / name).is_file()), None)


if __name__ == "__main__":
    run(main)
