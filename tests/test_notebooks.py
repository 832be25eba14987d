"""The notebooks run from top to bottom, and define no functions: what they use is in the packages."""

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from analyses.specialization.explained_means import mean_of

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
LASTS = re.compile(r"\b(seconds?|minutes?)\b")
A_MACHINES_PATH = re.compile(r"(?<![\w.])/(work|tmp|home|root|Users)/|[A-Z]:\\\\Users")


def cells_of(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code_of(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in cells_of(path) if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_opens_with_how_long_it_takes_and_keeps_what_it_showed(path):
    cells = cells_of(path)
    assert len(cells) < 20 and path.stat().st_size < 500_000
    opening = "".join(cells[0]["source"])
    assert cells[0]["cell_type"] == "markdown" and opening.startswith("# ") and LASTS.search(opening)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run once, from top to bottom"
    for cell in code:
        tree = ast.parse("".join(cell["source"]))
        assert not any(isinstance(node, FUNCTIONS) for node in ast.walk(tree))
        if isinstance(tree.body[-1], ast.Expr):
            assert cell["outputs"], "".join(cell["source"])
        for output in cell["outputs"]:
            assert output["output_type"] in ("stream", "execute_result", "display_data")
            assert not A_MACHINES_PATH.search(json.dumps(output, ensure_ascii=False))


def test_there_is_a_notebook_for_each_number_from_1_on():
    assert [int(path.stem.split("_")[0]) for path in NOTEBOOKS] == list(range(1, len(NOTEBOOKS) + 1))


LONG = (
    "02_localization",
    "03_leakage",
    "04_specialization",
    "05_probing",
    "06_self_repair",
    "07_rewriting",
    "10_sparsity",
)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else (), id=path.stem) for path in NOTEBOOKS],
)
def test_a_notebook_runs(path):
    space: dict = {}
    for source in code_of(path):
        exec(compile(source, path.name, "exec"), space)  # noqa: S102 (our own notebook)
    if path.stem == "03_leakage":
        verdicts = {name: result.meta["verdict"] for name, result in space["results"].items()}
        assert verdicts["global-k4-s0"] == "leaks" and verdicts["untrained heads"] != "leaks"
    elif path.stem == "04_specialization":
        mean = mean_of(space["scores"].meta["means"])
        assert mean["n_units"] > 1000 and mean["excess_shuffled_low"] > 0.3
        assert all(result.meta["kinds"][0]["n_units"] == 1024 for result in space["found"].values())
    elif path.stem == "05_probing":
        for result in space["results"].values():
            role = result.table[(result.table.probe == "linear") & (result.table.target == "role")]
            assert role.accuracy_low.max() > 0.9 and (role.selectivity_low > 0).any()
            assert (role.erased < role.accuracy).sum() == role.erased.notna().sum() > 0
            assert role.rise_beyond_random_low.max() > 0
        ridge = space["results"]["local-k4-s0"].table.query("probe == 'ridge'")
        assert ridge.accuracy_low.max() > 0.8 > ridge.majority.max()
    elif path.stem == "06_self_repair":
        for result in space["found"].values():
            assert result.meta["closure"] < 1e-2 and result.meta["halves"]["second"]["sr_gate"]["value"] == 0
        controls = {one["masks"]: one["sr_gate"]["value"] for one in space["both"].meta["controls"]}
        assert space["second"]["sr_gate"]["value"] != 0 and abs(controls["random"]) < 1e-6 < abs(controls["dealt"])
        equal = space["rows"][space["rows"].metric == "loss (bits), tokens of equal loss"].value
        assert equal.max() - equal.min() < 0.02, "bits"
    elif path.stem == "07_rewriting":
        rows = space["result"].table.set_index("name")
        plans = rows[rows.part == "plan"]
        nothing = plans[plans.fraction == 0]
        assert len(nothing) == 2 and (nothing.kl == rows.kl["reconstruction"]).all()
        whole = plans[(plans.fraction == 1) & (plans.calibration == "none") & plans["skip"].astype(bool)]
        plain = whole[(whole.oracle == "none") & (whole.keep == "all")]
        assert plain.kl_minus_zero_high["ngram"] < 0 and plain.recovered_kl_low["ngram"] > 0.2
        assert plain.sort_values("bits").kl.is_monotonic_decreasing and len(plain) == 4
        assert whole[whole.oracle == "both"].kl["ngram"] < plain.kl["ngram"]
        assert (means := space["means"].set_index(["source", "score"]).value)["own", "r"] > means["random coder", "r"]
        assert abs(means["shuffled", "r"]) < 0.1
    elif path.stem == "08_untangling":
        intact = space["reached"].set_index("run").filter(like="test")
        assert intact[~intact.index.str.contains("local")].min().min() > 0.8
        assert space["removed"]["joint"][0] > 0.9 > 0.6 > space["removed"]["joint"][1], "one goes and the other stays"
        area = space["areas"].set_index(["arm", "target", "method"]).area["decoder-n50-joint-l0.01"]
        for target in ("sum", "concat"):
            assert area[target, "latents"] > area[target, "random"] and area[target, "units"] > area[target, "latents"]
    elif path.stem == "09_paper":
        claims = space["claims"].set_index(["metric", "arm"])
        seeds = space["paper"].table.set_index("metric").loc["perplexity"].groupby("arm").value.apply(list)
        ours = stats.ttest_ind(seeds["local k=4"], seeds["none"], equal_var=False).confidence_interval()
        stored = claims.loc[("perplexity", "local k=4")]
        assert (ours.low, ours.high) == pytest.approx((stored.ci_low, stored.ci_high))
        assert stored.verdict == "the opposite holds" and len(claims) == 16
        assert (space["counts"]["tested"] >= space["counts"]["differences that hold"]).all()
    elif path.stem == "10_sparsity":
        rescaling_moves_the_mean_magnitude_alone(space)
        own = {name: result.meta["published"]["mean_abs_weight"] for name, result in space["found"].items()}
        stored = space["tables"]["sparsity"].query("metric == 'weights with embeddings: mean_abs_weight'")
        assert own["none-s0"] == pytest.approx(stored[stored.arm == "none"].value.iloc[0], rel=1e-5)
        assert own["local-k4-s0"] == pytest.approx(stored[stored.arm == "local k=4"].value.iloc[0], rel=1e-5)
        few, many = (rows.set_index("metric").value for _, rows in space["swept"].table.groupby("coefficient"))
        assert few.l0 > many.l0 and few.fvu < 0.2 < many.fvu and few.ce_score > many.ce_score
        at = space["swept"].table.set_index("metric").loc["l0_matched"]
        assert many.l0 < at.ci_low < at.value < at.ci_high < few.l0
    elif path.stem == "02_localization":
        assert space["effects"].meta["task"]["solved"]
    else:
        assert path.stem == "01_tour"
        assert space["effects"].meta["task"]["solved"]
        losses = space["held_out"][["held_out_clean", "held_out_ablated"]]
        assert (losses.iloc[0] - math.log(4096)).abs().max() < 0.3, "nats a token; before training all are alike"
        assert (losses.iloc[-1] < losses.iloc[0] - 1).all() and space["young"].ablation == space["model"].ablation
        plain = space["plain"].run_with_hooks(space["tokens"], fwd_hooks=space["hooks"])
        difference = plain[0, space["end"]] - space["logits"].ablated[0, space["end"]]
        assert difference.abs().max() < 1e-4
        winners = space["story"].attn.flatten(2).sum(-1), space["story"].mlp.sum(-1)
        assert all((n == 4).all() for n in winners), "in each layer, at each token"
        whole, without = space["kept"].values()
        effect = space["effects"].table.effect_logit_diff.iloc[0]
        assert whole.logit_diff - without.logit_diff == pytest.approx(effect, abs=1e-3) and effect > 1


def rescaling_moves_the_mean_magnitude_alone(space: dict) -> None:
    """By theory: values times c and outputs over c change the sum of magnitudes by (c - 1) V + (1 / c - 1) O."""
    moved, model = space["moved"], space["models"]["local-k4-s0"]
    centred = [block.attn.W_O - block.attn.W_O.mean(-1, keepdim=True) for block in model.blocks]
    outputs = sum(weight.abs().sum().item() for weight in centred)
    values = sum((block.attn.W_V.abs().sum() + block.attn.b_V.abs().sum()).item() for block in model.blocks)
    n = space["mean_abs_weight"](model).n
    by_theory = [moved["mean |weight|"].iloc[0] + ((c - 1) * values + (1 / c - 1) * outputs) / n for c in moved.index]
    assert moved["mean |weight|"].tolist() == pytest.approx(by_theory, rel=1e-5)
    assert by_theory[-1] > 1.1 * by_theory[0]
    assert moved["largest change of a logit"].max() < 1e-4
    for name in ("Hoyer", "near zero"):
        assert moved[name].tolist() == pytest.approx([moved[name].iloc[0]] * len(moved), rel=1e-6)
