"""The paper's table: what is published, what is collected, what is said of each claim, what is written."""

import json

import numpy as np
import pandas as pd
import pytest

from analyses.paper.circuits import circuits_figure, stored_circuit
from analyses.paper.comparison import HOLDS, OPEN, REVERSED, paper_compared
from analyses.paper.curves import held_out_curve
from analyses.paper.equivalence import equivalence_p_value, ratio_p_value
from analyses.paper.figures import trade_off_figure, training_figure
from analyses.paper.mechanism import mechanism
from analyses.paper.mechanism_figure import mechanism_figure
from analyses.paper.published import CLAIMS, FAITHFUL, NO_HARM, ROWS
from analyses.paper.rows import METRICS, UNITS, model_rows
from analyses.paper.story import story_figure, told_story
from analyses.paper.tables import PUBLISHED, arm_rows, cells, latex, paper_page, write_tables
from analyses.result import Result
from sat_lens import SelfAblation

LOSSES = {"clean_nats_a_token": 1.0, "clean_ci": [0.9, 1.1], "ablated_nats_a_token": 1.5, "ablated_ci": [1.4, 1.6],
          "n_stories": 40}  # fmt: skip


def stored_results(sha256: str = "x") -> dict[str, Result]:
    """Answers of the three questions, as they leave them."""
    meta = {"checkpoint_sha256": sha256}
    circuit = {"circuit": {"n_edges": 30}, "matched": {"n_edges": 12, "low": 9, "high": 20}, "task": {"n": 64}}
    saes = [(c, m, v) for c in (1.0, 4.0) for m, v in (("l0", 9.0), ("ce_score", 0.7), ("dead", c / 10))]
    saes += [(np.nan, "l0_matched", 5.0), (np.nan, "ce_score_matched", 0.6)]
    sae = pd.DataFrame(saes, columns=["coefficient", "metric", "value"]).assign(ci_low=0.1, ci_high=9.0, n=7)
    of = [("with embeddings", "-", "mean_abs_weight", 0.4), ("with embeddings", "-", "hoyer", 0.2),
          ("neuron", "clean", "hoyer", 0.6), ("mask_neuron", "ablated", "live_units", 0.5)]  # fmt: skip
    sparsity = pd.DataFrame(of, columns=["of", "stream", "metric", "value"]).assign(
        ci_low=0.1, ci_high=0.9, n=5, layer=-1
    )
    by_layer = sparsity.assign(layer=0, value=99.0)
    return {
        "localization": Result("localization", pd.DataFrame({"edge": ["a"]}), {}, {**meta, **circuit}),
        "sae": Result("sae", sae, {}, {**meta, "knobs": {"n_stories": 7}}),
        "sparsity": Result("sparsity", pd.concat([by_layer, sparsity]), {}, meta),
    }


def test_the_published_table_has_nine_arms_and_its_own_numbers():
    assert len(ROWS) == 9 and all(set(row) == set(FAITHFUL) for row in ROWS.values())
    assert ROWS["none"] == dict(zip(FAITHFUL, (5.73, 79, 7.22, 0.63, 0.44), strict=True))
    assert ROWS["local k=4"]["SAE L0"] == 4.01 == min(row["SAE L0"] for row in ROWS.values())
    worse = [row["perplexity"] / 5.73 - 1 for arm, row in ROWS.items() if arm != "none"]
    assert (round(min(worse), 2), round(max(worse), 2)) == (0.13, 0.22)
    assert {claim.metric for claim in CLAIMS} <= set(METRICS) == set(UNITS)


def test_a_model_s_numbers_are_read_from_what_the_questions_left():
    table = model_rows(LOSSES, stored_results()).set_index("metric")
    assert table.loc["perplexity", ["value", "ci_low", "ci_high"]].tolist() == pytest.approx(np.exp([1, 0.9, 1.1]))
    assert table.loc["perplexity, ablated"].value == pytest.approx(np.exp(1.5))
    assert table.loc["IOI edges"].value == 30 and table.loc["IOI edges"].n == 64
    assert table.loc["edges at faithfulness 0.9", ["value", "ci_low", "ci_high"]].tolist() == [12, 9, 20]
    assert table.loc["SAE L0 at FVU"].value == 5 and table.loc["SAE dead latents"].value == pytest.approx(0.25)
    assert table.loc["neuron Hoyer"].value == 0.6 and table.loc["live neurons"].value == 0.5
    assert "SAE L0" not in table.index and "weight Hoyer" not in table.index  # a sweep; no such row
    assert model_rows(LOSSES, {}).metric.tolist() == ["perplexity", "perplexity, ablated"]
    one = stored_results()["sae"]
    alone = Result("sae", one.table[(one.table.coefficient != 4.0)], {}, one.meta)
    assert model_rows(LOSSES, {"sae": alone}).set_index("metric").loc["SAE L0"].value == 9


def models(shift: dict[str, float]) -> list[Result]:
    """Three seeds of two arms, an arm's numbers apart by `shift`, seeds by a hundredth."""
    results = []
    for arm in ("none", "local"):
        for seed in range(3):
            rows = [(m, 5 + seed / 100 + (shift.get(m, 0.0) if arm == "local" else 0.0)) for m in METRICS]
            table = pd.DataFrame(rows, columns=["metric", "value"]).assign(ci_low=4.0, ci_high=6.0, n=9, unit="")
            name = f"{arm}-{seed}"
            points = [{"tokens": 0.0, "clean": 3.0, "ablated": 4.0}, {"tokens": 10.0, "clean": 2.0, "ablated": 3.0}]
            points = points if arm == "local" else [{k: v for k, v in p.items() if k != "ablated"} for p in points]
            curves = [{"checkpoint": name, "arm": "none" if arm == "none" else "local k=4", "points": points}]
            ablation = SelfAblation(mask=arm).to_dict()
            meta = {"checkpoint": name, "ablation": ablation, "training": {"seed": seed}, "curves": curves}
            results.append(Result("paper", table, {}, {**meta, "reproduce": False}))  # no mechanism, no circuit
    return results


def test_each_claim_gets_the_verdict_that_was_planted(tmp_path):
    shift = {"perplexity": 1.0, "IOI edges": -2.0, "SAE L0 at FVU": 2.0, "mean_abs_weight": 1.0, "weight Hoyer": 0.001}
    compared = paper_compared(models(shift))
    said = {row["metric"]: row["verdict"] for row in compared.meta["claims"]}
    assert said == {
        "perplexity": REVERSED, "IOI edges": HOLDS, "edges at faithfulness 0.9": OPEN, "SAE L0 at FVU": REVERSED,
        "SAE CE score at FVU": OPEN, "mean_abs_weight": HOLDS, "weight Hoyer": OPEN, "neuron Hoyer": OPEN,
    }  # fmt: skip
    assert len(compared.meta["claims"]) == len(CLAIMS) and compared.meta["baseline"] == "none"
    compared.save(tmp_path)
    again = Result.load(tmp_path)
    write_tables(again, tmp_path)
    claims = pd.read_csv(tmp_path / "claims.csv")
    assert claims[claims.metric == "IOI edges"].difference.item() == pytest.approx(-2)
    page = paper_page(again).document
    assert page.count("(published)") == 9 and "the opposite holds" in page and "<script" not in page
    assert len(trade_off_figure(again).data) == 2 * 6
    assert [t.name for t in training_figure(again).data if t.showlegend] == [
        "none, clean", "local k=4, clean", "local k=4, ablated",
    ]  # fmt: skip


def test_two_one_sided_tests_by_hand():
    # Means 1.02 and 1.01, variances 1e-4, n 3: error sqrt(2e-4 / 3) = .0081650, 4 degrees of freedom. At the margin .05
    # the sides are t = .04 / .0081650 = 4.89898 (= sqrt 24) and .06 / .0081650 = 7.3485. Of 4 degrees of freedom
    # P(T > t) = 1/2 - 3/8 u (1 - u^2 / 12), u = t / sqrt(1 + t^2 / 4): here t^2 = 24, 1 + 6 = 7, u = sqrt(24 / 7).
    values, base = [1.01, 1.02, 1.03], [1.00, 1.01, 1.02]
    square = 24 / 7  # u^2
    by_hand = 0.5 - 0.375 * square**0.5 * (1 - square / 12)
    assert by_hand == pytest.approx(0.00402, abs=5e-6)
    assert equivalence_p_value(values, base, 0.05) == pytest.approx(by_hand, rel=1e-9)
    assert equivalence_p_value(base, values, 0.05) == pytest.approx(by_hand, rel=1e-9)  # both sides count
    assert equivalence_p_value(values, base, 0.01) == pytest.approx(0.5)  # at the margin itself
    assert equivalence_p_value(values, base, 0.001) > 0.5
    assert ratio_p_value(np.exp(values), np.exp(base), np.exp(0.05)) == pytest.approx(by_hand, rel=1e-9)
    assert np.isnan(equivalence_p_value([1.0], base, 0.05)) and np.isnan(equivalence_p_value([1, 1], [1, 1], 0.05))
    for function, margin in ((equivalence_p_value, 0.0), (ratio_p_value, 1.0)):
        with pytest.raises(ValueError, match="margin"):
            function(values, base, margin)


def test_welch_s_freedom_is_that_of_unequal_spreads():
    from scipy import stats

    draw = np.random.default_rng(0)
    values, base = draw.normal(0.1, 1, 5), draw.normal(0, 3, 8)
    sides = [stats.ttest_ind(values + sign * 2.5, base, equal_var=False, alternative=way).pvalue
             for sign, way in ((1, "greater"), (-1, "less"))]  # fmt: skip
    assert equivalence_p_value(values, base, 2.5) == pytest.approx(max(sides))


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(0.0, HOLDS), (0.05, HOLDS), (0.25, REVERSED), (1.0, REVERSED), (-0.25, HOLDS), (-1.0, HOLDS)],
)
def test_no_loss_is_claimed_only_within_the_margin(difference, verdict):
    claims = paper_compared(models({"perplexity": difference})).meta["claims"]
    row = next(row for row in claims if row["metric"] == "perplexity")
    assert row["margin"] == NO_HARM == 1.05 and row["verdict"] == verdict  # 5.01 * 1.05 = 5.26
    assert [r["margin"] for r in claims if r is not row] == [None] * (len(CLAIMS) - 1)


def test_seeds_too_few_or_too_far_apart_show_no_equivalence():
    two = [result for result in models({}) if result.meta["training"]["seed"] < 2]
    assert {row["verdict"] for row in paper_compared(two).meta["claims"]} == {OPEN}
    wide = models({})
    for result in wide:
        result.table.loc[result.table.metric == "perplexity", "value"] = 5.0 + result.meta["training"]["seed"]
    row = next(row for row in paper_compared(wide).meta["claims"] if row["metric"] == "perplexity")
    assert row["difference"] == 0 and row["p"] == 1 and row["verdict"] == OPEN  # no difference found is no evidence


def test_a_row_of_the_table_is_the_mean_over_seeds_with_its_interval_and_published_rows_are_marked():
    compared = paper_compared(models({}))
    found = arm_rows(compared.table, FAITHFUL)
    assert set(arm_rows(compared.table, ("perplexity", "neuron L0")).source) == {"ours"}
    found = found[found.metric == "perplexity"].set_index(["source", "arm"])
    row = found.loc[("ours", "local k=4")]
    half = 4.30265273 * 0.01 / np.sqrt(3)  # t of 2 degrees of freedom
    assert (row.value, row.low, row.high) == pytest.approx((5.01, 5.01 - half, 5.01 + half)) and row.n_seeds == 3
    assert found.loc[(PUBLISHED, "global k=1")].value == 6.49 and found.loc[PUBLISHED].shape[0] == 9
    one = arm_rows(compared.table[compared.table.seed == 0], ("perplexity",)).set_index(["source", "arm"])
    assert one.loc[("ours", "none"), ["low", "high"]].tolist() == [4, 6]  # of the model itself
    header, rows = cells(compared.table, FAITHFUL)
    text = latex(header, rows, "5 % of_all")
    assert text.count(r"\\") == 1 + 2 + 9 and r"mean\_abs\_weight" in text and r"5 \% of\_all" in text
    assert "local k=4 (ours, 3 seeds) & 5.01 [4.99, 5.03]" in text and "local k=4 (published) & 6.58 & 30 &" in text


@pytest.mark.parametrize("mask", ["none", "local", "global", "both"])
def test_the_mechanism_has_every_hook_point_of_the_model_once_and_the_drawing_shows_them(tiny_model, mask):
    model = tiny_model(ablation={"mask": mask})
    found = mechanism(model)
    listed = [name for hooks in (*found["layers"], found["ends"]) for names in hooks.values() for name in names]
    assert sorted(listed) == sorted(model.hook_dict)
    block = found["layers"][1]
    assert block["clean stream"] == [f"blocks.1.hook_resid_{at}" for at in ("pre", "mid", "post")]
    assert "blocks.1.attn.hook_z" in block["clean stream: attention"]
    assert "blocks.1.mlp.hook_post" in block["clean stream: MLP"]
    drawn = mechanism_figure(json.loads(json.dumps(found)))
    told = "".join(text for trace in drawn.data if trace.customdata is not None for text in trace.customdata)
    assert all(f"<br>{name}" in told for name in model.hook_dict)
    kinds = [trace.name for trace in drawn.data if trace.name]
    assert kinds == ["clean stream", *(["ablated stream", "what chooses units", "keys and values of earlier positions"]
                                       if mask != "none" else [])]  # fmt: skip
    if mask != "none":
        assert block["attention: mask"] == ["blocks.1.attn.hook_mask"]
        assert block["MLP: gate"] == ["blocks.1.mlp.hook_gated_post"]
        assert "3 of 16 z channels and 5 of 24 neurons" in drawn.layout.title.text
        texts = [text for trace in drawn.data if trace.text is not None for text in trace.text]
        assert texts.count("3 of 16<br>channels") == 2 and texts.count("5 of 24<br>neurons") == 2
    starts = {x for trace in drawn.data if trace.name == "what chooses units" for x in trace.x if x is not None}
    assert (0.0 in starts) == (mask in ("local", "both"))  # from the stream that enters the block
    assert (0.85 in starts) == (mask in ("global", "both"))  # from the final norm


def test_many_blocks_are_three_and_other_layouts_are_drawn(tiny_model):
    deep = mechanism_figure(mechanism(tiny_model(ablation={"mask": "global"}, n_layers=7)))
    texts = [text for trace in deep.data if trace.text is not None for text in trace.text]
    assert "... blocks 2 to 5 ..." in texts and {"<b>0</b>", "<b>1</b>", "<b>6</b>"} <= set(texts)
    for changes in ({"attn_only": True}, {"parallel_attn_mlp": True}, {"normalization_type": None}):
        model = tiny_model(ablation={"mask": "local", "unit": "head", "k_attn": 2}, **changes)
        found = mechanism(model)
        listed = [name for hooks in (*found["layers"], found["ends"]) for names in hooks.values() for name in names]
        assert sorted(listed) == sorted(model.hook_dict)
        texts = [t for trace in mechanism_figure(found).data if trace.text is not None for t in trace.text]
        assert "2 of 4<br>heads" in texts and ("MLP" in texts) == ("attn_only" not in changes)


def test_the_figure_of_a_story_shows_the_masks_that_the_model_has(tiny_model, tiny_tokenizer, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n<|endoftext|>\n".join(" ".join(f"w{1 + (i * j) % 28}" for j in range(8)) for i in range(9)))
    model = tiny_model(ablation={"mask": "local"})
    model.tokenizer = tiny_tokenizer
    story = json.loads(json.dumps(told_story(model, str(corpus), 0)))
    n, heads = len(story["tokens"]), np.array(story["heads"])
    assert heads.shape == (2, 4, n) and (heads.sum(1) == 3).all() and len(story["neurons"]) == 2 * 5 * n
    drawn = story_figure(Result("paper", pd.DataFrame(), {}, {"story": story, "checkpoint": "<b>"}))
    bars, grid, *dots = drawn.data
    cost = np.array(story["loss_ablated"][:-1]) - np.array(story["loss_clean"][:-1])
    np.testing.assert_allclose(np.array(bars.y, dtype=float)[:-1], cost)
    assert np.array(grid.z).shape == (8, n) and np.array(grid.z)[4:].tolist() == heads[1].tolist()
    assert min(dots[1].y) >= 24 and len(dots) == 2 and "&lt;b&gt;" in drawn.layout.title.text
    plain = tiny_model(ablation={"mask": "none"})
    plain.tokenizer = tiny_tokenizer
    assert told_story(plain, str(corpus), 0) is None


def test_circuits_side_by_side_tell_what_both_have_from_what_one_has(three_paths):
    made = three_paths()
    graph = made.setting.graph
    meta = {"graph": {"n_layers": graph.n_layers, "n_heads": graph.n_heads}, "method": "acdc"}

    def stored(*edges: int):
        from analyses.localization.circuit import Circuit

        table = Circuit(graph, made.scores(1, 1, 1, 1, 1), made.circuit(*edges)).table()
        return stored_circuit(Result("localization", table, {}, meta))

    both, one = stored(1, 2, 3), stored(1, 4, 2)  # m0->m1 is a dead end without m1->logits
    assert both["edges"] == [["input", "m0", ""], ["m0", "m1", ""], ["m1", "logits", ""]]
    assert one["edges"] == [["input", "m0", ""], ["m0", "logits", ""]] and one["n_edges"] == 3
    assert stored_circuit(None) is None
    drawn = circuits_figure([{"checkpoint": name, "arm": arm, **circuit} for name, arm, circuit in
                             (("a", "none", both), ("b", "none", one), ("c", "local", one))])  # fmt: skip
    told = {}
    for trace in drawn.data:
        if trace.mode == "lines":
            told.setdefault((trace.xaxis, trace.name), set()).update(text for text in trace.text if text)
    assert told == {
        ("x", "in none"): {"input to m0", "m0 to m1", "m1 to logits"},
        ("x2", "in none"): {"input to m0"},
        ("x2", "only in local"): {"m0 to logits"},
    }
    titles = [note.text for note in drawn.layout.annotations]
    assert titles[0].startswith("none (a)<br>3 of ") and titles[1].startswith("local (c)<br>3 of ")


def test_curves_count_tokens_of_the_training_before():
    log = '{"step": 0, "held_out_clean": 3.0}\nnoise\n{"step": 5, "clean": 1.0}\n{"step": 10, "held_out_clean": 2.0, '
    log += '"held_out_ablated": 2.5}\n'
    found = held_out_curve(log, {"tokens_seen": 1000, "step": 10, "tokens_seen_before": 500})
    assert found == [{"tokens": 500, "clean": 3.0}, {"tokens": 1500, "clean": 2.0, "ablated": 2.5}]
