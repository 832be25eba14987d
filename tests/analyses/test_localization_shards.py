"""Localization in several processes gives the table of one, and rank 0 alone writes it."""

import argparse
import importlib
import json

import numpy as np
import pandas as pd
import pytest

from analyses.localization import unit_effects
from analyses.localization.__main__ import main
from analyses.result import Result
from sat_lens import distributed, save
from tests.cases.random_task import random_task

UNIT = ["kind", "layer", "head", "channel", "neuron"]


def assert_same_table(one, other):
    one, other = (table.sort_values(UNIT, ignore_index=True) for table in (one, other))
    assert one.shape == other.shape and (one[UNIT].fillna(-1) == other[UNIT].fillna(-1)).all(axis=None)
    numbers = [column for column in one if column not in UNIT]
    assert np.allclose(one[numbers].astype(float), other[numbers].astype(float), atol=1e-6)


@pytest.mark.parametrize(("ablation", "stream"), [("mean", "clean"), ("resample", "ablated")])
@pytest.mark.parametrize(("processes", "prompts"), [(2, 7), (3, 1)])
def test_units_of_several_processes_are_those_of_one(tiny_model, ranks, ablation, stream, processes, prompts):
    model, task = tiny_model(), random_task(prompts)

    def table(rank):
        return unit_effects(model, task, ablation=ablation, stream=stream, n_bootstrap=20).table.to_json()

    alone, tables = unit_effects(model, task, ablation=ablation, stream=stream, n_bootstrap=20).table, None
    tables = ranks(processes, table)
    assert len(set(tables)) == 1, "every rank has the whole table"
    together = type(alone)(json.loads(tables[0])).reset_index(drop=True)
    assert_same_table(alone, together)


def test_the_command_writes_once(tiny_model, tiny_tokenizer, ranks, tmp_path, monkeypatch, capfd):
    model = tiny_model()
    model.tokenizer = tiny_tokenizer
    save(model, tmp_path / "tiny")
    monkeypatch.setattr("sat_lens.tasks.load_task", lambda *args, **kwargs: random_task(5))
    main([str(tmp_path / "tiny"), "--out", str(tmp_path / "alone"), "--quiet"])
    capfd.readouterr()
    written = []

    def ask(rank):
        monkeypatch.setattr("analyses.cli.write_result", _counting(written))
        main([str(tmp_path / "tiny"), "--out", str(tmp_path / "together")])
        return len(written)

    assert ranks(2, ask) == [1, 0]
    out, err = capfd.readouterr()
    assert out.count("together/localization/tiny\n") == 1 and err.count("warning: the model does not solve") == 1
    alone, together = (Result.load(tmp_path / name / "localization" / "tiny") for name in ("alone", "together"))
    assert_same_table(alone.table, together.table)


def _counting(written):
    from analyses.cli import write_result

    def write(*args, **kwargs):
        written.append(args)
        write_result(*args, **kwargs)

    return write


@pytest.mark.parametrize("n", [1, 2, 3])
def test_checkpoints_that_are_dealt_among_processes_are_answered_as_by_one(n, tiny_model, ranks, tmp_path, monkeypatch):
    """Two processes and n checkpoints: each takes whole ones, rank 0 writes all and compares them."""
    from analyses import cli

    for seed in range(n):
        save(tiny_model(seed=seed), tmp_path / f"m{seed}")
    checkpoints = [str(tmp_path / f"m{seed}") for seed in range(n)]
    wrote = []
    monkeypatch.setattr(cli.needs, "require", lambda *_: None)
    monkeypatch.setattr("analyses.cli.write_result", _counting(wrote))

    def analyse(model, args):
        weight = model.state_dict()["embed.W_E"]
        table = pd.DataFrame({"value": [float(weight.sum()), 1 / 3], "who": [args.name, None]})
        assert distributed.world_size() == 1 and distributed.is_main(), "what a question divides, it does not here"
        return Result("tried", table, {"value": "logits"}, {"of": args.name, "processes": args.processes})

    def compare(results):
        table = pd.concat([result.table for result in results], ignore_index=True)
        return Result("compared", table, {}, {"of": [result.meta["of"] for result in results]})

    def ask(out, processes):
        args = argparse.Namespace(
            checkpoints=checkpoints, out=tmp_path / out, device="cpu", seed=0, json=False, static=False, quiet=True,
            processes=processes,
        )  # fmt: skip
        return cli.answer("tried", args, analyse, lambda _: {}, [], compare, dealt=True), len(wrote)

    assert ask("alone", 1) == (True, n + (n > 1))
    wrote.clear()
    assert ranks(2, lambda rank: list(ask("together", 2))) == [[True, n + (n > 1)], [False, 0]]
    for name in [*(f"m{seed}" for seed in range(n)), *(["arms"] if n > 1 else [])]:
        alone, together = (Result.load(tmp_path / out / "tried" / name) for out in ("alone", "together"))
        pd.testing.assert_frame_equal(alone.table, together.table, check_exact=True)
        assert alone.meta["of"] == together.meta["of"] and alone.name == together.name
        assert alone.meta.get("checkpoint_sha256") == together.meta.get("checkpoint_sha256")


def test_texts_of_all_ranks(ranks):
    said = ["Tom \u2603", "", "a" * 1000]
    assert ranks(3, lambda rank: distributed.gather_texts(said[rank])) == [said] * 3


@pytest.mark.parametrize("question", ["rewriting", "untangling"])
def test_what_cannot_be_divided_refuses_several_processes(question, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    main = importlib.import_module(f"analyses.{question}.__main__").main
    argv = {"rewriting": ["none-s0", "--out", str(tmp_path / "out")], "untangling": ["report", str(tmp_path)]}
    with pytest.raises(ValueError, match=f"analyses.{question} runs in one process, and torchrun started 2"):
        main(argv[question])
    assert not (tmp_path / "out").exists()
