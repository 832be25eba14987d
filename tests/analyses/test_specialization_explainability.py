"""Neurons whose explanation is known, explained and scored; means, floors and arms by a second route."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from analyses.explain import Explanation, RuleSimulator
from analyses.explain.chat import ChatReply, ChatRequest, OneByOne
from analyses.explain.llm_explainer import MARKER
from analyses.explain.llm_simulator import MARKER as ACTIVATIONS
from analyses.result import Result
from analyses.specialization.__main__ import arguments, main, variant
from analyses.specialization.explainability import explainability
from analyses.specialization.explained import dealt_out, explained_units
from analyses.specialization.explained_by_model import explained_by_model, sampled
from analyses.specialization.explained_comparison import explainability_compared
from analyses.specialization.explained_figures import arms_figure, explained_figures
from analyses.specialization.explained_means import SELECTED, correlations, mean_of
from analyses.texts import Stories
from analyses.unit_streams import unit_batches, units_of
from tests.cases.fixed_neurons import FIRES_ON, fixed_model, fixed_stories


@pytest.fixture
def model(tiny_model: Any) -> Any:
    return fixed_model(tiny_model)


def test_planted_neurons_get_their_explanation_and_dead_ones_their_name(model: Any, tmp_path: Any):
    explained = explained_units(model, fixed_stories(), rules=["ngram", "tree", "n2g"])
    result = explainability(explained, n_resamples=50)
    table = result.table.set_index(["unit", "explainer"])
    for (layer, neuron), token in FIRES_ON.items():
        for name in ("rules:ngram", "rules:tree", "rules:n2g"):
            row = table.loc[(f"L{layer}.N{neuron}", name)]
            assert row.r == pytest.approx(1.0, abs=1e-4) and row.r_low > 0.999, name
            assert f"id {token}" in row.text
            assert row.floor_shuffled < 0.01
            if name != "rules:n2g":  # fires where the other does not: r = -p / (1 - p), p = 1 / 8
                assert row.floor_shuffled == pytest.approx(-1 / 7, abs=0.08)
            assert row.precision == row.recall == 1 and row.false_positives == 0
    said = {e.unit: e.rule for e in explained.scored["rules:ngram"].explanations}
    tokens, level = max(said[0]["entries"], key=lambda entry: entry[1])
    assert tokens[-1] == 3 and said[0]["scale"] * level / 127 == pytest.approx(2.0, rel=0.05)  # drawn to the mean
    assert all(abs(level) < 5 for tokens, level in said[0]["entries"] if tokens[-1] != 3)
    assert np.isnan(table.loc[("L0.N2", "rules:ngram")].r) and np.isnan(table.loc[("L1.N3", "rules:tree")].r)
    cover = result.meta["coverage"][SELECTED]
    assert cover["dead"] == ["L0.N2", "L1.N2"] and cover["silent"] == ["L0.N3", "L1.N3"]
    assert cover["by_count"] == 0.5
    tokens = fixed_stories().tokens[explained.parts.explain]
    fired = sum(2.0 * (tokens == token).sum().item() for token in FIRES_ON.values())
    assert cover["by_mass"] == pytest.approx(fired / (fired + 2 * tokens.numel()))
    assert result.table.groupby("unit").selected.sum().eq(1).all()
    mean = mean_of(result.meta["means"])
    assert mean["n_units"] == 4 and mean["n_all"] == 8 and mean["value"] == pytest.approx(1.0, abs=1e-4)
    assert mean["excess_shuffled"] == pytest.approx(mean["value"] - mean["floor_shuffled"])
    assert result.meta["published"]["mean"] == 0.405
    assert np.mean(result.meta["published"]["by_layer"]) == pytest.approx(0.405, abs=2e-3)

    result.save(tmp_path)
    loaded = Result.load(tmp_path)
    assert set(explained_figures(loaded)) == {"scores_by_layer", "scores"}
    assert loaded.meta == json.loads(json.dumps(loaded.meta))


def test_scores_are_those_of_stories_that_nothing_was_made_from(model: Any):
    stories = fixed_stories()
    explained = explained_units(model, stories, rules=["token"])
    parts = explained.parts
    dealt = torch.cat(list(parts))
    assert len(dealt.unique()) == len(dealt) == stories.n
    own = explained.scored["rules:token"].own[0]
    assert own.rows.tolist() == parts.evaluate.tolist()
    assert explained.material.rows.tolist() == parts.explain.tolist()


def test_means_are_those_of_units_and_their_left_out_groups_a_naive_jackknife(tiny_model: Any):
    model = tiny_model(d_mlp=6)
    stories = fixed_stories(40)
    explained = explained_units(model, stories, rules=["token"])
    scored = explained.scored["rules:token"]
    found = correlations(scored.own)
    rows = scored.own[0].rows

    x = next(iter(unit_batches(model, stories, explained.units, 64, rows=rows.tolist())))
    y = RuleSimulator(scored.explanations)(stories.tokens[rows], stories.lengths[rows])
    groups = np.array_split(np.arange(len(rows)), min(16, len(rows)))
    for i, kept in enumerate([np.arange(len(rows)), *(np.setdiff1d(np.arange(len(rows)), g) for g in groups)]):
        for unit in range(x.values.shape[-1]):
            a, b = (v[kept][x.keep[kept]][:, unit].double().numpy() for v in (x.values, y))
            expected = 0.0 if np.ptp(b) == 0 else np.corrcoef(a, b)[0, 1]
            assert found[i, unit] == pytest.approx(expected, abs=1e-6)
    result = explainability(explained, n_resamples=20)
    assert mean_of(result.meta["means"])["value"] == pytest.approx(np.nanmean(found[0]))
    by_layer = [mean_of(result.meta["means"], layer=layer)["value"] for layer in (0, 1)]
    assert by_layer == pytest.approx([found[0, :6].mean(), found[0, 6:].mean()])


def test_nobody_is_dealt_its_own_explanation_nor_a_constant():
    speaks = {"kind": "patterns", "scale": 1.0, "default": 0, "entries": [[[1], 5]]}
    silent = {**speaks, "entries": []}
    some = [Explanation(i, "rules:token", str(i), silent if i in (2, 5) else speaks, 1.0, "") for i in range(6)]
    dealt, has = dealt_out(some, [0, 0, 0, 1, 2, 2])
    assert [e.text for e in dealt] == ["1", "0", "2", "3", "4", "5"]  # 3 and 4 have nobody to swap with
    assert [e.unit for e in dealt] == list(range(6))
    assert has.tolist() == [True, True, True, False, False, True]


@pytest.mark.parametrize("kind", ["channel", "mask_neuron", "neuron"])
def test_of_units_of_the_ablated_stream_their_strength_is_explained(tiny_model: Any, kind: str):
    model, stories = tiny_model(), fixed_stories(24)
    explained = explained_units(model, stories, kind=kind, stream="ablated", rules=["token"])
    result = explainability(explained, n_resamples=10)
    assert len(result.table) == explained.units.n
    rows = explained.parts.explain
    values = next(iter(unit_batches(model, stories, explained.units, 64, rows=rows.tolist()))).values
    read = torch.cat([batch.values for batch in explained.material.source()])
    assert torch.equal(read, values.abs())
    dead = explained.units.table.unit[(values == 0).all(0).all(0).numpy()].tolist()
    assert result.meta["coverage"]["rules:token"]["dead"] == dead
    if kind != "mask_neuron":
        with pytest.raises(ValueError, match="take token, ngram or tree"):
            explained_units(model, stories, kind=kind, stream="ablated", rules=["n2g"])


class Oracle(OneByOne):
    """Says which token the unit fires on, simulates what is said, and fails where it is told to."""

    name, identity = "oracle", {"kind": "oracle"}

    def __init__(self, refuses: int = 0) -> None:
        self.refuses, self.asked = refuses, 0

    def answer(self, request: ChatRequest) -> ChatReply:
        self.asked += 1
        last = request.messages[-1].content
        if last.startswith("Excerpts"):
            word = last.split("<<")[1].split(">>")[0]
            return ChatReply(f"{MARKER} {word}", finish="stop")
        if self.refuses and self.asked % self.refuses == 0:
            return ChatReply("I would rather not", finish="stop")
        word = last.partition("The unit responds to: ")[2].partition("\n")[0]
        lines = last.partition("Tokens:\n")[2].splitlines()
        hits = [line.endswith(f' "{word}"') for line in lines]
        listed = (f"{i}:{10 * hit}" for i, hit in enumerate(hits, 1))
        return ChatReply(f"{ACTIVATIONS} {' '.join(listed)}", finish="stop")


def test_a_language_model_explains_and_simulates_a_sample(model: Any):
    oracle = Oracle()
    explained = explained_by_model(model, fixed_stories(), oracle, per_layer=4, n_scored=6)
    result = explainability(explained, n_resamples=20)
    table = result.table.set_index("unit")
    for (layer, neuron), token in FIRES_ON.items():
        row = table.loc[f"L{layer}.N{neuron}"]
        assert row.text == f"id {token}" and row.r == pytest.approx(1.0) and row.explainer == "oracle"
        assert row.floor_shuffled < 0.1 and row.precision == row.recall == 1
    assert "never active" in table.missing["L0.N2"] and np.isnan(table.r["L0.N2"])
    assert result.meta["knobs"]["n_stories"]["evaluate"] == 6
    assert "oracle" in result.meta["summary"]


def test_answers_that_cannot_be_read_are_left_out_of_the_score(model: Any):
    explained = explained_by_model(model, fixed_stories(), Oracle(refuses=3), per_layer=4, n_scored=8)
    table = explainability(explained, n_resamples=20).table.set_index("unit")
    row = table.loc["L0.N0"]
    assert row.r == pytest.approx(1.0) and 0 < row.n < 8 * 12


def test_answers_are_asked_of_stories_of_unlike_lengths(model: Any):
    """Also where the longest story is not among those that are scored on."""
    whole = fixed_stories(24)
    probe = explained_by_model(model, whole, Oracle(), per_layer=1, n_scored=3).parts.evaluate
    lengths = torch.full((24,), 12)
    lengths[probe] = torch.tensor([5, 7, 9])
    stories = Stories(whole.tokens, lengths)
    explained = explained_by_model(model, stories, Oracle(refuses=2), per_layer=4, n_scored=3)
    (own,) = explained.scored["oracle"].own
    assert own.rows.tolist() == probe.tolist()
    dead = 2  # simulated as a constant, which has a value at every token
    assert int(own.n_tokens[dead]) == 5 + 7 + 9 and 0 < int(own.n_tokens[:2].sum()) < 2 * (5 + 7 + 9)


def test_a_sample_has_so_many_units_of_each_layer(model: Any):
    units = units_of(model, "neuron")
    chosen = sampled(units, 3, seed=1)
    assert units.table.layer.iloc[chosen.numpy()].tolist() == [0, 0, 0, 1, 1, 1]
    assert len(chosen.unique()) == 6 and len(sampled(units, 99)) == units.n


def test_arms_are_compared_by_seeds(model: Any):
    base = explainability(explained_units(model, fixed_stories(24), rules=["token"]), n_resamples=10)
    results = []
    for mask, shift in (("none", 0.0), ("local", -0.3)):
        for seed in range(3):
            means = [
                {**row, "value": row["value"] + shift + 0.01 * seed} if "n_units" in row and row["n_units"] else row
                for row in base.meta["means"]
            ]
            ablation = {"mask": mask, "k_attn": 2, "k_mlp": 2, "forward": "hard", "detach": "none", "gap_floor": 0}
            meta = {**base.meta, "means": means, "checkpoint": f"{mask}-{seed}", "ablation": ablation}
            results.append(Result(base.name, base.table, base.units, {**meta, "training": {"seed": seed}}))
    compared = explainability_compared(results)
    found = {row["metric"]: row for row in compared.meta["differences"]}
    row = found[f"score, {SELECTED}"]
    assert row["difference"] == pytest.approx(-0.3) and row["claim"] and row["n_pairs"] == 3
    assert row["arm"] == "local k=2" and "local k=2: mean score -0.300" in compared.meta["summary"]
    assert found["units explained (share)"]["difference"] == 0
    assert len(arms_figure(compared).data[0].x) == 6


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--explain", "--explainer", "http"], "needs --url"),
        (["--explain", "--explainer", "hf"], "needs --weights"),
        (["--explain", "--explainer", "replay"], "needs --cassette"),
        (["--explain", "--explainer", "http", "--url", "http://127.0.0.1:1/v1"], "needs --model"),
        (["--explain", "--explainer", "http", "--model", "m", "--url", "localhost:8000"], "http://HOST[:PORT]/PATH"),
        (["--explain", "--explainer", "http", "--model", "m", "--url", "http://"], "got 'http://'"),
        (["--explain", "--explainer", "hf", "--weights", "/no/such"], "there is no folder '/no/such'"),
        (["--explain", "--explainer", "replay", "--cassette", "/no/such.jsonl"], "no file '/no/such.jsonl'"),
        (["--explain", "--explainer", "gpt"], "invalid choice: 'gpt'"),
        (["--explain", "--units", "neuron", "head"], "one kind of unit"),
        (["--explain", "--page"], "one of --explain and --page"),
        (["--page", "--explainer", "replay", "--cassette", "x"], "explained by rules"),
    ],
)
def test_bad_arguments_say_what_is_needed_in_one_line(argv: list[str], expected: str, capsys: Any):
    with pytest.raises(SystemExit) as exit:
        main(["none-s0", *argv])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and expected in error and error.count("\n") == 1


def test_results_of_different_questions_stand_in_different_folders(tmp_path: Any):
    def of(*argv: str) -> str:
        return variant(arguments(["none-s0", *argv]))

    assert [of(), of("--explain"), of("--page", "--stream", "ablated")] == ["", "explained", "ablated.page"]
    (tmp_path / "x").touch()
    assert of("--explain", "--explainer", "replay", "--cassette", str(tmp_path / "x")) == "explained.replay"
