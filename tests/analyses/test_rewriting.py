"""Rewriting, where the right answer is known: planted latents, plans that change nothing, and hand-worked edits."""

import numpy as np
import pytest
import torch

from analyses.explain.rule import constant, patterns
from analyses.rewriting.baselines import BASELINES, baselines
from analyses.rewriting.explaining import explained_by_rules, within_bits
from analyses.rewriting.intervention import intervention
from analyses.rewriting.loss import rewriting_loss, summary
from analyses.rewriting.plans import Plan, Said, plan_edit, ranked_latents
from analyses.rewriting.rewriter import Rewriter, dealt_to_others, rule_rewriter
from analyses.rewriting.scoring import SCORES, scored
from analyses.rewriting.setting import disjoint, four_splits, high, mass, n_active
from analyses.texts import Stories
from sat_lens.coders import site_batches
from sat_lens.coders.substitute import edited_latents
from tests.cases.rewriting import planted_setting, random_setting, some_stories


class Told:
    """A simulator that has the answers."""

    def __init__(self, answers, high=10.0):
        self.answers = answers
        self.low, self.high = torch.zeros(answers.shape[-1]), torch.full((answers.shape[-1],), high)

    def __call__(self, tokens, lengths):
        return torch.stack([self.answers[tuple(row.tolist())] for row in tokens])


class Truth(Told):
    """The true latents, looked up by the story's tokens; NaN where `missing` says so."""

    def __init__(self, setting, missing=None):
        values = torch.cat([batch.values for batch in setting.acts.batches()])
        if missing is not None:
            values[missing] = torch.nan
        self.by_tokens = {tuple(row.tolist()): value for row, value in zip(setting.stories.tokens, values, strict=True)}
        self.low, self.high = values.nan_to_num(0).amin((0, 1)), values.nan_to_num(0).amax((0, 1))

    def __call__(self, tokens, lengths):
        n_pos = tokens.shape[1]
        whole = {key[:n_pos]: value[:n_pos] for key, value in self.by_tokens.items()}
        return torch.stack([whole[tuple(row.tolist())] for row in tokens])


def of_truth(setting, missing=None):
    explanations = zero_explanations(setting)
    return Rewriter("truth", explanations, Truth(setting, missing))


def zero_explanations(setting):
    from analyses.explain import Explanation

    return [Explanation(i, "rules:token", "", constant(0.0), 41.0, "") for i in range(setting.n_latents)]


def row_of(result, name, **wanted):
    table = result.table[result.table["name"] == name]
    for key, value in wanted.items():
        table = table[table[key] == value]
    (row,) = table.to_dict(orient="records")
    return row


MEASURED = ("kl", "d_loss", "top1", "fvu", "kl_low", "kl_high")


@pytest.mark.parametrize("kind", ["skip", "transcoder"])
@pytest.mark.parametrize("stream", ["clean", "ablated"])
def test_nothing_rewritten_is_the_reconstruction_and_zero_simulations_are_zero_latents_exactly(
    kind, stream, tiny_model
):
    made = random_setting(tiny_model, kind, stream, {"mask": "local"} if stream == "ablated" else None)
    zero = rule_rewriter("zero", zero_explanations(made), made.vocabulary)
    plans = [Plan("zero", 0.0), Plan("zero", 1.0), Plan("zero", 1.0, oracle="both")]
    found = rewriting_loss(made, {"zero": zero}, plans)
    coder, none = row_of(found, "reconstruction"), row_of(found, "zero latents")
    assert coder["kl"] > 1e-4 and abs(coder["kl"] - none["kl"]) > 1e-4, "rows that are all alike test nothing"
    nothing = row_of(found, "zero", fraction=0.0)
    everything = row_of(found, "zero", fraction=1.0, oracle="none")
    for name in MEASURED:
        assert nothing[name] == coder[name] and everything[name] == none[name], name
    assert (nothing["recovered_kl"], everything["recovered_kl"]) == (1.0, 0.0)


def test_a_plan_that_is_told_the_true_latents_is_the_reconstruction_exactly(tiny_model):
    made = random_setting(tiny_model)
    coder = made.coder

    def truth(site):
        z = coder.dense(coder.encode(site.x))
        return Said(z, z > 0)

    latents = torch.arange(made.n_latents)
    (batch,) = site_batches(made.model, coder.cfg, made.stories.tokens[:8], batch_size=8)
    right = edited_latents(coder, lambda site, z: z)(batch)
    for knobs in ({"fraction": 0.3}, {}, {"oracle": "value"}, {"oracle": "both"}, {"keep": "topk"}):
        plan = Plan("x", **knobs)
        assert torch.equal(plan_edit(coder, plan, latents, latents.flip(0), truth)(batch), right), plan


def test_simulations_that_are_true_recover_everything(tiny_model):
    made = random_setting(tiny_model)
    found = rewriting_loss(made, {"truth": of_truth(made)}, [Plan("truth", 1.0), Plan("truth", 1.0, keep="topk")])
    assert "of the way recovered" in summary(found.table.assign(kl_minus_zero_high=-0.1))
    assert "too few tokens to tell" in summary(found.table.assign(kl_minus_zero_high=0.1))
    for keep in ("all", "topk"):
        assert row_of(found, "truth", keep=keep)["recovered_kl"] == pytest.approx(1, abs=1e-4)


def test_a_latent_that_fires_on_one_token_is_explained_and_rewritten_without_loss():
    made = planted_setting()
    explanations = explained_by_rules(made, "token")
    for latent, explanation in enumerate(explanations):
        best, *rest = explanation.rule["entries"]
        assert best == [[latent + 2], 127] and all(level <= 2 for _, level in rest), "the mean is shrunk towards"
        assert explanation.rule["scale"] == pytest.approx(1 + latent / 8, rel=0.05)
    own = rule_rewriter("token", explanations, made.vocabulary)
    dealt = rule_rewriter("dealt", dealt_to_others(explanations), made.vocabulary)
    plans = [Plan("token", order="random"), Plan("dealt", order="random")]
    found = rewriting_loss(made, {"token": own, "dealt": dealt}, plans)
    assert row_of(found, "reconstruction")["kl"] == pytest.approx(0, abs=1e-6)
    rewritten = row_of(found, "token")
    assert rewritten["kl"] < 1e-3 and rewritten["top1"] > 0.99 and rewritten["mass_rewritten"] == 1
    assert row_of(found, "zero latents")["kl"] > 0.5
    assert row_of(found, "dealt")["kl_minus_zero_low"] > 0, "explanations of other latents are worse than none"


@pytest.mark.parametrize("rule", ["token", "ngram", "tree", "n2g"])
def test_shuffled_explanations_never_beat_true_ones(rule):
    made = planted_setting()
    explanations = explained_by_rules(made, rule)
    own = scored(made, rule_rewriter("own", explanations, made.vocabulary))
    floor = scored(made, rule_rewriter("floor", dealt_to_others(explanations), made.vocabulary))
    for name in SCORES:
        better, worse = (floor, own) if name == "false_positives" else (own, floor)
        assert (better.by_latent[name] >= worse.by_latent[name]).all(), name
    assert own.mean("r")["value"] > 0.999 and own.mean("fuzzing")["value"] == 1
    assert floor.mean("r")["value"] < 0.05 and own.mean("detection")["value"] > 0.95


def test_missing_simulations_stop_the_run_or_are_left_out_and_never_come_from_the_truth(tiny_model):
    made = random_setting(tiny_model)
    missing = torch.zeros(*made.stories.tokens.shape, made.n_latents, dtype=torch.bool)
    story = int(made.splits.evaluate[0])
    missing[story, 2:4, 7] = True
    holed, whole = of_truth(made, missing), of_truth(made)
    with pytest.raises(ValueError, match=r"^2 simulated activations are missing .*missing=mask"):
        rewriting_loss(made, {"truth": holed}, [Plan("truth")])
    masked = rewriting_loss(made, {"truth": holed}, [Plan("truth")], missing="mask")
    full = rewriting_loss(made, {"truth": whole}, [Plan("truth")], missing="mask")
    assert (full.table.n_tokens - masked.table.n_tokens == 2).all() and masked.meta["knobs"]["n_masked"] == 2
    assert masked.meta["base_loss"] != full.meta["base_loss"]
    everywhere = of_truth(made, torch.ones_like(missing))
    with pytest.raises(ValueError, match="nothing can be measured"):
        rewriting_loss(made, {"truth": everywhere}, [Plan("truth")], missing="mask")


def test_splits_share_no_document_nor_a_copy_of_one():
    once = some_stories(30)
    twice = Stories(torch.cat([once.tokens, once.tokens]), torch.cat([once.lengths, once.lengths]))
    parts = four_splits(twice, seed=3)
    assert sorted(torch.cat(parts).tolist()) == list(range(60)) and [len(p) for p in parts] == [30, 10, 8, 12]
    texts = [{tuple(row) for row in twice.tokens[part].tolist()} for part in parts]
    assert not any(texts[i] & texts[j] for i in range(4) for j in range(i))
    assert disjoint(once.subset(torch.arange(10)), once).n == 20


def test_rows_are_means_over_tokens_with_paired_differences(tiny_model):
    from sat_lens.coders import substituted

    made = random_setting(tiny_model)
    rows = made.splits.evaluate
    edits = baselines(made)
    seen = substituted(made.model, made.coder.cfg, made.stories.tokens[rows], edits, lengths=made.stories.lengths[rows])
    found = rewriting_loss(made, {}, [])
    assert found.table["name"].tolist() == list(BASELINES)
    for name in BASELINES:
        row = row_of(found, name)
        assert row["kl"] == pytest.approx(seen.kl[name].double().mean().item(), rel=1e-9)
        assert row["d_loss"] == pytest.approx((seen.loss[name] - seen.base).double().mean().item(), abs=1e-7)
        assert row["kl_minus_zero"] == pytest.approx(row["kl"] - row_of(found, "zero latents")["kl"], abs=1e-12)
        assert row["kl_low"] <= row["kl"] <= row["kl_high"] and row["n_stories"] == len(rows)
    assert row_of(found, "zero latents")["kl_minus_zero_high"] == 0
    assert row_of(found, "mean output")["fvu"] == pytest.approx(1, abs=0.2)


def test_baselines_have_true_values_in_wrong_places(tiny_model):
    made = random_setting(tiny_model)
    coder, seen = made.coder, {}
    (batch,) = site_batches(made.model, coder.cfg, made.stories.tokens[:8], batch_size=8)
    z = coder.dense(coder.encode(batch.x))
    real = coder.decode
    coder.decode = lambda latents, *rest: seen.setdefault("z", latents) if "z" not in seen else real(latents, *rest)
    try:
        for name, edit in baselines(made).items():
            if name in ("permuted latents", "resampled latents", "mean latents"):
                seen.clear()
                edit(batch)
                seen[name] = seen.pop("z")
                found = seen[name]
                if name == "permuted latents":
                    assert torch.equal(found.sort(-1).values, z.sort(-1).values) and (found != z).any(-1).all()
                elif name == "resampled latents":
                    every = torch.cat([b.values[b.keep] for b in made.of("calibrate").batches()])
                    assert all((row == every).all(-1).any() for row in found.flatten(0, 1))
                else:
                    every = torch.cat([b.values[b.keep] for b in made.of("explain").batches()])
                    torch.testing.assert_close(found[0, 0], every.mean(0), rtol=1e-5, atol=1e-7)
    finally:
        del coder.decode


def test_oracles_and_top_k_by_hand(tiny_model):
    made = random_setting(tiny_model)
    coder, seen = made.coder, []
    (batch,) = site_batches(made.model, coder.cfg, made.stories.tokens[:2], batch_size=2)
    z = coder.dense(coder.encode(batch.x))
    latents = torch.arange(10, 20)  # only these are explained
    value = torch.rand(*z.shape[:2], 10, generator=torch.Generator().manual_seed(1)) * 3
    active = value > 1
    true = z[..., latents]
    expected = {
        "none": value,
        "active": value * (true > 0),
        "value": torch.where(active & (true > 0), true, value),
        "both": true * (active & (true > 0)),
    }
    coder_decode, coder.decode = coder.decode, lambda z, *rest: seen.append(z) or batch.y
    try:
        for oracle, wanted in expected.items():
            plan = Plan("x", 0.5, oracle=oracle)
            plan_edit(coder, plan, latents, torch.arange(10), lambda s: Said(value, active))(batch)
            right = z.clone()
            right[..., 10:15] = wanted[..., :5]
            assert torch.equal(seen[-1], right), oracle
        plan_edit(coder, Plan("x", keep="topk"), latents, torch.arange(10), lambda s: Said(value, active))(batch)
        right = z.clone()
        right[..., 10:20] = value
        third = right.sort(-1, descending=True).values[..., 2:3]
        assert torch.equal(seen[-1], right.where(right >= third, 0.0))
    finally:
        coder.decode = coder_decode


def test_the_last_position_alone_is_rewritten_where_that_is_asked_for(tiny_model):
    made = random_setting(tiny_model)
    found = rewriting_loss(made, {"truth": of_truth(made)}, [Plan("truth")], positions="last")
    assert (found.table.n_tokens == len(made.splits.evaluate)).all()
    assert row_of(found, "truth")["recovered_kl"] == pytest.approx(1, abs=1e-3)


def test_latents_are_ranked_best_first_and_those_without_a_score_last():
    scores = torch.tensor([0.2, torch.nan, 0.9, 0.2])
    assert ranked_latents(torch.arange(4), scores, "score").tolist() == [2, 0, 3, 1]
    drawn = [ranked_latents(torch.arange(30), torch.zeros(30), "random", seed).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and sorted(drawn[0]) == list(range(30))


def test_the_most_often_active_latents_are_rewritten_first_where_that_is_asked_for(tiny_model):
    made = random_setting(tiny_model)
    active = n_active(made.of("explain"))
    busiest = active.argsort(descending=True, stable=True)[:6]
    weight = mass(made.of("evaluate"))
    zero = rule_rewriter("zero", zero_explanations(made), made.vocabulary)
    found = rewriting_loss(made, {"zero": zero}, [Plan("zero", 0.2, "density")])
    assert row_of(found, "zero")["mass_rewritten"] == pytest.approx(float(weight[busiest].sum() / weight.sum()))
    assert len(set(active[busiest].tolist())) > 1 and float(weight[busiest].sum() / weight.sum()) > 0.2


@pytest.mark.parametrize(
    "knobs", [{"fraction": 1.5}, {"order": "best"}, {"calibration": "x"}, {"keep": "k"}, {"oracle": "yes"}]
)
def test_plans_that_make_no_sense_are_refused(knobs):
    with pytest.raises(ValueError, match="must (be one of|lie between)"):
        Plan("x", **knobs)


def test_plans_of_explanations_or_scores_that_are_not_there_are_refused(tiny_model):
    made = random_setting(tiny_model)
    with pytest.raises(ValueError, match="there are no explanations 'x'"):
        rewriting_loss(made, {}, [Plan("x")])
    with pytest.raises(ValueError, match="best first needs scores"):
        rewriting_loss(made, {"truth": of_truth(made)}, [Plan("truth", 0.5)])


def test_quantiles_and_masses_of_latents_by_a_loop(tiny_model):
    made = random_setting(tiny_model)
    for share in (0.5, 0.9, 1.0):
        found = high(made.acts, share)
        for latent in range(made.n_latents):
            value = made.acts.of(latent).value.sort().values
            at = int(np.ceil(share * (len(value) - 1))) if len(value) else 0
            assert found[latent] == (value[at] if len(value) else 0)
    assert mass(made.acts).tolist() == pytest.approx([made.acts.of(i).value.sum().item() for i in range(30)], rel=1e-6)
    assert n_active(made.acts).tolist() == [len(made.acts.of(i).value) for i in range(30)]


@pytest.mark.parametrize("rule", ["ngram", "tree"])
def test_shortened_explanations_fit_and_say_less(rule, tiny_model):
    made = random_setting(tiny_model)
    whole = explained_by_rules(made, rule)
    lengths = []
    for most in (42, 60, 200, 10_000):
        short = within_bits(made, rule, whole, most)
        assert [e.unit for e in short] == list(range(30)) and max(e.bits for e in short) <= most
        lengths.append(sum(e.bits for e in short))
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    assert within_bits(made, rule, whole, 10_000) == whole
    if rule == "ngram":
        longest = max(whole, key=lambda e: e.bits)
        cut = within_bits(made, rule, [longest], 60)[0]
        assert cut.rule == patterns(longest.rule["scale"], longest.rule["default"], longest.rule["entries"][:1])


def test_the_effect_of_raising_a_latent_is_that_of_its_decoder_row():
    made = planted_setting()
    found = intervention(made)
    W_out, W_U = made.coder.W_dec, made.model.W_U.detach()
    latent, row = 4, int(made.splits.score[0])
    last = int(made.stories.tokens[row, min(int(made.stories.lengths[row]), 24) - 1])
    x = torch.eye(12)[last] + (W_out[last - 2] * (1 + (last - 2) / 8) if last >= 2 else 0)
    true = 1.5 if last == latent + 2 else 0.0
    raised = x + (1.5 - true) * W_out[latent]
    change = (raised @ W_U).log_softmax(-1) - (x @ W_U).log_softmax(-1)
    promises = W_out[latent] @ (W_U - W_U.mean(1, keepdim=True))
    up, down = promises.topk(10).indices, promises.topk(10, largest=False).indices
    assert found["effect"][0, latent] == pytest.approx(float(change[up].mean() - change[down].mean()), abs=1e-5)
    assert found["effect"].mean() > found["floor"].mean()
