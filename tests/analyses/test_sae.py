"""SAEs: what is measured, by hand and by two other routes; what is written; matched numbers; the command."""

import signal
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from analyses.result import Result
from analyses.sae.__main__ import arguments as command_arguments
from analyses.sae.__main__ import main, settings_of
from analyses.sae.comparison import saes_compared
from analyses.sae.evaluation import evaluated
from analyses.sae.figures import arms_figure, front_figure
from analyses.sae.matched import at_fvu, interval, on_front
from analyses.sae.settings import PUBLISHED, Settings, published_layer
from analyses.sae.sweep import sae_sweep
from analyses.sae.text import held_out_stories, training_windows
from analyses.sae.training import MISSING, trained_sae
from sat_lens import SelfAblation, save
from sat_lens.coders import evaluate_coder, load_coder
from sat_lens.commands import run

HOOK = "blocks.1.hook_mlp_out"
TINY = Settings(
    coefficients=(0.5, 4.0), expansion=2, n_tokens=6_000, text_tokens=6_000, batch_tokens=100, norm_batches=2, rows=8,
    buffer_rows=40,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    draw = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in draw.integers(1, 29, draw.integers(5, 12))) for _ in range(1000)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n<|endoftext|>\n".join(texts) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def model(tiny_model, tiny_tokenizer):
    found = tiny_model(ablation={"mask": "local"})
    found.tokenizer = tiny_tokenizer
    return found


def made_sae(**weights):
    """An SAE of sae-lens with these weights, 0 where not given."""
    from sae_lens import StandardSAE, StandardSAEConfig

    sae = StandardSAE(StandardSAEConfig(d_in=16, d_sae=32, apply_b_dec_to_input=False, dtype="float64"))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(torch.as_tensor(weights.get(name, 0.0), dtype=torch.float64).expand_as(parameter))
    return sae.requires_grad_(False)


def test_an_sae_that_loses_nothing_one_that_says_nothing_and_one_that_says_the_mean(model, corpus):
    plain = model.to_hooked_transformer()
    stories = held_out_stories(corpus, model.tokenizer, 8, 16)
    both = torch.cat([torch.eye(16), -torch.eye(16)])  # relu(x) - relu(-x) = x
    perfect = evaluated(plain, made_sae(W_enc=both.T, W_dec=both), HOOK, stories)
    numbers = {name: value.item() for name, value in perfect.numbers().items()}
    assert numbers["fvu"] == pytest.approx(0, abs=1e-12) and numbers["ce_score"] == pytest.approx(1)
    assert numbers["l0"] == 16 and perfect.dead == 0 and perfect.n.sum() == stories.lengths.sum()
    silent = evaluated(plain, made_sae(), HOOK, stories)
    assert silent.numbers()["ce_score"].item() == pytest.approx(0) and silent.numbers()["l0"] == 0 and silent.dead == 1
    _, cache = plain.run_with_cache(stories.tokens)
    inside = torch.arange(stories.tokens.shape[1]) < stories.lengths[:, None]
    mean = evaluated(plain, made_sae(b_dec=cache[HOOK][inside].mean(0)), HOOK, stories)
    assert mean.numbers()["fvu"].item() == pytest.approx(1)
    assert mean.numbers()["ce_score"].item() == pytest.approx(mean.mean_score)


@pytest.mark.parametrize("skip", [False, True])
def test_a_trained_sae_is_measured_as_hooks_by_hand_and_our_own_coders_measure_it(model, corpus, tmp_path, skip):
    plain, separator = model.to_hooked_transformer(), 0 if skip else None
    windows = training_windows(corpus, model.tokenizer, 4_000, 16)
    handlers, state = signal.getsignal(signal.SIGINT), torch.get_rng_state()
    sae = trained_sae(plain, windows, HOOK, 2.0, TINY, tmp_path / "sae", separator=separator)
    assert signal.getsignal(signal.SIGINT) is handlers and torch.equal(torch.get_rng_state(), state)
    names = {path.name for path in (tmp_path / "sae").iterdir()}
    assert names == {"cfg.json", "runner_cfg.json", "sae_weights.safetensors", "sparsity.safetensors"}

    stories = held_out_stories(corpus, model.tokenizer, 8, 16)
    assert (stories.tokens[:, 0] == 0).all() and (stories.tokens[:, 1:] != 0)[stories.predicted[:, :-1]].all()
    found = evaluated(plain, sae, HOOK, stories, separator=separator, batch=3)
    keep = torch.arange(stories.tokens.shape[1]) < stories.lengths[:, None]
    keep = keep & (stories.tokens != 0) if skip else keep

    def loss(edit):
        hooks = [] if edit is None else [(HOOK, edit)]
        log_probs = plain.run_with_hooks(stories.tokens, fwd_hooks=hooks).log_softmax(-1)
        nats = F.nll_loss(log_probs[:, :-1].mT, stories.tokens[:, 1:], reduction="none")
        return nats[stories.predicted[:, :-1]].mean().item()

    def rebuilt(x, hook):
        z = (x.float() @ sae.W_enc + sae.b_enc).relu()
        return torch.where(keep[..., None], (z @ sae.W_dec + sae.b_dec).to(x.dtype), x)

    ce = {"clean": loss(None), "sae": loss(rebuilt), "zero": loss(lambda x, hook: torch.zeros_like(x))}
    numbers = {name: value.item() for name, value in found.numbers().items()}
    for name, value in ce.items():
        assert numbers[f"ce_{name}"] == pytest.approx(value, abs=1e-6)
    assert numbers["ce_score"] == pytest.approx((ce["zero"] - ce["sae"]) / (ce["zero"] - ce["clean"]), rel=1e-4)

    ours = evaluate_coder(
        plain, load_coder(tmp_path / "sae", hook_in=HOOK), stories.tokens, lengths=stories.lengths,
        keep=stories.tokens != 0 if skip else None,
    )  # fmt: skip
    assert numbers["fvu"] == pytest.approx(ours.fvu, rel=1e-5) and numbers["l0"] == pytest.approx(ours.l0)
    assert found.dead == pytest.approx(ours.dead_share)
    if not skip:  # ours leaves the losses of uncounted tokens out
        assert numbers["ce_score"] == pytest.approx(ours.ce_score, rel=1e-4)


def test_windows_and_held_out_stories_share_no_text(corpus, tiny_tokenizer):
    windows = training_windows(corpus, tiny_tokenizer, 20_000, 16)
    stories = held_out_stories(corpus, tiny_tokenizer, 100, 32)
    text = " ".join(map(str, windows.flatten().tolist()))
    rows = [" ".join(map(str, row[:n].tolist())) for row, n in zip(stories.tokens, stories.lengths, strict=True)]
    assert 5 < len(rows) < 40 and not any(row in text for row in rows)
    with pytest.raises(ValueError, match="at least 2 stories"):
        held_out_stories(corpus, tiny_tokenizer, 1, 32)


def test_matched_numbers_by_hand():
    fvu, l0 = np.array([[0.1, 0.1], [0.4, 0.15], [0.2, 0.5]]), np.array([[8.0, 8.0], [2.0, 6.0], [4.0, 1.0]])
    assert at_fvu(0.3, fvu, l0).tolist() == [3.0, pytest.approx(6 - 5 * 0.15 / 0.35)]
    assert np.isnan(at_fvu(0.05, fvu, l0)).all() and np.isnan(at_fvu(0.45, fvu, l0)).tolist() == [True, False]
    assert on_front(np.array([8.0, 2, 4, 9]), np.array([0.1, 0.4, 0.2, 0.3])).tolist() == [True, True, True, False]
    assert on_front(np.array([3.0, 3]), np.array([0.1, 0.1])).all()
    assert interval(np.arange(1001.0)) == (25.0, 975.0)
    assert np.isnan(interval(np.where(np.arange(100) < 10, np.nan, 1.0))).all()


def test_the_published_settings_and_site():
    assert (PUBLISHED.n_steps, PUBLISHED.coefficients, PUBLISHED.lr, PUBLISHED.expansion) == (100_000, (5.0,), 1e-5, 16)
    assert [published_layer(n) for n in (1, 2, 4, 8, 12)] == [0, 1, 3, 6, 9]
    args = command_arguments(["x", "--reproduce", "--steps", "7", "--expansion", "2"])
    assert settings_of(args).n_tokens == 7 * 4096 and settings_of(args).lr == 1e-5
    for wrong in ({"coefficients": ()}, {"coefficients": (1.0, 1.0)}, {"n_tokens": 5}, {"rows": 0}):
        with pytest.raises(ValueError, match="must"):
            Settings(**wrong)


def sweep_result(name: str, arm: str, seed: int, shift: float) -> Result:
    rows = []
    for coefficient, fvu, l0 in ((1.0, 0.1, 20.0), (4.0, 0.3, 5.0)):
        for metric, value in (("fvu", fvu), ("l0", l0 + seed / 10 - shift), ("ce_score", 1 - fvu)):
            rows.append({"coefficient": coefficient, "metric": metric, "value": value, "pareto": True, "n": 9})
    rows += [{"metric": "l0_matched", "value": 10 + seed / 10 - shift, "pareto": False, "n": 9}]
    table = pd.DataFrame(rows, columns=["coefficient", "metric", "value", "ci_low", "ci_high", "null", "n", "pareto"])
    meta = {"checkpoint": name, "ablation": SelfAblation(mask=arm).to_dict(), "training": {"seed": seed}, "layer": 1}
    return Result("sae", table, {}, {**meta, "target_fvu": 0.2, "settings": {}, "knobs": {}, "hook": HOOK})


def test_arms_are_compared_at_matched_fvu():
    results = [
        sweep_result(f"{arm}-{s}", arm, s, 4.0 * (arm == "local")) for arm in ("none", "local") for s in range(3)
    ]
    compared = saes_compared(results)
    found = pd.DataFrame(compared.meta["differences"])
    claim = found[found.family == "claim"]
    assert claim.metric.tolist() == ["l0 at FVU 0.2"] and claim.difference.item() == pytest.approx(-4)
    assert claim.claim.item() and "holds after correction" in compared.meta["summary"]
    assert "l0 at coefficient 4" in set(found[found.family == "other"].metric)
    assert [trace.name for trace in arms_figure(compared).data if trace.showlegend] == ["none", "local k=4"]
    other = Result("sae", results[1].table, {}, {**results[1].meta, "layer": 0})
    with pytest.raises(ValueError, match="asked alike"):
        saes_compared([results[0], other])


def test_a_sweep_has_its_numbers_intervals_and_front(model, corpus, tmp_path):
    result = sae_sweep(model, TINY, corpus=corpus, target=0.9, n=10, n_bootstrap=50)
    table = result.table.set_index(["coefficient", "metric"])
    assert table.loc[(0.5, "l0")].value > table.loc[(4.0, "l0")].value
    assert table.loc[(0.5, "fvu")].value < table.loc[(4.0, "fvu")].value
    low, value, high = table.loc[(0.5, "ce_score"), ["ci_low", "value", "ci_high"]]
    assert low < value < high and result.meta["hook"] == HOOK and result.meta["n_latents"] == 32
    result.save(tmp_path)
    assert len(front_figure(Result.load(tmp_path)).data) == 2
    for wrong in ({"layer": 2}, {"target": 1.5}):
        with pytest.raises(ValueError, match="layer|FVU"):
            sae_sweep(model, TINY, corpus=corpus, **wrong)


def test_the_command(model, corpus, tmp_path, capsys):
    for name in ("one", "two"):
        save(model, tmp_path / name, training={"seed": 0, "tokens_seen": 1, "step": 1}, log="")
    out = tmp_path / "out"
    small = ["--n", "6", "--steps", "5", "--expansion", "1", "--coefficients", "1"]
    main([str(tmp_path / "one"), str(tmp_path / "two"), "--corpus", corpus, *small, "--out", str(out), "--quiet"])
    printed = capsys.readouterr()
    assert "CE score" in printed.out and "Training SAE" not in printed.err
    assert (out / "sae" / "two.saes" / "l1-1" / "sae_weights.safetensors").is_file()
    assert (out / "sae" / "arms" / "figures" / "arms.html").is_file()


def test_without_sae_lens_there_is_one_line(model, corpus, tmp_path, monkeypatch, capsys):
    save(model, tmp_path / "one", training={"seed": 0, "tokens_seen": 1, "step": 1}, log="")
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(SystemExit) as ended:
        run(lambda argv: main([str(tmp_path / "one"), "--corpus", corpus, "--out", str(tmp_path / "out"), "--quiet"]))
    assert ended.value.code == 2 and MISSING in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--coefficients", "0"], "--coefficients: must be a number above 0; got '0'"),
        (["--coefficients", "1", "1"], "--coefficients must differ"),
        (["--layer", "-1"], "--layer must be at least 0; got -1"),
        (["--layer", "last"], "--layer"),
        (["--steps", "0"], "--steps: must be a whole number"),
        (["--expansion", "x"], "--expansion: must be a whole number"),
        (["--fvu", "1"], "--fvu must be below 1; got 1"),
        (["--fvu", "nan"], "--fvu: must be a number above 0; got 'nan'"),
        (["--n", "1"], "--n must be at least 2 stories"),
        (["--reproduce=1"], "--reproduce"),
    ],
)
def test_bad_arguments_end_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["none-s0", *argv])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1
