"""The question as a whole: planted models, sites by name, targets, the command, figures, arms."""

import dataclasses

import numpy as np
import pytest
import torch

from analyses.labels import Labels
from analyses.probing.__main__ import main
from analyses.probing.comparison import probing_compared
from analyses.probing.crossval import standardized
from analyses.probing.features import features, rows_of, sampled
from analyses.probing.figures import arms_figures, probing_figures
from analyses.probing.mask_readout import found_share, mask_readout
from analyses.probing.probing import probing
from analyses.probing.sites import default_sites, every_site, expanded
from analyses.probing.split import folds
from analyses.probing.targets import target
from analyses.random_weights import random_weights
from analyses.result import Result
from analyses.texts import Stories
from sat_lens.commands import run


@pytest.fixture
def equal_signs(tiny_model):
    """Model, stories and target: is the token's a its b?

    Each id says a and b, +1 or -1, in dims 0 and 1; positions fill the other dims at random. Layer 0 writes 1 into dim
    2 where a = b, which no linear map of a and b says; the unembedding reads it; layer 1 takes it away where `forgets`.
    After a token (even positions) comes id 1 if a = b and id 2 otherwise, which the model knows for sure as long as
    dim 2 stands.
    """

    def build(forgets):
        model = tiny_model(ablation={"mask": "none"}, normalization_type=None, act_fn="relu", tie_word_embeddings=False)
        named = dict(model.named_parameters())
        ids = torch.arange(29)
        a, b = (ids % 2) * 2 - 1, (ids // 2 % 2) * 2 - 1
        with torch.no_grad():
            for parameter in named.values():
                parameter.zero_()
            named["embed.W_E"][:, 0], named["embed.W_E"][:, 1] = a.double(), b.double()
            named["pos_embed.W_pos"][:, 3:] = torch.randn(16, 13, generator=torch.Generator().manual_seed(1))
            w_in, b_in, w_out = (named[f"blocks.0.mlp.{name}"] for name in ("W_in", "b_in", "W_out"))
            w_in[:2, 0], w_in[:2, 1], b_in[:2] = 1, -1, -1  # relu(a + b - 1) and relu(-a - b - 1)
            w_out[:2, 2] = 1
            if forgets:
                named["blocks.1.mlp.W_in"][2, 0], named["blocks.1.mlp.W_out"][0, 2] = 1, -1
            named["unembed.W_U"][2, 1], named["unembed.W_U"][2, 2], named["unembed.b_U"][2] = 6, -6, 6
            named["unembed.b_U"][1:3] += 20
        tokens = torch.randint(3, 29, (60, 16), generator=torch.Generator().manual_seed(0))
        same = (a == b).long()[tokens]
        tokens[:, 1::2] = 2 - same[:, ::2]
        values = same.clone()
        values[:, 1::2] = -1
        stories = Stories(tokens, torch.full((60,), 16))
        return model, stories, target(Labels("same", ("no", "yes"), values, "tokens"))

    return build


def test_a_label_is_found_where_it_is_planted_alone_and_the_model_needs_it_there(equal_signs):
    model, stories, same = equal_signs(forgets=True)
    sites = [
        "blocks.0.hook_resid_pre",
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
        "blocks.0.mlp.hook_post",
    ]
    result = probing(model, stories, [same], sites=sites, n_folds=3, kinds=["linear"])
    rows = result.table.set_index("site")
    for site in (sites[0], sites[2]):
        assert rows.accuracy[site] < 0.65 and rows.compression[site] < 1.1, site
    for site in (sites[1], sites[3]):
        assert rows.accuracy[site] > 0.99 and rows.compression[site] > 3 and rows.converged[site] == 1, site
        assert rows.balanced[site] > 0.99 and rows.selectivity_low[site] > 0.05
        assert rows.shuffle_low[site] <= rows.majority[site] and rows.erased[site] < 0.65
    model, stories, same = equal_signs(forgets=False)
    result = probing(model, stories, [same], sites=sites[1:3], n_folds=3, kinds=["linear"], controls=False)
    rows = result.table.set_index("site")
    assert rows.accuracy[sites[2]] > 0.99
    for site in sites[1:3]:
        # dim 2 at its mean makes both answers equally likely: log 2 more on 8 of 15 tokens, 0.37 nats a token
        assert rows.loss_rise[site] == pytest.approx(0.37, abs=0.06) and rows.rise_beyond_random_low[site] > 0, site
        assert rows["rank"][site] == 1


def test_few_neurons_carry_what_two_neurons_compute(equal_signs):
    model, stories, same = equal_signs(forgets=False)
    result = probing(model, stories, [same], sites=["blocks.0.mlp.hook_post"], n_folds=3, controls=False, erasure=False)
    linear = result.table[result.table.probe == "linear"].iloc[0]
    sparse = result.table[result.table.probe == "sparse"].set_index("k").accuracy
    assert linear.k_90 == 2 and sparse[2] > 0.99 and 0.6 < sparse[1] < 0.9
    assert "control" not in result.table and "untrained" not in result.table and "erased" not in result.table


def test_features_are_those_of_run_with_cache_at_the_sampled_tokens(tiny_model, tokens):
    model = tiny_model()
    stories = Stories(tokens, torch.tensor([9, 6]))
    labelled = (torch.arange(9) < stories.lengths[:, None])[None]
    rows, _ = rows_of(sampled(labelled, 4))
    assert torch.bincount(rows.story).tolist() == [4, 4] and (rows.pos[rows.story == 1] < 6).all()
    sites = ["blocks.1.attn.hook_z", "blocks.0.ablated.hook_resid_post", "blocks.1.mlp.hook_mask"]
    found = features(model, stories, rows, sites, batch=1)
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, stream="both")
    for site in sites:
        expected = cache[site][rows.story, rows.pos].flatten(1).float()
        torch.testing.assert_close(found[site], expected, atol=1e-5, rtol=1e-5)


def test_targets_share_tokens_and_each_takes_only_labelled_ones():
    labelled = torch.rand(2, 30, 20, generator=torch.Generator().manual_seed(0)) < 0.6
    taken = sampled(labelled, 5)
    assert not (taken & ~labelled).any() and (taken.sum(-1) == 5).all()
    both = (labelled[0] == labelled[1]).all(-1)
    assert torch.equal(taken[0][both], taken[1][both])


def test_sites_by_name(tiny_model):
    model = tiny_model()
    assert expanded(["blocks.{l}.hook_resid_post"], model) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    ablated = expanded(
        ["blocks.{l}.hook_resid_pre", "blocks.1.mlp.hook_post", "blocks.0.attn.hook_z"], model, "ablated"
    )
    assert ablated == [
        "blocks.0.ablated.hook_resid_pre", "blocks.1.ablated.hook_resid_pre", "blocks.1.mlp.hook_gated_post",
        "blocks.0.attn.hook_gated_z",
    ]  # fmt: skip
    found = expanded(["all"], model)
    assert {"hook_embed", "blocks.0.attn.hook_z", "blocks.1.mlp.hook_mask", "ln_final.hook_normalized"} <= set(found)
    assert not [name for name in found if "pattern" in name or "scale" in name or ".ablated." in name]
    assert "blocks.0.ablated.hook_resid_mid" in every_site(model, "ablated")
    assert set(default_sites(model)) <= set(found)
    with pytest.raises(ValueError, match=r"got 'blocks.1.hook_resid_pots'; nearest: blocks.1.hook_resid_post"):
        expanded(["blocks.1.hook_resid_pots"], model)
    with pytest.raises(ValueError, match="must hold one vector a position"):
        expanded(["blocks.0.attn.hook_pattern"], model)
    with pytest.raises(ValueError, match="needs a model with masks"):
        default_sites(tiny_model({"mask": "none"}), "ablated")


def test_rare_classes_are_left_out_and_one_class_is_refused():
    values = torch.tensor([[0] * 30 + [1] * 25 + [2] * 3 + [-1] * 2])
    found = target(Labels("role", ("a", "b", "c"), values, "rules"), at_least=20)
    assert found.labels.classes == ("a", "b") and found.left_out == 1 and found.kept == pytest.approx(55 / 58)
    assert (found.labels.values[0, 55:] == -1).all() and torch.equal(found.labels.values[0, :55], values[0, :55])
    most = target(Labels("role", ("a", "b", "c"), values, "rules"), at_least=1, most=2)
    assert most.labels.classes == ("a", "b")
    with pytest.raises(ValueError, match=r"at least 2 classes of 30 tokens each; target role has 1 here"):
        target(Labels("role", ("a", "b", "c"), values, "rules"), at_least=30)
    with pytest.raises(ValueError, match="target role has no label in these stories"):
        target(Labels("role", ("a", "b"), torch.full((2, 3), -1), "rules"))


def test_the_untrained_model_keeps_every_parameter_s_entries_and_leaves_the_model(tiny_model):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = random_weights(model, seed=1).eval()
    for name, value in other.named_parameters():
        torch.testing.assert_close(value.flatten().sort().values, before[name].flatten().sort().values)
    assert not torch.equal(other.embed.W_E, before["embed.W_E"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = random_weights(model, seed=1).eval()
    assert torch.equal(other.embed.W_E, again.embed.W_E)


def test_share_of_winners_found_by_hand():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]])
    winners = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert found_share(scores, winners).tolist() == [0.5, 1.0, 1.0]


def test_a_mask_is_read_from_the_stream_that_it_is_made_from_and_from_no_other():
    generator = torch.Generator().manual_seed(0)
    x, other = torch.randn(2000, 12, generator=generator), torch.randn(2000, 12, generator=generator)
    scores = x @ torch.randn(12, 30, generator=generator)
    mask = torch.zeros_like(scores).scatter(1, scores.topk(3).indices, 1.0)
    story = torch.arange(200).repeat_interleave(10)
    rows = mask_readout(
        {"made from": standardized(x), "another": standardized(other)}, {"mask": mask}, folds(story, 3), story
    )
    found = {row["site"]: row for row in rows}
    usual = found["made from"]["majority"]
    assert found["made from"]["accuracy"] > 0.7 > 0.3 > usual
    assert found["another"]["accuracy"] < usual + 0.02


def test_a_label_is_read_from_the_mask_that_follows_it(tiny_model):
    """Local heads score by the token's embedding alone: dim 0 of it is the label, and unit 0 of layer 0 follows it."""
    model = tiny_model({"k_attn": 3, "k_mlp": 1}, normalization_type=None, tie_word_embeddings=False)
    label_of = torch.arange(29) % 2
    with torch.no_grad():
        model.embed.W_E[:, 0] = 10.0 * label_of
        head = dict(model.gates.named_parameters())
        weight, bias = head["local.0.mlp.weight"], head["local.0.mlp.bias"]
        weight.zero_(), bias.zero_()
        weight[0, 0], bias[1] = 1.0, 5.0
    tokens = torch.randint(29, (30, 12), generator=torch.Generator().manual_seed(0))
    stories = Stories(tokens, torch.full((30,), 12))
    asked = target(Labels("parity", ("even", "odd"), label_of[tokens], "tokens"))
    sites = ["blocks.0.hook_resid_pre", "blocks.0.mlp.hook_mask"]
    table = probing(model, stories, [asked], sites=sites, n_folds=3, controls=False).table
    linear = table[table.probe == "linear"].set_index("site")
    assert linear.accuracy["blocks.0.mlp.hook_mask"] > 0.95 and linear.k_90["blocks.0.mlp.hook_mask"] == 1
    assert linear.erased.isna()["blocks.0.mlp.hook_mask"]
    ridge = table[table.probe == "ridge"].set_index("site")
    assert ridge.accuracy["blocks.0.hook_resid_pre"] > 0.95 > 0.8 > ridge.majority["blocks.0.hook_resid_pre"]


def test_the_command_writes_table_figures_and_arms(tmp_path, capsys):
    argv = ["none-s0", "local-k4-s0", "--out", str(tmp_path), "--quiet", "--n", "24", "--folds", "3", "--tokens", "8",
            "--target", "role", "--site", "blocks.1.hook_resid_post", "blocks.1.mlp.hook_mask", "--stream", "clean",
            "--probe", "sparse", "mlp"]  # fmt: skip
    with pytest.raises(ValueError, match="'blocks.1.mlp.hook_mask'; nearest: blocks.1.mlp.hook_p"):
        main(argv)
    argv.remove("blocks.1.mlp.hook_mask")
    main(argv)
    out = capsys.readouterr().out
    assert "role: best of 1 sites blocks.1.hook_resid_post, accuracy 0." in out
    result = Result.load(tmp_path / "probing" / "none-s0")
    assert set(result.table.probe) == {"linear", "sparse", "mlp"}
    assert result.meta["targets"]["role"]["source"] == "generator" and result.meta["skipped"] == {}
    drawn = {path.stem for path in (tmp_path / "probing" / "none-s0" / "figures").iterdir()}
    assert drawn == {"layers-role", "description", "sparse", "erasure"} == set(probing_figures(result))
    arms = Result.load(tmp_path / "probing" / "arms")
    assert list(dict.fromkeys(arms.table.arm)) == ["none", "local k=4"]
    assert not any(row["claim"] for row in arms.meta["differences"])  # one seed an arm
    assert "accuracy-role" in arms_figures(arms)


def test_arms_with_three_seeds_that_differ_are_a_claim_and_equal_ones_are_none(equal_signs):
    model, stories, same = equal_signs(forgets=False)
    base = probing(
        model, stories, [same], sites=["blocks.0.hook_resid_post"], n_folds=3, kinds=["linear"], erasure=False
    )
    results = []
    for mask, lower in (("none", 0.0), ("local", 0.2)):
        for seed in range(3):
            table = base.table.assign(accuracy=base.table.accuracy - lower - 0.01 * seed)
            ablation = {"mask": mask, "k_attn": 4, "k_mlp": 4, "forward": "hard", "detach": "none", "gap_floor": 0}
            meta = {"checkpoint": f"{mask}-{seed}", "ablation": ablation, "training": {"seed": seed}, **base.meta}
            results.append(dataclasses.replace(base, table=table, meta=meta))
    compared = probing_compared(results)
    claims = {row["metric"].split(" | ")[1]: row["claim"] for row in compared.meta["differences"]}
    assert claims["accuracy"] and not claims["compression"]
    difference = next(row for row in compared.meta["differences"] if " | accuracy | " in row["metric"])
    assert difference["difference"] == pytest.approx(-0.2)
    figure = arms_figures(compared)["accuracy-same"]
    assert len(figure.data) == 6 and {trace.name for trace in figure.data} == {"none", "local k=4"}
    assert [bool(trace.showlegend) for trace in figure.data].count(True) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none-s0", "--target", "rolle"], "no target 'rolle'; nearest: role"),
        (["none-s0", "--n", "4"], "--n must be at least --folds, as folds are of stories; got 4 and 5"),
        (["none-s0", "--folds", "2"], "--folds must be at least 3"),
        (["none-s0", "--probe", "deep"], "invalid choice: 'deep'"),
        (["none-s0", "--site", "blocks.1.hook_resid"], "nearest: blocks.1.hook_resid_"),
        (["none-s0", "--stream", "ablated"], "stream 'ablated' needs a model with masks"),
    ],
)
def test_bad_input_ends_in_one_line_and_exit_2(argv, message, capsys):
    with pytest.raises(SystemExit) as exit:
        run(main, argv)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1


def test_processes_divide_the_cells_and_give_the_same_table(equal_signs, ranks):
    model, stories, same = equal_signs(forgets=False)
    sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]

    def asked(rank):
        table = probing(model, stories, [same], sites=sites, n_folds=3, erasure=False).table
        return torch.from_numpy(np.nan_to_num(table.select_dtypes("number").to_numpy(dtype=float), nan=-1.0))

    alone = asked(0)
    for together in ranks(2, asked):
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)
