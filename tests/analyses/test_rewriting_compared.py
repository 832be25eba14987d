"""Runs compared as arms, and figures, from Results alone."""

import dataclasses

import pandas as pd
import pytest

from analyses.figures import Page
from analyses.page import interval, number
from analyses.report import stored_rewriting
from analyses.result import Result
from analyses.rewriting.comparison import MATCHED, REWRITTEN, rewriting_compared
from analyses.rewriting.explaining import explained_by_rules
from analyses.rewriting.figures import arms_figures, rewriting_figures
from analyses.rewriting.latent_page import latent_page
from analyses.rewriting.latents import latents_shown
from analyses.rewriting.loss import rewriting_loss
from analyses.rewriting.plans import Plan
from analyses.rewriting.report_part import rewriting_html
from analyses.rewriting.rewriter import dealt_to_others, rule_rewriter
from analyses.rewriting.scoring import OWN, SHUFFLED, scored, scores_result
from analyses.rewriting.summed_up import mean_of, summed_up
from tests.cases.rewriting import planted_setting


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of the planted model, by way of the disk; and what its page of latents shows."""
    made = planted_setting()
    explanations = explained_by_rules(made, "token")
    rewriters = {
        OWN: rule_rewriter("token", explanations, made.vocabulary),
        SHUFFLED: rule_rewriter("token", dealt_to_others(explanations), made.vocabulary),
    }
    scores = scores_result(made, "token", rewriters, {name: scored(made, r) for name, r in rewriters.items()}, {})
    plans = [Plan("token", f, "random", c) for c in ("none", "quantile") for f in (0.0, 0.5, 1.0)]
    plans += [Plan("token", 1.0, "random", oracle="both"), Plan("token", 1.0, "random", skip=False)]
    loss = rewriting_loss(made, {"token": rewriters[OWN]}, plans)
    loss.meta.update(checkpoint="a<b>", checkpoint_sha256="0", versions={}, commit=None, command="", date="", seed=0)
    result = summed_up(loss, {"token": scores}, {"steps": {}, "texts": {"n": 60}})
    shown = latents_shown(made, explanations, scores, 4, "a<b>")
    folders = [tmp_path_factory.mktemp(name) for name in ("result", "shown")]
    result.save(folders[0])
    shown.save(folders[1])
    return Result.load(folders[0]), Result.load(folders[1])


def trained(result, arm, seed, worse=0.0):
    """The same numbers, as of a model of another arm or seed, whose rewritten KLs are greater."""
    ablation = {"mask": arm, "k_attn": 4, "k_mlp": 4, "forward": "hard", "detach": "none", "gap_floor": 0.0}
    table = result.table.copy()
    table.loc[table.part == "plan", "kl"] += worse + seed / 1000
    meta = result.meta | {"checkpoint": f"{arm}-s{seed}", "ablation": ablation, "training": {"seed": seed}}
    return dataclasses.replace(result, table=table, meta=meta)


def test_arms_are_compared_over_seeds_and_at_equal_loss(one):
    result, _ = one
    results = [trained(result, "none", s) for s in range(3)] + [trained(result, "local", s, 0.5) for s in range(3)]
    found = rewriting_compared(results)
    differences = pd.DataFrame(found.meta["differences"]).set_index("metric")
    assert differences.difference[REWRITTEN["kl"]] == pytest.approx(0.5) and differences.claim[REWRITTEN["kl"]]
    assert differences.difference[MATCHED["rewritten"]] == 0 and not differences.claim[MATCHED["rewritten"]]
    kept = found.table[found.table.metric == MATCHED["kept"]].value
    assert (kept == 1).all(), "models of the same losses keep all tokens"
    assert "local k=4 less none +0.0000" in found.meta["summary"]
    (drawn,) = arms_figures(found).values()
    assert len(drawn.data) == 8 and drawn.data[0].y[0] == pytest.approx(float(found.table.value[0]))


def test_runs_of_other_texts_or_of_one_checkpoint_are_not_compared(one):
    result, _ = one
    other = dataclasses.replace(result, meta=result.meta | {"texts": {"n": 61}, "checkpoint": "b"})
    with pytest.raises(ValueError, match="same texts"):
        rewriting_compared([result, other])
    with pytest.raises(ValueError, match="one checkpoint"):
        rewriting_compared([result, result])


def test_figures_show_the_numbers_of_the_table(one):
    result, _ = one
    drawn = rewriting_figures(result)
    assert set(drawn) == {"fraction", "one_at_a_time", "calibration", "scores", "method"}
    curve = next(trace for trace in drawn["fraction"].data if trace.name == "token, not calibrated, random")
    rows = result.table[(result.table["name"] == "token") & (result.table.calibration == "none")]
    rows = rows[(rows.oracle == "none") & (rows["skip"] == 1)].sort_values("fraction")
    assert list(curve.x) == [0, 0.5, 1] and list(curve.y) == rows.kl.tolist()
    labels = [label for trace in drawn["one_at_a_time"].data for label in trace.y]
    assert labels[-3:] == ["token: quantile", "token: oracle: both", "token: no skip connection"] and len(labels) == 11
    assert "a&lt;b&gt;" in drawn["fraction"].layout.title.text
    assert sum(result.meta["scores"]["token"]["histograms"]["r"]["counts"][OWN]) == 10


def test_the_page_of_latents_shows_examples_with_both_activations_and_no_markup(one):
    _, shown = one
    page = latent_page(shown)
    assert isinstance(page, Page) and len(shown.table) == 4 and shown.table.r.is_monotonic_decreasing
    assert "<script" not in page.document and "a&lt;b&gt;" in page.document
    assert "true 100, simulated" in page.document and page.document.count("<details") == 4
    nasty = dataclasses.replace(shown, table=shown.table.assign(text='</p><script>alert("x")</script>'))
    assert "<script" not in latent_page(nasty).document


def test_the_report_says_the_numbers_and_no_markup_of_what_it_shows(one):
    result, _ = one
    nasty = dataclasses.replace(result, meta=result.meta | {"summary": "<script>alert(1)</script>\nx"})
    found = rewriting_html(nasty)
    assert "<script>alert" not in found and "&lt;script&gt;alert(1)" in found
    row = result.table[(result.table["name"] == "token") & (result.table.oracle == "both")].iloc[0]
    assert f"<td>token: oracle: both</td><td>{interval(row.kl, row.kl_low, row.kl_high)}</td>" in found
    r = mean_of(result.meta, "token", "r")
    floor = mean_of(result.meta, "token", "r", SHUFFLED)["value"]
    cells = (interval(r["value"], r["ci_low"], r["ci_high"]), number(floor), number(None), number(r["n"]))
    assert "".join(f"<td>{cell}</td>" for cell in ("r", *cells)) in found
    assert "an index for an activation" in found and found.count('class="figure"') == 2


def test_the_report_takes_a_stored_run_of_the_same_weights_and_a_quick_one_where_there_is_no_other(one, tmp_path):
    result, _ = one
    made = {"checkpoint": "c", "checkpoint_sha256": "0"}
    folder, quick = tmp_path / "rewriting" / "c", tmp_path / "rewriting" / "c.quick"
    with pytest.raises(ValueError, match=r"no result is in rewriting/c; python -m analyses\.rewriting c makes one"):
        stored_rewriting(folder, made)
    dataclasses.replace(result, meta=result.meta | {"summary": "quick"}).save(quick)
    assert stored_rewriting(folder, made).meta["summary"] == "quick"
    result.save(folder)
    assert stored_rewriting(folder, made).meta["summary"] == result.meta["summary"]
    with pytest.raises(ValueError, match="is of other weights"):
        stored_rewriting(folder, made | {"checkpoint_sha256": "1"})
