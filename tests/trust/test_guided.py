"""The parsers under a fuzzer that is guided by coverage; skipped where atheris is not installed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = (
    "txt", "jsonl", "json", "task-json", "task-csv", "llama2c-tokenizer", "packed", "config", "manifest", "safetensors",
    "llama2c",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("target", TARGETS)
def test_no_input_that_the_fuzzer_finds_ends_in_anything_but_a_refusal(target, tmp_path, tried):
    limits = ["-runs=10000", "-seed=1", "-max_total_time=9", "-timeout=20", "-rss_limit_mb=3000", "-max_len=4096"]
    script = ROOT / "tests" / "trust" / "guided.py"
    # a process begins with its parent's peak of memory: here with a shell's, not with that of all tests before
    command = ["/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(script), target, *limits]
    found = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin"}, capture_output=True, text=True,
        errors="replace", timeout=300,
    )  # fmt: skip
    crash = [path.read_bytes()[:300] for path in tmp_path.glob("*-*")]
    assert found.returncode == 0, f"{found.stderr[-1500:]} {crash}"
    runs = re.search(r"Done (\d+) runs", found.stderr)
    assert runs and int(runs[1]) > 500
    tried("parsers under atheris", int(runs[1]))
