"""Parsers fed by atheris, which looks for input that reaches new lines; run as a process of its own.

    python guided.py TARGET -runs=N -seed=1

Source: atheris (libFuzzer for Python).
"""

import json
import struct
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import atheris

READ_BY = (
    "corpora", "boundaries", "cleaning", "tasks.files", "llama2c", "llama2c_tokenizer", "token_files", "checkpoint",
    "described", "manifest",
)  # fmt: skip
with atheris.instrument_imports(include=[f"sat_lens.{name}" for name in READ_BY]):
    from sat_lens import boundaries, checkpoint, cleaning, corpora, llama2c, llama2c_tokenizer, token_files
    from sat_lens import manifest as manifests
    from sat_lens.described import empty_model
    from sat_lens.tasks import files as task_files

assert boundaries and cleaning
FOLDER = Path(tempfile.mkdtemp())


def corpus(suffix: str) -> Any:
    def read(data: bytes) -> None:
        (path := FOLDER / f"a{suffix}").write_bytes(data)
        for story in islice(corpora.read_stories(str(path)), 50):
            assert story.strip() == story and "\x00" not in story

    return read


def prompts(parse: Any) -> Any:
    def read(data: bytes) -> None:
        for prompt in parse(data.decode("utf-8-sig")):
            assert isinstance(prompt.clean, str) and prompt.clean is not None

    return read


def pieces(data: bytes) -> None:
    (path := FOLDER / "tok.bin").write_bytes(data)
    llama2c_tokenizer.llama2c_tokenizer(path)


def manifest(data: bytes) -> None:
    (FOLDER / "manifest.json").write_bytes(data)
    token_files.PackedTokens.open(FOLDER)


def weights(data: bytes) -> None:
    (path := FOLDER / "model.safetensors").write_bytes(data)
    checkpoint.read_weights(path)


def llama(data: bytes) -> None:
    (path := FOLDER / "a.bin").write_bytes(data)
    llama2c.from_llama2c(path)


def small_checkpoint() -> Path:
    from sat_lens import SelfAblatingTransformer, SelfAblation
    from sat_lens._tl import HookedTransformerConfig

    sizes = {"n_layers": 1, "d_model": 4, "n_heads": 1, "d_head": 4, "d_mlp": 4, "n_ctx": 8, "d_vocab": 5}
    cfg = HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LN", device="cpu")
    return checkpoint.save(
        SelfAblatingTransformer(cfg, ablation=SelfAblation(k_attn=1, k_mlp=1)), FOLDER / "checkpoint"
    )


def described(data: bytes) -> None:
    (CHECKPOINT / checkpoint.CONFIG).write_bytes(data)
    empty_model(checkpoint.read_config(CHECKPOINT), OWN_WEIGHTS, "cpu")


def signed(data: bytes) -> None:
    (CHECKPOINT / checkpoint.MANIFEST).write_bytes(data)
    manifests.verify_files(CHECKPOINT)


CHECKPOINT = small_checkpoint()
OWN_WEIGHTS = checkpoint.read_weights(CHECKPOINT / checkpoint.WEIGHTS)
TARGETS = {
    "txt": (corpus(".txt"), "Tom ran.\n\n<|endoftext|>Once upon a time, é."),
    "jsonl": (corpus(".jsonl"), '{"text": "A."}\n"B."\n'),
    "json": (corpus(".json"), '{"texts": ["A.", {"story": "B."}]}'),
    "task-json": (prompts(task_files.auto_circuit_prompts),
                  json.dumps({"prompts": [{"clean": "a", "corrupt": "b", "answers": ["c"], "wrong_answers": [1]}]})),
    "task-csv": (prompts(task_files.eap_prompts), 'clean,corrupted,correct,incorrect\n"a, b",c,1,d\n'),
    "llama2c-tokenizer": (pieces, "\x06\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00a"),
    "packed": (manifest, '{"schema_version": 1, "files": {}, "dtype": "<u2"}'),
    "config": (described, (CHECKPOINT / checkpoint.CONFIG).read_text()),
    "manifest": (signed, (CHECKPOINT / checkpoint.MANIFEST).read_text()),
    "safetensors": (weights, '\x40\x00\x00\x00\x00\x00\x00\x00{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
                             + " " * 10 + "\x00" * 8),
    "llama2c": (llama, struct.pack("<7i", 2, 1, 1, 1, 1, 2, 1).decode() + "\x00" * 4 * 34),
}  # fmt: skip


def one(data: bytes) -> None:
    try:
        TARGETS[sys.argv[1]][0](data)
    except (ValueError, OSError):
        pass


if __name__ == "__main__":
    seeds = Path(tempfile.mkdtemp())
    (seeds / "seed").write_bytes(TARGETS[sys.argv[1]][1].encode())
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(seeds)], one)
    atheris.Fuzz()
