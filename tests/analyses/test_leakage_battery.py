"""The whole battery on models whose leak is known: found, measured, and not seen where there is none."""

import dataclasses
import re
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analyses.leakage.__main__ import main
from analyses.leakage.battery import TESTS, Case, battery, case_of, leakage
from analyses.leakage.comparison import leakage_compared
from analyses.leakage.figures import arms_figure, leakage_figures
from analyses.leakage.finding import LEAKS
from analyses.leakage.planted import (
    planted,
    planted_stories,
    relevant,
    relevant_stories,
    turned,
    words_of,
)
from analyses.leakage.random_heads import random_heads, random_masks, token_masks
from analyses.leakage.usage import entropy
from analyses.leakage.variants import own_masks, passes, target_bits
from analyses.result import Result
from analyses.texts import Stories
from sat_lens import SelfAblatingTransformer, SelfAblation, save, stories
from sat_lens._tl import HookedTransformerConfig
from sat_lens.commands import run

MEASURE = ("blank", "decoder", "mutual information")
"""Tests that claim to measure bits of information; so does the decoder of the prediction, which takes long."""


def under(case: Case, found) -> Case:
    """The same case with other masks, and the losses that they give."""
    bits = passes(case.model, case.stories, {"own": own_masks(found)}, target_bits(found))["own"]
    found = dataclasses.replace(found, loss_ablated=(bits * np.log(2)).astype(np.float32))
    return dataclasses.replace(case, observed=found)


def told_bits(found, bits: int, n_words: int) -> tuple[float, float]:
    """Bits a token that the planted mask tells of the next token, and of the prediction, given the current token.

    The mask is a function of the message: `bits` of the predicted word, or that there is none. So of the prediction it
    tells H(message | token); of the next token, less what it says of there being no word: that comes by lot.
    """
    message = np.where(found.prediction < n_words, found.prediction % 2**bits, 2**bits)
    separator = found.token == n_words
    assert separator[message < 2**bits].all() and np.unique(message[~separator & (found.token < n_words)]).size == 1
    share = (message < 2**bits).mean()
    return bits * share, separator.mean() * entropy(message[separator])


@pytest.fixture(scope="module")
def leaking():
    """`leaking(bits)`: the battery on a planted model, once."""
    kept = {}

    def result(bits: int) -> Result:
        if bits not in kept:
            model = planted(bits)
            kept[bits] = leakage(model, planted_stories(model, 60), quick=True, n_controls=3)
        return kept[bits]

    return result


def calls(result: Result, verdict: str = LEAKS) -> set[str]:
    return set(result.table.test[result.table.verdict == verdict])


# ---- what is planted --------------------------------------------------------------------------------


def test_planted_stories_are_what_they_are_said_to_be_and_are_predicted():
    assert turned(torch.tensor([0b0000, 0b0101, 0b1100]), 4).tolist() == [0b0001, 0b1011, 0b1000]
    for model, some in ((planted(2, n_separators=3), planted_stories), (relevant(n_separators=3), relevant_stories)):
        texts = some(model, 40)
        words, start = texts.tokens[:, 2::2], texts.tokens[:, 0]
        assert words_of(model) == 16 and (start > 18).all() and (texts.tokens[:, 1::2] == texts.tokens[:, 1:2]).all()
        last = turned(words[:, 1:-1], 4) == words[:, 2:]
        one_before = turned(words[:, :-2], 4) == words[:, 2:]
        of_last = start >= 19 if some is planted_stories else start == 19
        assert last[of_last].all() and one_before[~of_last].all()
        assert (some is planted_stories) == of_last.all().item() and of_last.sum() > 5
        predicted = model(texts.tokens).argmax(-1)
        late = slice(2, None) if some is planted_stories else slice(4, None)
        assert (predicted[:, :-1] == texts.tokens[:, 1:])[:, late].all()
        assert set(texts.tokens[:, 1].tolist()) == {16, 17, 18}
    state = torch.get_rng_state()
    planted(1)
    assert torch.equal(state, torch.get_rng_state())


def test_relevant_masks_lose_nothing_and_are_the_same_for_all_words_of_a_kind():
    model = relevant()
    case = case_of(model, relevant_stories(model, 30), n_controls=1)
    assert np.allclose(case.observed.loss_clean, case.observed.loss_ablated, atol=1e-6)
    of_last = case.stories.tokens[:, 0].numpy()[case.observed.story] == 17
    for kind in (of_last, ~of_last):
        assert (case.observed.bits[kind] == case.observed.bits[kind][0]).all()
    assert not np.array_equal(case.observed.bits[of_last][0], case.observed.bits[~of_last][0])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"reads": "mind"}, "prediction, token, nothing; got 'mind'"),
        ({"n_separators": 15}, "from 1 to 14 separators; got 15"),
    ],
)
def test_what_cannot_be_planted_is_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        planted(2, **knobs)
    with pytest.raises(ValueError, match="at least 1 bit; got 0"):
        planted(0)


# ---- found and measured -----------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_planted_leak_is_called_one_and_measured(leaking, bits):
    result = leaking(bits)
    table = result.table.set_index("test")
    assert calls(result) >= {"decoder", "decoder of prediction", "mutual information", "blank stream", "swap", "ladder"}
    assert calls(result) >= {"unit permutation", "depth"} | ({"hijack"} if bits == 4 else set()), "4 bits name a word"
    assert not calls(result) & {"counterfactual", "future tokens", "future tokens, masks", "later layers"}
    model = planted(bits)
    next_token, prediction = told_bits(case_of(model, planted_stories(model, 60), n_controls=0).observed, bits, 16)
    for test in ("blank stream", "decoder"):
        assert table.value[test] == pytest.approx(next_token, rel=0.2)
    for test in ("mutual information", "decoder of prediction"):
        assert table.value[test] == pytest.approx(prediction, rel=0.2)
    most = result.meta["details"]["swap"]["most"]
    assert most == 2 and table.value["swap"] < most


@pytest.mark.slow
def test_eight_planted_bits_are_measured():
    model = planted(8, n_ctx=34)
    case = case_of(model, planted_stories(model, 256), n_controls=1, quick=True)
    table = battery(case, MEASURE).table.set_index("test")
    next_token, prediction = told_bits(case.observed, 8, 256)
    assert (table.verdict == LEAKS).all() and next_token > 3.5
    for test, truth in {"blank stream": next_token, "decoder": next_token, "mutual information": prediction}.items():
        assert table.value[test] == pytest.approx(truth, rel=0.2)


def test_the_verdict_and_the_line_begin_with_the_strongest_leak_that_decides(leaking):
    result = leaking(2)
    deciding = result.table[result.table.kind.isin(["message", "structure"]) & (result.table.verdict == LEAKS)]
    strength = (deciding.excess - deciding.margin) / (deciding.ci_high - deciding.ci_low)
    first = deciding.test.iloc[int(strength.to_numpy().argmax())]
    assert result.meta["verdict"] == LEAKS and result.meta["summary"].startswith(f"leaks: {first} ")
    found, *rest = result.meta["summary"].split(". ")
    assert re.findall(r"(?:^leaks: |; )([a-z ]+) \d", found) == deciding.test.tolist()
    assert rest[0].startswith("Masks are worth or hold more than their nulls: ")
    assert "\n" not in result.meta["summary"] and "the least leak that would have been seen" in result.meta["summary"]
    assert (result.table.p_holm.dropna() >= result.table.p[result.table.p_holm.notna()]).all()
    assert set(result.meta["seconds"]) == set(TESTS)


# ---- not seen where there is none -------------------------------------------------------------------


def nulls(seed: int, place: float = 200.0, n: int = 30, n_controls: int = 3) -> dict[str, Case]:
    """A case of every kind of mask that cannot tell; "drawn" ones are not those of the model's heads."""
    model = planted(2, n_separators=2, place=place)
    texts = planted_stories(model, n, seed=seed)
    knobs = {"n_controls": n_controls, "seed": seed, "quick": True}
    case = case_of(model, texts, **knobs)
    drawn = {
        "random": random_masks(case.observed, model.ablation, seed),
        "token": token_masks(case.observed, seed),
    }
    return {
        "untrained": case_of(random_heads(model, 5000 + seed), texts, **knobs),
        **{f"drawn, {name}": under(case, found) for name, found in drawn.items()},
        **{reads: case_of(planted(2, reads=reads, n_separators=2, place=place), texts, **knobs)
           for reads in ("token", "nothing")},
    }  # fmt: skip


def asked(name: str) -> list[str]:
    """Tests of a case of `nulls`: masks that are drawn are not those of the model's heads, which some tests ask."""
    return [test for test in TESTS if not (name.startswith("drawn") and test in ("own prediction", "soft and hard"))]


def test_masks_that_cannot_tell_are_no_leak_to_any_test():
    for name, case in nulls(0).items():
        result = battery(case, asked(name))
        assert not calls(result) and result.meta["verdict"] != LEAKS, name
        assert not result.meta["summary"].startswith(LEAKS)


def test_masks_that_matter_and_tell_nothing_are_worth_much_and_no_message():
    model = relevant(n_separators=2)
    result = leakage(model, relevant_stories(model, 60), quick=True, n_controls=3)
    assert calls(result) == {"ladder"} and result.meta["verdict"] != LEAKS
    table = result.table.set_index("test")
    assert table.excess["ladder"] > 0.5
    assert table.value[["blank stream", "swap", "hijack", "decoder", "unit permutation"]].abs().max() < 0.02


def false_alarms(make_case, n_seeds: int) -> pd.DataFrame:
    """A row a seed and kind of case: `verdict` is leaks, and `any` test called it one."""
    rows = []
    for seed in range(n_seeds):
        for name, case in make_case(seed).items():
            result = battery(case, asked(name))
            found = sorted(calls(result))
            rows.append(
                {"seed": seed, "case": name, "verdict": result.meta["verdict"] == LEAKS, "any": len(found) > 0,
                 "tests": "; ".join(found)}
            )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.slow
def test_at_most_one_false_alarm_in_twenty_seeds():
    """With random heads that hash the words, and so hold most of them."""
    table = false_alarms(lambda seed: nulls(seed, place=1.0), 20)
    assert (table.groupby("case")[["verdict", "any"]].sum() <= 1).all(axis=None), table[table["any"]].to_string()


@pytest.mark.slow
def test_at_most_one_false_alarm_in_twenty_tiny_models(tiny_model):
    def untrained(seed: int) -> dict[str, Case]:
        mask = ("local", "global", "both")[seed % 3]
        model = random_heads(tiny_model(ablation={"mask": mask, "k_attn": 3, "k_mlp": 5}, seed=seed), 900 + seed)
        draw = torch.Generator().manual_seed(seed)
        texts = Stories(torch.randint(6, (40, 16), generator=draw), torch.full((40,), 16))
        return {"untrained": case_of(model, texts, n_controls=3, seed=seed, quick=True)}

    table = false_alarms(untrained, 20)
    assert (table[["verdict", "any"]].sum() <= 1).all(), table[table["any"]].to_string()


# ---- results ----------------------------------------------------------------------------------------


def test_an_unknown_test_is_refused_and_known_ones_are_asked_alone(leaking):
    model = planted(1)
    case = case_of(model, planted_stories(model, 8), n_controls=2)
    with pytest.raises(ValueError, match=r"tests of leakage are structure, blank, .*; got 'guess'"):
        battery(case, ["blank", "guess"])
    assert battery(case, ["loss inversion"]).table.test.tolist() == ["loss inversion"]


def test_a_result_is_saved_and_drawn_from_disk(leaking, tmp_path):
    result = leaking(2)
    result.save(tmp_path)
    loaded = Result.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.table, result.table)
    assert loaded.meta["summary"] == result.meta["summary"] and loaded.units == result.units
    assert {"findings", "ladder", "depth", "swap", "text"} <= set(leakage_figures(loaded))


def test_models_are_compared_by_arm(leaking):
    results = []
    for seed in range(3):
        for mask, bits in (("local", 1), ("global", 2)):
            ablation = dataclasses.asdict(SelfAblation(mask=mask, k_attn=1, k_mlp=1))
            made = {"checkpoint": f"{mask}-s{seed}", "ablation": ablation, "training": {"seed": seed}}
            meta = {**leaking(bits).meta, **made}
            spread = leaking(bits).table.assign(excess=leaking(bits).table.excess + 0.01 * (seed - 1))
            results.append(dataclasses.replace(leaking(bits), table=spread, meta=meta))
    compared = leakage_compared(results)
    blank = compared.table[compared.table.metric == "blank stream (bits)"]
    assert len(blank) == 6 and set(blank.arm) == {"local k=1", "global k=1"} and blank.ci_low.notna().all()
    rows = pd.DataFrame(compared.meta["differences"]).set_index("metric")
    excess = {bits: leaking(bits).table.set_index("test").excess["blank stream"] for bits in (1, 2)}
    assert rows.baseline.eq("local k=1").all()
    assert rows.difference["blank stream (bits)"] == pytest.approx(excess[2] - excess[1]) and rows.claim.any()
    assert {"clean loss (bits)", "ablated loss (bits)"} <= set(rows.index)
    assert not rows.claim["clean loss (bits)"], "the same in all seeds: no spread to judge by"
    assert compared.meta["models"]["global-s2"]["verdict"] == LEAKS
    assert "usage (bits)" not in rows.index
    arms_figure(compared)


# ---- the command ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of self-ablating models and of one without masks, all untrained."""
    words = sorted({word for text in islice(stories.stories(seed=0), 60) for word in re.findall(r"\w+|[^\w\s]", text)})
    vocabulary = ["<|endoftext|>", *words]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=vocabulary[0]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=vocabulary[0], eos_token=vocabulary[0])
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, mask in (("local", "local"), ("global", "global"), ("none", "none")):
        cfg = HookedTransformerConfig(
            n_layers=2, d_model=16, n_heads=2, d_head=8, d_mlp=24, d_vocab=len(vocabulary), n_ctx=40, act_fn="gelu",
            normalization_type="LN", seed=0,
        )  # fmt: skip
        model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask=mask, k_attn=3, k_mlp=2))
        model.tokenizer = tokenizer
        save(model, folder / name)
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["local", "--n", "5"], "--n must be at least 6 stories, to fit probes on some and judge them"),
        (["local", "--controls", "1"], "--controls must be at least 2, for the spread of untrained heads; got 1"),
        (["local", "--controls", "0"], "--controls: must be a whole number"),
        (["none", "--n", "6"], "leakage is asked of a model with masks; this one has none"),
        (["none-s0", "--n", "6"], "leakage is asked of a model with masks; this one has none"),
        (["local", "--corpus", "nonesuch"], "a corpus must be"),
    ],
)
def test_bad_arguments_end_in_one_line_and_exit_2(checkpoints, tmp_path, capsys, flags, message):
    name, *rest = flags
    path = name if name == "none-s0" else str(checkpoints / name)
    with pytest.raises(SystemExit) as exit:
        run(main, [path, "--out", str(tmp_path), "--quiet", *rest])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_writes_results_and_the_arms(checkpoints, tmp_path, capsys):
    names = [str(checkpoints / name) for name in ("local", "global")]
    main([*names, "--out", str(tmp_path), "--n", "8", "--controls", "2", "--quick", "--quiet"])
    out = capsys.readouterr().out
    for name in ("local", "global"):
        result = Result.load(tmp_path / "leakage" / name)
        assert result.meta["knobs"] == {"n_stories": 8, "n_controls": 2, "seed": 0, "quick": True}
        assert result.meta["verdict"] != LEAKS and result.meta["summary"] in out
    arms = Result.load(tmp_path / "leakage" / "arms")
    assert set(arms.meta["models"]) == set(names)
    assert (tmp_path / "leakage" / "arms" / "figures" / "arms.html").exists()
