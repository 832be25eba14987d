"""Localization in several processes gives the table of one, and rank 0 alone writes it."""

import json

import numpy as np
import pytest
import torch

from analyses.localization import unit_effects
from analyses.localization.__main__ import main
from analyses.result import Result
from sat_lens import save
from sat_lens.tasks import Task

UNIT = ["kind", "layer", "head", "channel", "neuron"]


def random_task(n):
    """Prompts of three lengths."""
    draw = torch.Generator().manual_seed(3)
    clean, corrupt = (torch.randint(29, (n, 8), generator=draw) for _ in range(2))
    answers = torch.randint(29, (n,), generator=draw)
    ends = torch.tensor([7, 4, 7, 5, 4, 7, 7])[:n]
    return Task("random", clean, corrupt, answers, (answers + 1) % 29, {"end": ends})


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
