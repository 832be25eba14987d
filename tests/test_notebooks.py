"""The notebooks run from top to bottom, and define no functions: what they use is in the packages."""

import ast
import json
from pathlib import Path

import pytest
from scipy import stats

from analyses.specialization.explained_means import mean_of

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_of(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


LONG = ("02_localization", "03_leakage", "05_probing", "07_rewriting")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else (), id=path.stem) for path in NOTEBOOKS],
)
def test_a_notebook_runs_and_defines_no_function(path):
    space: dict = {}
    for source in code_of(path):
        assert not any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(source)))
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
    else:
        assert space["effects"].meta["task"]["solved"]


def test_the_first_look_shows_what_the_ablated_stream_is():
    space: dict = {}
    for source in code_of(ROOT / "notebooks" / "01_first_look.ipynb")[:3]:
        exec(compile(source, "first_look", "exec"), space)  # noqa: S102
    with space["torch"].no_grad():
        plain = space["plain"].run_with_hooks(space["tokens"], fwd_hooks=space["hooks"])
    difference = plain[0, space["end"]] - space["logits"].ablated[0, space["end"]]
    assert difference.abs().max() < 1e-4
