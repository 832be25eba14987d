"""`--help` of every command fits 80 columns, says of every flag what it is, and of its default what is true."""

import contextlib
import io
import re
from importlib import import_module
from pathlib import Path

import pytest

from sat_lens.commands import Parser

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("sat_lens", "analyses")
    for path in (ROOT / package).rglob("*.py")
    if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8") and path.parent.name + path.name
    not in ("sat_lens__main__.py", "sat_lenscommands.py", "analyses__main__.py")
)  # fmt: skip
STEPS = {
    "analyses.untangling.__main__": ["train", "sweep", "report"],
    "analyses.rewriting.__main__": ["coder", "explain", "score", "loss", "report"],
}
CASES = [(name, step) for name in COMMANDS for step in ([], *([step] for step in STEPS.get(name, ())))]


@pytest.fixture(params=CASES, ids=lambda case: " ".join([case[0].removesuffix(".__main__"), *case[1]]))
def asked(request, monkeypatch):
    """What a command prints for --help on 80 columns, and its parser."""
    monkeypatch.setenv("COLUMNS", "80")
    parsers = []
    monkeypatch.setattr(Parser, "print_help", lambda self, file=None: parsers.append(self))
    name, step = request.param
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        import_module(name).main([*step, "--help"])
    return parsers[0].format_help(), parsers[0]


def test_help_fits_a_terminal(asked):
    assert [line for line in asked[0].splitlines() if len(line) > 80] == []


def test_every_flag_says_what_it_is_and_what_it_is_by_default(asked):
    for action in asked[1]._actions:
        assert action.help, action.dest
        takes_a_value = action.option_strings and action.nargs != 0
        if (
            takes_a_value
            and isinstance(action.default, int | float | str)
            and action.default not in ("", "==SUPPRESS==")
        ):
            said = re.search(r"\(default: ([\d,.]+)", action.help % {"default": action.default})
            number = isinstance(action.default, int | float)
            assert not (number and said is None), f"{action.dest}: {action.help}"
            assert not (number and float(said[1].strip(".,").replace(",", "")) != action.default), action.dest
            assert number or "default" in action.help, f"{action.dest}: {action.help}"
