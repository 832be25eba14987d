import json
import subprocess
import sys
import time

import pandas as pd
import pytest

import analyses.cli as cli
from analyses.figures import curve
from analyses.result import Result
from sat_lens.commands import run


def analyse(model, args):
    print("loaded a model")  # noqa: T201 (TransformerLens prints; nothing of it may reach stdout)
    table = pd.DataFrame({"layer": range(30), "effect": [0.123456789] * 30})
    return Result("toy", table, {"effect": "logits"}, {"n": args.n})


def figures(result):
    return {"effects": curve({"a": ([0], [0])}, title="t", x_title="x", y_title="y")}


def ask(argv, analyse=analyse):
    cli.answer("toy", cli.question_parser("toy", "A toy.").parse_args(argv), analyse, figures, argv)


@pytest.fixture
def any_model(monkeypatch, tiny_model):
    model = tiny_model()
    monkeypatch.setattr("sat_lens.checkpoint.load_any", lambda name, device: model)
    return model


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "CKPT"),
        (["x", "--n", "0"], "--n: must be a whole number of at least 1 and at most 1,000,000; got '0'"),
        (["x", "--n", "1e3"], "got '1e3'"),
        (["x", "--device", "gpu"], "must be cpu, cuda, cuda:N or mps; got 'gpu'"),
        (["x", "--seed", "a"], "--seed"),
        (["x", "--seed", "-1"], "--seed: must be a whole number of at least 0 and below 2^31; got '-1'"),
        (["x", "--seed", "9" * 10], "below 2^31"),
        (["x", "--corpus", "nowhere.txt"], "--corpus: there is no file 'nowhere.txt'"),
        (["x", "--corpus", "/no/where"], "there is no file"),
        (["x", "--corpse", "a"], "--corpse"),
    ],
)
def test_bad_arguments_end_in_one_line_and_exit_2(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        ask(argv)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


def test_what_a_question_writes(any_model, tmp_path, capsys):
    ask(["somewhere/model.bin.d/x", "--out", str(tmp_path), "--n", "7"])
    folder = tmp_path / "toy" / "x"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.*")) == [
        "figures/effects.html", "meta.json", "table.csv"
    ]  # fmt: skip
    meta = Result.load(folder).meta
    assert (meta["n"], meta["checkpoint"], meta["device"]) == (7, "somewhere/model.bin.d/x", "cpu")
    assert meta["command"] == f"python -m analyses.toy somewhere/model.bin.d/x --out {tmp_path} --n 7"
    out = capsys.readouterr().out
    assert "0.1235" in out and "10 of 30 rows; effect: logits" in out and "loaded a model" not in out


@pytest.fixture(autouse=True)
def paths_are_not_looked_for(monkeypatch, request):
    if "missing" not in request.node.name:
        monkeypatch.setattr(cli, "refuse_missing_file", lambda checkpoint: None)


def test_static_figures_that_cannot_be_written_cost_one_line(any_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("analyses.figures.write_figure", lambda drawn, path, static: "no Chrome" if static else None)
    ask(["a", "--out", str(tmp_path), "--static"])
    assert "warning: no Chrome\n" in capsys.readouterr().err


def test_json_is_all_that_stdout_gets_one_line_a_checkpoint(any_model, tmp_path, capsys):
    ask(["a", "b", "--out", str(tmp_path), "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["meta"]["checkpoint"] for line in lines] == ["a", "b"]
    assert set(json.loads(lines[0])) == {"name", "table", "units", "meta"}
    assert (tmp_path / "toy" / "a" / "table.csv").exists() and (tmp_path / "toy" / "b" / "table.csv").exists()


def test_an_interrupt_leaves_the_earlier_result_and_no_half_of_a_new_one(any_model, tmp_path, monkeypatch, capsys):
    ask(["a", "--out", str(tmp_path)])
    before = (tmp_path / "toy" / "a" / "meta.json").read_bytes()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("analyses.figures.write_figure", interrupted)
    with pytest.raises(SystemExit) as exit:
        run(lambda argv: ask(argv), ["a", "--out", str(tmp_path), "--n", "3"])
    assert exit.value.code == 130
    assert (tmp_path / "toy" / "a" / "meta.json").read_bytes() == before
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["a"]


def test_a_new_result_takes_the_place_of_the_old_one(any_model, tmp_path):
    for n in ("3", "4"):
        ask(["a", "--out", str(tmp_path), "--n", n])
    assert Result.load(tmp_path / "toy" / "a").meta["n"] == 4
    assert [path.name for path in (tmp_path / "toy").iterdir()] == ["a"]


def test_results_are_named_by_the_end_of_the_path():
    assert cli.result_names(["runs/one", "data/two/", "three", "x/stories.bin"]) == ["one", "two", "three", "stories"]
    with pytest.raises(ValueError, match="one comes twice"):
        cli.result_names(["runs/one", "old/one"])


def test_the_current_folder_has_a_name(monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli.result_names(["."]) == ["here"] and cli.result_names([".."]) == [tmp_path.name]


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "a/b/c", "model.bin"])
def test_a_missing_path_is_said_to_be_missing(path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        cli.refuse_missing_file(path)


def test_names_are_not_taken_for_missing_paths():
    for name in ("gpt2", "EleutherAI/pythia-160m", "local-k4-s0"):
        cli.refuse_missing_file(name)


def test_a_device_that_is_not_there_is_refused(any_model, tmp_path):
    with pytest.raises(ValueError, match="device cuda:999 is not there; use --device cpu"):
        ask(["a", "--out", str(tmp_path), "--device", "cuda:999"])


@pytest.mark.parametrize("module", ["analyses", "analyses.localization"])
def test_help_takes_less_than_a_second_and_imports_nothing_heavy(module):
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']\n"
        f"try: runpy.run_module({module!r}, run_name='__main__')\n"
        "except SystemExit as exit: assert exit.code == 0\n"
        "heavy = {'torch', 'transformer_lens', 'pandas', 'plotly', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - start < 5  # 0.2 s on an idle machine


def test_the_list_of_questions_names_each_with_what_it_asks():
    done = subprocess.run([sys.executable, "-m", "analyses"], check=True, capture_output=True, text=True, timeout=60)
    asked = "Which parts of a model does a task need: single units, or a circuit of edges?"
    assert f"python -m analyses.localization {asked}" in " ".join(done.stdout.split())
    assert "analyses.cli" not in done.stdout
