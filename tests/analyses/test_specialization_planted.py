"""Units whose selectivity is known: in a model made by hand, in random masks, in arms made up."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from analyses.labels import Labels
from analyses.result import Result
from analyses.specialization import observation as observed
from analyses.specialization.activity import activity_of, calibrated
from analyses.specialization.comparison import cliffs_delta, cohens_d, specialization_compared
from analyses.specialization.figures import arms_figure, specialization_figures
from analyses.specialization.intervals import jackknife_interval, p_against_draws
from analyses.specialization.logit_weights import logit_weights, token_lists
from analyses.specialization.measured import measured_of
from analyses.specialization.selectivity import unit_selectivity
from analyses.texts import Stories
from analyses.unit_streams import UnitBatch, Units, real_tokens, units_of

V, POS = 8, 12
TOKEN, BIGRAM, PLACE, NOTHING, EVERYTHING = range(5)


@pytest.fixture
def planted(tiny_model: Callable[..., Any]) -> Any:
    """One layer whose head copies the token before, and whose neurons fire on known things.

    N0 on token 3; N1 on 5 after 2; N2 from position 6 on; N3 on nothing; N4 on everything, always 1.
    """
    model = tiny_model(
        ablation={"mask": "none"}, n_layers=1, d_model=2 * V + POS, n_heads=1, d_head=2 * V + POS, d_mlp=5, d_vocab=V,
        n_ctx=POS, act_fn="relu", normalization_type=None, tie_word_embeddings=False,
    )  # fmt: skip
    named = dict(model.named_parameters())
    before, place = torch.arange(V), torch.arange(POS)
    with torch.no_grad():
        for parameter in named.values():
            parameter.zero_()
        named["embed.W_E"][before, before] = 1.0
        named["pos_embed.W_pos"][place, 2 * V + place] = 1.0
        named["blocks.0.attn.W_Q"][0, 2 * V + place, place] = 100.0
        named["blocks.0.attn.W_K"][0, 2 * V + place[:-1], place[1:]] = 1.0
        named["blocks.0.attn.W_V"][0, before, before] = 1.0
        named["blocks.0.attn.W_O"][0, before, V + before] = 1.0
        w, b = named["blocks.0.mlp.W_in"], named["blocks.0.mlp.b_in"]
        w[3, TOKEN], b[TOKEN] = 1.0, -0.5
        w[5, BIGRAM], w[V + 2, BIGRAM], b[BIGRAM] = 1.0, 1.0, -1.5
        w[2 * V + 6 :, PLACE], b[PLACE] = 1.0, -0.5
        b[NOTHING], b[EVERYTHING] = -1.0, 1.0
        named["blocks.0.mlp.W_out"][TOKEN, 4] = 2.0
        named["unembed.W_U"][before, before] = 1.0
    return model


@pytest.fixture
def stories() -> Stories:
    """The late tokens of each story are its early ones in another order: position tells nothing of the token."""
    draw = torch.Generator().manual_seed(1)
    early = torch.randint(V, (64, POS // 2), generator=draw)
    late = early.gather(1, torch.rand(64, POS // 2, generator=draw).argsort(1))
    return Stories(torch.cat([early, late], 1), torch.full((64,), POS))


def labels_of(stories: Stories) -> list[Labels]:
    names = tuple(f"t{i}" for i in range(V))
    place = torch.arange(POS).expand(stories.tokens.shape)
    return [
        Labels("current_token", names, stories.tokens, "tokens"),
        Labels("previous_token", names, stories.tokens.roll(1, 1).masked_fill(place == 0, -1), "tokens"),
        Labels("position", ("early", "late"), (place >= 6).long(), "tokens"),
    ]


def test_planted_neurons_are_named(planted: Any, stories: Stories):
    result = unit_selectivity(planted, stories, labels_of(stories), n_draws=12)
    table = result.table.set_index(["unit", "metric", "target"]).sort_index()

    def row(neuron: int, metric: str, target: str = "-") -> pd.Series:
        return table.loc[[(f"L0.N{neuron}", metric, target)]].iloc[0]

    def best(neuron: int) -> str:
        share = table.loc[(f"L0.N{neuron}", "information share")]
        return str(share.excess.idxmax())

    assert best(TOKEN) == "current_token" and row(TOKEN, "information share", "current_token").value == 1.0
    assert row(TOKEN, "mutual information", "current_token").label == "t3"
    n_threes = (stories.tokens == 3).sum().item()
    assert row(TOKEN, "mutual information", "current_token").lift == pytest.approx(64 * POS / n_threes, rel=1e-5)
    assert row(TOKEN, "effective contexts").value == 1.0
    assert row(TOKEN, "logit kurtosis", "logits").label.startswith("+ 4,")

    assert row(BIGRAM, "mutual information", "current_token").label == "t5"
    assert row(BIGRAM, "mutual information", "previous_token").label == "t2"
    for target in ("current_token", "previous_token"):
        one = row(BIGRAM, "mutual information", target)
        assert one.q < 0.01 and 0.2 < row(BIGRAM, "information share", target).value < 0.8  # neither is all of it

    assert best(PLACE) == "position" and row(PLACE, "information share", "position").value == 1.0
    assert row(PLACE, "mutual information", "position").label == "late"
    assert row(PLACE, "mutual information", "current_token").value == pytest.approx(0, abs=1e-12)
    assert row(PLACE, "mutual information", "current_token").excess < 0  # labels dealt out anew say more, by chance
    assert row(PLACE, "effective contexts").value > 7.5

    assert row(NOTHING, "live stories").value == 0
    assert row(NOTHING, "live stories").ci_high == pytest.approx(3.8415 / (64 + 3.8415), rel=1e-3)
    assert row(NOTHING, "usage").value == 0 and row(NOTHING, "mutual information", "current_token").value == 0
    assert pd.isna(row(NOTHING, "mutual information", "current_token").label)
    assert result.meta["kinds"][0]["n_dead"] == 1

    assert row(EVERYTHING, "usage").value == 1 and row(EVERYTHING, "live stories").value == 1
    assert row(EVERYTHING, "mutual information", "current_token").value == 0
    assert row(EVERYTHING, "mutual information", "current_token").excess == 0
    assert np.isnan(row(EVERYTHING, "variance explained", "current_token").value)


def test_results_are_drawn_from_disk_alone(planted: Any, stories: Stories, tmp_path: Any):
    result = unit_selectivity(planted, stories, labels_of(stories), kinds=["neuron", "channel", "head"], n_draws=3)
    result.save(tmp_path)
    loaded = Result.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.table, result.table, check_dtype=False)
    figures = specialization_figures(loaded)
    assert {"metrics_neuron", "metrics_head", "preferences_neuron", "layers"} <= set(figures)
    assert set(figures["preferences_neuron"].data[0].x) == {"early", "late"}
    assert {row["layer"] for row in result.meta["means"]} == {-1, 0}


def test_kinds_and_streams_all_have_an_answer(tiny_model: Callable[..., Any]):
    model = tiny_model(d_mlp=24)
    tokens = torch.randint(1, 29, (12, 10), generator=torch.Generator().manual_seed(1))
    stories = Stories(tokens, torch.full((12,), 10))
    labels = [Labels("current_token", tuple(map(str, range(29))), tokens, "tokens")]
    kinds = ["neuron", "channel", "head", "mask_neuron", "mask_channel"]
    result = unit_selectivity(model, stories, labels, kinds=kinds, stream="ablated", n_draws=3, n_mask_draws=3)
    table = result.table
    assert set(table.kind) == set(kinds) and set(table.stream) == {"ablated"}
    gated = table[table.kind.isin(["neuron", "channel"]) & (table.metric == "usage")]
    assert (gated.against == "random mask").all() and gated.excess.abs().max() < 1e-12  # the same sparsity, to the unit
    assert set(table[table.metric == "mutual information"].against) == {"shuffled", "random mask"}
    assert not table[table.kind.str.startswith("mask")].metric.isin(["kurtosis", "gini", "logit kurtosis"]).any()
    clean = unit_selectivity(model, stories, labels, kinds=["neuron", "channel"], n_draws=3).table
    assert set(clean[clean.metric == "gini"].against) == {"rectified normal", "half normal"}


def test_random_masks_are_no_more_selective_than_their_null(monkeypatch: pytest.MonkeyPatch):
    """k winners of 64 drawn with unequal odds at every token: p is uniform, and few excesses leave their intervals."""
    n_units, n_stories, pos = 64, 48, 40
    table = pd.DataFrame({"unit": [f"L0.M{i}" for i in range(n_units)], "layer": 0, "index": range(n_units)})
    units = Units("mask_neuron", "ablated", table, (0,))
    odds = torch.linspace(0, 3, n_units)
    ps, outside = [], []
    for seed in range(3):
        draw = torch.Generator().manual_seed(seed)
        noise = -torch.log(-torch.log(torch.rand(n_stories, pos, n_units, generator=draw)))
        values = torch.zeros(n_stories, pos, n_units).scatter_(2, (noise + odds).topk(4, 2).indices, 1.0)
        keep = torch.arange(pos) < torch.randint(20, pos + 1, (n_stories, 1), generator=draw)

        def batches(
            model: Any,
            stories: Any,
            units: Any,
            batch: int,
            *,
            rows: Any,
            gates: bool,
            values: Any = values,
            keep: Any = keep,
        ):
            yield UnitBatch(torch.tensor(rows), values[rows], keep[rows])

        monkeypatch.setattr(observed, "unit_batches", batches)
        label = torch.randint(6, (n_stories, pos), generator=draw)
        target = observed.target_of(Labels("role", tuple("abcdef"), label, "rules"), keep)
        model: Any = type("M", (), {"cfg": type("C", (), {"dtype": torch.float32, "device": "cpu"})})
        stories = Stories(label, keep.sum(1))
        activity = calibrated(values[keep], "positive", 0.0)
        seen = observed.observation(
            model, stories, units, activity, [target], n_groups=8, n_draws=20, n_mask_draws=2, seed=seed, batch=8,
            progress=False,
        )  # fmt: skip
        for metric in ("mutual information", "variance explained"):
            one = measured_of(seen)[metric, "role"]
            null = one.null["shuffled"]
            ps.append(p_against_draws(one.value, null))
            low, high = jackknife_interval(one.value, one.left_out)
            outside.append((low > null.mean(0)) | (high < null.mean(0)))
    p = np.concatenate(ps[::2])
    assert 0.01 < (p < 0.05).mean() < 0.10  # 192 units: 0.05 +- 0.016
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert np.mean(outside) < 0.10


def test_a_mask_is_told_from_what_it_lets_through(tiny_model: Callable[..., Any]):
    """Against the masks of other tokens, what is left is the mask's own choice: none, where it does not choose."""
    model = tiny_model(ablation={"k_attn": 3, "k_mlp": 5})
    with torch.no_grad():
        for name, weight in model.gates.named_parameters():
            if name.endswith("weight"):
                weight.zero_()  # the same units win at every token
    tokens = torch.randint(1, 29, (16, 12), generator=torch.Generator().manual_seed(2))
    stories = Stories(tokens, torch.full((16,), 12))
    labels = [Labels("current_token", tuple(map(str, range(29))), tokens, "tokens")]
    table = unit_selectivity(model, stories, labels, stream="ablated", n_draws=3, n_mask_draws=3).table
    against = table[(table.metric == "variance explained") & (table.against == "random mask")].dropna(subset=["excess"])
    assert len(against) == 10 and against.excess.abs().max() < 1e-9  # the activations' own selectivity is in the null
    shuffled = table[(table.metric == "variance explained") & (table.against == "shuffled")].dropna(subset=["excess"])
    assert shuffled.excess.max() > 0.1


def test_soft_masks_count_as_active_above_a_half(tiny_model: Callable[..., Any]):
    model = tiny_model(ablation={"forward": "soft"})
    tokens = torch.randint(1, 29, (8, 9), generator=torch.Generator().manual_seed(2))
    stories = Stories(tokens, torch.full((8,), 9))
    assert activity_of(model, stories, units_of(model, "mask_neuron")).threshold.eq(0.5).all()
    assert activity_of(model, stories, units_of(model, "neuron", "ablated")).rule == "positive"
    assert activity_of(model, stories, units_of(model, "head")).by_quantile


def test_logit_weights_are_the_direct_path(tiny_model: Callable[..., Any]):
    """With the norm's scale and all else held, the change of centred logits is linear in a neuron's activation."""
    model = tiny_model()
    weights = logit_weights(model, units_of(model, "neuron"), top=3)
    cfg, neuron = model.cfg, 5
    written = model.blocks[1].mlp.W_out[neuron]
    centred = (written - written.mean()) * model.ln_final.w
    logits = (centred @ model.unembed.W_U).detach()
    logits = logits - logits.mean()
    assert weights.promoted[cfg.d_mlp + neuron].tolist() == logits.topk(3).indices.tolist()
    assert weights.suppressed[cfg.d_mlp + neuron].tolist() == (-logits).topk(3).indices.tolist()
    np.testing.assert_allclose(weights.largest[cfg.d_mlp + neuron], logits.topk(3).values.numpy())
    assert weights.kurtosis[cfg.d_mlp + neuron] == pytest.approx(stats.kurtosis(logits.numpy()))
    assert token_lists(weights, None, 1)[cfg.d_mlp + neuron].startswith(f"+ {logits.argmax().item()}; -")
    assert logit_weights(model, units_of(model, "head")).promoted.shape == (8, 8)
    with pytest.raises(ValueError, match="writes nothing"):
        logit_weights(model, units_of(model, "mask_neuron"))


def made_up(arm: str, seed: int, share: float, contexts: float) -> Result:
    ablation = {"mask": "none"} if arm == "none" else {
        "mask": "local", "k_attn": 4, "k_mlp": 4, "forward": "hard", "detach": "none", "gap_floor": 0}  # fmt: skip
    means = [
        {"kind": "neuron", "stream": "clean", "layer": -1, "metric": metric, "target": target, "against": "shuffled",
         "value": value + 1, "ci_low": value + 0.9, "ci_high": value + 1.1, "null": 1.0, "excess": value, "n_units": 9}
        for metric, target, value in (
            ("information share", "current_token", share), ("context entropy", "-", contexts), ("usage", "-", share))
    ]  # fmt: skip
    meta = {"checkpoint": f"{arm}-{seed}", "ablation": ablation, "training": {"seed": seed}, "means": means,
            "knobs": {"n": 9}, "summary": ""}  # fmt: skip
    return Result("specialization", pd.DataFrame({"unit": ["L0.N0"]}), {}, meta)


def test_planted_arms_are_compared_paired_and_corrected():
    shift = [0.0, 5.0, 9.0]  # seeds differ far more than arms: only pairs can tell
    results = [made_up("none", s, 0.1 + shift[s], 6.0 + shift[s]) for s in range(3)]
    results += [made_up("local", s, 0.3 + shift[s] + 0.01 * s, 3.0 + shift[s]) for s in range(3)]
    compared = specialization_compared(results)
    rows = {row["metric"]: row for row in compared.meta["differences"]}
    share = rows["neuron clean: information share (current_token), beyond shuffled"]
    assert share["family"] == "claim" and share["more_specialised"] and not share["claim"]
    assert share["n_pairs"] == 3 and share["paired"] == pytest.approx(0.21)
    test = stats.ttest_1samp([0.2, 0.21, 0.22], 0)
    assert share["paired_p"] == pytest.approx(test.pvalue) and share["paired_low"] == pytest.approx(
        test.confidence_interval().low
    )
    entropy = rows["neuron clean: context entropy, beyond shuffled"]
    assert entropy["difference"] == pytest.approx(-3) and entropy["more_specialised"]  # fewer contexts are more special
    raw = rows["neuron clean: usage, raw"]
    assert raw["family"] == "other" and raw["more_specialised"] is None
    one = compared.table[(compared.table.metric == entropy["metric"]) & (compared.table.arm == "none")].iloc[0]
    assert (one.ci_low, one.ci_high) == pytest.approx((5.9, 6.1))  # the interval moves with the null
    assert "local k=4" in compared.meta["verdicts"]
    assert len(arms_figure(compared).data) == 2
    assert cliffs_delta(np.array([3.0, 4.0]), np.array([1.0, 3.0])) == 0.75
    assert cohens_d(np.array([3.0, 5.0]), np.array([1.0, 3.0])) == pytest.approx(2 / 2**0.5)
    results[0].meta["knobs"] = {"n": 10}
    with pytest.raises(ValueError, match="asked alike"):
        specialization_compared(results)


def test_two_processes_give_the_numbers_of_one(planted: Any, stories: Stories, ranks: Callable[..., list[Any]]):
    def values(rank: int = 0) -> torch.Tensor:
        table = unit_selectivity(planted, stories, labels_of(stories), n_draws=4, n_groups=5).table
        return torch.tensor(table[["value", "ci_low", "null", "p"]].to_numpy(float)).nan_to_num(-1.0)

    alone = values()
    for found in ranks(2, values):
        torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-12)


def test_bad_questions_say_what_is_needed(planted: Any, stories: Stories):
    labels = labels_of(stories)
    with pytest.raises(ValueError, match="at least 8 stories; got 3"):
        unit_selectivity(planted, stories.subset(torch.arange(3)), labels)
    with pytest.raises(ValueError, match="at least one target"):
        unit_selectivity(planted, stories, [])
    with pytest.raises(ValueError, match="no ablated stream"):
        unit_selectivity(planted, stories, labels, stream="ablated")
    nothing = Labels("holder", ("a",), torch.full_like(stories.tokens, -1), "generator")
    with pytest.raises(ValueError, match="label of holder"):
        unit_selectivity(planted, stories, [nothing])
    with pytest.raises(ValueError, match="labels must be of the stories"):
        unit_selectivity(planted, stories.subset(torch.arange(9)), labels)
    assert real_tokens(planted, stories).all()


def test_the_command_writes_tables_figures_and_the_arms(tmp_path: Any, capsys: pytest.CaptureFixture[str]):
    from analyses.specialization.__main__ import main

    main(["none-s0", "local-k4-s0", "--units", "head", "--n", "8", "--draws", "2", "--target", "role", "--quiet",
          "--out", str(tmp_path)])  # fmt: skip
    folder = tmp_path / "specialization"
    for name in ("none-s0", "local-k4-s0", "arms"):
        assert Result.load(folder / name).name == "specialization"
    assert (folder / "none-s0" / "figures" / "metrics_head.html").exists()
    assert "head (clean stream): 16 of 16 live" in capsys.readouterr().out
