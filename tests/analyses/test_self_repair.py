"""The question of self-repair on models and numbers whose answer is known."""

import copy
import dataclasses
import json
import re
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.page import circuitsvis_bundle
from analyses.result import Result
from analyses.self_repair.arms_figure import arms_figure
from analyses.self_repair.comparison import EQUAL_PRIMARY, PRIMARY, self_repair_compared
from analyses.self_repair.depth import depth_of_models
from analyses.self_repair.equal_loss import BINNED, EDGES
from analyses.self_repair.figures import self_repair_figures
from analyses.self_repair.repair import repairers, story_self_repair, token_losses
from analyses.self_repair.report_part import self_repair_html
from analyses.self_repair.token_view import token_view
from sat_lens.repair import Resample, TopDE, heads, self_repair
from tests.cases.self_repair import backup_model, story_result, texts


@pytest.fixture
def backup(tiny_model):
    return partial(backup_model, tiny_model)


@pytest.fixture(scope="module")
def found():
    return story_result()


def test_the_share_that_a_backup_makes_up_for_is_found(backup):
    """Taking U out costs U times the target's weight; the MLP gives back its share, and there is no norm."""
    for share in (0.0, 0.25, 1.0):
        result = story_self_repair(backup(share), texts(), ablation="zero", select="all")
        second = result.meta["halves"]["second"]
        assert second["self_repair"]["value"] == pytest.approx(share)
        assert second["sr_mlps"]["value"] == pytest.approx(share) and second["sr_ln"]["value"] == 0
        assert second["self_repair"]["ci_low"] == pytest.approx(share)
        row = result.table[result.table.component == "L1H0"].iloc[0]
        assert row.self_repair == pytest.approx(share * row.removed) and row.removed != 0
        assert row.ln_own == 0
        assert result.meta["halves"]["first"]["self_repair"]["value"] is None


def test_the_table_is_the_librarys_and_the_halves_are_its_sums(tiny_model):
    model, stories = tiny_model(), texts()
    result = story_self_repair(model, stories, seed=2)
    known = self_repair(model, stories.tokens, heads(model), Resample(seed=2), lengths=stories.lengths, select=TopDE())
    known = known.per_component()
    for column in ("de", "ade", "dlogit", "self_repair", "sr_ln", "ci_low"):
        assert np.allclose(result.table[column], known[column])
    later = known[known.layer == 1]
    by_hand = (later.self_repair * later.n_tokens).sum() / (later.removed * later.n_tokens).sum()
    second = result.meta["halves"]["second"]
    assert second["self_repair"]["value"] == pytest.approx(by_hand)
    shares = sum(second[key]["value"] for key in ("sr_heads", "sr_mlps", "sr_ln", "sr_own", "sr_gate"))
    assert shares == pytest.approx(second["self_repair"]["value"])
    assert result.units["self_repair"] == "logits" and set(result.units) <= set(result.table)


def test_losses_are_those_of_a_plain_pass(tiny_model):
    model, stories = tiny_model(), texts()
    result = story_self_repair(model, stories, stream="both", select="all", control=False)
    with torch.no_grad():
        both = model(stories.tokens, stream="both")
    for name, logits in (("clean", both.clean), ("gated", both.ablated)):
        log = logits.log_softmax(-1)[:, :-1].gather(-1, stories.tokens[:, 1:, None])[..., 0]
        assert result.meta["losses"][name] == pytest.approx(-log[stories.predicted[:, :-1]].mean().item() / np.log(2))


def test_masks_have_a_share_and_a_control_where_they_react(tiny_model):
    result = story_self_repair(tiny_model(ablation={"mask": "global"}), texts(), stream="both", select="all")
    second = result.meta["halves"]["second"]
    assert second["sr_gate"]["value"] != 0 and [one["masks"] for one in result.meta["controls"]] == ["dealt", "random"]
    dealt, random = (one["sr_gate"]["value"] for one in result.meta["controls"])
    assert dealt != 0 == random, "random masks cannot react"
    assert "under dealt masks" in result.meta["summary"] and "under random masks" in result.meta["summary"]
    gated = story_self_repair(tiny_model(), texts(), stream="gated", select="all", control=False)
    assert gated.meta["halves"]["second"]["sr_gate"]["value"] == 0 and "controls" not in gated.meta


def test_repairers_count_those_that_share_in_a_repair():
    assert repairers(np.array([[1.0, -1.0, 1.0, 0.0], [0.0, 5.0, 0.0, 0.0], [0, 0, 0, 0]])) == pytest.approx(2.0)


def test_figures_are_drawn_from_what_is_on_disk_and_say_what_was_selected(found, tmp_path):
    found.save(tmp_path)
    drawn = self_repair_figures(Result.load(tmp_path))
    assert set(drawn) - {"token_view"} == {
        "repair_by_depth", "de_vs_dlogit", "token_grid", "breakdown_bars", "ln_fraction_by_depth", "ln_ratio_hist",
        "repair_heatmap", "repair_matrix", "shares_by_depth", "token_noise", "text",
    }  # fmt: skip
    for name, one in drawn.items():
        text = one.document if name in ("text", "token_view") else one.layout.title.text
        assert ("All tokens" if name == "token_view" else "all tokens") in text and "resample" in text, name
    dots = [trace for trace in drawn["de_vs_dlogit"].data if trace.customdata is not None]
    assert sum(len(trace.x) for trace in dots) == 8
    assert np.allclose(sorted(x for trace in dots for x in trace.x), sorted(found.table.de))
    heat = drawn["repair_heatmap"].data[0].z
    assert np.allclose(heat, found.table.self_repair.to_numpy().reshape(2, 4))
    bars = {}
    for trace in drawn["breakdown_bars"].data:  # a row a layer
        if trace.type == "bar":
            bars.setdefault(trace.name, []).extend(trace.y)
    parts = sum(np.array(bars[name]) for name in ("other heads", "MLPs", "final norm", "masks"))
    assert np.allclose(parts, found.table.self_repair)
    dots = [trace for trace in drawn["shares_by_depth"].data if trace.name == "component"]
    for trace, column in zip(dots, ("sr_ln", "sr_mlps", "sr_heads"), strict=True):
        assert np.allclose(trace.y, found.table[column])
    tokens = [trace for trace in drawn["token_noise"].data if trace.type == "scattergl"]
    grid = found.meta["grid"][0]
    assert np.allclose(tokens[0].y, np.array(grid["dlogit"]) + grid["removed"])
    assert sum(len(trace.x) for trace in drawn["token_noise"].data if trace.type == "histogram") == 4 * 6
    assert np.allclose(np.diag(np.array(drawn["repair_matrix"].data[0].z)[:4, :4]), 0)


def test_the_page_of_a_text_shows_each_token_once_and_runs_nothing_in_it(found):
    words = [["<script>alert(1)</script>", *story[1:]] for story in found.meta["texts"]["stories"]]
    result = Result(
        found.name, found.table, found.units, {**found.meta, "texts": {**found.meta["texts"], "stories": words}}
    )
    page = self_repair_figures(result)["text"].document
    assert "<script>alert" not in page and page.count("&lt;script&gt;alert(1)") >= len(words)
    assert found.meta["texts"]["self_repair"][0][0] is None and found.meta["texts"]["self_repair"][0][1] is not None
    part = self_repair_html(result)
    assert "<script>alert" not in part and "null: norm alone" in part and str(found.table.component[0]) in part


def arm(mask, seed, ratio, loss=2.0, noise=0.02, n=40):
    """A Result of a model whose self-repair is `ratio` of what was removed, give or take noise by story."""
    draw = np.random.default_rng(100 * seed + len(mask))
    removed = draw.uniform(1, 2, n)
    repair = removed * (ratio + draw.normal(0, noise) + draw.normal(0, noise, n))
    one = {"value": repair.sum() / removed.sum(), "ci_low": ratio - 0.1, "ci_high": ratio + 0.1}
    zero = dict.fromkeys(("value", "ci_low", "ci_high"), 0.0)
    half = {"self_repair": one, **dict.fromkeys(("sr_heads", "sr_mlps", "sr_ln", "sr_own", "sr_gate"), zero), "n": n}
    by_bin = {**dict.fromkeys(BINNED, np.ones(n)), "self_repair": repair, "removed": removed}
    ablation = {"mask": mask, "k_attn": 4, "k_mlp": 4, "forward": "hard", "detach": "none", "gap_floor": 0.0}
    meta = {
        "checkpoint": f"{mask}-s{seed}", "checkpoint_sha256": "", "ablation": ablation, "training": {"seed": seed},
        "knobs": {"selection": "top", "ablation": "zero", "n_tokens": 9, "masks": "own"}, "summary": "",
        "halves": {"first": half, "second": half}, "losses": {"clean": loss + 0.001 * seed},
        "by_story": {"self_repair": repair.tolist(), "removed": removed.tolist()}, "gini_of_direct_effects": 0.5,
        "by_loss": {name: [[float(x)] for x in of] for name, of in by_bin.items()},
    }  # fmt: skip
    components = {
        "component": ["L0H0", "L1H0"],
        "depth": [0.0, 0.5],
        "self_repair": [-ratio, ratio],
        "n_tokens": [n, n],
    }
    return Result("self_repair", pd.DataFrame(components), {}, meta)


def test_a_planted_reduction_is_found_and_its_size_is_right():
    models = [*(arm("none", s, 0.5) for s in range(3)), *(arm("local", s, 0.2) for s in range(3))]
    compared = self_repair_compared(models)
    (drawn,) = compared.meta["bootstrap"]
    assert drawn["ci_low"] < -0.3 < drawn["ci_high"] < 0 and drawn["p"] < 0.05 and drawn["n_stories"] == 40
    assert compared.meta["summary"].startswith("local k=4 against none: less self-repair")
    assert "models of equal loss (within 0.05 bits, 3 pairs)" in compared.meta["summary"]
    assert len(compared.meta["matched"]) == 3 and "at tokens of equal loss less" in compared.meta["summary"]
    (row,) = [r for r in compared.meta["differences"] if r["metric"] == PRIMARY]
    assert row["difference"] == pytest.approx(drawn["difference"]) and row["claim"]
    assert row["p_welch_holm"] == pytest.approx(2 * row["p_welch"]), "two hypotheses, corrected by themselves"
    assert arms_figure(compared).data[0].y is not None
    lines = [trace for trace in depth_of_models(compared).data if trace.mode == "lines"]
    assert [trace.name for trace in lines] == [result.meta["checkpoint"] for result in models]
    assert [list(trace.y) for trace in lines] == [list(result.table.self_repair) for result in models]
    assert len({trace.line.color for trace in lines}) == 2, "a colour an arm"


def test_equal_arms_are_not_told_apart_and_more_is_called_more():
    same = [*(arm("none", s, 0.3, noise=0.1) for s in range(3)), *(arm("local", s, 0.3, noise=0.1) for s in range(3))]
    assert "no difference held up" in self_repair_compared(same).meta["summary"]
    more = [*(arm("none", s, 0.1) for s in range(3)), *(arm("global", s, 0.4) for s in range(3))]
    assert "global k=4 against none: more" in self_repair_compared(more).meta["summary"]


def test_what_is_due_to_the_loss_alone_is_gone_at_tokens_of_equal_loss():
    """Half of the removed effect is repaired at easy tokens, none at hard ones, in either arm; one has more of these.

    The easy tokens' ratio is 0.5 and the hard ones' 0; per token 1 logit is removed. With 1 easy token to 3 hard ones
    the ratio is 1/8, with 3 to 1 it is 3/8; matched, each has 1 to 1: 1/4.
    """

    def of(mask, seed, easy, hard):
        result = arm(mask, seed, 0.0)
        draw = np.random.default_rng(seed)
        n = np.array([[easy, hard]]) * np.ones((40, 1))
        repair = n * [0.5, 0.0] + draw.normal(0, 0.01, n.shape)
        sums = {**dict.fromkeys(BINNED, n), "self_repair": repair, "loss": n * [1, 3]}
        result.meta["by_loss"] = {name: value.tolist() for name, value in sums.items()}
        result.meta["by_story"] = {"self_repair": repair.sum(1).tolist(), "removed": n.sum(1).tolist()}
        half = {**result.meta["halves"]["second"], "self_repair": {"value": repair.sum() / n.sum()}}
        result.meta["halves"] = {"first": half, "second": half}
        return result

    models = [*(of("none", s, 3, 1) for s in range(3)), *(of("local", s, 1, 3) for s in range(3))]
    compared = self_repair_compared(models)
    values = compared.table.groupby(["arm", "metric"]).value.mean()
    for name, plain in (("none", 3 / 8), ("local k=4", 1 / 8)):
        assert values[name, PRIMARY] == pytest.approx(plain, abs=0.005)
        assert values[name, EQUAL_PRIMARY] == pytest.approx(0.25, abs=0.005)
        assert values[name, "loss (bits), tokens of equal loss"] == pytest.approx(2)
        assert values[name, "tokens that count, tokens of equal loss"] == pytest.approx(0.5)
    (equal,) = compared.meta["bootstrap_equal_loss"]
    assert abs(equal["difference"]) < 0.01 and "less self-repair, -25 points" in compared.meta["summary"]
    assert "at tokens of equal loss no difference held up" in compared.meta["summary"]


def test_bins_hold_every_selected_token_once_by_its_own_loss(tiny_model):
    model, stories = tiny_model(), texts()
    found = story_self_repair(model, stories, select="all")
    by_loss, second = found.meta["by_loss"], found.meta["halves"]["second"]
    assert np.sum(by_loss["n"]) == second["n"] and list(by_loss["edges"]) == list(EDGES)
    for name in ("self_repair", "removed"):
        assert np.sum(by_loss[name], 1) == pytest.approx(found.meta["by_story"][name], abs=1e-4)
    bits = token_losses(model, stories, False, 2)["clean"]
    with torch.no_grad():
        log = model(stories.tokens).log_softmax(-1)
    assert bits[1, 3].item() == pytest.approx(-log[1, 3, stories.tokens[1, 4]].item() / np.log(2))
    assert bits.isnan().equal(~stories.predicted)
    n, loss = np.array(by_loss["n"]), np.array(by_loss["loss"])
    mean = loss.sum(0)[n.sum(0) > 0] / n.sum(0)[n.sum(0) > 0]
    edges = np.array([*EDGES, np.inf])
    filled = np.flatnonzero(n.sum(0))
    assert (mean >= edges[filled] - 1e-4).all() and (mean < edges[filled + 1] + 1e-4).all()


def test_circuitsvis_is_given_the_tokens_and_their_self_repair(found):
    found = dataclasses.replace(found, meta=copy.deepcopy(found.meta))
    found.meta["texts"]["self_repair"][0][2] = -0.25
    page = token_view(found, "var CircuitsVis = {};").document
    blocks = re.findall(r'<script type="application/json" class="tokens">(.*?)</script>', page)
    data = [json.loads(block) for block in blocks]
    shown = found.meta["texts"]
    assert [one["tokens"] for one in data] == shown["stories"]
    assert data[0]["values"] == [value or 0.0 for value in shown["self_repair"][0]] and data[0]["values"][2] == -0.25
    assert -data[0]["minValue"] == data[0]["maxValue"] and "http" not in re.sub(r"http-equiv", "", page)
    bundle = circuitsvis_bundle()
    assert bool(bundle) == ("token_view" in self_repair_figures(found)) and (not bundle or "ColoredTokens" in bundle)


def test_two_seeds_claim_nothing_and_unequal_losses_are_said():
    two = [*(arm("none", s, 0.5) for s in range(2)), *(arm("local", s, 0.2, loss=2.6) for s in range(2))]
    summary = self_repair_compared(two).meta["summary"]
    assert "no claim" in summary and "no difference held up" in summary
    assert "no models of equal loss (the arm's is +0.60 bits off)" in summary


def test_models_that_were_asked_otherwise_are_not_compared():
    one, other = arm("none", 0, 0.5), arm("local", 0, 0.5)
    other.meta["knobs"] = {**other.meta["knobs"], "selection": "all"}
    with pytest.raises(ValueError, match="selection differ"):
        self_repair_compared([one, other])
