"""run_log: lines reach the service; a service that is not installed is named."""

import sys
import types

import pytest

from sat_lens.run_log import run_log


def test_every_number_of_a_line_reaches_tensorboard_at_its_step(monkeypatch, tmp_path):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            written.append(folder)

        def add_text(self, name, text):
            written.append((name, text))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = run_log("tensorboard", tmp_path / "run", {"mask": "local"})
    log({"step": 7, "clean": 2.5, "ablated": 3.0})
    assert written == [
        str(tmp_path / "run" / "tensorboard"),
        ("config", "{'mask': 'local'}"),
        ("clean", 2.5, 7),
        ("ablated", 3.0, 7),
    ]


def test_a_line_reaches_wandb_at_its_step(monkeypatch, tmp_path):
    logged = []
    run = types.SimpleNamespace(log=lambda line, step: logged.append((line, step)))
    module = types.ModuleType("wandb")
    module.init = lambda **knobs: logged.append(knobs["name"]) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    run_log("wandb", tmp_path / "local-k4", {})({"step": 3, "clean": 2.0})
    assert logged == ["local-k4", ({"step": 3, "clean": 2.0}, 3)]


def test_a_service_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="--log-to wandb needs a package that is not installed"):
        run_log("wandb", tmp_path, {})
