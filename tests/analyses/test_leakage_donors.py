"""Whose mask is lent to whom, and masks that cannot be a message."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from analyses.labels.token_classes import CLASSES, token_class, token_classes
from analyses.leakage.donors import MATCHES, NO_DONOR, donors, match_keys, or_own
from analyses.leakage.finding import LEAKS, NOTHING
from analyses.leakage.judged import information_spread, judged
from analyses.leakage.observed import observed
from analyses.leakage.paraphrase import name_ids, paraphrased
from analyses.leakage.random_heads import (
    dealt,
    random_heads,
    random_masks,
    static_masks,
    static_values,
    token_masks,
    with_forward,
)
from analyses.leakage.variants import donor_masks, own_masks, passes, story_means, target_bits, where_matched
from analyses.texts import Stories
from sat_lens.stories import NAMES


@pytest.fixture
def texts():
    draw = torch.Generator().manual_seed(1)
    return Stories(torch.randint(1, 6, (8, 9), generator=draw), torch.tensor([9, 4, 7, 2, 9, 9, 5, 8]))


@pytest.fixture
def found(tiny_model, texts):
    return observed(tiny_model(), texts)


@pytest.mark.parametrize("match", MATCHES)
def test_donors_match_and_are_of_another_story_or_there_is_none(found, match):
    keys, of = match_keys(found, match), donors(found, match, 0)
    for i, donor in enumerate(of):
        possible = np.flatnonzero((keys == keys[i]) & (found.story != found.story[i]))
        assert donor in possible if len(possible) else donor == NO_DONOR
    assert np.array_equal(of, donors(found, match, 0)) and not np.array_equal(of, donors(found, match, 1))
    assert np.array_equal(or_own(of), np.where(of == NO_DONOR, np.arange(found.n), of))


def test_what_the_matches_mean(found):
    key = {match: match_keys(found, match) for match in MATCHES}
    for i in range(found.n):
        same = {name: getattr(found, name) == getattr(found, name)[i] for name in ("token", "pos", "prediction")}
        assert np.array_equal(key["token_pos"] == key["token_pos"][i], same["token"] & same["pos"])
        assert np.array_equal(key["token_prediction"] == key["token_prediction"][i], same["token"] & same["prediction"])
    with pytest.raises(ValueError, match="donors match in one of any, pos"):
        donors(found, "story", 0)


def test_all_rows_that_match_are_equally_likely_donors(found):
    row, n = 10, 3000
    possible = np.flatnonzero((found.token == found.token[row]) & (found.story != found.story[row]))
    drawn = Counter(int(donors(found, "token", seed)[row]) for seed in range(n))
    expected = n / len(possible)
    assert set(drawn) == set(possible.tolist())
    assert max(abs(count - expected) for count in drawn.values()) < 5 * expected**0.5


def test_variants_run_each_position_under_the_mask_it_is_lent(tiny_model, texts):
    """Against the model run on one story with a hook that puts the donor's mask in."""
    model = tiny_model()
    found = observed(model, texts)
    of = donors(found, "token", 0)
    loss = passes(model, texts, {"own": own_masks(found), "donor": donor_masks(found, of)}, target_bits(found), batch=3)
    assert np.allclose(loss["own"] * np.log(2), found.loss_ablated, atol=1e-6)
    row = int(np.flatnonzero(of != NO_DONOR)[5])
    story, pos = int(found.story[row]), int(found.pos[row])
    mask = torch.from_numpy(found.mask_values([of[row]])[0]).double()

    def lend(layer, part):
        def hook(value, hook):
            value = value.clone()
            value[0, pos] = mask[layer][part].view(value.shape[2:])
            return value

        return hook

    parts = {"attn": slice(0, found.attn_width), "mlp": slice(found.attn_width, None)}
    hooks = [(f"blocks.{n}.{name}.hook_mask", lend(n, part)) for n in range(2) for name, part in parts.items()]
    with torch.no_grad():
        logits = model.run_with_hooks(texts.tokens[story : story + 1], stream="ablated", fwd_hooks=hooks)
    told = -logits[0, pos].log_softmax(-1)[texts.tokens[story, pos + 1]].item()
    assert loss["donor"][row] * np.log(2) == pytest.approx(told, abs=1e-6)


def test_means_of_stories_leave_out_what_is_not_known(found):
    values = np.arange(found.n, dtype=float)
    values[found.story == 2] = np.nan
    values[0] = np.nan
    means = story_means(found, values)
    assert np.isnan(means[2]) and means[0] == np.arange(1, 8).mean() and len(means) == 8
    assert np.isnan(where_matched(values, np.full(found.n, NO_DONOR))).all()


@pytest.mark.parametrize("mask", ["local", "global", "both"])
def test_random_heads_share_the_trunk_and_nothing_else(tiny_model, texts, mask):
    model = tiny_model(ablation={"mask": mask})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    other, same = random_heads(model, 0), random_heads(model, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for (name, ours), theirs in zip(other.named_parameters(), dict(model.named_parameters()).values(), strict=True):
        assert (ours is theirs) == (not name.startswith("gates."))
    weights = torch.cat([p.detach().flatten() for p in other.gates.parameters()])
    assert weights.abs().max() <= 16**-0.5 and weights.std() == pytest.approx(16**-0.5 / 3**0.5, rel=0.05)
    assert all(torch.equal(a, b) for a, b in zip(other.gates.parameters(), same.gates.parameters(), strict=True))
    ours, theirs = observed(other, texts), observed(model, texts)
    assert np.array_equal(ours.loss_clean, theirs.loss_clean) and not np.array_equal(ours.bits, theirs.bits)


def test_another_forward_changes_the_masks_of_the_copy_alone(tiny_model, texts):
    model = tiny_model()
    soft = observed(with_forward(model, "soft"), texts)
    assert soft.soft is not None and np.array_equal(soft.bits, observed(model, texts).bits)
    assert model.ablation.forward == "hard"


ABLATIONS = {"layer": {}, "model": {"scope": "model"}, "soft": {"forward": "soft"}}


@pytest.mark.parametrize("kind", sorted(ABLATIONS))
def test_controls_have_masks_of_the_right_size_that_tell_what_they_should(tiny_model, texts, kind):
    model = tiny_model(ablation={"mask": "global", **ABLATIONS[kind]})
    found = observed(model, texts)
    axes = (1, 2) if kind == "model" else 2
    size = found.masks()[..., : found.attn_width].sum(axes)
    for control in (
        token_masks(found, 0), static_masks(found, model.ablation), random_masks(found, model.ablation, 0)
    ):  # fmt: skip
        assert np.array_equal(control.masks()[..., : found.attn_width].sum(axes), size)
        assert np.array_equal(control.token, found.token) and not np.array_equal(control.bits, found.bits)
        assert (control.soft is None) == (found.soft is None)
    by_token = token_masks(found, 0)
    for token in np.unique(found.token):
        rows = by_token.bits[found.token == token]
        assert (rows == rows[0]).all() and (rows[0] == found.bits[found.token == token]).all((1, 2)).any()
    static = static_masks(found, model.ablation)
    assert (static.bits == static.bits[0]).all()
    usage = found.mask_values().mean(0)
    if kind == "layer":
        least = np.sort(usage[:, found.attn_width :], -1)[:, -5]
        chosen = static_values(found, model.ablation)[:, found.attn_width :] > 0
        assert (usage[:, found.attn_width :][chosen].reshape(2, 5) >= least[:, None]).all()
    if kind == "soft":
        assert np.allclose(static_values(found, model.ablation), usage, atol=1e-3)


def test_dealing_keeps_the_entries_of_every_part():
    values = np.random.default_rng(0).random((6, 3, 10)).astype(np.float32)
    in_layers = dealt(values, 4, "layer", np.random.default_rng(1))
    assert np.array_equal(np.sort(in_layers[..., :4]), np.sort(values[..., :4]))
    assert np.array_equal(np.sort(in_layers[..., 4:]), np.sort(values[..., 4:]))
    whole = dealt(values, 4, "model", np.random.default_rng(1))
    assert np.array_equal(np.sort(whole[..., 4:].reshape(6, -1)), np.sort(values[..., 4:].reshape(6, -1)))
    assert not np.array_equal(np.sort(whole[..., 4:]), np.sort(values[..., 4:]))


def test_a_finding_counts_a_null_below_zero_as_zero_and_leaves_out_unmatched_stories():
    own = np.array([0.5, 0.6, np.nan, 0.7])
    finding = judged("t", "m", own, [np.array([-1.0, -1.0, 0.0, -1.0]), np.array([-0.8, -0.8, 0.0, -0.8])], n=9)
    assert finding.n_stories == 3 and finding.null == pytest.approx(0) and finding.value == pytest.approx(0.6)
    assert finding.detail["nulls"] == pytest.approx([-1.0, -0.8])
    alone = judged("t", "m", own, [], n=9)
    assert alone.verdict(alone.p) == LEAKS and alone.null == 0
    silent = judged("t", "m", np.zeros(4), [], n=100, spread=information_spread(0.05, 100))
    assert silent.verdict(silent.p) == NOTHING and 0.05 < silent.smallest < 0.25
    with pytest.raises(ValueError, match="t needs at least 2 stories"):
        judged("t", "m", own * np.nan, [], n=0)


def test_the_spread_of_little_information_is_that_of_a_coin_that_is_almost_fair():
    """p = 0.5 +- d for a known side: the information of one throw has mean about 2 d^2 nats."""
    d = 0.05
    p = np.array([0.5 + d, 0.5 - d])
    told = np.log2(p / 0.5)
    mean = p @ told
    assert information_spread(float(mean), 1) == pytest.approx(np.sqrt(p @ (told - mean) ** 2), rel=0.01)


def test_one_name_is_exchanged_for_another_of_the_same_pronoun():
    import sat_lens
    from analyses.texts import stories
    from sat_lens.stories import pronoun

    model = sat_lens.load("local-k4-s0")
    texts = stories(None, model, 6)
    other = paraphrased(texts, model.tokenizer, 0)
    name_of = {i: name for name, ids in name_ids(model.tokenizer).items() for i in ids}
    for before, after in zip(texts.tokens.tolist(), other.tokens.tolist(), strict=True):
        changed = {(name_of[a], name_of[b]) for a, b in zip(before, after, strict=True) if a != b}
        assert len(changed) == 1
        old, new = changed.pop()
        assert pronoun(old) == pronoun(new)
        assert not {old} & {name_of.get(i) for i in after} and not {new} & {name_of.get(i) for i in before}
    assert paraphrased(texts, None, 0) is None
    nameless = dataclasses.replace(texts, tokens=torch.zeros_like(texts.tokens))
    assert paraphrased(nameless, model.tokenizer, 0) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [(" Tom", "name"), ("Lily", "name"), (" she", "pronoun"), (" the", "function word"), (" ball", "word"),
     ("Once", "word"), ("ing", "word piece"), ('."', "punctuation"), ("\n", "other"), (" may", "word")],
)  # fmt: skip
def test_tokens_are_sorted_by_their_text(text, kind):
    assert token_class(text) == kind and (kind != "name" or text.strip() in NAMES)


def test_ids_have_the_class_of_their_text(tiny_tokenizer):
    found = token_classes(tiny_tokenizer, 29)
    assert CLASSES[found[0]] == "other" and CLASSES[found[3]] == "word piece"
    assert (token_classes(None, 4) == CLASSES.index("other")).all()
