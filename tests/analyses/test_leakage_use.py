"""Does the ablated stream use its mask as a message? A model that does, to a known number of bits, and others."""

import dataclasses

import numpy as np
import pytest
import torch

from analyses.leakage.blank import blank, blank_stream, ngram_bits
from analyses.leakage.donors import donors
from analyses.leakage.finding import LEAKS, NOTHING, findings_table
from analyses.leakage.interventions import batches, logits_under
from analyses.leakage.ladder import ladder
from analyses.leakage.minimal_pairs import minimal_pairs, unrelated
from analyses.leakage.observed import Observed, observed
from analyses.leakage.own_prediction import before_final_norm, own_prediction, projected_out
from analyses.leakage.planted import planted, planted_stories
from analyses.leakage.random_heads import random_heads, random_masks, token_masks
from analyses.leakage.soft_hard import rounded, soft_hard
from analyses.leakage.swap import swap
from analyses.leakage.unit_permutation import unit_permutation
from analyses.leakage.usable import continuations, rates
from analyses.leakage.variants import own_masks, passes
from analyses.texts import Stories
from sat_lens.tasks.load import load_task

WORDS, N_CTX = 16, 18
"""Words and positions of the planted models."""


def controls_of(model, stories, seeds=(1, 2, 3)):
    heads = [random_heads(model, seed) for seed in seeds]
    return heads, [observed(head, stories) for head in heads]


def use_tests(model, stories, found, controls):
    return [
        blank(model, stories, found, controls),
        *swap(model, stories, found, controls, n_donors=4, n_stories=24),
        ladder(model, stories, found, controls),
        unit_permutation(model, stories, found),
    ]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_planted_message_is_found_and_measured(bits):
    model = planted(bits, n_separators=2)
    stories = planted_stories(model, 120)
    found = observed(model, stories)
    told = (found.prediction < WORDS).mean()
    heads, controls = controls_of(model, stories)
    findings = use_tests(model, stories, found, controls)
    table = findings_table(findings).set_index("test")
    assert set(table.index[table.verdict == LEAKS]) >= {"blank stream", "swap", "ladder", "unit permutation"}
    assert table.value["blank stream"] == pytest.approx(bits * told, rel=0.2)
    assert table.null["blank stream"] < 0.1 * bits
    rungs = next(finding for finding in findings if finding.test == "ladder").detail
    assert rungs["of_prediction"]["share"] > 0.9, "the prediction is all that the mask tells"
    assert rungs["share"] > 0.7
    own = own_prediction(model, stories, found, heads, n_alternatives=2)
    assert own.verdict(own.p) == LEAKS and own.detail["kept"]["prediction"] < own.detail["kept"]["random"]


def test_the_rate_is_that_of_the_classes_the_mask_names():
    """Sharp neurons: what is left of the masks compared are those of the same class, counted one by one."""
    model = planted(2, n_separators=3, sharpness=60.0)
    stories = planted_stories(model, 30)
    found = observed(model, stories)
    said = np.where(found.prediction < WORDS, found.prediction % 4, 4)
    after = continuations(found)
    kept = passes(model, stories, {"own": own_masks(found)}, after.read, blank=blank_stream(model, stories))
    bits = rates(found, after, kept["own"])[-1]
    for i in np.flatnonzero(found.pos > 1):
        here = found.token == found.token[i]
        others = [here & (found.story == story) for story in set(found.story[here]) - {found.story[i]}]
        if others:
            alike = 1 + sum((said[rows] == said[i]).mean() for rows in others)
            assert bits[i] == pytest.approx(np.log2((1 + len(others)) / alike), abs=1e-3)
        else:
            assert np.isnan(bits[i])


@pytest.mark.parametrize("kind", ["token", "random", "untrained", "shuffled"])
def test_masks_that_cannot_tell_are_no_leak(kind):
    model = planted(3, n_separators=2)
    stories = planted_stories(model, 60)
    _, controls = controls_of(model, stories)
    found = observed(model, stories)
    if kind == "untrained":
        model = random_heads(model, 77)
        found = observed(model, stories)
    elif kind == "token":
        found = token_masks(found, 0)
    elif kind == "random":
        found = random_masks(found, model.ablation, 0)
    else:
        found = found.with_masks_of(np.random.default_rng(0).permutation(found.n))
    findings = use_tests(model, stories, found, controls)
    table = findings_table(findings).set_index("test")
    assert not (table.verdict == LEAKS).any()
    assert (table.value[["blank stream", "swap", "unit permutation"]].abs() < 0.1).all()
    if kind == "token":
        assert table.value["ladder"] == 0 and table.value["hijack"] == 0


@pytest.mark.slow
def test_untrained_heads_raise_no_false_alarm_in_20_seeds():
    model = planted(2, n_separators=2, place=1.0)
    stories = planted_stories(model, 30)
    _, controls = controls_of(model, stories)
    alarms = 0
    for seed in range(20):
        other = random_heads(model, 100 + seed)
        table = findings_table(use_tests(other, stories, observed(other, stories), controls))
        alarms += bool((table.verdict == LEAKS).any())
    assert alarms <= 1


def test_every_mask_that_names_a_token_makes_the_recipient_say_it():
    """4 bits name the word: a swap is a hijack where the donor's mask names one, that is, where it predicts one."""
    model = planted(4, sharpness=60.0)
    stories = planted_stories(model, 120)
    found = observed(model, stories)
    told, hijack = swap(model, stories, found, [], n_donors=4, n_stories=20, seed=5)
    rows = np.arange(20 * (N_CTX - 1))
    drawn = np.stack([donors(found, "token", 5 + i)[rows] for i in range(4)])
    valid = (drawn >= 0) & (found.prediction[drawn] != found.prediction[rows])
    valid &= valid.sum(0) > 1
    names = np.where(valid, found.prediction[drawn] < WORDS, np.nan)[:, valid.any(0)]
    assert hijack.detail["rate"] == pytest.approx(np.nanmean(names, 0).mean(), abs=1e-9)
    assert np.sum(hijack.detail["n"]) == valid.sum() and hijack.detail["classes"][-1] == "other"
    assert hijack.detail["base"] < 0.5 * hijack.detail["rate"]
    assert told.detail["most"] == 2 and 1 < told.value <= 2
    assert told.detail["log_odds_shift"] > 100 + told.detail["log_odds_shift_of_others"]


def test_the_blank_stream_is_the_same_wherever_it_is_asked():
    model = planted(2)
    stories = planted_stories(model, 6)
    of = blank_stream(model, stories)
    batch = next(batches(model, stories))
    same = batch.masks[:1, 2:3].expand_as(batch.masks)
    logits = logits_under(model, batch, same, of(batch))
    assert torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-9)
    kept = [model.clean_stream(stories.tokens).resid_pre[0][:, :-1].flatten(0, 1)]
    assert torch.allclose(of(batch).resid_pre[0][0, 0], kept[0].mean(0), atol=1e-12)
    assert not torch.allclose(logits_under(model, batch, batch.masks, of(batch)), logits)


def test_unigram_and_bigram_count_the_other_stories_alone():
    """Stories "1 1 2" and "1 2 2" of a vocabulary of 4: pairs 1-1, 1-2 and 1-2, 2-2."""
    columns = {"token": [1, 1, 1, 2], "target": [1, 2, 2, 2], "story": [0, 0, 1, 1]}
    some = observed(planted(1), planted_stories(planted(1), 2))
    first = {field.name: getattr(some, field.name) for field in dataclasses.fields(some)}
    first = {name: value[:4] if isinstance(value, np.ndarray) else value for name, value in first.items()}
    found = Observed(**{**first, "d_vocab": 4, **{name: np.array(values) for name, values in columns.items()}})
    unigram, bigram = ngram_bits(found)
    # row 0: the other story has targets 2, 2: (0 + 1) / (2 + 4); after token 1 (once) target 1 never
    assert unigram[0] == pytest.approx(np.log2(6)) and bigram[0] == pytest.approx(-np.log2((10 / 6) / 11))
    # row 2: the other story has targets 1, 2: (1 + 1) / 6; after token 1 (twice) target 2 once
    assert unigram[2] == pytest.approx(np.log2(3)) and bigram[2] == pytest.approx(-np.log2((1 + 10 / 3) / 12))


def test_magnitudes_that_tell_are_told_from_winners_that_do():
    """All code neurons win everywhere, and weigh more where they are right: hard masks say nothing, soft ones do."""
    model = planted(2, k_mlp=4, forward="soft")
    stories, idle = planted_stories(model, 120), int(model.gates["global"]["attn"].bias.argmax())
    found = observed(model, stories)
    soft = np.zeros_like(found.soft)
    soft[:, 0, idle] = 1
    code = np.where(found.prediction < WORDS, found.prediction % 4, 4)
    right = np.stack([code & 1 == 1, code >> 1 & 1 == 1, code & 1 == 0, code >> 1 & 1 == 0], 1)
    soft[:, 0, found.attn_width : found.attn_width + 4] = 1 + 0.5 * right * (code < 4)[:, None]
    bits = np.zeros((found.n, 1, found.width), dtype=bool)
    bits[:, 0, [idle, *range(found.attn_width, found.attn_width + 4)]] = True
    told = dataclasses.replace(found, soft=soft, bits=np.packbits(bits, axis=-1))
    finding = soft_hard(model, stories, told, [])
    assert finding.verdict(finding.p) == LEAKS and finding.value > 1
    loss = finding.detail["loss_bits"]
    assert loss["rounded"][-1] == pytest.approx(loss["soft"], abs=0.02)
    # half a unit more is 1.5 nats for or against: 4 words at 3, 8 words and 3 other ids at 0, 4 words at -3
    right = np.log2(19) - np.log2(4 + 11 * np.exp(-3) + 4 * np.exp(-6))
    assert finding.detail["gap"] == pytest.approx(right * (code < 4).mean(), rel=0.01)
    hard = soft_hard(planted(2), stories, observed(planted(2), stories), [])
    assert hard.value == hard.null == 0 and hard.verdict(hard.p) == NOTHING


def test_rounding_takes_the_nearest_of_the_levels():
    values = np.array([[[0.0, 0.4, 0.6, 2.0]]], dtype=np.float32)
    assert rounded(values, 1, 1.0).ravel().tolist() == [0, 0, 1, 1]
    assert rounded(values, 2, 1.5).ravel().tolist() == [0, 0.5, 0.5, 1.5]


def test_a_random_direction_takes_as_much_of_the_norm_as_the_predictions():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 12, generator=draw, dtype=torch.float64)
    directions = torch.randn(50, 12, 2, generator=draw, dtype=torch.float64)
    rest, share = projected_out(x, directions)
    assert (rest[:, None] @ directions).abs().max() < 1e-12
    other, other_share = projected_out(x, directions, torch.Generator().manual_seed(1))
    assert torch.equal(share, other_share) and not torch.allclose(rest, other)
    assert torch.allclose(other.norm(dim=-1), rest.norm(dim=-1)), "what is left is as long"
    assert torch.allclose((x - other).norm(dim=-1), share * x.norm(dim=-1))


def test_without_its_direction_the_logit_lens_is_silent_on_the_prediction(tiny_model):
    model = tiny_model()
    x = torch.randn(7, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    said = torch.arange(7)
    unread = model.unembed.W_U.T - model.unembed.W_U.mean(-1)
    rest, _ = projected_out(x, before_final_norm(model, unread[said][..., None]))

    def lens(stream):
        with torch.no_grad():
            model.ln_final.b.zero_()
            logits = model.ln_final(stream) @ model.unembed.W_U
        return (logits - logits.mean(-1, keepdim=True))[torch.arange(7), said]

    assert lens(x).abs().min() > 1e-3 and lens(rest).abs().max() < 1e-10


KINDS = {
    "local": {"mask": "local"},
    "both_soft": {"mask": "both", "forward": "soft"},
    "heads": {"mask": "local", "unit": "head", "k_attn": 2, "score_input": "normalized"},
    "whole_model": {"mask": "global", "scope": "model"},
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_mask_can_be_asked_and_untrained_ones_do_not_leak(tiny_model, kind):
    model = tiny_model(ablation={"k_attn": 3, "k_mlp": 5, **KINDS[kind]})
    draw = torch.Generator().manual_seed(3)
    stories = Stories(torch.randint(5, (12, 9), generator=draw), torch.randint(4, 10, (12,), generator=draw))
    found = observed(model, stories)
    heads, controls = controls_of(model, stories, (1, 2))
    findings = [
        *use_tests(model, stories, found, controls),
        soft_hard(model, stories, found, controls),
        own_prediction(model, stories, found, heads),
    ]
    table = findings_table(findings)
    assert np.isfinite(table[["value", "null", "ci_low", "ci_high", "p", "smallest"]].to_numpy()).all()
    assert (table.verdict == LEAKS).sum() == 0
    assert minimal_pairs(model, heads) is None


def test_shipped_global_masks_pass_names_on_and_local_ones_do_not():
    import sat_lens

    told = {}
    for name in ("global-k4-s0", "local-k4-s0"):
        model = sat_lens.load(name)
        told[name] = minimal_pairs(model, [random_heads(model, 1)], n=16)
    assert told["global-k4-s0"].verdict(told["global-k4-s0"].p) == LEAKS
    assert told["global-k4-s0"].detail["flips"]["pair"] > 0.8 > told["global-k4-s0"].detail["flips"]["own"]
    assert told["local-k4-s0"].verdict(told["local-k4-s0"].p) != LEAKS
    task = load_task("ioi", model.tokenizer, n=16, seed=0, corrupt="swap")
    others = unrelated(task, 0)
    ids = [{int(a), int(b)} for a, b in zip(task.answers, task.wrong_answers, strict=True)]
    for i, other in enumerate(others):
        assert other == -1 or not ids[i] & ids[other]
