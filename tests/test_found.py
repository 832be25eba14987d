"""What the README says was found, worked out again from the stored results, word by word."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "data" / "results"
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
    assert min(bits["global"]) >= min(bits["soft"]) and difference("leakage", "blank stream (bits)", "global").claim
    low, high = (short(end(bits["global"])) for end in (min, max))
    local = [short(end(bits["local"])) for end in (min, max)]
    return f"({low} to {high} bits a token), as much as soft ones; local ones {local[0]} to {local[1]} |"


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
    [circuits, leakage, specialization, modelling, features, sparsity, rewriting, untangling, self_repair],
    ids=lambda found: found.__name__,
)
def test_what_was_found_follows_from_what_is_stored(found: Callable[[], str]):
    assert found() in README


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
