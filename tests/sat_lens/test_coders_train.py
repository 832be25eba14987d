"""Training: a planted dictionary is found, and a run that was cut off is the undisturbed one."""

import json
import sys

import pytest
import torch

from sat_lens import files
from sat_lens.coders import Coder, CoderConfig, CoderTraining, SiteBatch, load_coder, train_coder
from sat_lens.coders import train as training
from sat_lens.coders.objective import fvu, initialise, losses, remove_parallel_gradient, unit_rows
from sat_lens.training import TrainingStopped

D = 16


def planted(tiny_model, kind):
    """A model and a configuration: what enters at a token is its embedding, what leaves is sparse in planted atoms."""
    model = tiny_model({"mask": "none"})
    sites = ("hook_embed",) * 2 if kind == "sae" else ("blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out")
    return model, CoderConfig(kind, *sites, D, D, 48, 2)


@pytest.mark.parametrize("kind", ["skip", "transcoder", "sae"])
def test_the_start_is_what_it_should_be(kind):
    hook_out = "in" if kind == "sae" else "out"
    coder = Coder(CoderConfig(kind, "in", hook_out, 4, 4, 9, 2), torch.float64)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, dtype=torch.float64, generator=draw) + 3
    y = x if kind == "sae" else torch.randn(50, 4, dtype=torch.float64, generator=draw) - 1
    initialise(coder, x, y, seed=0)
    torch.testing.assert_close(coder.b_dec, y.mean(0))
    torch.testing.assert_close(coder.pre(x.mean(0)), torch.zeros(9, dtype=torch.float64))
    assert 0.3 < coder.W_enc.abs().max() <= 0.5, "uniform within 1 / sqrt(4)"
    if kind == "sae":
        torch.testing.assert_close(coder.W_dec.norm(dim=-1), torch.ones(9, dtype=torch.float64))
        cosine = torch.nn.functional.cosine_similarity(coder.W_dec, coder.W_enc)
        torch.testing.assert_close(cosine, torch.ones(9, dtype=torch.float64))
    else:
        assert not coder.W_dec.any()
        assert losses(coder, x, y)[0].item() == pytest.approx(1.0), "the mean alone explains no variance"
    assert coder.W_skip is None or not coder.W_skip.any()


def test_fvu_is_one_for_the_mean_and_none_for_the_truth():
    y = torch.tensor([[0.0, 2.0], [4.0, 2.0]])
    assert fvu(y, y).item() == 0
    assert fvu(y, y.mean(0).expand(2, 2)).item() == 1
    assert fvu(y, torch.tensor([[1.0, 2.0], [4.0, 2.0]])).item() == pytest.approx(1 / 8)


def test_aux_asks_dead_latents_alone_for_what_is_left():
    """One live latent reconstructs the first direction; the second direction is left to the one dead latent."""
    coder = Coder(CoderConfig("transcoder", "in", "out", 2, 2, 3, 1), torch.float64)
    with torch.no_grad():
        coder.W_enc.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, 0.25]]))
        coder.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 8.0]]))
    x = torch.tensor([[2.0, 1.0], [-2.0, -1.0]], dtype=torch.float64)
    unexplained, aux, _ = losses(coder, x, x, torch.tensor([False, False, True]))
    # token 1: y_hat = (2, 0), left (0, 1), dead latent says .25 * 8 = 2, off by 1; token 2: nothing active, left all
    assert unexplained.item() == pytest.approx((1 + 5) / 10)
    assert aux.item() == pytest.approx((1 + 5) / 10)
    aux.backward()
    assert not coder.W_dec.grad[:2].any() and coder.W_dec.grad[2].any()
    assert losses(coder, x, x, torch.tensor([False] * 3))[1].item() == 0


def test_decoder_rows_of_an_sae_keep_their_norm():
    coder = Coder(CoderConfig("sae", "in", "in", 4, 4, 6, 2), torch.float64)
    x = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    initialise(coder, x, x, seed=0)
    losses(coder, x, x)[0].backward()
    remove_parallel_gradient(coder)
    torch.testing.assert_close((coder.W_dec.grad * coder.W_dec).sum(-1), torch.zeros(6, dtype=torch.float64))
    assert coder.W_dec.grad.any()
    with torch.no_grad():
        coder.W_dec.mul_(3)
    unit_rows(coder)
    torch.testing.assert_close(coder.W_dec.norm(dim=-1), torch.ones(6, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["sae", "transcoder", "skip"])
def test_a_planted_sparse_dictionary_is_found(kind, monkeypatch, tiny_model):
    """Inputs are sums of 2 of 24 directions; outputs the same sums of other directions (and a map of the input)."""
    model, cfg = planted(tiny_model, kind)
    draw = torch.Generator().manual_seed(0)
    atoms, images = (torch.nn.functional.normalize(torch.randn(24, D, generator=draw), dim=-1) for _ in range(2))
    skip = torch.randn(D, D, generator=draw) / 4

    def batches(*args, **kwargs):
        draw_now = torch.Generator().manual_seed(int(args[2].sum()))
        z = torch.zeros(*args[2].shape, 24).scatter(
            -1, torch.rand(*args[2].shape, 24, generator=draw_now).topk(2).indices, 1.0
        )
        z = z * (1 + torch.rand(z.shape, generator=draw_now))
        x, y = z @ atoms, z @ images
        y = {"sae": x, "transcoder": y, "skip": y + x @ skip}[kind]
        yield SiteBatch(torch.arange(len(z)), x, y, args[4])

    monkeypatch.setattr(training, "site_batches", batches)
    tokens = torch.randint(29, (400, 16), generator=draw)
    coder = train_coder(model, tokens, cfg, CoderTraining(n_tokens=200_000, lr=5e-3, rows=64, batch_tokens=256))
    held_out = next(batches(None, None, torch.randint(29, (100, 16), generator=draw), None, torch.ones(100, 16) > 0))
    x, y = held_out.x.flatten(0, 1), held_out.y.flatten(0, 1)
    assert fvu(y, coder(x).detach()).item() < 0.1
    if kind != "skip":  # with a skip connection, any linear part of it is as right
        found = torch.nn.functional.normalize(coder.W_dec, dim=-1) @ (atoms if kind == "sae" else images).T
        assert (found.amax(0) > 0.9).float().mean() > 0.8, "most planted directions are some latent's"


def run(model, out, resume=False, **changes):
    cfg = CoderConfig("skip", "blocks.0.ln2.hook_normalized", "blocks.0.hook_mlp_out", 16, 16, 20, 3)
    settings = CoderTraining(
        **{"n_tokens": 900, "batch_tokens": 32, "rows": 6, "save_every": 2, "aux": 0.1, "dead_tokens": 100} | changes
    )
    tokens = torch.randint(29, (17, 12), generator=torch.Generator().manual_seed(2))
    lengths = torch.arange(17) % 8 + 5
    return train_coder(
        model, tokens, cfg, settings, lengths=lengths, out=out, resume=resume, described={"model": "tiny"}
    )


def test_a_run_that_was_cut_off_goes_on_as_if_nothing_had_been(tiny_model, tmp_path, monkeypatch):
    model = tiny_model({"mask": "none"})
    undisturbed = run(model, tmp_path / "whole")
    learn, calls = training._Run._learn, []

    def learn_until(self, x, y):
        calls.append(len(x))
        if len(calls) == 6:  # two passes after the second save
            raise KeyboardInterrupt
        learn(self, x, y)

    monkeypatch.setattr(training._Run, "_learn", learn_until)
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path / "cut")
    monkeypatch.setattr(training._Run, "_learn", learn)
    cut = load_coder(tmp_path / "cut")
    assert not torch.equal(cut.W_enc, undisturbed.W_enc), "it has not ended"
    resumed = run(model, tmp_path / "cut", resume=True)
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for name in ("log.jsonl", "model.safetensors", "config.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert not (tmp_path / "cut" / "state").exists()
    again = run(model, tmp_path / "cut", resume=True)
    assert torch.equal(again.W_enc, undisturbed.W_enc), "a run that has ended is read"


def test_a_run_says_what_it_was(tiny_model, tmp_path):
    coder = run(tiny_model({"mask": "none"}), tmp_path / "run")
    entries = json.loads((tmp_path / "run" / "config.json").read_text())
    assert entries["training"]["model"] == "tiny" and entries["training"]["tokens_seen"] == 900
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["tokens"] == 900 and lines[-1]["fvu"] < lines[0]["fvu"]
    assert torch.equal(load_coder(tmp_path / "run").W_dec, coder.W_dec)


def test_two_processes_do_not_write_to_one_coder(tiny_model, tmp_path):
    model = tiny_model({"mask": "none"})
    for resume in (False, True):
        with files.locked(tmp_path / "run", beside=True), pytest.raises(ValueError, match="another process writes to"):
            run(model, tmp_path / "run", resume=resume)
    assert not list(tmp_path.iterdir())
    run(model, tmp_path / "run")


def test_another_run_is_not_gone_on_with(tiny_model, tmp_path):
    model = tiny_model({"mask": "none"})
    run(model, tmp_path / "run")
    with pytest.raises(ValueError, match="was trained with seed=0; got 1"):
        run(model, tmp_path / "run", resume=True, seed=1)
    with pytest.raises(ValueError, match="holds a coder already"):
        run(model, tmp_path / "run")
    with pytest.raises(ValueError, match="has no coder to resume from"):
        run(model, tmp_path / "nowhere", resume=True)
    with pytest.raises(ValueError, match="resume needs the folder"):
        run(model, None, resume=True)


def test_padding_is_never_learned_from(tiny_model):
    """Rows that differ only behind their ends train the same coder."""
    model = tiny_model({"mask": "none"})
    cfg = CoderConfig("sae", "blocks.1.hook_resid_post", "blocks.1.hook_resid_post", 16, 16, 8, 2)
    tokens = torch.randint(29, (8, 10), generator=torch.Generator().manual_seed(2))
    other = tokens.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 29
    lengths, settings = torch.full((8,), 6), CoderTraining(n_tokens=200, batch_tokens=16, rows=4)
    one, two = (train_coder(model, of, cfg, settings, lengths=lengths) for of in (tokens, other))
    assert torch.equal(one.W_dec, two.W_dec)


def test_bad_settings_and_exploding_losses_end_in_one_line(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="n_tokens must be at least 1; got 0"):
        CoderTraining(n_tokens=0)
    with pytest.raises(ValueError, match="lr must be above 0"):
        CoderTraining(lr=-1.0)
    model = tiny_model({"mask": "none"})
    with pytest.raises(TrainingStopped, match="the loss is not finite; lower the learning rate; nothing was saved"):
        run(model, tmp_path / "run", lr=1e30, save_every=1000)
    with pytest.raises(ValueError, match="there are none"):
        train_coder(
            model,
            torch.zeros(2, 4, dtype=torch.long),
            CoderConfig("sae", "a", "a", 1, 1, 1, 1),
            keep=torch.zeros(2, 4) > 0,
        )


def test_without_sae_lens_its_trainer_says_what_to_install(tiny_model, monkeypatch):
    from sat_lens.coders import train_with_sae_lens

    monkeypatch.setitem(sys.modules, "sae_lens", None)
    cfg = CoderConfig("sae", "blocks.1.hook_resid_post", "blocks.1.hook_resid_post", 16, 16, 64, 8)
    with pytest.raises(ValueError, match=r"pip install sat_lens\[sae\]"):
        train_with_sae_lens(tiny_model({"mask": "none"}), torch.zeros(2, 4, dtype=torch.long), cfg)


@pytest.mark.slow
def test_sae_lens_trains_the_same_kind_of_sae(tiny_model):
    from sat_lens.coders import train_with_sae_lens

    model = tiny_model({"mask": "none"})
    cfg = CoderConfig("sae", "blocks.1.hook_resid_post", "blocks.1.hook_resid_post", 16, 16, 64, 8)
    tokens = torch.randint(29, (300, 16), generator=torch.Generator().manual_seed(2))
    settings = CoderTraining(n_tokens=150_000, lr=3e-3, batch_tokens=256)
    ours, theirs = train_coder(model, tokens, cfg, settings), train_with_sae_lens(model, tokens, cfg, settings)
    (batch,) = training.site_batches(model, cfg, tokens, batch_size=300)
    y = batch.y.flatten(0, 1).float()
    ours, theirs = (fvu(y, coder(y).detach()).item() for coder in (ours, theirs))
    assert ours < 0.3 and theirs < 0.3 and abs(ours - theirs) < 0.1, (ours, theirs)
    with pytest.raises(ValueError, match="sae-lens trains top-k SAEs here"):
        train_with_sae_lens(model, tokens, CoderConfig("skip", "a", "b", 1, 1, 1, 1))
