"""How many bits do masks hold of what comes next? Masks into which a known number is written, and others."""

import dataclasses

import numpy as np
import pytest
import torch

from analyses.labels.token_classes import CLASSES
from analyses.leakage.conditional import folds
from analyses.leakage.decoder import decoder
from analyses.leakage.depth import depth
from analyses.leakage.finding import LEAKS, NOTHING, findings_table
from analyses.leakage.information import capacity, information, plug_in
from analyses.leakage.losses import losses
from analyses.leakage.observed import Observed, observed
from analyses.leakage.random_heads import random_heads
from analyses.leakage.softmax_probe import mask_features, probe_bits
from analyses.leakage.usage import conditional_entropy, entropy, labels, usage
from analyses.texts import Stories

LAYERS, ATTN, MLP, K = 2, 8, 32, 3
N_TOKENS = 20


def written(bits: int, kind: str = "random", *, n_stories: int = 60, n_values: int = 256, seed: int = 0) -> Observed:
    """Predictions are drawn by lot, so that the token says nothing; each of `bits` turns on one of two neurons.

    The neurons of a bit are in layer 0 or 1 by turns. All other units: K winners by lot, or by the token.
    """
    draw = np.random.default_rng(seed)
    n = n_stories * 80
    token, prediction = draw.integers(N_TOKENS, size=n), draw.integers(n_values, size=n)
    scores = draw.random((n, LAYERS, ATTN + MLP))
    if kind == "token":
        scores = scores[:N_TOKENS][token]
    masks = np.zeros(scores.shape, dtype=bool)
    for first, last in ((0, ATTN), (ATTN, ATTN + MLP)):
        np.put_along_axis(masks, np.argsort(-scores[..., first:last], -1)[..., :K] + first, True, -1)
    for bit in range(bits):
        layer, unit, on = bit % LAYERS, ATTN + 2 * (bit // LAYERS), (prediction >> bit) & 1 == 1
        masks[:, layer, unit], masks[:, layer, unit + 1] = ~on, on
    return Observed(
        story=np.repeat(np.arange(n_stories), 80), pos=np.tile(np.arange(80), n_stories), token=token,
        target=prediction.copy(), prediction=prediction, loss_clean=np.ones(n, dtype=np.float32),
        loss_ablated=np.ones(n, dtype=np.float32), bits=np.packbits(masks, axis=-1), soft=None,
        width=ATTN + MLP, attn_width=ATTN, d_vocab=n_values,
    )  # fmt: skip


def with_masks(found: Observed, other: Observed) -> Observed:
    return dataclasses.replace(found, bits=other.bits)


def controls(found: Observed, n: int = 2) -> list[Observed]:
    n_stories = found.n_stories
    return [with_masks(found, written(0, n_stories=n_stories, seed=50 + i)) for i in range(n)]


@pytest.mark.parametrize("bits", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 8])
def test_written_bits_are_found_and_measured(bits):
    found = written(bits)
    for finding in (decoder(found, controls(found), by_layer=False), information(found, controls(found))):
        assert finding.value == pytest.approx(bits, rel=0.1)
        assert finding.verdict(finding.p) == LEAKS and abs(finding.null) < 0.03 and finding.n_stories == 60
        assert abs(finding.detail["shuffled"]) < 0.05


@pytest.mark.parametrize("kind", ["random", "token"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_masks_that_hold_nothing_are_no_leak(kind, seed):
    found = written(0, kind, seed=seed, n_stories=40, n_values=32)
    tests = [
        decoder(found, controls(found), by_layer=False),
        decoder(found, controls(found), of="prediction", by_layer=False),
        information(found, controls(found)),
        *losses(found),
    ]
    for finding in tests:
        assert finding.verdict(finding.p) == NOTHING and abs(finding.value) < 0.03
    assert not tests[0].detail["beats_shuffled"] and "no more than from masks of other positions" in tests[0].measure


def test_what_the_token_tells_of_the_next_token_is_not_counted():
    """The next token is a function of the current one, and masks name the current one."""
    found = written(0, "token", n_values=32)
    target = (7 * found.token + 3) % 32
    found = dataclasses.replace(found, target=target, prediction=target)
    for finding in (decoder(found, controls(found), by_layer=False), information(found, controls(found))):
        assert abs(finding.value) < 0.02 and finding.verdict(finding.p) == NOTHING


def test_half_of_a_bit_is_half_of_a_bit():
    """A bit that is right 8 times in 9: 1 - H(1/9) = 0.497 bits."""
    found, other = written(1, n_stories=100, n_values=16), written(1, n_stories=100, n_values=16)
    wrong = np.random.default_rng(9).random(found.n) < 1 / 9
    flipped = other.masks()
    flipped[wrong, 0, ATTN : ATTN + 2] = ~flipped[wrong, 0, ATTN : ATTN + 2]
    found = dataclasses.replace(found, bits=np.packbits(flipped, axis=-1))
    truth = 1 + (np.log2(1 / 9) / 9 + 8 * np.log2(8 / 9) / 9)
    assert decoder(found, [], by_layer=False).value == pytest.approx(truth, abs=0.03)
    assert information(found, []).value == pytest.approx(truth, abs=0.03)


def test_layers_add_up_and_units_are_named():
    found = written(3)
    detail = decoder(found, []).detail
    assert detail["layer"] == pytest.approx([2, 1], abs=0.1), "bits 0 and 2 are in layer 0, bit 1 in layer 1"
    assert detail["cumulated"] == pytest.approx([2, 3], abs=0.15)
    named = {(layer, unit) for layer, unit, _ in information(found, []).detail["by_unit"][:6]}
    assert named == {(0, ATTN), (0, ATTN + 1), (0, ATTN + 2), (0, ATTN + 3), (1, ATTN), (1, ATTN + 1)}


def test_weights_of_soft_masks_are_read():
    """The winners are the same everywhere; their weights say a bit."""
    found = written(0, n_values=16)
    soft = np.full((found.n, LAYERS, ATTN + MLP), 0.1, dtype=np.float16)
    soft[:, 1, 3] += 0.2 * (found.prediction & 1)
    told = dataclasses.replace(found, soft=soft, bits=np.broadcast_to(found.bits[:1], found.bits.shape).copy())
    assert decoder(told, [], by_layer=False).value == pytest.approx(1, abs=0.1)
    assert abs(information(told, []).value) < 0.02


def test_what_is_fitted_has_not_seen_what_is_judged():
    found = written(2, n_stories=12, n_values=16)
    first, second = folds(found, found.target)
    for fold in (first, second):
        parts = [set(found.story[rows]) for rows in (fold.fit, fold.inner, fold.judged)]
        assert sum(map(len, parts)) == 12 and len(set.union(*parts)) == 12
        assert np.allclose(np.exp(fold.logp).sum(-1), 1, atol=1e-5)
    assert np.array_equal(np.sort(np.r_[first.judged, second.judged]), np.arange(found.n))
    other = found.target.copy()
    other[first.judged] = (other[first.judged] + 5) % 16
    again = folds(found, other)[0]
    assert np.array_equal(first.logp, again.logp)
    rows = first.fit[:50]
    i = rows[0]  # by hand: the bigram of a fitted row counts the rows of other groups
    seen = first.fit[first.table[first.fit] != first.table[i]]
    after = seen[found.token[seen] == found.token[i]]
    share = (found.target[after] == found.target[i]).sum() + first.strength * np.exp(first.unigram[first.label[i]])
    assert first.bits(rows)[0] == pytest.approx(-np.log2(share / (len(after) + first.strength)), abs=1e-4)


def test_the_probe_is_never_much_worse_than_the_bigram():
    found = written(0, n_stories=8, n_values=200, seed=4)
    fold = folds(found, found.target)[0]
    loss, rank = probe_bits(mask_features(found), fold)
    assert loss.mean() < fold.bits(fold.judged).mean() + 0.05 and rank >= 0
    with pytest.raises(ValueError, match="at least 6 stories"):
        decoder(written(0, n_stories=5), [])
    with pytest.raises(ValueError, match="target, prediction"):
        decoder(found, [], of="loss")


def test_an_ablated_stream_that_is_better_is_an_inversion_and_the_class_is_named():
    found = written(0)
    classes = np.where(np.arange(N_TOKENS) < 4, CLASSES.index("name"), CLASSES.index("word"))
    noise = np.random.default_rng(0).normal(0, 0.3, found.n)
    better = np.where(found.token < 4, 0.4, -0.6) * np.log(2) + noise
    found = dataclasses.replace(found, loss_ablated=(found.loss_clean - better).astype(np.float32))
    whole, by_class = losses(found, classes)
    assert whole.verdict(whole.p) == NOTHING and whole.value == pytest.approx(-0.4, abs=0.05)
    assert by_class.verdict(by_class.p) == LEAKS and by_class.detail["class"] == "name"
    assert by_class.value == pytest.approx(0.4, abs=0.05)
    assert by_class.ci_high - by_class.ci_low > (
        whole.detail["classes"]["name"]["ci_high"] - whole.detail["classes"]["name"]["ci_low"]
    ), "an interval for one of two is the wider"


def test_a_clean_stream_that_anything_beats_is_no_inversion():
    found = written(0)
    noise = np.random.default_rng(1).normal(0, 0.3, (4, found.n))

    def beaten_by(bits: float, lot: int) -> Observed:
        loss = found.loss_clean - bits * np.log(2) + noise[lot]
        return dataclasses.replace(found, loss_ablated=loss.astype(np.float32))

    def asked(*of_random: float):
        return losses(beaten_by(0.4, 0), controls=[beaten_by(bits, i + 1) for i, bits in enumerate(of_random)])[0]

    alone, as_random, worse = asked(), asked(0.3, 0.4, 0.5), asked(-3.0, -1.0, -9.0)
    assert alone.verdict(alone.p) == LEAKS
    assert as_random.null == pytest.approx(0.4, abs=0.02) and as_random.verdict(as_random.p) != LEAKS
    assert [worse.null, worse.ci_low, worse.ci_high, worse.p] == [0, alone.ci_low, alone.ci_high, alone.p]


def test_entropies_and_shares_by_hand():
    assert entropy(np.array([0, 0, 1, 2])) == pytest.approx(1.5)
    assert conditional_entropy(np.array([0, 1, 2, 2]), np.array([0, 0, 1, 1])) == pytest.approx(0.5)
    found = written(0, "token", n_stories=40)
    described = usage(found)
    assert described.value == pytest.approx(0, abs=1e-9) and described.verdict(described.p) == "described"
    assert described.detail["whole"] == N_TOKENS == labels(found.bits).max() + 1
    assert described.detail["by_units_given_token"] == pytest.approx(0, abs=1e-9)
    assert described.detail["dead"][0] == pytest.approx(1 - found.masks()[:, 0].any(0).mean())
    assert described.detail["gini"][0] == pytest.approx(
        np.abs(np.subtract.outer(*[found.masks()[:, 0].sum(0).astype(float)] * 2)).sum()
        / (2 * found.width * found.masks()[:, 0].sum())
    )
    findings_table([described, *losses(found)])


def test_what_a_mask_could_carry_and_what_plug_in_makes_of_it():
    """C(8, 3) = 56, C(32, 3) = 4960, in 2 layers; own and lot-drawn masks alike seem to tell nearly everything."""
    assert capacity(written(0)) == pytest.approx(2 * np.log2(56 * 4960), abs=1e-6)
    token_masks = plug_in(written(0, "token"))
    assert token_masks["plain"] == pytest.approx(0, abs=1e-9)
    assert plug_in(written(0))["plain"] > 5


def test_a_global_mask_can_look_ahead_and_a_local_one_cannot(tiny_model):
    ahead = {}
    draw = torch.Generator().manual_seed(0)
    stories = Stories(torch.randint(1, 8, (120, 10), generator=draw), torch.full((120,), 10))
    for kind in ("global", "local"):
        model = random_heads(tiny_model(ablation={"mask": kind, "k_attn": 4, "k_mlp": 8}), 77)
        found = observed(model, stories)
        finding = depth(model, stories, found, [observed(random_heads(model, seed), stories) for seed in range(4)])
        assert finding.verdict(finding.p) != LEAKS, "untrained heads"
        ahead[kind] = finding
    assert ahead["local"].detail["ahead"][0] < 0.05
    assert ahead["global"].detail["ahead"][0] > ahead["local"].detail["ahead"][0] + 0.05
    assert ahead["global"].null > 0.05
