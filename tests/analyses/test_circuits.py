"""A circuit with its checks, on a model whose circuit is known; the command; arms compared."""

import dataclasses
import json
import shlex

import numpy as np
import pytest

from analyses.localization.__main__ import main
from analyses.localization.circuit import read_mib
from analyses.localization.circuit_pages import circuit_figures
from analyses.localization.circuits import circuit_result
from analyses.localization.comparison import circuits_compared
from analyses.localization.methods import Knobs, edges_of_size
from analyses.localization.planted import planted
from analyses.localization.stored_circuit import circuit_of
from analyses.result import Result


@pytest.fixture(scope="module")
def made():
    return planted("induction", n=6)


@pytest.fixture(scope="module")
def result(made):
    found = circuit_result(
        made.model, made.task, method="acdc", value="logit_diff", knobs=Knobs(tau=0.05), n_bootstrap=99
    )
    return dataclasses.replace(found, meta={"checkpoint": "planted", **found.meta})


def test_the_planted_circuit_is_found_and_is_all_it_takes(result, made):
    assert np.array_equal(circuit_of(result).members, made.members)
    circuit, checks = result.meta["circuit"], result.meta["checks"]
    assert circuit["n_edges"] == len(made.edges) == circuit["n_edges_pruned"]
    assert circuit["faithfulness"] == pytest.approx(1, abs=1e-9)
    assert checks["idle_share"] == 0
    assert checks["completeness"]["complement"] == pytest.approx(0, abs=1e-9)
    assert checks["completeness"]["incompleteness_max"] < 1e-9
    assert checks["against_random"]["layers"]["random"] < 0.5
    assert all(row["distance"] < 1e-9 < row["random_distance"] for row in checks["restoration"])
    assert all(row["correlation"] > 0.999 for row in checks["knockouts"])


def test_a_curve_stands_beside_random_circuits_of_its_sizes(result, made):
    curve, null = result.meta["curve"], result.meta["null_curve"]
    assert [row["n_edges"] for row in curve] == [row["n_edges"] for row in null]
    at = next(i for i, row in enumerate(curve) if row["n_edges"] >= len(made.edges))
    assert curve[at]["faithfulness"] == pytest.approx(1, abs=1e-9) and null[at]["mean"] < 0.5
    assert result.meta["matched"]["n_edges"] <= len(made.edges)
    assert {(row["area"], row["sign"], row["axis"]) for row in result.meta["areas"]} == {
        (area, sign, axis) for area in ("CPR", "CMD") for sign in ("absolute", "signed") for axis in ("share", "log")
    }


def test_figures_come_from_the_stored_result_alone(result, tmp_path):
    result.save(tmp_path)
    assert set(circuit_figures(Result.load(tmp_path))) == {"circuit", "faithfulness", "edges", "attention"}


def test_a_quick_method_is_run_again_on_other_prompts_and_on_weights_without_order(made):
    meta = circuit_result(made.model, made.task, method="eap-ig", size=len(made.edges), n_bootstrap=99).meta
    checks = meta["checks"]
    assert checks["inclusion_jaccard"] > 0.9 > checks["inclusion_jaccard_random"]
    assert checks["random_weights_jaccard"] < 0.5


def test_a_model_at_chance_is_refused_with_the_figure_unless_forced(made):
    swapped = dataclasses.replace(made.task, answers=made.task.wrong_answers, wrong_answers=made.task.answers)
    with pytest.raises(ValueError, match=r"below chance on .* accuracy 0\.00 \(0\.00 to .*, n 6\).*--force"):
        circuit_result(made.model, swapped, method="eap")
    assert not circuit_result(made.model, swapped, method="eap", forced=True, checks=False).meta["task"]["solved"]


@pytest.mark.parametrize(("size", "n"), [(0.1, 10), (1, 100), (7, 7), (0.001, 1)])
def test_a_size_is_a_share_up_to_one_and_a_number_above(size, n):
    assert edges_of_size(size, 100) == n


@pytest.mark.parametrize("size", [0, 1.5, 101, -1])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="size must be"):
        edges_of_size(size, 100)


def test_arms_are_compared_seed_by_seed(result):
    def arm(mask, seed, n_edges):
        ablation = {"mask": mask, "k_attn": 4, "k_mlp": 4, "forward": "hard", "detach": "none", "gap_floor": 0.0}
        made_by = {"checkpoint": f"{mask}-{seed}", "ablation": ablation, "training": {"seed": seed}}
        return dataclasses.replace(
            result, meta={**result.meta, **made_by, "matched": {**result.meta["matched"], "n_edges": n_edges}}
        )

    found = circuits_compared([arm("none", s, 10 + s) for s in range(3)] + [arm("local", s, 20 + s) for s in range(3)])
    sizes = next(row for row in found.meta["differences"] if row["metric"] == "edges at faithfulness 0.9")
    assert (sizes["arm"], sizes["baseline"], sizes["difference"], sizes["n_seeds"]) == ("local k=4", "none", 10, 3)
    assert sizes["claim"] and sizes["p"] == pytest.approx(0.1)
    ratio = next(row for row in found.meta["differences"] if row["metric"].startswith("log2 of edges"))
    edges = found.table[found.table.metric == "edges at faithfulness 0.9"].groupby("arm").value
    by_hand = edges.apply(lambda sizes: np.log2(sizes.astype(float)).mean())
    assert ratio["difference"] == pytest.approx(by_hand["local k=4"] - by_hand["none"])
    assert len(found.meta["jaccard"]) == 15 and found.meta["jaccard"][0]["jaccard"] == 1


def test_the_command_writes_a_circuit_beside_the_units_and_compares_checkpoints(tmp_path, capsys):
    flags = ["--method", "eap", "--n", "8", "--no-checks", "--quiet", "--out", str(tmp_path)]
    main(["none-s0", "local-k4-s0", *flags])
    assert "edges at faithfulness 0.9" in capsys.readouterr().out
    for name in ("none-s0.eap", "local-k4-s0.eap", "arms.eap"):
        assert (tmp_path / "localization" / name / "table.csv").is_file()
    arms = Result.load(tmp_path / "localization" / "arms.eap").meta
    assert arms["command"].endswith(shlex.join(["none-s0", "local-k4-s0", *flags]))
    assert set(arms["sha256"]) == {"none-s0", "local-k4-s0"}
    assert (tmp_path / "localization" / "none-s0.eap" / "figures" / "circuit.html").is_file()
    main(["none-s0", *flags, "--json", "--size", "20", "--circuit-out", str(tmp_path / "c.json")])
    shown = json.loads(capsys.readouterr().out)
    graph = circuit_of(Result.load(tmp_path / "localization" / "none-s0.eap")).graph
    assert read_mib(tmp_path / "c.json", graph).n_edges == 20 == sum(row["in_circuit"] for row in shown["table"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "eap", "--stream", "ablated"], "--stream ablated is for"),
        (["--ablation", "optimal"], "--ablation for --method units"),
        (["--method", "eap", "--corpus", "stories"], "--corpus is what means"),
        (["--circuit-out", "x.json"], "--circuit-out takes"),
        (["--task", "ioi", "--corrupt", "nothing"], "--corrupt of ioi is fresh"),
        (["--tau", "0"], "above 0"),
        (["--task", "sums"], "must be one of"),
    ],
)
def test_flags_that_do_not_fit_are_refused_in_one_line(flags, said, capsys):
    with pytest.raises(SystemExit) as error:
        main(["none-s0", *flags])
    message = capsys.readouterr().err
    assert error.value.code == 2 and said in message and message.strip().count("\n") == 0
