import json

import numpy as np
import pandas as pd
import pytest

from analyses.result import Result


@pytest.fixture
def result():
    table = pd.DataFrame(
        {
            "kind": ["head", "neuron"],
            "head": pd.array([3, None], dtype="Int64"),
            "effect": [0.1 + 0.2, float("nan")],
            "n": [7, 7],
            "solved": [True, False],
        }
    )
    return Result("toy", table, {"effect": "logits"}, {"seed": 0, "shares": (np.float32(0.5), float("inf"))})


def test_a_result_comes_back_from_disk_bit_for_bit(result, tmp_path):
    result.save(tmp_path / "deep" / "toy")
    again = Result.load(tmp_path / "deep" / "toy")
    pd.testing.assert_frame_equal(again.table, result.table, check_exact=True)
    assert (again.name, again.units) == (result.name, result.units)
    assert again.meta == {"seed": 0, "shares": [0.5, None]}


def test_json_holds_rows_and_writes_what_is_missing_as_null(result):
    document = json.loads(result.to_json(), parse_constant=lambda x: pytest.fail(f"{x} is not JSON"))
    assert list(document) == ["name", "table", "units", "meta"]
    assert document["table"][0] == {"kind": "head", "head": 3, "effect": 0.1 + 0.2, "n": 7, "solved": True}
    assert document["table"][1]["head"] is None and document["table"][1]["effect"] is None


def test_the_files_are_readable_without_this_project(result, tmp_path):
    result.save(tmp_path)
    assert (tmp_path / "table.csv").read_text().splitlines()[1] == "head,3,0.30000000000000004,7,True"
    assert json.loads((tmp_path / "meta.json").read_text())["units"] == {"effect": "logits"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["meta.json", "table.csv"]


def test_a_unit_for_a_column_that_is_not_there_is_refused(result):
    with pytest.raises(ValueError, match="units must name columns of the table .* got 'loss'"):
        Result("toy", result.table, {"loss": "nats"}, {})


def test_a_folder_that_holds_no_result_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        Result.load(tmp_path)
    (tmp_path / "meta.json").write_text('{"name": "toy"}')
    (tmp_path / "table.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match="must hold the table.csv and meta.json of a result"):
        Result.load(tmp_path)


def test_an_empty_table_survives(tmp_path):
    Result("toy", pd.DataFrame({"a": pd.Series(dtype="float64")}), {}, {}).save(tmp_path)
    assert Result.load(tmp_path).table.empty


def test_texts_with_every_kind_of_line_end_come_back(tmp_path):
    table = pd.DataFrame({"text": ["a\r\nb", "a\rb", "a\nb", "\u2028\u0085", 'q"u,o', None]})
    result = Result("texts", table, {}, {})
    result.save(tmp_path)
    for loaded in (Result.load(tmp_path), Result.of_files(result.files())):
        assert loaded.table.text.tolist()[:5] == table.text.tolist()[:5] and loaded.table.text.isna().tolist()[5]
