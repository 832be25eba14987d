"""How long a run will take: planted prices must come back as seconds, and the table must say what it rests on."""

import json
import re

import pytest

from sat_lens import SelfAblation, cost, forecast
from sat_lens.forecast import read_curves, run_forecast, step_terms
from sat_lens.machine import Machine, matmul_flops, this_machine
from sat_lens.presets import TrainingSettings, host_config

HERE = Machine("2 cores, planted", "cpu", 1, 1e11)
SETTINGS = TrainingSettings(steps=1000, batch_size=16, eval_every=500, eval_rows=48)
STEPS = 1000 + 3  # three evaluations of 48 rows are 9 forward passes of 16: a third of a step each


def curves(**coefficients):
    fit = {"coefficients": coefficients, "held_out_error": 0.25}
    return {"machine": vars(HERE) | {}, "fits": {"training_seconds": fit}}


def test_planted_prices_come_back_as_seconds():
    cfg = host_config("cpu", 64)
    run = run_forecast(cfg, SelfAblation(), SETTINGS, HERE, curves(steps=0.5))
    assert run.seconds == pytest.approx(STEPS * 0.5)
    assert (run.low, run.high) == pytest.approx((run.seconds / 1.25, run.seconds * 1.25))
    per_logit = run_forecast(cfg, SelfAblation(), SETTINGS, HERE, curves(logits=1e-6))
    assert per_logit.seconds == pytest.approx(STEPS * 16 * 128 * 64 * 2 * 1e-6)  # two streams


def test_a_machine_twice_as_fast_takes_half_the_time_with_a_wider_interval():
    cfg = host_config("cpu", 64)
    here = run_forecast(cfg, SelfAblation(), SETTINGS, HERE, curves(steps=0.5))
    faster = Machine("another", "cpu", 1, 2e11)
    there = run_forecast(cfg, SelfAblation(), SETTINGS, faster, curves(steps=0.5))
    assert there.seconds == pytest.approx(here.seconds / 2)
    assert there.high / there.seconds > here.high / here.seconds
    assert "100 GFLOP/s there and 200 GFLOP/s here" in there.basis


def test_a_peak_is_what_the_fitted_prices_make_of_the_memory():
    memory = cost.Memory(weights=2**20, gradients=2**20, optimizer=2**21, activations=10 * 2**20, logits=2**20)
    planted = {"coefficients": {"process": 2.0**22, "parameter_bytes": 1.0, "activation_bytes": 1.5}}
    remark = forecast.peak_remark(memory, {"fits": {"training_memory": planted}})  # 4 + 4 + 15 MiB
    assert remark.startswith("a peak of 23 ")
    assert "0.9 to 1.4 times" in forecast.peak_remark(memory, None)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_without_curves_of_the_device_flops_alone_are_the_basis(device):
    cfg, ablation = host_config("cpu", 64), SelfAblation()
    machine = Machine("x", device, 1, 1e12)
    run = run_forecast(cfg, ablation, SETTINGS, machine, None if device == "cpu" else curves(steps=0.5))
    flops = STEPS * 16 * 128 * cost.training_flops(cfg, ablation)
    assert run.seconds == pytest.approx(flops / 0.25e12)
    assert run.basis.startswith(f"no curves for {device}")


def test_the_terms_of_a_step_are_what_it_does():
    cfg = host_config("cpu", 64)
    terms = step_terms(cfg, SelfAblation(k_attn=3, k_mlp=5), 2)
    tokens = 2 * 128
    assert terms["product_flops"] + terms["attention_flops"] == pytest.approx(
        tokens * cost.training_flops(cfg, SelfAblation())
    )
    assert terms["logits"] == tokens * 2 * 64
    assert terms["scores"] == tokens * 4 * (64 + 256)
    assert terms["winners"] == tokens * 4 * (3 + 5)
    plain = step_terms(cfg, SelfAblation(mask="none"), 2)
    assert (plain["logits"], plain["scores"], plain["winners"]) == (tokens * 64, 0, 0)


def test_curves_are_read_from_json_and_damaged_ones_refused(tmp_path):
    path = tmp_path / "curves.json"
    assert read_curves(path) is None
    path.write_text(json.dumps(curves(steps=1.0)))
    assert read_curves(path)["fits"]["training_seconds"]["coefficients"] == {"steps": 1.0}
    for text in ("[]", "{", '{"machine": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="write it anew"):
            read_curves(path)


def test_the_table_says_parameters_tokens_memory_flops_and_minutes():
    table = cost.dry_run(host_config("paper", 50_257), SelfAblation(), SETTINGS, HERE, curves(steps=6.0))
    assert max(map(len, table.splitlines())) <= 80
    rows = {line[:14].strip(): line[14:] for line in re.sub(r"\n {33}", " ", table).splitlines()}
    assert list(rows) == ["parameters", "tokens", "memory, MiB", "free, MiB", "FLOPs a token", "minutes"]
    assert "8,709,504" in rows["parameters"] and "660,480 of gates" in rows["parameters"]
    assert f"{1000 * 16 * 256:,}" in rows["tokens"]
    assert rows["minutes"].split()[0] == "100" and "80 to 125" in rows["minutes"]
    assert "planted" in rows["minutes"]


def test_a_k_beyond_the_width_is_refused_before_anything_is_measured():
    with pytest.raises(ValueError, match="k_attn must be between 1 and the 64 units"):
        cost.dry_run(host_config("cpu", 64), SelfAblation(k_attn=65), SETTINGS)


def test_this_machine_has_a_kind_and_a_rate_and_its_threads_are_put_back():
    import torch

    torch.set_num_threads(1)
    machine = this_machine("cpu", n_threads=2, seconds=0.01)
    assert (machine.device, machine.n_threads, torch.get_num_threads()) == ("cpu", 2, 1)
    assert "cores" in machine.kind and 1e8 < machine.matmul_flops < 1e15
    assert 1e8 < matmul_flops(seconds=0.01) < 1e15


def test_the_shipped_curves_give_a_forecast():
    found = read_curves(forecast.CURVES)
    assert found is not None, "data/results/cost_curves.json is missing: make bench ARGS=--curves writes it"
    run = run_forecast(host_config("cpu", 4096), SelfAblation(), SETTINGS, Machine(**found["machine"]), found)
    assert 0 < run.low < run.seconds < run.high
