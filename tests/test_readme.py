"""The README's commands and its example are run, and the output that it shows is what comes out."""

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("python -m")
]
SHORTER = {"sat_lens.train": "--steps 4 --eval-every 2 --eval-rows 4 --batch-size 2 --max-tokens 20000 --quiet"}
SHORTER |= {
    "analyses.localization": "--n 16 --no-checks",
    "analyses.leakage": "--n 8 --controls 2",
    "analyses.probing": "--n 15 --tokens 4 --site blocks.{l}.hook_resid_post --no-erasure",
    "analyses.self_repair": "--tokens 300",
    "analyses.sparsity": "--n 12 --no-null --quiet",
    "analyses.rewriting": "--tokens 20000 --latents 64 --n 40 --draws 1 --no-floors --no-pages --quiet",
    "analyses.specialization": "--n 12 --quiet",
    "analyses.report": "--n 8",
    "analyses.untangling train": "--steps 40 --eval-every 20 --quiet",
    "sat_lens.evaluate": "--max-tokens 2000 --n 8",
}


LONG = (
    "analyses.leakage",
    "analyses.localization local-k4-s0 --method overlap",
    "analyses.localization none-s0 local-k4-s0 --method eap-ig",
    "analyses.report",
    "analyses.rewriting",
    "analyses.specialization local-k4-s0 --page",
    "analyses.untangling sweep",
)
"""Begin the commands that `make test-all` runs: shorter calls of theirs are in the tests of their questions."""


def run(command: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command, in this process: PyTorch and TransformerLens are there already."""
    _, _, module, *rest = command.split()
    shorter = SHORTER.get(module) or SHORTER.get(" ".join([module, *rest[:1]]), "")
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", shlex.split(f"{command} {shorter}")[2:])
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def test_the_readme_names_commands():
    assert len(COMMANDS) >= 9
    assert all(any(name in command for command in COMMANDS) for name in LONG)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=pytest.mark.slow if command.removeprefix("python -m ").startswith(LONG) else ())
        for command in COMMANDS
    ],
)
def test_a_command_of_the_readme_runs(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    status, out, err = run(command)
    assert status == 0, err
    assert out.strip()


def test_a_command_runs_as_a_process_of_its_own(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *shlex.split(COMMANDS[0])[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "sat_lens.train" in done.stdout, done.stderr


def test_the_example_prints_what_the_readme_shows():
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    shown = re.search(r"```python\n.*?```\s+```text\n(.*?)```", README, re.S).group(1)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), {})  # noqa: S102 (our own README)
    numbers = re.compile(r"-?\d+\.?\d*")
    assert numbers.sub("#", out.getvalue()).split() == numbers.sub("#", shown).split()
    got, expected = ([float(x) for x in numbers.findall(text)] for text in (out.getvalue(), shown))
    assert got == pytest.approx(expected, abs=0.02)


def test_the_examples_of_contributing_print_what_they_should(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.S)
    found = []
    for block in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(block, "CONTRIBUTING.md", "exec"), {})  # noqa: S102 (our own text)
        found.append(out.getvalue().strip().splitlines()[-1])
    assert found == ["HookedTransformer True", "1.0"]


def test_every_module_stands_in_the_readmes_tree():
    tree = README.split("## What is where")[1]
    for package in ("sat_lens", "analyses"):
        for path in (ROOT / package).iterdir():
            if path.name.startswith("__") or not (path.is_dir() or path.suffix == ".py"):
                continue
            name = f"{path.name}/" if path.is_dir() else path.name
            assert name in tree, f"{package}/{name} has no line in the README's tree"
