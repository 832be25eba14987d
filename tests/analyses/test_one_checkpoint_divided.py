"""Circuits and leakage of one checkpoint, divided among processes: the numbers of one process, work done once."""

import argparse
import collections
import dataclasses
import json
import time

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.leakage import battery as leakage_battery
from analyses.leakage.__main__ import main as leakage_main
from analyses.leakage.battery import TESTS
from analyses.leakage.planted import planted, planted_stories
from analyses.localization import setting as settings
from analyses.localization.circuits import circuit_result
from analyses.localization.edge_mask import edge_mask
from analyses.localization.mask_overlap import mask_overlap
from analyses.localization.methods import Knobs, found_by
from analyses.localization.patching import activation_patching, residual_patching
from analyses.localization.setting import setting_of
from analyses.paper import asked
from analyses.result import Result
from analyses.sparsity.sparsity import sparsity
from analyses.texts import Stories
from sat_lens import distributed, save
from sat_lens.tasks import performance as performances
from tests.cases.random_task import random_task

METHODS = {
    **{
        name: lambda setting, name=name: found_by(name, setting, Knobs(tau=0.01)).scores
        for name in ("attribution", "exact", "eap", "eap-ig", "acdc", "magnitude", "own-masks")
    },
    "eap-ig along activations": lambda setting: found_by("eap-ig", setting, Knobs(along="activations")).scores,
    "exact denoising": lambda setting: found_by("exact", setting, Knobs(direction="denoising")).scores,
    "mask": lambda setting: edge_mask(setting, size=9, steps=5)[0],
    "patching": activation_patching,
    "patching of each position": lambda setting: activation_patching(setting, positions="each"),
    "residual patching": residual_patching,
}


@pytest.fixture
def solved(monkeypatch):
    """Models of random weights are at chance; here that is no matter."""
    monkeypatch.setattr(performances, "require_solved", lambda *_, **__: None)
    monkeypatch.setattr("analyses.localization.circuits.require_solved", lambda *_, **__: None)


@pytest.mark.parametrize(("processes", "batch"), [(2, 3), pytest.param(5, 64, marks=pytest.mark.slow)])
def test_scores_of_several_processes_are_those_of_one(tiny_model, ranks, processes, batch):
    setting = setting_of(tiny_model().double(), random_task(7), batch=batch)

    def ask(rank=0):
        return {name: np.asarray(method(setting)).tolist() for name, method in METHODS.items()}

    alone, together = ask(), ranks(processes, ask)
    for name, scores in alone.items():
        assert np.nanmax(np.abs(scores)) > 0, name
        edges = ~np.isnan(np.asarray(scores))
        assert edges.shape != setting.graph.possible.shape or (edges == setting.graph.possible).all(), name
        for found in together:
            assert np.allclose(found[name], scores, rtol=0, atol=1e-9, equal_nan=True), name
    assert len({json.dumps(found) for found in together}) == 1, "every process goes on with the same numbers"


def test_circuits_are_run_once_whichever_process_runs_them(tiny_model, ranks, monkeypatch):
    setting = setting_of(tiny_model(), random_task(4))
    circuits = np.random.default_rng(0).random((7, *setting.graph.possible.shape)) < 0.5
    alone, run, end_logits = setting.values(circuits), [], settings.end_logits
    monkeypatch.setattr(
        settings, "end_logits", lambda c, members, *a: run.append(len(members)) or end_logits(c, members, *a)
    )

    def ask(rank):
        return [setting.values(circuits).tolist(), sum(run) // len(setting.groups)]

    found = ranks(3, ask)
    assert [n for _, n in found] == [2, 2, 3]
    assert all(np.allclose(values, alone, atol=1e-6) for values, _ in found)
    assert np.allclose(ranks(3, lambda rank: setting.values(circuits[:1]).tolist())[0], alone[:1], atol=1e-6)


@pytest.mark.parametrize(
    ("method", "checks"),
    [
        ("magnitude", False),
        pytest.param("eap-ig", True, marks=pytest.mark.slow),
        pytest.param("acdc", True, marks=pytest.mark.slow),
    ],
)
def test_a_circuit_with_all_that_is_measured_of_it_is_that_of_one_process(tiny_model, ranks, solved, method, checks):
    model, task = tiny_model().double(), random_task(5)

    def ask(rank=0):
        return circuit_result(model, task, method=method, size=0.2, n_bootstrap=20, checks=checks).files()

    assert_same(ask(), ranks(2, ask))


def test_overlap_of_masks_and_circuit_is_that_of_one_process(tiny_model, ranks):
    model, task = tiny_model().double(), random_task(5)

    def ask(rank=0):
        return mask_overlap(model, task, positions=("all",), size=5, steps=2, n_shuffles=4, n_bootstrap=20).files()

    assert_same(ask(), ranks(2, ask))


@pytest.mark.parametrize(("processes", "forward"), [(2, "hard"), (6, "soft")])
def test_the_battery_of_leakage_is_that_of_one_process(ranks, monkeypatch, processes, forward):
    model = planted(2)
    model.ablation = dataclasses.replace(model.ablation, forward=forward)
    stories = planted_stories(model, 40)
    asked, chosen = [], {name: TESTS[name] for name in ("structure", "blank", "swap", "mutual information", "usage")}
    monkeypatch.setattr(
        leakage_battery, "TESTS", {name: (kind, counted(name, test, asked)) for name, (kind, test) in chosen.items()}
    )

    def ask(rank=0):
        asked.clear()
        case = leakage_battery.case_of(model, stories, n_controls=2)
        return [leakage_battery.battery(case, tuple(chosen)).files(), list(asked)]

    alone, _ = ask()
    found = ranks(processes, ask)
    assert_same(alone, [files for files, _ in found])
    assert collections.Counter(name for _, names in found for name in names) == dict.fromkeys(chosen, 1)


def counted(name, test, asked):
    def count(case):
        asked.append(name)
        assert distributed.world_size() == 1 and distributed.is_main(), "a test of the battery divides nothing"
        return test(case)

    return count


def test_what_the_paper_has_no_answer_to_is_asked_once_by_whichever_process(ranks, monkeypatch, tmp_path):
    """By three processes that look at different times; what one cannot ask costs a line, and none waits for it."""
    said = []

    def question(name):
        def main(argv):
            assert distributed.world_size() == 1
            said.append([name.split(".")[1], argv[0]])
            (tmp_path / f"{said[-1]}").touch()
            if argv[0] == "b":
                raise ValueError("at chance")

        return argparse.Namespace(main=main)

    monkeypatch.setattr(asked, "import_module", question)
    monkeypatch.setattr(asked, "refuse_unreadable", lambda args: time.sleep(0.2 * distributed.rank()))
    monkeypatch.setattr(
        asked,
        "found",
        lambda args, question, checkpoint, name: (tmp_path / f"{[question, checkpoint]}").exists() or None,
    )
    args = argparse.Namespace(
        checkpoints=["a", "b"], out=tmp_path, device="cpu", seed=0, quiet=True, n=4, task="ioi", sae_steps=None,
        corpus=None, reproduce=False,
    )  # fmt: skip

    def ask(rank):
        asked.ask(args, ["a", "b"])
        return said

    shares = ranks(3, ask)
    every = [[name, checkpoint] for name in ("sparsity", "localization", "sae") for checkpoint in "ab"]
    assert sorted(sum(shares, [])) == sorted(every) and [len(share) for share in shares] == [2, 2, 2]


def test_numbers_of_rank_0_are_those_of_all(ranks):
    found = ranks(3, lambda rank: distributed.from_main(torch.tensor([1.0 / (rank + 3), float("nan")])).tolist())
    assert all(values[0] == found[0][0] == pytest.approx(1 / 3) and np.isnan(values[1]) for values in found)


def test_sparsity_is_that_of_one_process(tiny_model, ranks):
    draw = torch.Generator().manual_seed(1)
    stories = Stories(torch.randint(29, (3, 9), generator=draw), torch.tensor([9, 4, 7]))
    model = tiny_model()

    def ask(rank=0):
        return sparsity(model, stories, null=False).files()

    assert_same(ask(), ranks(4, ask))


def assert_same(alone, together):
    """Tables and meta of every process are those of one, but for the seconds taken."""
    one = Result.of_files(alone)
    for files in together:
        other = Result.of_files(files)
        tables = [
            of.table.sort_values("edge", ignore_index=True) if "edge" in of.table else of.table for of in (one, other)
        ]
        pd.testing.assert_frame_equal(*tables, rtol=1e-6, atol=1e-6)
        assert one.units == other.units
        compare(one.meta, other.meta)


def compare(one, other, where="meta"):
    if where.endswith(".seconds"):
        return
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one:
            compare(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        if one and isinstance(one[0], dict) and "edge" in one[0]:  # equal ones stand in the order of their last bits
            one, other = (sorted(rows, key=lambda row: row["edge"]) for rows in (one, other))
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            compare(*pair, f"{where}[{i}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-6, nan_ok=True), where
    else:
        assert one == other, where


@pytest.mark.parametrize(("n", "worlds"), [(1, [2, 2]), (2, [1, 1]), (3, [1, 1])])
def test_checkpoints_are_dealt_where_there_are_enough_and_else_divided(
    n, worlds, tiny_model, ranks, tmp_path, monkeypatch
):
    for seed in range(n):
        save(tiny_model(seed=seed), tmp_path / f"m{seed}")
    seen = []
    monkeypatch.setattr("analyses.cli.needs.require", lambda *_: None)

    def ask_one(model, args):
        seen.append(distributed.world_size())
        return Result("leakage", pd.DataFrame({"value": [1.0]}), {"value": "bits"}, {})

    monkeypatch.setattr("analyses.leakage.__main__.analyse", ask_one)
    monkeypatch.setattr("analyses.leakage.__main__.figures", lambda result: {})
    monkeypatch.setattr("analyses.leakage.__main__.compare", lambda results: results[0])
    monkeypatch.setattr("analyses.leakage.__main__.compared_figures", lambda result: {})

    def ask(rank):
        leakage_main([*(str(tmp_path / f"m{seed}") for seed in range(n)), "--out", str(tmp_path / "out"), "--quiet"])
        return seen[0]

    assert ranks(2, ask) == worlds
    assert sorted(path.name for path in (tmp_path / "out" / "leakage").iterdir() if path.name != "arms") == [
        f"m{seed}" for seed in range(n)
    ]
