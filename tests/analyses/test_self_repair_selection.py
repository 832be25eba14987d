"""The norm's ratio under several ablations, and the answer along selections, by other routes and planted answers."""

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.result import Result
from analyses.self_repair.clipped import clipped_shares
from analyses.self_repair.mechanisms import STUDIES, study_figures
from analyses.self_repair.mechanisms.erasure_tokens import of_tokens, token_frames
from analyses.self_repair.mechanisms.estimates import median
from analyses.self_repair.mechanisms.ln_ratio import shares_by_bin
from analyses.texts import Stories
from sat_lens.repair import AbsDE, All, Mean, Resample, TopDE, Zero, heads, self_repair

ln_ratio, thresholds = STUDIES["ln_ratio"][0], STUDIES["thresholds"][0]


def texts(n=6, n_pos=9):
    tokens = torch.randint(29, (n, n_pos), generator=torch.Generator().manual_seed(3))
    return Stories(tokens, torch.tensor([n_pos, 4, n_pos, 5, 6, n_pos][:n]))


@pytest.fixture
def model(tiny_model):
    return tiny_model(ablation={"mask": "none"}, n_layers=2)


def rows_of(result, **index):
    table = result.table
    for name, wanted in index.items():
        table = table[table[name] == wanted]
    return table


def one(result, column="value", **index):
    table = rows_of(result, **index)
    assert len(table) == 1
    return float(table[column].iloc[0])


def test_the_norms_ratio_by_hooks(model):
    """Head 0.1 zeroed, in a whole forward pass; the removal alone taken from the last stream."""
    stories = texts()

    def zero(z, hook):
        z = z.clone()
        z[:, :, 1] = 0
        return z

    with torch.no_grad():
        _, clean = model.run_with_cache(stories.tokens)
        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_z", zero)]):
            _, run = model.run_with_cache(stories.tokens)
    keep = stories.predicted.clone()
    keep[:, 0] = False
    last = clean["blocks.1.hook_resid_post"]
    without = last - clean["blocks.0.attn.hook_z"][:, :, 1] @ model.blocks[0].attn.W_O[1]
    scale = (without.var(-1, correction=0) + model.cfg.eps).sqrt()
    s0, s1 = (cache["ln_final.hook_scale"][..., 0] for cache in (clean, run))
    ratio, own = (s0 / s1)[keep].numpy(), (s0 / scale)[keep].detach().numpy()
    result = ln_ratio(model, stories, component=(0, 1), ablations=[Zero()], select=All(), batch_size=2)
    for measure, wanted in (("ratio", ratio.mean()), ("median", np.median(ratio)), ("above_1", (ratio > 1).mean()),
                            ("own_ratio", own.mean())):  # fmt: skip
        assert one(result, measure=measure) == pytest.approx(wanted, rel=1e-9), measure
    assert one(result, "n_tokens", measure="ratio") == keep.sum()


def test_each_ablation_gives_what_self_repair_gives_at_the_same_tokens(model):
    stories = texts()
    kinds = [Resample(n=2, seed=1), Mean(), Zero()]
    keep = self_repair(model, stories.tokens, [(0, 2)], kinds[0], lengths=stories.lengths, select=All()).per_token(
        "L0H2"
    )
    mask = torch.zeros_like(stories.predicted)
    mask[keep.seq.tolist(), keep.pos.tolist()] = True  # the longest texts' ends have no donor
    result = ln_ratio(model, stories, component=(0, 2), ablations=kinds, select=TopDE(0.3), batch_size=4)
    for kind in kinds:
        known = self_repair(
            model, stories.tokens, [(0, 2)], kind, lengths=stories.lengths, keep=mask, select=TopDE(0.3)
        )
        row = known.per_component().iloc[0]
        for measure, column in (("dlogit", "dlogit"), ("self_repair", "self_repair"), ("norm", "sr_ln"),
                                ("removed", "removed"), ("ratio", "scale_ratio")):  # fmt: skip
            found = one(result, measure=measure, replaced_by=kind.name)
            assert found == pytest.approx(row[column], rel=1e-6), (kind, measure)
        bins = rows_of(result, measure="histogram", replaced_by=kind.name)
        assert bins.value.sum() == pytest.approx(1) and bins["null"].sum() == pytest.approx(1)
    assert set(result.table.n_tokens[result.table.measure == "ratio"]) == {row.n_tokens}


def test_without_a_norm_no_ablation_changes_its_scale(tiny_model):
    model = tiny_model(ablation={"mask": "none"}, normalization_type=None)
    table = ln_ratio(model, texts(), select=All()).table
    assert (table[table.measure.isin(["ratio", "median", "own_ratio"])].value == 1).all()
    assert (table[table.measure.isin(["above_1", "norm"])].value == 0).all()
    assert set(table.replaced_by) == {"resample (n=1, seed=0)", "mean (dataset)", "zero"}


def test_bins_hold_what_is_beyond_them():
    found = shares_by_bin(np.array([0.0, 1.1, 1.2, 9.0]), np.array([1.0, 1.0, 2.0, 4.0]), np.array([1.0, 1.5, 2.0]))
    assert found.tolist() == [0.5, 0.5]


def test_medians_are_numpys_also_of_resampled_stories():
    draw = np.random.default_rng(0)
    for n in (7, 8):
        values, row = draw.normal(size=n), draw.integers(0, 3, n)
        assert float(median(values, row, 3).value) == pytest.approx(np.median(values))
    values, row = draw.normal(size=400), np.repeat(np.arange(40), 10)
    found = median(values, row, 40)
    drawn = [np.median(values.reshape(40, 10)[draw.integers(0, 40, 40)]) for _ in range(1000)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert float(found.low) == pytest.approx(low, abs=0.03) and float(found.high) == pytest.approx(high, abs=0.03)


def test_every_stop_of_the_slider_is_the_selection_that_it_names(model):
    stories = texts()
    result = thresholds(model, stories, shares=(1.0, 0.3), logits=(0.0, 0.05), seed=2)
    stops = {
        ("top", 1.0): TopDE(1.0),
        ("top", 0.3): TopDE(0.3),
        ("beyond", 0.0): AbsDE(0.0),
        ("beyond", 0.05): AbsDE(0.05),
    }
    for (by, step), select in stops.items():
        known = self_repair(
            model, stories.tokens, heads(model), Resample(seed=2), lengths=stories.lengths, select=select
        ).per_component()
        for measure in ("de", "removed", "dlogit", "self_repair"):
            rows = rows_of(result, by=by, threshold=step, measure=measure)
            np.testing.assert_allclose(rows.value, known[measure], rtol=1e-4, atol=1e-6)
            assert (rows.n_tokens.to_numpy() == known.n_tokens).all()
        later = known[known.layer == 1]
        wanted = (later.self_repair * later.n_tokens).sum() / (later.removed * later.n_tokens).sum()
        assert one(result, by=by, threshold=step, half="second") == pytest.approx(wanted, rel=1e-4)
        alone = (later.ln_own * later.n_tokens).sum() / (later.removed * later.n_tokens).sum()
        assert one(result, "null", by=by, threshold=step, half="second") == pytest.approx(alone, rel=1e-4)


def test_the_slider_shows_one_selection_at_a_time(model, tmp_path):
    thresholds(model, texts()).save(tmp_path)
    result = Result.load(tmp_path)
    drawn = study_figures(result)["threshold_slider"]
    (slider,) = drawn.layout.sliders
    points = [trace for trace in drawn.data if trace.mode == "markers"]
    assert [step.label for step in slider.steps] == ["100 %", "50 %", "20 %", "10 %", "5 %", "2 %", "1 %", "0.5 %"]
    assert slider.active == 5 and [trace.visible for trace in points] == [i == 5 for i in range(8)]
    for number, step in enumerate(slider.steps):
        shown = [trace for trace, on in zip(drawn.data, step.args[0]["visible"], strict=True) if on]
        assert shown == [drawn.data[0], points[number]], "the line and this selection's points"
        rows = rows_of(result, by="top", threshold=float(step.label.split()[0]) / 100, measure="de")
        rows = rows[rows.layer >= 0]
        np.testing.assert_allclose(sorted(points[number].x), sorted(rows.value))
        assert f"top {step.label} of tokens" in step.args[1]["title.text"]


def test_planted_ablations_are_drawn_apart(model, tmp_path):
    """Bars of the overlay are the table's, and a legend says each one's share above 1."""
    ln_ratio(model, texts(), select=All()).save(tmp_path)
    result = Result.load(tmp_path)
    drawn = study_figures(result)
    filled = [trace for trace in drawn["ln_ratio_hist"].data if trace.fill == "tozeroy"]
    assert [trace.name.split(":")[0] for trace in filled] == list(result.meta["ablations"])
    for trace, name in zip(filled, result.meta["ablations"], strict=True):
        np.testing.assert_allclose(trace.y[:-1], rows_of(result, measure="histogram", replaced_by=name).value)
        above = one(result, measure="above_1", replaced_by=name)
        assert f"{100 * above:.0f} % above 1" in trace.name
    panels = [trace for trace in drawn["ablations_plane"].data if trace.mode == "markers"]
    assert len(panels) == 3 and len({tuple(trace.x) for trace in panels}) == 1, "the same tokens in every panel"


def test_bad_questions_are_refused(model):
    for knobs, message in (({"ablations": []}, "at least 1 ablation"), ({"ablations": [Zero(), Zero()]}, "each once")):
        with pytest.raises(ValueError, match=message):
            ln_ratio(model, texts(), **knobs)
    with pytest.raises(ValueError, match="shares of tokens must be above 0 and at most 1; got"):
        thresholds(model, texts(), shares=(0.5, 2))


def test_clipped_shares_are_means_over_tokens(model):
    stories = texts()
    found = self_repair(model, stories.tokens, heads(model), Resample(), lengths=stories.lengths, select=All())
    table = clipped_shares(found)
    for i, component in enumerate(found.components):
        tokens = found.per_token(component.name)
        for short, column in (("heads", "sr_heads"), ("mlps", "sr_mlps"), ("sr", "self_repair")):
            share = tokens[column] / tokens.de
            assert table[f"{short}_frac_clipped"][i] == pytest.approx(np.clip(share, 0, 1).mean(), rel=1e-5)
            assert table[f"{short}_frac_median"][i] == pytest.approx(share.median(), rel=1e-5)
        rises = tokens[tokens.self_repair > 0]
        wanted = np.clip(rises.sr_mlps / rises.self_repair, 0, 1).mean()
        assert table.mlps_of_repair_clipped[i] == pytest.approx(wanted, rel=1e-5)


def test_top_neurons_of_tokens_by_hand():
    """Two tokens: net 3 of positive 4 (the five largest: 4); net 1 of positive 7, capped at 3."""
    de = torch.tensor([[-1.0, 2.0, 0.0], [0.5, -3.0, 1.0]])
    repair = torch.tensor([[3.0, 1.0, -1.0], [-6.0, 7.0, 0.0]])
    found = of_tokens(de, repair)
    assert (
        found["neuron"].tolist() == [0, 1] and found["clean"].tolist() == [-1, -3] and found["abl"].tolist() == [2, 4]
    )
    assert found["layer"].tolist() == [1, -1.5] and found["positive"].tolist() == [4, 7]
    found["few"] = np.array([4.0, 7.0])  # of 5, where there are more than 3
    frames = pd.concat(token_frames({"real": [found], "null": [found]}, [np.array([0, 1])], 2))
    value = frames.set_index("measure").value
    assert value["positive_over_net"] == pytest.approx((4 / 3 + 7) / 2)
    assert value["top5_share"] == pytest.approx((4 / 3 + 3) / 2)


def test_heads_that_are_not_behind_the_seeds_do_not_grow(tiny_model):
    model = tiny_model(ablation={"mask": "none"}, n_layers=3, dtype=torch.float32)
    table = STUDIES["backups"][0](model, texts(), seeds=[(1, 0)], select=All()).table
    growth = table[table.measure == "de_growth"]
    assert (growth[growth.layer < 2].value == 0).all() and (growth[growth.layer == 2].value != 0).all()
