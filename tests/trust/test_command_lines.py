"""Every command with arguments drawn from a grammar of bad values: exit 2, one line on stderr, nothing written."""

import argparse
import importlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sat_lens.commands import Parser, run
from tests.trust.oracle import bounded, sizes

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("sat_lens.convert", "sat_lens.doctor", "sat_lens.evaluate", "sat_lens.generate", "sat_lens.sweep",
            "sat_lens.tokenizers", "sat_lens.train", "analyses.leakage", "analyses.localization", "analyses.paper",
            "analyses.probing", "analyses.report", "analyses.rewriting", "analyses.sae", "analyses.self_repair",
            "analyses.sparsity", "analyses.specialization", "analyses.untangling")  # fmt: skip
VALUES = ("", " ", "-1", "0", "1", "2", "3.5", "1e9", "1e999", "nan", "-inf", "9" * 40, "x", "none", "clean", "ablated",
          "stories", "stories+", "1,2", "0-9", "\u2603", "\u202e", "--", "-", "*", "~", "../..", "/", "/dev/null",
          "/proc/self/mem", "x" * 5000, "a\nb", "cuda:99", "mps", "cpu", "{}", "[1]", "http://", "%s")  # fmt: skip
LEFT_OUT = {"help", "log_to", "slurm", "out", "html"}
"""Flags that reach beyond this process, and those that say where to write."""


class Stop(Exception):
    """Ends a command when its parser is known."""


def parser_of(module: str, monkeypatch: pytest.MonkeyPatch) -> Parser:
    """The parser by which a command reads its arguments."""
    caught: list[Parser] = []

    def catch(self: Parser, *_: Any, **__: Any) -> Any:
        caught.append(self)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
        with pytest.raises(Stop):
            main_of(module)(["x"])
    return caught[0]


def main_of(module: str) -> Any:
    name = module if (ROOT / f"{module.replace('.', '/')}.py").is_file() else f"{module}.__main__"
    return importlib.import_module(name).main


def bad_places(folder: Path) -> list[str]:
    """Paths and names that are no checkpoint, corpus, sweep or anything else."""
    (folder / "empty").mkdir()
    (folder / "garbage").mkdir()
    for name in ("config.json", "MANIFEST.json", "toy.json", "model.safetensors", "meta.json", "table.csv"):
        (folder / "garbage" / name).write_bytes(b"\x00{[garbage")
    (folder / "half").mkdir()
    (folder / "half" / "config.json").write_text('{"schema_version": 1}')
    (folder / "half" / "MANIFEST.json").write_text('{"sha256": {}}')
    garbage = {"f.bin": b"\x01" * 99, "f.json": b"[" * 99, "f.yaml": b"a: *b", "f.txt": b"\xff", "f.pt": b"PK"}
    for name, content in garbage.items():
        (folder / name).write_bytes(content)
    there = [str(path) for path in folder.iterdir()]
    return [
        *there,
        str(folder / "none"),
        str(folder / "none.bin"),
        "no-such",
        "",
        "a/b/c",
        "x" * 300,
        "\u202e",
        "/dev/null",
    ]


def line_of(parser: argparse.ArgumentParser, choice: random.Random, bad: list[str], out: str) -> list[str]:
    """A command line: what must be a thing that can be read is not one, the rest is anything."""
    argv: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            name = choice.choice([*action.choices, "x"])
            inner = action.choices.get(name)
            return [*argv, name, *(line_of(inner, choice, bad, out) if inner else [])]
        names = action.dest in ("corpus", "tokenizer", "config", "init_from", "held_out")
        if not action.option_strings:
            argv += [choice.choice(bad) for _ in range(choice.choice((1, 1, 2)) if action.nargs in ("+", "*") else 1)]
        elif action.dest == "out":
            argv += ["--out", out]
        elif action.required or (action.dest not in LEFT_OUT and choice.random() < (0.5 if names else 0.15)):
            argv.append(choice.choice(action.option_strings))
            if action.nargs != 0:
                argv.append(choice.choice(bad) if names else value_of(action, choice))
    return argv


def value_of(action: argparse.Action, choice: random.Random) -> str:
    if action.choices and choice.random() < 0.7:
        return str(choice.choice(list(action.choices)))
    return choice.choice(VALUES)


@pytest.mark.parametrize("n", sizes(2, 40))
@pytest.mark.parametrize("module", COMMANDS)
def test_bad_arguments_end_in_one_line_and_write_nothing(module, n, tmp_path, monkeypatch, capfd, tried):
    parser, choice = parser_of(module, monkeypatch), random.Random(module)
    bad = bad_places(tmp_path)
    (work := tmp_path / "work").mkdir()
    monkeypatch.chdir(work)
    for _ in range(n):
        argv = line_of(parser, choice, bad, str(work / "out"))
        if module in ("sat_lens.train", "sat_lens.tokenizers"):
            argv = [a for a in argv if a != "--dry-run"] + ["--corpus", choice.choice(bad) or "no-such"]
        case = f"python -m {module} {' '.join(map(repr, argv))}"
        code = code_of(main_of(module), argv, case)
        out, err = capfd.readouterr()
        assert code == 2, f"{case}: exit {code}, {out[-200:]!r}"
        assert lines_of(err) == 1 and len(err) > 12, f"{case}: {err[-500:]!r}"
        assert out == "" or module == "sat_lens.doctor", f"{case}: {out[-200:]!r}"  # whose answer is what it found
        left = [str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()]
        assert not left, f"{case}: wrote {left}"
    tried("command lines", n)


def lines_of(err: str) -> int:
    """Lines on stderr, without warnings of what is left out before the end."""
    return sum(not line.startswith("warning: ") for line in err.splitlines())


def code_of(main: Any, argv: list[str], case: str) -> Any:
    try:
        with bounded(seconds=180, memory=2 << 30):
            run(main, argv)
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {str(error)[:300]}") from error


@pytest.mark.slow
def test_a_sample_as_real_processes(tmp_path, monkeypatch, tried):
    choice, bad = random.Random(5), bad_places(tmp_path)
    (work := tmp_path / "work").mkdir()
    for module in COMMANDS:
        argv = line_of(parser_of(module, monkeypatch), choice, bad, str(work / "out"))
        if module in ("sat_lens.train", "sat_lens.tokenizers"):
            argv = [a for a in argv if a != "--dry-run"] + ["--corpus", str(tmp_path / "none.txt")]
        command = [sys.executable, "-m", module, *argv]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        found = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=120)
        assert found.returncode == 2, f"{command}: {found.returncode} {found.stderr[-500:]}"
        assert lines_of(found.stderr) == 1, f"{command}: {found.stderr[-800:]}"
        assert not [path for path in work.rglob("*") if path.is_file()]
        tried("command lines, real processes")
