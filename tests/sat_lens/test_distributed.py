"""Several processes: shares, sums and rows of all ranks; training in them equals training in one."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_lens import distributed, load
from sat_lens.checkpoint import read_config, read_state
from sat_lens.distributed import PeerLost, gather_rows, launched, shard, share, sum_gradients, sum_over_ranks
from sat_lens.presets import TrainingSettings
from sat_lens.training import Trainer, TrainingStopped

ROOT = Path(__file__).resolve().parents[2]
NO_ROWS = torch.zeros(0, 2)


@pytest.fixture
def as_rank(monkeypatch):
    """`as_rank(rank, size)`: what only asks which rank this is believes it."""

    def pretend(rank, size):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: size)

    return pretend


def test_in_one_process_everything_is_the_identity():
    values = torch.arange(6.0).reshape(3, 2)
    with launched("cpu") as device, distributed.main_first():
        assert device == "cpu" and distributed.is_main()
        assert (distributed.rank(), distributed.world_size(), shard(5)) == (0, 1, range(5))
        assert sum_over_ranks(values) is values and gather_rows(values) is values
        assert share(values)[0].equal(values) and share(values)[1] == 1.0


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_even_in_order_and_leave_nothing_out(as_rank, size):
    for n in range(20):
        shares = []
        for rank in range(size):
            as_rank(rank, size)
            shares.append(list(shard(n)))
        assert sum(shares, []) == list(range(n))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_dealt_things_go_round_the_ranks(as_rank):
    hands = []
    for rank in range(3):
        as_rank(rank, 3)
        hands.append(list(distributed.dealt(iter("abcdefg"))))
    assert hands == [["a", "d", "g"], ["b", "e"], ["c", "f"]]


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_weighted_means_of_the_shares_add_up_to_the_mean_of_the_batch(as_rank, n):
    batch, total = torch.rand(n, 4), torch.zeros(())
    for rank in range(4):
        as_rank(rank, 4)
        rows, weight = share(batch)
        assert len(rows) >= 1
        total += weight * rows.mean()
    assert torch.allclose(total, batch.mean())


def test_sums_and_rows_of_three_ranks(ranks):
    def speak(rank):
        rows = torch.full((rank, 2), rank)  # rank 0 has none
        model = [torch.zeros(2), torch.zeros(3, dtype=torch.float64), torch.zeros(1)]
        model[0].grad, model[1].grad = torch.tensor([1.0, rank]), torch.full((3,), 10.0**rank, dtype=torch.float64)
        sum_gradients(model)
        return {
            "sum": sum_over_ranks(torch.tensor([1, rank])), "rows": gather_rows(rows),
            "none": gather_rows(NO_ROWS), "grads": [model[0].grad, model[1].grad], "third": model[2].grad,
        }  # fmt: skip

    for found in ranks(3, speak):
        assert found["sum"].tolist() == [3, 3]  # 1+1+1, 0+1+2
        assert found["rows"].tolist() == [[1, 1], [2, 2], [2, 2]] and found["none"].shape == (0, 2)
        assert found["grads"][0].tolist() == [3.0, 3.0] and found["grads"][1].tolist() == [111.0] * 3
        assert found["third"] is None


def test_rank_0_goes_first_where_it_fills_a_cache(ranks, tmp_path):
    def visit(rank):
        with distributed.main_first():
            seen = (tmp_path / "cache").exists()
            if rank == 0:
                (tmp_path / "cache").touch()
        return seen

    assert ranks(3, visit) == [False, True, True]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_is_noticed_by_the_other(ranks, dead):
    def sum_once_then_die(rank):
        sum_over_ranks(torch.ones(1))
        if rank == dead:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(PeerLost, match="another process of this run died or does not answer"):
            sum_over_ranks(torch.ones(1))
        return "noticed"

    assert ranks(2, sum_once_then_die)[1 - dead] == "noticed"


def test_sigterm_from_torchrun_is_a_lost_peer_and_other_errors_stay_what_they_are():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(PeerLost, match="SIGTERM"), distributed.stopped_by_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN, "a process that is ending says its last line"
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(RuntimeError, match="shapes"), distributed.losing_peers():
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(
    ("device", "words"), [("cuda:1", "every process takes a card of its own"), ("cuda", "local rank 3 has none")]
)
def test_a_card_that_is_not_there_for_every_process_is_refused(monkeypatch, device, words):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words), launched(device):
        pass


# training


def text(rows):
    """`batches(step)`: rows [rows 17] that count upwards in threes from a random start."""

    def batches(step):
        start = torch.randint(29, (rows, 1), generator=torch.Generator().manual_seed(step))
        return (start + 3 * torch.arange(17)) % 29

    return batches


@pytest.fixture
def trained(tiny_model, tmp_path):
    """`trained(name, rows=5, fsdp=False, batches=None, resume=False)`: train in a folder; the folder."""

    def train(name, rows=5, fsdp=False, batches=None, resume=False, mask="local"):
        model = tiny_model({"mask": mask, "w_reconstruction": 0.1})
        settings = TrainingSettings(steps=9, batch_size=rows, lr=5e-3, eval_every=4, log_every=1)
        held_out = (text(3)(10_000), torch.ones(3, 16))
        trainer = Trainer(model, settings, batches or text(rows), held_out, tmp_path / name, fsdp=fsdp)
        if resume:
            trainer.resume()
        trainer.train(progress=False)
        return tmp_path / name

    return train


def assert_same_run(one: Path, other: Path) -> None:
    """Losses, weights and optimizer of two runs are equal to 1e-6."""
    lines = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (one, other)]
    assert len(lines[0]) == len(lines[1]) == 9 + 4
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - {"tokens_per_second"}:  # norms of hundreds are rounded to six places as well
            assert math.isclose(ours[key], theirs[key], rel_tol=1e-6, abs_tol=2e-6), (ours["step"], key)
    for name in ("last", "best"):
        ours, theirs = load(one / name).state_dict(), load(other / name).state_dict()
        assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in ours)
    ours, theirs = read_state(one / "last")[0], read_state(other / "last")[0]
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in ours if key != "torch_rng")


@pytest.mark.parametrize(("n", "rows"), [(2, 5), (3, 4), (3, 2)])
def test_several_processes_train_as_one_does_with_uneven_and_empty_shares_too(trained, ranks, n, rows):
    alone = trained("alone", rows)
    ranks(n, lambda rank: str(trained("together", rows)))
    assert_same_run(alone, alone.with_name("together"))
    assert read_config(alone.with_name("together") / "last")["training"]["processes"] == n


@pytest.mark.parametrize("mask", ["none", "local", "global"])
def test_weights_spread_over_two_processes_train_as_whole_ones_do(trained, ranks, mask, no_fast_path):
    alone = trained("alone", mask=mask)
    assert None not in ranks(2, lambda rank: str(trained("spread", fsdp=True, mask=mask)))
    assert_same_run(alone, alone.with_name("spread"))


def test_a_spread_model_holds_half_of_every_weight_between_steps(tiny_model, ranks):
    from sat_lens.fsdp import spread

    def numbers(rank):
        model = tiny_model()
        spread(model)
        return sum(parameter.to_local().numel() for parameter in model.parameters())

    whole = sum(parameter.numel() for parameter in tiny_model().parameters())
    found = ranks(2, numbers)
    assert sum(found) == whole and abs(found[0] - found[1]) < whole / 10


def test_a_model_is_not_spread_over_a_single_process(trained):
    with pytest.raises(ValueError, match="start it with torchrun"):
        trained("alone", fsdp=True)


@pytest.mark.parametrize(("n", "fsdp"), [(1, False), (3, False), (2, True)])
def test_a_rank_that_is_killed_leaves_a_run_that_any_number_of_processes_takes_up(trained, ranks, n, fsdp):
    def deadly(step):
        if step == 6 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return text(5)(step)

    def survive(rank):
        words = "another process of this run died .*; the last good checkpoint is .*killed/last: go on with --resume"
        with pytest.raises(TrainingStopped, match=words):
            trained("killed", batches=deadly)
        return "survived"

    undisturbed = trained("undisturbed")
    assert ranks(2, survive) == ["survived", None]
    killed = undisturbed.with_name("killed")
    assert read_state(killed / "last")[1]["step"] == 4
    if n == 1:
        trained("killed", resume=True)
    else:
        ranks(n, lambda rank: str(trained("killed", resume=True, fsdp=fsdp)))
    assert_same_run(undisturbed, killed)


def test_only_rank_0_writes(trained, ranks, monkeypatch, tmp_path):
    import builtins

    opened, real = [], builtins.open

    def watching(file, mode="r", *args, **kwargs):
        if set(mode) & set("wax") and str(tmp_path) in str(file):
            opened.append(str(file))
        return real(file, mode, *args, **kwargs)

    def names(rank):
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", watching)
            trained("together")
        return opened

    by_rank = ranks(2, names)
    assert by_rank[0] and by_rank[1] == []


TRAIN = [
    "-m", "sat_lens.train", "--corpus", "text.txt", "--held-out", "text.txt", "--quiet", "--steps", "3",
    "--eval-every", "2", "--eval-rows", "3", "--batch-size", "3", "--max-tokens", "4000", "--cache", "packed",
]  # fmt: skip


def command(folder, *argv, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [sys.executable, *argv], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_the_train_command_under_torchrun_is_the_same_command(tmp_path):
    (tmp_path / "text.txt").write_text("Tom ran to the park and saw a big dog. It was his.\n<|endoftext|>\n" * 60)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    assert command(tmp_path, *TRAIN, "--out", "one")[0] == 0
    code, out, err = command(tmp_path, *torchrun, *TRAIN, "--out", "two")
    assert code == 0, err
    assert out.count("held-out loss") == 1 and out.endswith("in\ntwo\n"), "rank 0 alone prints"
    # in fp32 AdamW's first steps make whole steps of gradients that are nothing but rounding: compare the losses
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("one", "two")]
    one, two = ([json.loads(line)["held_out_total"] for line in log] for log in logs)
    assert len(one) == 3 and one[0] - one[2] > 0.02 and two == pytest.approx(one, rel=5e-6)
    code, out, err = command(tmp_path, *torchrun, *TRAIN, "--out", "two")
    assert code != 0 and "two holds a run already; pass --resume to go on, or another --out" in err
    assert "sat_lens/train.py" not in err, "torchrun's own traceback is all there is"
