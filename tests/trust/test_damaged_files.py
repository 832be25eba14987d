"""Every other file that is read, damaged at any byte: read as what it says, or refused in one line."""

import json
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from sat_lens import files
from sat_lens.tokenizers import load_tokenizer
from tests.trust.oracle import KINDS, mutated, outcome, sizes

STORY = "Once upon a time Tom and Lily went to the park. Tom gave a ball to Lily.\n"
PROMPT = {"clean": "Tom and Lily", "corrupt": "Tom and Mia", "answers": [" Lily"], "wrong_answers": [" Tom"]}
ODD = (b"", b"\x00", b"\xff\xfe", b"[" * 5000, b'{"a":' * 5000, b"9" * 6000, b"\x1f\x8b\x08\x00", b"\r", b"PAR1",
       "Tom".encode("utf-16"), "é".encode("latin-1"), b"\xef\xbb\xbf", b"\n" * 9, "\u2028\u202e".encode(), b"NaN",
       b"1e999", b"null", b"[]", b"{}", b"[null]", b'"' * 3, b"%PDF-1.4", b"a,b\n1\n",
       b"!!python/object:os.system [id]")  # fmt: skip


class Reader(NamedTuple):
    """Something on disk and what reads it.

    Args:
        make: writes it, whole and good, and names it.
        read: reads it; what comes must be comparable by `same`.
        signed: whether a manifest guards it, so that what is read at all must be the same.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    signed: bool = False


def written(name: str, content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


def corpus(path: Path) -> list[str]:
    from sat_lens.corpora import read_stories

    found = list(islice(read_stories(str(path)), 100))
    assert found and all(story.isprintable() or "\n" in story for story in found)
    return found


@cache
def shipped() -> Any:
    return load_tokenizer("stories-4096")


def task(path: Path) -> Any:
    from sat_lens.tasks import load_task

    found = load_task(path, shipped())
    assert found.n >= 1 and int(found.clean.max()) < 4096
    return None


def parquet(folder: Path) -> Path:
    import pyarrow
    from pyarrow import parquet as writer

    writer.write_table(pyarrow.table({"text": [STORY] * 3}), folder / "a.parquet")
    return folder / "a.parquet"


def llama_numbers(header: Sequence[int]) -> int | None:
    """How many float32 a llama2.c file of this header has after it; None for a header of no model."""
    dim, hidden, n_layers, n_heads, n_kv, vocab, n_ctx = header
    own_unembedding, vocab = vocab < 0, abs(vocab)
    if min(dim, hidden, n_layers, n_heads, n_kv, vocab, n_ctx) < 1 or dim % n_heads or n_heads % n_kv:
        return None
    head, kv = dim // n_heads, dim // n_heads * n_kv
    layer = 2 * dim + 2 * dim * dim + 2 * dim * kv + 3 * dim * hidden
    return vocab * dim * (1 + own_unembedding) + n_layers * layer + dim + n_ctx * head


def llama(folder: Path) -> Path:
    header = (8, 12, 2, 2, 1, 16, 4)
    numbers = np.random.default_rng(0).normal(size=llama_numbers(header))
    return written("a.bin", struct.pack("<7i", *header) + numbers.astype("<f4").tobytes())(folder)


def read_llama(path: Path) -> Any:
    from sat_lens.llama2c import from_llama2c

    model = from_llama2c(path)
    model(torch.tensor([[1, 2, 3]]))


def llama_tokenizer(folder: Path) -> Path:
    pieces = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % i for i in range(256)), b" ", b"a", b"b", b"ab", b" ab"]
    packed = b"".join(struct.pack("<fi", -float(i), len(piece)) + piece for i, piece in enumerate(pieces))
    return written("tok.bin", struct.pack("<i", 6) + packed)(folder)


def read_tokenizer(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    tokenizer.decode(tokenizer.encode("ab, \u2603 Tom", add_special_tokens=False))


def shipped_tokenizer(folder: Path) -> Path:
    from sat_lens.tokenizers import train_bpe

    return written("tokenizer.json", train_bpe([STORY], 270).to_str())(folder)


def gpt2_tokenizer(folder: Path) -> Path:
    made = json.loads(shipped_tokenizer(folder).read_text())["model"]
    (folder / "tokenizer.json").unlink()
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in made["merges"]]
    (folder / "vocab.json").write_text(json.dumps(made["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder


def packed_tokens(folder: Path) -> Path:
    from sat_lens.packing import pack

    return pack([STORY] * 3, shipped(), folder / "packed").folder


def read_packed(path: Path) -> Any:
    from sat_lens.packing import PackedTokens

    found = PackedTokens.open(path)
    rows = found.evaluation(8)
    return found.tokens.tolist(), rows.tokens.tolist(), found.batch(3, 2, 9).tolist()


def toy(folder: Path) -> Path:
    from sat_lens.toy.config import ToyConfig
    from sat_lens.toy.runs import fresh, save_toy

    config = ToyConfig(operands=4, d_model=8, n_heads=2, d_mlp=8, n_latents=8, mask="none", k_attn=2, k_mlp=2)
    run = fresh(config)
    run.history.append({"step": 0, "val_sum": 0.5})
    return save_toy(run, folder / "toy", best_step=0, best_score=[0.5, 1.0])


def read_toy(path: Path) -> Any:
    from sat_lens.toy.runs import load_toy

    run = load_toy(path)
    weights = {**run.toy.net.state_dict(), **{f"sae.{key}": value for key, value in run.sae.state_dict().items()}}
    return run.config, run.history, run.step, {key: value.tolist() for key, value in weights.items()}


def coder(folder: Path) -> Path:
    from sat_lens.coders import Coder, CoderConfig, save_coder

    torch.manual_seed(0)
    made = Coder(CoderConfig("skip", "blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out", 4, 4, 8, 2))
    return save_coder(made, folder / "coder", training={"step": 1})


def read_coder(path: Path) -> Any:
    from sat_lens.coders import load_coder

    found = load_coder(path)
    return found.cfg, {key: value.tolist() for key, value in found.state_dict().items()}


def result(folder: Path) -> Path:
    import pandas as pd

    from analyses.result import Result

    table = pd.DataFrame({"layer": [0, 1], "unit": ["a,b", 'c"d'], "effect": [0.5, None]})
    Result("q", table, {"effect": "nats"}, {"n": 2, "task": {"name": "ioi"}}).save(folder / "result")
    return folder / "result"


def read_result(path: Path) -> None:
    from analyses.result import Result

    found = Result.load(path)
    assert isinstance(found.meta, dict) and isinstance(found.units, dict) and isinstance(found.name, str)
    found.to_json()


def sweep(folder: Path) -> Path:
    text = "base: {preset: cpu, steps: 4, lr: 1e-3}\ngrid: {mask: [local, global], k-attn: [2, 4]}\nseeds: [0, 1]\n"
    return written("sweep.yaml", text + "processes: 1\nslurm: {slurm_partition: gpu}\n")(folder)


def read_runs(path: Path) -> None:
    from sat_lens.sweep import read_sweep

    runs, _ = read_sweep(path, path.parent / "out")
    assert all(run.folder.parent == path.parent / "out" for run in runs), "a run outside of --out"


def settings_file(folder: Path) -> Path:
    return written("train.yaml", "preset: paper\nlr: 1e-3\nk-attn: 2\nmask: global\nsteps: 7\nquiet: true\n")(folder)


def read_settings(path: Path) -> None:
    from sat_lens.train import options, validated

    validated(options(["--config", str(path), "--out", "x"]))


READERS = {
    "corpora": [
        Reader(written("a.txt", STORY * 3), corpus),
        Reader(written("m.txt", (STORY + "<|endoftext|>\n") * 3), corpus),
        Reader(written("a.jsonl", (json.dumps({"text": STORY}) + "\n") * 3), corpus),
        Reader(written("a.json", json.dumps({"texts": [STORY] * 3})), corpus),
        Reader(parquet, corpus),
    ],
    "task files": [
        Reader(written("a.json", json.dumps({"prompts": [PROMPT] * 2})), task),
        Reader(written("a.csv", "clean,corrupted,correct,incorrect\nTom and Lily,Tom and Mia, Lily, Tom\n"), task),
    ],
    "llama2.c files": [Reader(llama, read_llama)],
    "tokenizers": [
        Reader(shipped_tokenizer, read_tokenizer),
        Reader(llama_tokenizer, read_tokenizer),
        Reader(gpt2_tokenizer, read_tokenizer),
    ],
    "packed tokens": [Reader(packed_tokens, read_packed, signed=True)],
    "toy runs": [Reader(toy, read_toy, signed=True)],
    "coder folders": [Reader(coder, read_coder, signed=True)],
    "result folders": [Reader(result, read_result)],
    "YAML files": [Reader(sweep, read_runs), Reader(settings_file, read_settings)],
}
QUICK = {"llama2.c files": 60, "toy runs": 60}


def parts(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def damaged(content: bytes, choice: random.Random) -> tuple[str, bytes]:
    """One to three mutations, or something else altogether."""
    if choice.random() < 0.1:
        other = choice.choice((*ODD, choice.randbytes(choice.randrange(200))))
        at = choice.randrange(len(content) + 1)
        return choice.choice(
            (("is other", other), ("begins so", other + content), ("has inside", content[:at] + other + content[at:]))
        )
    kinds = [choice.choice(KINDS) for _ in range(choice.choice((1, 1, 1, 2, 3)))]
    for kind in kinds:
        if content:
            near = choice.choice((32, 512, 1 << 20))
            content = mutated(content, choice.randrange(min(len(content), near)), kind, choice)
    return "+".join(kinds), content


def exits_as_refusals(read: Callable[[Path], Any], path: Path) -> Callable[[], Any]:
    """argparse ends the process for bad input; that it says why is told by tests of commands."""

    def act() -> Any:
        try:
            return read(path)
        except SystemExit as end:
            raise ValueError(f"the process ends with {end.code}") from None

    return act


@pytest.mark.parametrize("n", sizes(40, 1000))
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_refused_in_one_line_or_read(kind, n, tmp_path, tried):
    """What has a manifest is read as it was written, or not at all.

    Corpora, task files, llama2.c files, tokenizers, result folders and YAML files have none, and nothing in them tells
    a letter or a number that was changed from one that was meant: what is read is then what the file now says. Here
    they must end in a value of their kind or in one line, and never hang, trace back or write.
    """
    n_tried = 0
    for i, reader in enumerate(READERS[kind]):
        choice = random.Random(f"{kind} {i}")
        (folder := tmp_path / str(i)).mkdir()
        path = reader.make(folder)
        expected = reader.read(path)
        before = {file: file.read_bytes() for file in parts(path)}
        for _ in range(n // len(READERS[kind])):
            file = choice.choice(list(before))
            what, content = damaged(before[file], choice)
            file.write_bytes(content)
            case = f"{file.relative_to(folder)} {what}: {content[:200]!r}"
            found = outcome(exits_as_refusals(reader.read, path), (ValueError, OSError), case=case)
            if reader.signed and found.refusal is None:
                assert found.value == expected, f"{case}: another content was read"
            file.write_bytes(before[file])
            n_tried += 1
        assert {file: file.read_bytes() for file in parts(path)} == before, "reading wrote something"
    tried(f"{kind}, damaged", n_tried)


SIGNED = {"toy runs": "MANIFEST.json", "coder folders": "MANIFEST.json", "packed tokens": "manifest.json"}


@pytest.mark.parametrize("n", sizes(30, 800))
@pytest.mark.parametrize("kind", SIGNED)
def test_a_damaged_file_under_a_manifest_that_agrees(kind, n, tmp_path, tried):
    reader, choice = READERS[kind][0], random.Random(f"signed {kind}")
    path = reader.make(tmp_path)
    manifest = path / SIGNED[kind]
    kept = shutil.copytree(path, tmp_path / "kept")
    names = [file.relative_to(path) for file in parts(path) if file != manifest]
    for _ in range(n):
        name = choice.choice(names)
        what, content = damaged((path / name).read_bytes(), choice)
        (path / name).write_bytes(content)
        if kind == "toy runs" and name.parts[0] == "model" and name.name != "MANIFEST.json":
            agree(path / "model" / "MANIFEST.json", Path(name.name), "coder folders")
            agree(manifest, Path("model/MANIFEST.json"), kind)
        agree(manifest, name, kind)
        outcome(lambda: reader.read(path), (ValueError, OSError), case=f"{name} {what}: {content[:300]!r}")
        for file in parts(kept):
            shutil.copyfile(file, path / file.relative_to(kept))
    tried(f"{kind}, damaged under a manifest that agrees", n)


def agree(manifest: Path, name: Path, kind: str) -> None:
    content = json.loads(manifest.read_text())
    digest, entry = files.sha256_file(manifest.parent / name), name.as_posix()
    if kind == "toy runs":
        content[entry] = digest
    elif kind == "coder folders":
        content["sha256"][entry] = digest
    else:
        content["files"][entry] = {"sha256": digest, "bytes": (manifest.parent / name).stat().st_size}
    manifest.write_text(json.dumps(content))


HEADER = (0, 1, -1, 2, 3, 4, 6, 7, 8, 12, 16, -16, 20, 1 << 20, (1 << 24) - 1, 1 << 24, (1 << 31) - 1, -(1 << 31))


SAME_SIZE = ((8, 12, 2, 2, 1, 15, 6), (8, 12, 2, 2, 1, 14, 8), (8, 12, 2, 4, 2, 16, 8))
"""Lies of which a model has as many numbers as the file: no reader can tell."""

IMPOSSIBLE = ((8, 12, 2, 4, 3, 8, 8), (8, 12, 2, 8, 4, 18, 4), (8, 12, 2, 8, 4, 18, 9))
"""Of the file's size too, but of no model: 4 heads on 3 keys; heads of one channel, which cannot be turned in pairs."""


def lie(header: Sequence[int], choice: random.Random) -> tuple[int, ...]:
    changed = list(header)
    for place in choice.sample(range(7), choice.choice((1, 1, 2, 7))):
        changed[place] = choice.choice(HEADER)
    return tuple(changed)


@pytest.mark.parametrize("n", sizes(200, 4000))
def test_a_llama2c_header_that_lies(n, tmp_path, tried):
    """It is believed only where its model has just the file's size, and then the model is what it says."""
    from sat_lens.llama2c import from_llama2c

    path, choice, n_fit = llama(tmp_path), random.Random(4), 0
    body = path.read_bytes()[28:]
    header = struct.unpack("<7i", path.read_bytes()[:28])
    drawn = [lie(header, choice) for _ in range(n - len(SAME_SIZE))]
    for lying in (*SAME_SIZE, *drawn):
        path.write_bytes(struct.pack("<7i", *lying) + body)
        fits = (numbers := llama_numbers(lying)) is not None and 4 * numbers == len(body)
        found = outcome(lambda: from_llama2c(path).cfg, case=str(lying))
        n_fit += fits
        if found.refusal is None:
            assert fits, f"{lying}: its model has {numbers} numbers, the file {len(body) // 4}"
            cfg = found.value
            said = (cfg.d_model, cfg.d_mlp, cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads or cfg.n_heads)
            assert (*said, cfg.d_vocab, cfg.n_ctx) == (*lying[:5], abs(lying[5]), lying[6])
    assert n_fit >= len(SAME_SIZE), "no lie had the file's size"
    for lying in IMPOSSIBLE:
        path.write_bytes(struct.pack("<7i", *lying) + body)
        assert "impossible header" in (outcome(lambda: from_llama2c(path), case=str(lying)).refusal or "")
    tried("llama2.c headers that lie", n + len(IMPOSSIBLE))
