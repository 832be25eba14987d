"""`python -m analyses.untangling`: a small model is trained, its tasks untangled and shown; bad input gets one line."""

import json
import math

import pandas as pd
import plotly.graph_objects as go
import pytest

from analyses.result import Result
from analyses.untangling.__main__ import main
from analyses.untangling.answer import areas, finals, t_interval, untangling
from analyses.untangling.figures import untangling_figures
from analyses.untangling.page import untangling_page
from sat_lens.toy.runs import load_toy

SMALL = ["--operands", "4", "--d-model", "32", "--d-mlp", "64", "--n-latents", "48", "--n-layers", "1", "--batch-size",
         "20", "--steps", "110", "--lr", "5e-3", "--train-share", "0.6", "--val-share", "0.2", "--eval-every", "110",
         "--weight-decay", "0.1", "--warmup-steps", "5", "--quiet"]  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A model that knows 0 to 3."""
    folder = tmp_path_factory.mktemp("untangling")
    main(["train", *SMALL, "--seeds", "0", "--out", str(folder)])
    return folder


@pytest.fixture(scope="module")
def result(out):
    runs = [load_toy(out / "decoder-n4-joint-l0.01-s0")]
    return untangling(
        runs, [("concat", "sum")], part="all", k=3, taus=(0.0, 0.05, 0.5), with_units=False,
        with_greedy=False, show=["1+2", "3C3"], progress=False,
    )  # fmt: skip


def test_the_result_holds_all_runs_and_survives_the_disk(result, tmp_path):
    assert result.table.groupby(["run", "target"]).ngroups == 1
    assert {row["name"]: row["reached"]["train_sum"]["accuracy"] for row in result.meta["runs"]} == {
        "decoder-n4-joint-l0.01-s0": 1.0
    }
    result.save(tmp_path)
    back = Result.load(tmp_path)
    pd.testing.assert_frame_equal(back.table, result.table)
    assert json.loads(json.dumps(back.meta)) == result.meta
    known = {row["edit"] for row in result.meta["knowledge"]}
    assert known == {"none", "chosen", "other", "fresh weights"}
    scratch = [row for row in result.meta["knowledge"] if row["edit"] == "fresh weights"]
    assert min(row["accuracy"] for row in scratch) < 0.5
    intact = [row["accuracy"] for row in result.meta["knowledge"] if (row["edit"], row["test"]) == ("none", "readout")]
    assert intact == [1.0]  # examples are those that are answered rightly
    assert [a["problem"] for a in result.meta["answers"][:2]] == ["1+2", "3C3"]
    assert all(a["intact"] == a["right"] for a in result.meta["answers"])


def test_figures_are_drawn_from_the_result_on_disk(result, tmp_path):
    result.save(tmp_path)
    drawn = untangling_figures(Result.load(tmp_path))
    assert {
        "tolerance",
        "fronts",
        "areas",
        "history",
        "density",
        "knowledge",
        "answers",
        "importance_0",
        "latents_0",
    } <= set(drawn)
    removed = next(t for t in drawn["tolerance"].data if t.name == "removed task" and t.mode == "lines+markers")
    held = result.table.query("method == 'latents' and split == 'held_out' and target == 'concat'")
    assert list(removed.y) == pytest.approx(held.groupby("tau").target_accuracy.mean().tolist())
    scatter = drawn["importance_0"]
    assert sum(len(trace.x) for trace in scatter.data) == len(result.meta["importance"][0]["latent"])
    assert all(isinstance(one, go.Figure) for name, one in drawn.items() if name != "answers")
    page = untangling_page([result]).document
    assert "1+2" in page and "Area under the front" in page and "http://" not in page.split("<script>")[0]


def test_areas_are_means_of_folds_and_then_of_seeds():
    rows = [
        {"run": f"r{seed}", "arm": "a", "seed": seed, "target": "sum", "preserved": "concat", "method": "m", "tau": 0.0,
         "fold": fold, "split": "held_out", "target_accuracy": left, "preserved_accuracy": 1.0}
        for seed, fold, left in ((0, 0, 0.5), (0, 1, 0.7), (1, 0, 0.2), (1, 1, 0.2), (2, 0, 0.0), (2, 1, 0.0))
    ]  # fmt: skip
    (area,) = areas(pd.DataFrame(rows))
    assert area["by_seed"] == pytest.approx([0.4, 0.8, 1.0]) and area["area"] == pytest.approx(2.2 / 3)
    # t of 0.975 and 2 degrees of freedom: 4.3027; standard deviation 0.30551
    assert area["ci_high"] - area["area"] == pytest.approx(4.3027 * 0.305505 / math.sqrt(3), rel=1e-4)
    assert all(math.isnan(end) for end in t_interval(pd.Series([0.1, 0.2]).to_numpy()))


def test_the_final_number_is_of_the_tolerance_that_was_best_before_the_test_was_seen():
    cells = {0.0: (0.9, 1.0, 0.8, 1.0), 0.1: (0.2, 0.9, 0.4, 0.7), 1.0: (0.0, 0.3, 0.0, 1.0)}
    rows = []
    for tau, (t, p, t_test, p_test) in cells.items():
        same = {"run": "r", "arm": "a", "seed": 0, "target": "sum", "preserved": "concat", "method": "m", "tau": tau}
        same |= {"n_target": 10, "n_preserved": 10, "n_removed": 3}
        rows.append({**same, "fold": 0, "split": "held_out", "target_accuracy": t, "preserved_accuracy": p})
        rows.append({**same, "fold": -1, "split": "test", "target_accuracy": t_test, "preserved_accuracy": p_test})
    (final,) = finals(pd.DataFrame(rows))
    assert final["tau"] == 0.1 and (final["target_accuracy"], final["preserved_accuracy"]) == (0.4, 0.7)
    assert final["target_low"] < 0.4 < final["target_high"]


def test_commands_write_results_and_a_page(out, tmp_path, capsys):
    runs = [str(out / "decoder-n4-joint-l0.01-s0")]
    flags = ["--quick", "--part", "all", "--folds", "2", "--tau", "0", "0.1", "--quiet", "--out", str(tmp_path)]
    main(["sweep", *runs, *flags, "--target", "sum"])
    main(["report", str(tmp_path / "untangling"), "--html", str(tmp_path / "page.html")])
    captured = capsys.readouterr().out
    assert "removing sum: area" in captured and "page.html" in captured
    made = Result.load(tmp_path / "untangling").meta
    assert set(made["sha256"]) == {"decoder-n4-joint-l0.01-s0"} and made["command"].startswith("python -m")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Answers before and after" in page and page.count("<section>") == 1
    with pytest.raises(ValueError, match="answers no validation example of one of the tasks rightly"):
        main(["sweep", *runs, "--reproduce", "--quiet", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sweep", "x", "--tau", "-0.1"], "a tolerance must be a finite number of at least 0 nats; got -0.1"),
        (["sweep", "x", "--target", "sum", "--preserve", "sum"], "must differ; got 'sum' for both"),
        (["sweep", "x", "--target", "product"], "invalid choice: 'product'"),
        (["sweep", "x", "--name", "../x"], "--name must be the name of a folder"),
        (["train", "--preset", "huge"], "invalid choice: 'huge'"),
        ([], "required"),
    ],
)
def test_bad_arguments_end_in_one_line(argv, words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and words in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--operands", "5000"], "operands must be a whole number from 1 to 1,000"),
        (["train", "--preset", "tiny", "--answer-length", "2"], "answer_length must be at least 3"),
        (["train", "--seeds", "-1"], "seed must be at least 0"),
        (["train", "--mask", "local", "--arch", "seq2seq"], "needs arch 'decoder'"),
        (["sweep", "no-such-run"], "no toy run 'no-such-run'"),
    ],
)
def test_bad_settings_are_one_line(argv, words, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        main([*argv, "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("problem", "words"), [("1*2", "operator must be one of"), ("1+9", "operands must be 0 to 3; got 9")]
)
def test_a_problem_that_cannot_be_shown_is_refused_first(problem, words, out, tmp_path):
    with pytest.raises(ValueError, match=words):
        main(["sweep", str(out / "decoder-n4-joint-l0.01-s0"), "--show", problem, "--out", str(tmp_path)])
