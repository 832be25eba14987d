"""What the README and notebook 09 say was found, worked out again from the stored results, word by word."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "data" / "results"
CELLS = json.loads((ROOT / "notebooks" / "09_paper.ipynb").read_text(encoding="utf-8"))["cells"]
VERDICTS = "".join(CELLS[-1]["source"])
ARMS = {"none": "none", "local": "local k=4", "global": "global k=4", "soft": "global k=4 soft"}


def seeds(name: str, metric: str, arm: str) -> list[float]:
    """Of each model of an arm."""
    table = pd.read_csv(RESULTS / f"{name}.csv")
    found = table[(table.metric == metric) & (table.arm == ARMS[arm])].sort_values("seed").value.tolist()
    assert len(found) == 3, (name, metric, arm)
    return found


def difference(name: str, metric: str, arm: str) -> pd.Series:
    table = pd.read_csv(RESULTS / f"{name}.differences.csv").set_index(["metric", "arm"])
    return table.loc[(metric, ARMS[arm])]


def short(value: float, digits: int = 2) -> str:
    """`.14`, `1.25`."""
    return f"{value:.{digits}f}".removeprefix("0")


def circuits() -> str:
    edges = {arm: ", ".join(f"{x:.0f}" for x in seeds("circuits-eap-ig", "edges at faithfulness 0.9", arm))
             for arm in ("none", "local", "global")}  # fmt: skip
    assert not any(difference("circuits-eap-ig", "edges at faithfulness 0.9", arm).claim for arm in ("local", "global"))
    return f"no: {edges['none']} edges without masks, {edges['local']} with local and {edges['global']} with global"


def leakage() -> str:
    bits = {arm: seeds("leakage", "blank stream (bits)", arm) for arm in ("local", "global", "soft")}
    assert all(difference("leakage", "blank stream (bits)", arm).claim for arm in ("global", "soft"))
    hard, soft, local = (f"{short(min(bits[arm]))} to {short(max(bits[arm]))}" for arm in ("global", "soft", "local"))
    return f"({hard} bits a token; soft ones {soft}); local ones {local} |"


def specialization() -> str:
    measures = ("context entropy, beyond shuffled", "information share (current_token), beyond shuffled",
                "variance explained (current_token), beyond shuffled", "information share (role), beyond shuffled",
                "logit kurtosis (logits), beyond random directions")  # fmt: skip
    found = {arm: [m for m in measures if difference("specialization", f"neuron clean: {m}", arm).claim]
             for arm in ("local", "global")}  # fmt: skip
    assert all("current_token" in measure for measure in found["local"]) and not found["global"]
    return f"({len(found['local'])} of {len(measures)} measures after correction); of global ones not shown"


def claims(metric: str) -> pd.DataFrame:
    table = pd.read_csv(RESULTS / "paper" / "claims.csv")
    return table[table.metric == metric].set_index("arm")


def modelling() -> str:
    rows, base = claims("perplexity"), sum(seeds("paper/table", "perplexity", "none")) / 3
    cost = {arm: f"{100 * rows.loc[ARMS[arm], 'difference'] / base:.0f} %" for arm in ("local", "global")}
    assert rows.verdict.to_dict() == {ARMS["local"]: "the opposite holds", ARMS["global"]: "not shown"}
    return f"local masks cost {cost['local']} of perplexity (holds), global ones {cost['global']} (not shown"


def swept() -> str:
    rows = pd.read_csv(RESULTS / "sweep" / "claims.csv")
    rows = rows[rows.metric == "perplexity"].set_index("arm")
    assert set(rows.verdict) == {"the opposite holds"} and len(rows) == 4
    table = pd.read_csv(RESULTS / "sweep" / "table.csv")
    base = table[(table.metric == "perplexity") & (table.arm == "none")].value
    assert len(base) == 3
    cost = 100 * rows.difference / base.mean()
    return f"after a sixth of the training {cost.min():.0f} to {cost.max():.0f} %, with one winner as with four (holds)"


def features() -> str:
    verdicts = {*claims("SAE L0 at FVU").verdict, *claims("SAE CE score at FVU").verdict}
    assert verdicts == {"not shown"}
    return "features are sparser and easier to read (SAEs at equal FVU) | not shown"


def sparsity() -> str:
    rows = claims("weight Hoyer")
    assert set(rows.verdict) == {"the opposite holds"}
    local, global_ = (short(rows.loc[ARMS[arm], "difference"]) for arm in ("local", "global"))
    return f"(Hoyer +{local} local, +{global_} global)"


def points(row: pd.Series, sign: int = 1) -> tuple[str, str]:
    """`18 points`, and its interval."""
    ends = sorted(100 * sign * row[end] for end in ("ci_low", "ci_high"))
    return f"{100 * sign * row.difference:.0f} points", f"[{ends[0]:.0f}, {ends[1]:.0f}]"


def rewriting() -> str:
    row = difference("rewriting", "KL recovered at equal loss (share)", "local")
    assert not row.claim
    value, ends = points(row)
    return f"not shown: local models recover {value} more at equal loss, {ends} over seeds"


def self_repair() -> str:
    row = difference("self-repair", "self-repair / removed, second half, tokens of equal loss", "local")
    assert not row.claim and row.difference < 0
    return f"local models repair {points(row, -1)[0]} of the removed effect less at equal loss, {points(row)[1]} over"


def untangling() -> str:
    meta = json.loads((ROOT / "data/untangling/curves/meta.json").read_text(encoding="utf-8"))["meta"]
    areas = pd.DataFrame(meta["areas"]).set_index(["arm", "method", "target"]).area["decoder-n50-joint-l0.01"]
    units, latents = (sorted(areas[method].loc[["concat", "sum"]]) for method in ("neurons", "latents"))
    return (f"(area {short(units[0])} to {short(units[1])}), better than an autoencoder's latents "
            f"({short(latents[0])} to {short(latents[1])})")  # fmt: skip


@pytest.mark.parametrize(
    "found",
    [circuits, leakage, specialization, modelling, swept, features, sparsity, rewriting, untangling, self_repair],
    ids=lambda found: found.__name__,
)
def test_what_was_found_follows_from_what_is_stored(found: Callable[[], str]):
    assert found() in README


def told(row: pd.Series, digits: int, digits_of_ends: int | None = None) -> str:
    """`+.14 [.11, .16]`: a difference and its interval, with so many digits behind the point."""
    ends = digits if digits_of_ends is None else digits_of_ends
    written = (f"{row.difference:+.{digits}f}", f"{row.ci_low:.{ends}f}", f"{row.ci_high:.{ends}f}")
    value, low, high = (re.sub(r"\b0\.", ".", number) for number in written)
    return f"{value} [{low}, {high}]"


def both(metric: str, digits: int, digits_of_ends: int | None = None) -> str:
    """Of local and of global masks."""
    rows = claims(metric)
    local = told(rows.loc[ARMS["local"]], digits)
    return f"{local} and {told(rows.loc[ARMS['global']], digits, digits_of_ends)}"


def published(metric: str, digits: int) -> str:
    """`4.0 to 5.5 against 7.2`: of the models with masks, and of the one without."""
    table = pd.read_csv(RESULTS / "paper" / "table1.csv").query("source == 'published' and metric == @metric")
    table = table.set_index("arm").value
    masked = table.drop("none")
    low, high, none = (short(value, digits) for value in (masked.min(), masked.max(), table["none"]))
    return f"{low} to {high} against {none}"


def costs() -> str:
    table = pd.read_csv(RESULTS / "paper" / "table1.csv").query("source == 'published' and metric == 'perplexity'")
    more = 100 * (table[table.arm != "none"].value / table[table.arm == "none"].value.item() - 1)
    rows, base = claims("perplexity"), sum(seeds("paper/table", "perplexity", "none")) / 3
    local, global_ = (rows.loc[ARMS[arm]] for arm in ("local", "global"))
    assert (local.verdict, global_.verdict) == ("the opposite holds", "not shown")
    return (
        f"(perplexity +{more.min():.0f} % to +{more.max():.0f} %) | local {told(local, 3)} on {base:.2f}, "
        f"that is +{100 * local.difference / base:.0f} %; global {told(global_, 3)}, "
        f"+{100 * global_.difference / base:.0f} % | local: no, it costs; global: not shown"
    )


def sizes() -> str:
    assert {*claims("IOI edges").verdict, *claims("edges at faithfulness 0.9").verdict} == {"not shown"}
    edges, matched = both("IOI edges", 0), both("edges at faithfulness 0.9", 0)
    return f"({published('IOI edges', 0)} edges) | {edges} edges; at faithfulness .9 {matched} | not shown"


def latents() -> str:
    assert {*claims("SAE L0 at FVU").verdict} == {"not shown"}
    return f"(L0 {published('SAE L0', 1)}) | at FVU .2: {both('SAE L0 at FVU', 1, 0)} latents a token | not shown |"


def readable() -> str:
    assert {*claims("SAE CE score at FVU").verdict} == {"not shown"}
    return f"(CE score {published('SAE CE score', 2)}) | at FVU .2: {both('SAE CE score at FVU', 2)} | not shown |"


def magnitudes() -> str:
    assert {*claims("weight Hoyer").verdict} == {"the opposite holds"}
    assert {*claims("mean_abs_weight").verdict} == {"not shown"}
    return (
        f"(mean absolute weight {published('mean_abs_weight', 2)}) | {both('mean_abs_weight', 3)}; weight Hoyer, "
        f"which no rescaling moves, {both('weight Hoyer', 3)} | the opposite: weights are sparser |"
    )


def specialised() -> str:
    information, variance = (
        difference("specialization", f"neuron clean: {measure} (current_token), beyond shuffled", "local")
        for measure in ("information share", "variance explained")
    )
    assert information.claim and variance.claim
    table = pd.read_csv(RESULTS / "specialization.differences.csv").query("family == 'claim'")
    assert not table[table.arm == ARMS["global"]].claim.any()
    return (
        f"local: information on the current token {told(information, 3)}, variance explained by it "
        f"{told(variance, 3)}; global: nothing | in part |"
    )


def leaks() -> str:
    local, global_ = (
        [short(end(seeds("leakage", "blank stream (bits)", arm))) for end in (min, max)] for arm in ("local", "global")
    )
    assert difference("leakage", "blank stream (bits)", "global").claim
    return (
        f"({global_[0]} to {global_[1]} bits), local ones {local[0]} to {local[1]} | does not hold for global masks |"
    )


def beyond() -> str:
    repair = difference("self-repair", "self-repair / removed, second half, tokens of equal loss", "local")
    rules = difference("rewriting", "KL recovered at equal loss (share)", "local")
    assert not repair.claim and not rules.claim
    return (
        f"repair an ablation less ({told(repair, 2)} of what was removed, at equal loss) and are "
        f"rewritten better by rules ({told(rules, 2)} of the way recovered, at equal loss); with three seeds neither is"
    )


@pytest.mark.parametrize(
    "found",
    [costs, sizes, latents, readable, magnitudes, specialised, leaks, beyond],
    ids=lambda found: found.__name__,
)
def test_the_verdicts_of_notebook_09_follow_from_what_is_stored(found: Callable[[], str]):
    assert found() in VERDICTS


def test_the_verdicts_of_notebook_09_are_seven_rows():
    assert VERDICTS.count("\n| ") - 2 == 7, "each has a function above"


CHECKPOINTS = re.findall(r"^\| `([\w-]+)` \| ([\d,]+) \| ([\d.]+) \| (\S+) \| ([\d.]+) \[.*?\] \| (\S+)", README, re.M)


def test_every_shipped_checkpoint_has_a_row():
    folders = {path.name for path in (ROOT / "data" / "checkpoints").iterdir() if path.is_dir()}
    assert {row[0] for row in CHECKPOINTS} == folders


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("row", CHECKPOINTS, ids=lambda row: row[0])
def test_a_checkpoint_is_as_good_as_the_readme_says(row, real_data, capsys):
    from sat_lens import load
    from sat_lens.evaluate import main

    name, parameters, clean, ablated, accuracy, ablated_accuracy = row
    assert f"{sum(p.numel() for p in load(name).parameters()):,}" == parameters
    main([name, "--corpus", str(real_data / "tinystories" / "valid.txt"), "--max-tokens", "1000000"])
    found = json.loads(capsys.readouterr().out)
    assert found["n_stories"] == 984
    for stream, bits, share in (("clean", clean, accuracy), ("ablated", ablated, ablated_accuracy)):
        if bits != "–":
            assert found[f"{stream}_bits_a_character"] == pytest.approx(float(bits), abs=0.0011)
            assert found[f"{stream}_ioi_accuracy"] == pytest.approx(float(share), abs=0.0011)
