"""What a terminal shows of a result fits it, and says what it leaves out."""

import pandas as pd
import pytest

from analyses.result import Result
from analyses.terminal import shown


@pytest.fixture
def result():
    n = 12
    table = pd.DataFrame(
        {
            "unit": [f"neuron {i}" for i in range(n)],
            "stream": ["clean"] * n,
            "effect": [i / 7 for i in range(n)],
            "effect_low": [0.123456] * n,
            "effect_high": [i / 3 for i in range(n)],
            "loss": [1e-7 * i for i in range(n)],
            "words": ["so many words that no column of a terminal can hold all of them beside the others"] * n,
            "missing": [float("nan")] * n,
        }
    )
    units = {"effect": "logits", "effect_low": "logits", "effect_high": "logits", "loss": "nats"}
    return Result("planted", table, units, {"summary": "what it comes to, " * 12})


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_left_out_unsaid(result, width, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = shown(result, tmp_path.relative_to(tmp_path) / "out", width)
    assert max(map(len, text.splitlines())) <= width
    head = text.splitlines()[0].split()
    said = " ".join(text.split())
    assert all(name in head or name in said.partition("(10 of 12 rows")[2] for name in list(result.table)[:-1])
    assert head[0] == "unit" and "missing" not in text
    assert ("effect_low" in head) == ("effect_high" in head)


def test_a_wide_terminal_shows_all_and_a_narrow_one_what_fits(result, tmp_path):
    wide, narrow = (shown(result, tmp_path, width).splitlines()[0].split() for width in (300, 60))
    assert wide == ["unit", "stream", "effect", "effect_low", "effect_high", "loss", "words"]
    assert narrow == ["unit", "effect", "effect_low", "effect_high", "loss"]  # what is the same in all rows is below


def test_units_are_said_once_and_a_file_gets_every_column_on_unbroken_lines(result, tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("table.csv", "figures/units.html"):
        (tmp_path / name).touch()
    text = shown(result, tmp_path, None)
    assert "(10 of 12 rows; effect, effect_low, effect_high: logits; loss: nats)\n" in text
    assert result.meta["summary"] in text and "stream" in text.splitlines()[0]
    assert text.endswith(f"figures/units.html, table.csv in\n{tmp_path}\n")
