"""How commands end: 0, 2 with one line, 130; and how they are listed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sat_lens.commands import Parser, list_commands, one_line, run

ROOT = Path(__file__).resolve().parents[2]


def code_of(main, argv=None) -> int:
    with pytest.raises(SystemExit) as exit_:
        run(main, argv)
    return exit_.value.code


def raising(error: BaseException):
    def main(argv):
        raise error

    return main


def test_a_command_that_ends_well_exits_with_0_and_gets_its_arguments(capsys):
    got = []
    assert code_of(got.append, ["--x", "1"]) == 0
    assert got == [["--x", "1"]] and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("k must be 3;\n  got 4"), "error: k must be 3; got 4\n"),
        (FileNotFoundError("no checkpoint 'x'"), "error: no checkpoint 'x'\n"),
        (FileNotFoundError(2, "No such file or directory", "data.txt"), "error: data.txt: No such file or directory\n"),
        (PermissionError(13, "Permission denied", "folder/x"), "error: folder/x: Permission denied\n"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "error: 'utf-8' codec can't decode"),
        (ValueError(""), "error: ValueError\n"),
    ],
)
def test_bad_input_exits_with_2_and_one_line(error, line, capsys):
    assert code_of(raising(error)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_an_interrupt_exits_with_130(capsys):
    assert code_of(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))


def test_an_exit_of_argparse_passes_through():
    parser = Parser(prog="python -m x")
    parser.add_argument("--n", type=int)
    assert code_of(lambda argv: parser.parse_args(argv), ["--help"]) == 0


@pytest.mark.parametrize("argv", [["--n", "three"], ["--m"], ["left", "over"]])
def test_a_wrong_argument_exits_with_2_and_one_line(argv, capsys):
    parser = Parser(prog="python -m x")
    parser.add_argument("--n", type=int)
    assert code_of(lambda arguments: parser.parse_args(arguments), argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("python -m x: ") and "(see --help)" in err


def test_a_line_is_never_longer_than_a_thousand_characters():
    assert len(one_line(ValueError("x" * 5000))) == 1000


def test_a_reader_that_goes_away_is_no_error():
    code = "from sat_lens.commands import run; run(lambda argv: [print('x' * 1000) for _ in range(10000)])"
    command = f'{sys.executable} -c "{code}" | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""


def test_commands_are_listed_by_their_docstrings_without_being_imported(tmp_path):
    entry = '\nif __name__ == "__main__":\n    main()\n'
    (tmp_path / "train.py").write_text('"""Train a thing.\n\nMore."""\nraise RuntimeError("imported")' + entry)
    (tmp_path / "library.py").write_text('"""A library, no command."""\n')
    (tmp_path / "bare.py").write_text("x = 1" + entry)
    (tmp_path / "__main__.py").write_text('"""The list itself."""' + entry)
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "__main__.py").write_text('"""A question in a folder."""' + entry)
    assert list_commands(tmp_path, "p").splitlines() == [
        "  python -m p.bare   ",
        "  python -m p.big    A question in a folder.",
        "  python -m p.train  Train a thing.",
    ]


def test_the_commands_of_sat_lens_are_listed():
    listed = list_commands(ROOT / "sat_lens", "sat_lens")
    for name in ("train", "generate", "convert", "doctor"):
        line = next(line for line in listed.splitlines() if line.startswith(f"  python -m sat_lens.{name} "))
        assert len(line.split(maxsplit=3)) == 4, "a docstring stands beside it"


def test_a_process_that_is_interrupted_exits_with_130(tmp_path):
    import signal
    import time

    code = (  # a shell starts background processes with SIGINT ignored, and its children inherit that
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from sat_lens.commands import run; print('up', flush=True); run(lambda argv: time.sleep(60))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ.copy()
    )
    assert process.stdout.readline() == b"up\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err == b"interrupted\n"


def test_under_torchrun_bad_arguments_are_said_once_and_other_errors_with_their_rank(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(SystemExit) as exit_:
        Parser(prog="p").error("no such flag")
    assert exit_.value.code == 2 and capsys.readouterr().err == ""
    assert code_of(raising(ValueError("no text"))) == 2
    assert capsys.readouterr().err == "error: rank 2: no text\n"
