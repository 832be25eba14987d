"""devices: a name that is none, or that is not here, is refused before any work."""

import pytest
import torch

from sat_lens.devices import check_device


@pytest.mark.parametrize("name", ["", "foo", "meta", "xpu", "cuda:", "cuda:-1", "cuda:9999999999999", "CPU"])
def test_a_name_that_is_no_device_is_refused(name):
    with pytest.raises(ValueError, match="device must be cpu, cuda, cuda:N or mps"):
        check_device(name)


def test_a_device_that_is_not_here_is_refused():
    assert check_device("cpu") == "cpu"
    missing = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=f"device {missing} is not there; use --device cpu"):
        check_device(missing)


def test_every_command_checks_its_device_first(tmp_path):
    from sat_lens import doctor, evaluate, generate, train

    for main, argv in (
        (doctor.main, ["no-such-checkpoint"]),
        (evaluate.main, ["no-such-checkpoint"]),
        (generate.main, ["no-such-checkpoint"]),
        (train.main, ["--out", str(tmp_path / "run")]),
    ):
        with pytest.raises(ValueError, match="device must be"):
            main([*argv, "--device", "meta"])
    assert not (tmp_path / "run").exists()
