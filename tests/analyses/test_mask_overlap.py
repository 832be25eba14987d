"""Masks against circuits: planted models in which the mask knows the circuit, knows a prompt's, or knows nothing."""

import numpy as np
import pytest
import torch

from analyses.localization.mask_circuits import Ranking, faithfulness, other_prompts, static_ranking, token_ranking
from analyses.localization.mask_overlap import mask_overlap
from analyses.localization.mask_overlap_figures import mask_figures, overlap_figure, usage_figure
from analyses.localization.mask_rankings import Rows, overlap_table, strata_of
from analyses.localization.mask_usage import label_p_value, mask_usage, text_masks, usage
from analyses.localization.overlap import (
    auroc,
    average_precision,
    jaccard,
    quantile_strata,
    shuffled,
    top_members,
    upper_p_value,
)
from analyses.localization.unit_attribution import unit_attribution
from analyses.localization.unit_circuit import units_of
from analyses.localization.unit_setting import unit_setting_of
from analyses.masks import story_masks
from analyses.result import Result
from analyses.texts import Stories
from sat_lens import SelfAblatingTransformer, SelfAblation
from sat_lens._tl import HookedTransformerConfig
from sat_lens.tasks import Task

NAMES, ASK, FILLER, YES, NO = range(4), 4, 5, 6, 7
CIRCUIT = ["a1.h2.c0", "a1.h2.c1", "a1.h2.c2", "a1.h2.c3", "m0.n3"]
FAST = {"n_bootstrap": 100, "n_shuffles": 200}


def planted(mask="local", k_attn=4, k_mlp=1, seed=0):
    """Hand-set weights: neuron 0.3 makes the question ask, and head 1.2 then copies the name that it sees.

    Channel i of the head carries name i. The residual stream is [one-hot token | output logits | asking].
    Half of head 1.1 and neuron 0.0 are loud, and write nothing. Everything else is small noise. The gates read
    nothing, and name the same units at random everywhere.
    """
    d_vocab = 8
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=2 * d_vocab + 1, n_heads=3, d_head=4, d_mlp=6, n_ctx=8, d_vocab=d_vocab, act_fn="relu",
        normalization_type=None, initializer_range=0.002, seed=0, dtype=torch.float64,
    )  # fmt: skip
    chosen = SelfAblation(mask=mask, k_attn=k_attn, k_mlp=k_mlp, scope="model")
    model = SelfAblatingTransformer(cfg, ablation=chosen).eval()
    basis = torch.eye(cfg.d_model, dtype=torch.float64)
    token, output, asking = basis[:d_vocab], basis[d_vocab : 2 * d_vocab], basis[-1]
    with torch.no_grad():
        model.pos_embed.W_pos.zero_()
        model.embed.W_E.copy_(token)
        model.unembed.W_U.copy_(output.T)
        copies, mlp = model.blocks[1].attn, model.blocks[0].mlp
        for weight in (copies.W_Q, copies.W_K, copies.W_V, copies.W_O):
            weight[2].zero_()
        mlp.W_in[:, 3], mlp.W_out[3] = token[ASK], asking
        copies.W_Q[2, -1, 0] = 40.0
        copies.W_K[2, list(NAMES), 0] = 1.0
        copies.W_V[2, list(NAMES), list(NAMES)] = 1.0
        copies.W_O[2] = 5 * output[list(NAMES)]
        copies.W_V[1, FILLER, :2], copies.W_O[1] = 3.0, 0.0
        mlp.W_in[ASK, 0], mlp.W_out[0] = 2.0, 0.0
        draw = torch.Generator().manual_seed(seed)
        for name, parameter in model.gates.named_parameters():
            parameter.zero_()
            if name.endswith("bias"):
                parameter.normal_(generator=draw)
    return model


def naming(model, names):
    """The gates of a local model name these units everywhere."""
    units = units_of(model.cfg)
    with torch.no_grad():
        for layer, site in units.sites:
            bits = np.isin(np.array(units.names[units.columns(layer, site)]), names)
            model.gates["local"][layer][site].bias += 100 * torch.from_numpy(bits)
    return model


def copying_task(n=16):
    """A name, then the question; the wrong answer is another name. Each name in turn."""
    names = torch.arange(n) % 4
    clean, corrupt = (
        torch.stack([torch.full((n,), FILLER), who, torch.full((n,), FILLER), torch.full((n,), ASK)], 1)
        for who in (names, (names + 1) % 4)
    )
    return Task("copy", clean, corrupt, names, (names + 2) % 4, {"end": torch.full((n,), 3)})


def row(result, measure, by, positions, site="all"):
    table = result.table
    rows = table[(table.measure == measure) & (table.by == by) & (table.positions == positions) & (table.site == site)]
    rows = rows[rows.layer.isna()]
    assert len(rows) == 1
    return rows.iloc[0]


# ---- planted answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("scores", ["attribution", "exact"])
def test_a_mask_that_names_the_circuit_overlaps_with_it_wholly(scores):
    model = naming(planted(), CIRCUIT)
    result = mask_overlap(model, copying_task(), scores=(scores,), **FAST)
    for where in ("all", "end"):
        for measure in ("auroc", "average_precision", "jaccard"):
            if where == "end":  # there the neuron and the head are at work, and nowhere else
                mask = row(result, measure, "mask", where)
                assert (mask.value, mask.ci_low, mask.ci_high) == (1, 1, 1)
            assert row(result, measure, "mask", where).value == 1
        for null in ("random", "matched"):
            chance = row(result, "auroc", null, where)
            assert chance.value < 0.9 and chance.difference == pytest.approx(1 - chance.value) and chance.p < 0.05
        assert row(result, "auroc", "magnitude", where).difference > 0.05  # some are loud and do nothing
        assert row(result, "faithfulness", "mask", where).value == pytest.approx(1, abs=0.02)
        assert row(result, "units_at_equal_faithfulness", "attribution", where).value == len(CIRCUIT)
        assert row(result, "faithfulness", "shuffled_units", where).value < 0.3
        assert row(result, "distinct_units", "mask", where).value == len(CIRCUIT)
        assert row(result, "units_a_token", "mask", where).value == len(CIRCUIT)
        assert row(result, "auroc", "mask", where).n == 16


def test_gates_that_know_nothing_overlap_as_chance_does():
    task, lengths = copying_task(4), torch.full((4,), 4)
    setting = unit_setting_of(planted(), task, ablation="zero", positions="end")
    scores, found, p, inside = (
        unit_attribution(setting).by_prompt,
        [],
        [],
        [],
    )  # the gates are no part of the clean stream
    for seed in range(40):
        named = usage(text_masks(planted(seed=seed), task.clean), lengths, "end")
        rows = Rows(named, named, np.abs(scores), scores)
        table = overlap_table(rows, setting.units, 5, True, n_shuffles=200, n_bootstrap=2, seed=seed)
        table = table[(table.site == "all") & (table.measure == "auroc")].set_index("by")
        found.append(table.value["mask"])
        p.append(table.p["random"])
        inside.append(table.ci_low["random"] - 1e-9 <= found[-1] <= table.ci_high["random"] + 1e-9)
    # five of 36 units are named and the circuit has five: the two share 5 x 5 / 36 on average, with a standard
    # deviation of 0.73; an auroc is (1 + share of the circuit named - share of the rest named) / 2
    spread = 0.73 * (1 / 5 + 1 / 31) / 2
    assert abs(np.mean(found) - 0.5) < 3 * spread / np.sqrt(40)
    assert np.mean(np.array(p) < 0.05) <= 0.15 and np.mean(inside) >= 0.85


def test_a_mask_that_knows_its_own_prompt_is_told_from_one_that_knows_the_task():
    """A global gate sees which name the head wrote, and names the channel that carries it."""
    knows = naming_own_prompt(planted("global", k_attn=1))
    knob = {"positions": ("end",), "size": 2, **FAST}
    result = mask_overlap(knows, copying_task(), **knob)
    own, others = (row(result, "prompt_auroc", by, "end") for by in ("mask", "other_prompts"))
    assert own.value == 1 and others.value < 0.85 and others.p < 0.05
    # the value of other prompts: 1/4 of them have the same name; else one of two members is tied with the rest
    assert others.value == pytest.approx(0.25 + 0.75 * (1 + (0.5 * 33 / 34)) / 2, abs=0.03)
    same = mask_overlap(naming(planted(), CIRCUIT), copying_task(), **knob)
    assert row(same, "prompt_auroc", "other_prompts", "end").p == 1
    assert row(result, "faithfulness", "mask", "end").value == pytest.approx(1, abs=0.02)
    assert row(result, "faithfulness", "other_prompts", "end").value < 0.6
    assert row(result, "distinct_units", "mask", "end").value == 5
    assert row(result, "units_at_equal_faithfulness", "attribution_token", "end").value == 2
    assert row(result, "units_at_equal_faithfulness", "attribution", "end").value == 5


def naming_own_prompt(model):
    units = units_of(model.cfg)
    with torch.no_grad():
        for name in NAMES:
            model.gates["global"]["attn"].weight[units.index[f"a1.h2.c{name}"], 8 + name] = 100.0
        model.gates["global"]["mlp"].bias[units.index["m0.n3"] - units.n_channels] = 100.0
    return model


def test_units_that_only_the_task_calls_are_found_against_other_text():
    """The gate of neuron 0.3 reads the name 0: prompts with it name the neuron there, other text never."""
    model = planted()
    with torch.no_grad():
        for head in (model.gates["local"][layer][site] for layer in range(2) for site in ("attn", "mlp")):
            head.bias.zero_()
        model.gates["local"][1]["mlp"].bias[5] = 50.0  # whom the masks name otherwise
        model.gates["local"][0]["mlp"].weight[3, 0] = 100.0
    task = copying_task()
    stories = Stories(torch.full((12, 6), FILLER), torch.full((12,), 6))
    result = mask_usage(model, task, other=stories, n_bootstrap=200)
    rows = result.table[result.table.positions == "all"].set_index("name")
    # one of the four tokens, in one of four prompts
    assert rows.usage["m0.n3"] == pytest.approx(1 / 16) and rows.usage_other["m0.n3"] == 0
    assert rows.difference_low["m0.n3"] > 0 or rows.ci_low["m0.n3"] == 0
    assert rows.usage["m1.n5"] == pytest.approx(15 / 16) and rows.usage_other["m1.n5"] == pytest.approx(1)
    assert result.meta["knobs"]["other"] == "stories" and set(rows.n) == {16} and set(rows.n_other) == {12}
    mine = mask_usage(model, task, n_bootstrap=200)
    assert mine.meta["knobs"]["other"] == "counterfactuals"
    assert mine.table.difference.abs().max() < 1e-12  # the counterfactuals have each name as often


# ---- masks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ablation",
    [{"mask": "local"}, {"mask": "global", "forward": "soft"}, {"mask": "both", "unit": "head", "k_attn": 2},
     {"mask": "local", "scope": "model", "k_attn": 9}],
)  # fmt: skip
def test_masks_are_those_of_the_models_own_hook_points(tiny_model, tokens, ablation, tiny_tokenizer):
    model = tiny_model(ablation)
    model.tokenizer = tiny_tokenizer
    units, found = units_of(model.cfg), text_masks(model, tokens, batch=1)
    story = story_masks(model, tokens[1])  # another route, by a cache of both streams
    for layer in range(units.n_layers):
        assert torch.equal(found[1][:, units.columns(layer, "attn")], story.attn[layer].flatten(1))
        assert torch.equal(found[1][:, units.columns(layer, "mlp")], story.mlp[layer])


def test_usage_counts_tokens_and_leaves_padding_out():
    named = torch.tensor([[[1, 0], [1, 1], [0, 1]], [[1, 0], [0, 0], [1, 1]]]).bool()
    lengths = torch.tensor([2, 3])
    assert usage(named, lengths) == pytest.approx(np.array([[1, 1 / 2], [2 / 3, 1 / 3]]))
    assert usage(named, lengths, "end").tolist() == [[1, 1], [1, 1]]


def test_other_prompts_are_never_the_own_one_where_there_is_another_of_its_length():
    masks = torch.arange(5)[:, None, None].expand(5, 2, 3) > torch.arange(3)
    donors = other_prompts(torch.stack([masks[i] for i in range(5)]), torch.tensor([2, 3, 2, 3, 4]))
    expected = [2, 3, 0, 1, 4]
    assert all(torch.equal(donors[i], masks[j]) for i, j in enumerate(expected))


def test_the_p_of_labels_is_that_of_dealing_them_anew():
    draw = np.random.default_rng(0)
    a, b = draw.normal(0.4, 1, (30, 1)), draw.normal(0, 1, (40, 1))
    pooled, observed = np.concatenate([a, b])[:, 0], abs(a.mean() - b.mean())
    dealt = np.stack([draw.permutation(pooled) for _ in range(20_000)])
    exact = (np.abs(dealt[:, :30].mean(1) - dealt[:, 30:].mean(1)) >= observed).mean()
    assert label_p_value(a, b)[0] == pytest.approx(exact, abs=0.01)
    assert label_p_value(np.ones((3, 1)), np.ones((4, 1)))[0] == 1


# ---- measures ---------------------------------------------------------------------------------------


def test_auroc_and_average_precision_are_counted_over_pairs_and_thresholds():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 4, (20, 12)).astype(float)  # many ties
    members = draw.random((20, 12)) < 0.4
    members[:, 0], members[:, 1] = True, False
    areas, precisions = auroc(scores, members), average_precision(scores, members)
    for i, (s, m) in enumerate(zip(scores, members, strict=True)):
        pairs = [(a > b) + 0.5 * (a == b) for a in s[m] for b in s[~m]]
        assert areas[i] == pytest.approx(np.mean(pairs))
        assert precisions[i] == pytest.approx(np.mean([m[s >= a].mean() for a in s[m]]))


def test_overlaps_by_hand():
    scores, members = np.array([[5.0, 4.0, 3.0, 2.0]]), np.array([[True, False, True, False]])
    assert auroc(scores, members)[0] == 3 / 4  # of four pairs one is the wrong way round
    assert average_precision(scores, members)[0] == pytest.approx((1 + 2 / 3) / 2)
    assert jaccard(scores, members)[0] == 1 / 3  # the top two share one with the members, of three in all
    nobody = np.zeros((1, 4), dtype=bool)
    assert all(np.isnan(measure(scores, nobody)[0]) for measure in (auroc, average_precision, jaccard))
    tied = [jaccard(np.zeros((1, 4)), members, seed)[0] for seed in range(200)]
    # two of four at random: both in 1 of 6 draws, one in 4 of 6, none in 1 of 6
    assert np.mean(tied) == pytest.approx(1 / 6 + 4 / 6 / 3, abs=0.07)


def test_units_are_dealt_anew_within_their_stratum_alone():
    strata = np.array([0, 0, 0, 1, 1, 2])
    found = shuffled(np.arange(6.0), strata, 50)
    assert all(sorted(found[:, :3][i]) == [0, 1, 2] and sorted(found[:, 3:5][i]) == [3, 4] for i in range(50))
    assert (found[:, 5] == 5).all() and len(np.unique(found, axis=0)) > 6
    values = np.array([3.0, 1, 2, 9, 8, 5, 7, 6, 0, 0, 0, 0, 0, 0, 0])
    parts = quantile_strata(values, np.array([0] * 8 + [1] * 7), 3)
    assert len(np.unique(parts)) == 3  # two quarters of the eight, and seven that are too few to cut
    assert len({*parts[[1, 2, 0, 5]]}) == len({*parts[[7, 6, 4, 3]]}) == len({*parts[8:]}) == 1


def test_strata_are_the_layers_sites():
    units = units_of(planted().cfg)
    assert np.unique(strata_of(units), return_counts=True)[1].tolist() == [12, 12, 6, 6]


def test_top_members_and_the_p_of_a_null():
    scores = np.array([[-3.0, 2.0, 1.0]])
    assert top_members(scores, 1).tolist() == [[True, False, False]]
    assert top_members(scores, 1, absolute=False).tolist() == [[False, True, False]]
    assert upper_p_value(2.0, np.array([1.0, 2.0, 3.0])) == 3 / 4  # two as large, and the observed itself
    assert np.isnan(upper_p_value(float("nan"), np.zeros(3)))


# ---- circuits ---------------------------------------------------------------------------------------


class Steps(Ranking):
    """A ranking whose circuits of `size` units are worth size / 20 on both prompts, and 1 at most."""

    def values(self, sizes):
        return np.array([[min(size / 20, 1.0)] * 2 for size in sizes])


def test_the_smallest_size_is_the_first_of_the_curve_that_is_as_faithful():
    model, task = planted(), copying_task(2)
    setting = unit_setting_of(model, task, ablation="zero")
    found = Steps(setting, lambda sizes: torch.zeros(0))
    even = np.full((1, 2), 0.5)
    for size in (0, 1, 7, 13, 19, 20):
        smallest, resampled = found.smallest(np.full(2, size / 20), even)
        assert smallest == size and resampled.tolist() == [size]
    smallest, resampled = found.smallest(np.full(2, 1.1), even)
    assert np.isnan(smallest) and np.isnan(resampled).all()


def test_faithfulness_is_one_of_the_intact_model_and_zero_of_no_unit():
    setting = unit_setting_of(planted(), copying_task(4), ablation="zero")
    even = np.full((1, 4), 0.25)
    half = (setting.intact_values + setting.empty_values) / 2
    for values, expected in ((setting.intact_values, 1), (setting.empty_values, 0), (half, 0.5)):
        assert faithfulness(setting, values, even)[0] == pytest.approx(expected)


def test_rankings_hold_as_many_units_as_asked(tiny_model):
    draw = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(29, (3, 5), generator=draw) for _ in range(2))
    answers = torch.tensor([1, 2, 3])
    task = Task("t", clean, corrupt, answers, answers + 1, {"end": torch.tensor([2, 4, 4])})
    for where, tokens in (("all", task.lengths), ("end", torch.ones(3))):
        setting = unit_setting_of(tiny_model(), task, positions=where)
        by_token = token_ranking(setting, steps=1).members([2, 9])
        assert torch.equal(by_token.flatten(2).sum(-1), torch.tensor([[2], [9]]) * tokens.long())
        assert not by_token[:, 0, 3:].any()  # padding
        flat = static_ranking(setting, np.arange(setting.units.n, dtype=float)).members([3])
        assert flat[0, 0, 0].nonzero()[:, 0].tolist() == [setting.units.n - i for i in (3, 2, 1)]


# ---- results and figures ----------------------------------------------------------------------------


def test_a_result_is_tidy_and_its_figures_are_drawn_from_disk(tmp_path):
    model, task = planted(), copying_task(8)
    result = mask_overlap(model, task, scores=("attribution", "exact"), **FAST)
    key = ["measure", "by", "positions", "scores", "site", "layer"]
    assert not result.table.duplicated(key).any() and result.table.unit.notna().all()
    bounded = result.table[result.table.by.isin(["mask", "magnitude", "other_text"]) & result.table.ci_low.notna()]
    assert (bounded.ci_low <= bounded.ci_high).all()
    result.save(tmp_path / "overlap")
    loaded = Result.load(tmp_path / "overlap")
    drawn = mask_figures(loaded)
    assert set(drawn) == {f"{kind}_{where}_{scores}" for kind in ("overlap", "layers") for where in ("all", "end")
                          for scores in ("attribution", "exact")} | {"mask_faithfulness", "mask_sizes"}  # fmt: skip
    dots = overlap_figure(loaded, "auroc", "end").data
    assert [trace.name for trace in dots] == ["all units", "z channels", "neurons"]
    assert dots[0].y[0] == row(only(loaded), "auroc", "mask", "end").value
    mask_usage(model, task, n_bootstrap=10).save(tmp_path / "usage")
    assert len(usage_figure(Result.load(tmp_path / "usage")).data) == 3


def only(result):
    """Its rows by attribution."""
    table = result.table[result.table.scores == "attribution"]
    return Result(result.name, table, result.units, result.meta)


def test_the_seed_moves_intervals_and_nothing_of_the_masks():
    model, task = planted(), copying_task(8)
    first, again, other = (mask_overlap(model, task, positions=("end",), seed=seed, **FAST).table for seed in (0, 0, 1))
    assert first.equals(again) and not first.equals(other)
    mine = first.by.isin(["mask", "magnitude"]) & (first.measure != "jaccard")
    assert first.value[mine].equals(other.value[mine])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"positions": ("last",)}, "positions must be some of all, end; got last"),
        ({"positions": ()}, "got none"),
        ({"scores": ("eap",)}, "attribution, exact; got eap"),
        ({"scores": ("exact",), "value": "kl"}, "exact scores are of logit_diff"),
        ({"size": 36}, "size must be between 1 and 35 units; got 36"),
    ],
)
def test_what_cannot_be_answered_is_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        mask_overlap(planted(), copying_task(4), **FAST, **knobs)


def test_a_model_without_masks_is_refused_in_one_line(tiny_model):
    model = tiny_model({"mask": "none"})
    for ask in (mask_overlap, mask_usage):
        with pytest.raises(ValueError, match=r"^masks need a model that has gates; this one has none$"):
            ask(model, copying_task(4))
