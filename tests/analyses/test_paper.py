"""The paper's table: what is published, what is collected, what is said of each claim, what is written."""

import json

import numpy as np
import pandas as pd
import pytest

from analyses.paper.__main__ import main
from analyses.paper.comparison import HOLDS, OPEN, REVERSED, paper_compared
from analyses.paper.curves import held_out_curve
from analyses.paper.figures import trade_off_figure, training_figure
from analyses.paper.published import CLAIMS, FAITHFUL, ROWS
from analyses.paper.rows import METRICS, UNITS, model_rows
from analyses.paper.tables import PUBLISHED, arm_rows, cells, latex, paper_page, write_tables
from analyses.result import Result
from sat_lens import SelfAblation, save
from sat_lens.checkpoint import checkpoint_hash

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
            results.append(Result("paper", table, {}, {**meta, "reproduce": False}))
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


def test_curves_count_tokens_of_the_training_before():
    log = '{"step": 0, "held_out_clean": 3.0}\nnoise\n{"step": 5, "clean": 1.0}\n{"step": 10, "held_out_clean": 2.0, '
    log += '"held_out_ablated": 2.5}\n'
    found = held_out_curve(log, {"tokens_seen": 1000, "step": 10, "tokens_seen_before": 500})
    assert found == [{"tokens": 500, "clean": 3.0}, {"tokens": 1500, "clean": 2.0, "ablated": 2.5}]


def test_the_command_shows_what_is_stored_of_these_weights_alone(tiny_model, tiny_tokenizer, tmp_path, capsys):
    corpus, out = tmp_path / "corpus.txt", tmp_path / "out"
    corpus.write_text("\n<|endoftext|>\n".join(" ".join(f"w{1 + (i * j) % 28}" for j in range(8)) for i in range(9)))
    for i, mask in enumerate(("none", "local")):
        model = tiny_model(ablation={"mask": mask}, seed=i)
        model.tokenizer = tiny_tokenizer
        save(model, tmp_path / mask, training={"seed": 0, "tokens_seen": 9, "step": 3},
             log='{"step": 3, "held_out_clean": 3.0}\n')  # fmt: skip
        hashed = checkpoint_hash(tmp_path / mask)
        for question, result in stored_results(hashed).items():
            if (question, mask) == ("sae", "none"):  # of other weights
                result = Result(result.name, result.table, {}, {**result.meta, "checkpoint_sha256": "other"})
            result.save(out / question / (f"{mask}.acdc" if question == "localization" else mask))
    main([str(tmp_path / "none"), str(tmp_path / "local"), "--stored", "--corpus", str(corpus), "--out", str(out),
          "--tokens", "80", "--quiet", "--json"])  # fmt: skip
    first, second, compared = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    metrics = [{row["metric"] for row in one["table"]} for one in (first, second)]
    assert "SAE L0 at FVU" in metrics[1] - metrics[0] and "IOI edges" in metrics[0] & metrics[1]
    assert "perplexity, ablated" in metrics[1] - metrics[0]
    assert {row["verdict"] for row in compared["meta"]["claims"]} == {OPEN}  # one seed an arm
    folder = out / "paper" / "arms"
    assert {"table1.tex", "table1.csv", "sound.tex", "claims.csv", "figures"} <= {p.name for p in folder.iterdir()}
    assert {p.name for p in (folder / "figures").iterdir()} == {"table.html", "trade_off.html", "training.html"}
