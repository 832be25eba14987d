"""Small files that want to become large, deep, slow or endless: refused in one line, in bounded time and memory."""

import json
import os
import sys
import threading
from itertools import islice
from pathlib import Path

import pytest

from sat_lens.corpora import MAX_LINE_BYTES, read_stories
from sat_lens.sweep import read_sweep
from sat_lens.train import read_yaml
from tests.trust.oracle import outcome

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{to}: &{to} [{', '.join([f'*{of}'] * 9)}]\n" for of, to in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "a billion laughs": LAUGHS + "base: {lr: *i}\n",
    "a billion laughs as a setting": LAUGHS + "lr: *i\n",
    "itself": "base: &b {lr: *b}\n",
    "a tag that runs": "base: !!python/object/apply:os.system ['touch ran']\n",
    "a module": "base: !!python/module:os {}\n",
    "deep": "base: " + "[" * 20_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(2000)),
    "digits": "base: {steps: " + "9" * 5000 + "}\n",
    "sexagesimal": "base: {lr: 1:" + "59:" * 300 + "59.5}\n",
    "a date that is none": "base: {lr: 2024-99-99}\n",
    "keys that are lists": "? [a, b]\n: 1\n",
    "many runs": "grid: {seed: [" + "1," * 9000 + "1], lr: [1, 2]}\n",
    "another encoding": "base: {lr: caf\u00e9}\n".encode("utf-16").decode("latin-1"),
    "a NUL": "base: {lr: \x00}\n",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
@pytest.mark.parametrize(
    "read", [lambda path: read_sweep(path, path.parent / "out"), read_yaml], ids=["sweep", "train"]
)
def test_a_hostile_yaml_file(read, text, tmp_path, monkeypatch, tried):
    monkeypatch.chdir(tmp_path)
    (path := tmp_path / "a.yaml").write_text(text, encoding="utf-8")

    def act() -> None:
        try:
            repr(read(path))
        except SystemExit as end:
            raise ValueError(f"the process ends with {end.code}") from None

    outcome(act, (ValueError, OSError), seconds=20)
    assert os.listdir(tmp_path) == ["a.yaml"]
    tried("YAML bombs")


CORPORA = {
    "deep.json": b"[" * 3_000_000,
    "deep.jsonl": b'{"text":' * 500_000,
    "many.json": b"[" + b"1," * 2_000_000 + b"1]",
    "digits.json": b"[" + b"9" * 2_000_000 + b"]",
    "separators.txt": b"<|endoftext|>" * 50_000,
    "spaces.txt": b" " * 5_000_000,
    "combining.txt": b"a" + "\u0301".encode() * 500_000 + b".",
    "entities.txt": b"&amp;" * 400_000 + b"a.",
    "quotes.txt": "\u00e2\u20ac\u0153".encode() * 200_000 + b"a.",
    "lines.txt": b"\n" * 1_000_000 + b"a.",
    "returns.txt": b"\r" * 2_000_000 + b"a.",
    "deep.parquet": b"PAR1" + b"\xff" * 1_000_000 + b"\xff\xff\xff\x7fPAR1",
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_hostile_corpus(name, tmp_path, tried):
    (path := tmp_path / name).write_bytes(CORPORA[name])
    found = outcome(lambda: list(islice(read_stories(str(path)), 1000)), seconds=30, case=name)
    assert found.refusal or any(map(str.isalpha, "".join(found.value)))
    tried("corpus bombs")


@pytest.mark.slow
def test_a_line_over_the_limit_is_refused_without_being_held_twice(tmp_path, tried):
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(8 * MAX_LINE_BYTES)
    assert "at most 64 MB" in (outcome(lambda: list(read_stories(str(tmp_path / "a.txt")))).refusal or "")
    tried("corpus bombs")


@pytest.mark.parametrize("suffix", [".txt", ".json", ".yaml", ".bin", ".csv"])
def test_a_pipe_a_device_and_a_loop_of_links_are_no_files(suffix, tmp_path, tried):
    from sat_lens.llama2c import from_llama2c
    from sat_lens.tasks.files import task_from_file

    os.mkfifo(tmp_path / f"pipe{suffix}")
    os.symlink(tmp_path / f"loop{suffix}", tmp_path / f"loop{suffix}")
    os.symlink("/dev/zero", tmp_path / f"zero{suffix}")
    readers = {".yaml": read_yaml, ".bin": from_llama2c, ".csv": lambda path: task_from_file(path, None)}
    read = readers.get(suffix, lambda path: list(read_stories(str(path))))
    for kind in ("pipe", "loop", "zero"):
        path = Path(tmp_path / f"{kind}{suffix}")
        assert outcome(lambda path=path: read(path), (ValueError, OSError), case=str(path), seconds=5).refusal
        tried("pipes, devices and loops of links")


def test_recursion_in_json_is_refused_in_a_thread_too(tmp_path, tried):
    """Where the stack is small, C code that recurses without a bound would end the process."""
    from sat_lens.checkpoint import CheckpointError, read_json

    (path := tmp_path / "a.json").write_text('{"a":' * 200_000 + "1" + "}" * 200_000)
    found: list[str] = []

    def act() -> None:
        try:
            read_json(path)
        except CheckpointError as error:
            found.append(str(error))

    thread = threading.Thread(target=act)
    thread.start()
    thread.join(30)
    assert found and "not JSON" in found[0] and json.loads("1") == 1 and sys.getrecursionlimit() < 200_000
    tried("corpus bombs")
