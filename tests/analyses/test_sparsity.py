"""Sparsity: each measure by hand, what a rescaling moves and what not, the published count, the command."""

import json
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from analyses.metrics import gini as gini_of_arrays
from analyses.random_weights import random_weights
from analyses.result import Result
from analyses.sparsity.__main__ import main
from analyses.sparsity.activity import activity_sums, kinds_of, measured, with_intervals
from analyses.sparsity.comparison import CLAIM, sparsity_compared
from analyses.sparsity.figures import arms_figure, layers_figure
from analyses.sparsity.measures import effective_rank, gini, hoyer, kurtosis, near_zero, singular_values
from analyses.sparsity.published import PUBLISHED_ENTRIES, mean_abs_weight
from analyses.sparsity.sparsity import sparsity
from analyses.sparsity.weights import WITH, WITHOUT, weight_sparsity
from analyses.texts import Stories
from analyses.unit_streams import real_tokens, units_of
from sat_lens import SelfAblation, save
from sat_lens.convert import from_reference


def x(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture
def texts() -> Stories:
    draw = torch.Generator().manual_seed(3)
    lengths = torch.tensor([9, 7, 9, 4, 8, 9])
    tokens = torch.randint(1, 29, (6, 9), generator=draw)
    return Stories(tokens.where(torch.arange(9) < lengths[:, None], 0), lengths)


def test_measures_of_vectors_by_hand():
    one_of_four, equal, two = x(0, 0, -3, 0), x(2, -2, 2, 2), x(3, 4, 0, 0)
    assert hoyer(one_of_four) == 1 and hoyer(equal) == 0 and hoyer(two).item() == pytest.approx(2 - 7 / 5)
    assert gini(one_of_four) == 0.75 and gini(equal) == 0 and gini(two).item() == pytest.approx((3 + 3 * 4) / (4 * 7))
    assert kurtosis(x(-1, 1, -1, 1)) == -2 and kurtosis(x(-1, 0, 0, 0, 0, 0, 0, 1)).item() == pytest.approx(4 - 3)
    assert near_zero(one_of_four) == 0.75 and near_zero(equal) == 0 and near_zero(x(1, 0.09, 0.01, 1)) == 0.25 * 1
    assert all(measure(x(0, 0, 0)).isnan() for measure in (hoyer, gini, kurtosis, near_zero))
    assert kurtosis(x(5, 5, 5)).isnan() and hoyer(x(5)).isnan()


def test_the_gini_coefficient_is_the_one_that_other_questions_take():
    values = torch.randn(7, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(gini(values), gini_of_arrays(values.numpy()), atol=1e-12)


def test_the_effective_rank_by_hand():
    assert effective_rank(x(2, 2, 2, 0)).item() == pytest.approx(3)
    assert effective_rank(x(5, 0, 0)).item() == pytest.approx(1)
    assert effective_rank(x(3, 1)).item() == pytest.approx(4 / 3**0.75)  # exp of -(3/4 log 3/4 + 1/4 log 1/4)
    matrix = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.linalg.svdvals(matrix).flip(0)
    torch.testing.assert_close(singular_values(matrix.T @ matrix), expected)


def published_state(config: dict) -> dict[str, torch.Tensor]:
    """The reference's names and shapes at any size, without masks; one number stands for all entries."""
    d, mlp, zero = config["hidden_size"], 4 * config["hidden_size"], torch.zeros(())
    shapes = {
        "transformer.wte.weight": (config["vocab_size"], d),
        "transformer.wpe.weight": (config["max_position_embeddings"], d),
    }
    norms = ["transformer.ln_f"]
    for layer in range(config["num_layers"]):
        h = f"transformer.h.{layer}."
        norms += [f"{h}ln_1", f"{h}ln_2"]
        shapes |= {f"{h}attn.attention.{name}_proj.weight": (d, d) for name in ("q", "k", "v", "out")}
        shapes |= {
            f"{h}attn.attention.out_proj.bias": (d,),
            f"{h}mlp.c_fc.weight": (mlp, d),
            f"{h}mlp.c_fc.bias": (mlp,),
        }
        shapes |= {f"{h}mlp.c_proj.weight": (d, mlp), f"{h}mlp.c_proj.bias": (d,)}
    shapes |= {f"{norm}.{part}": (d,) for norm in norms for part in ("weight", "bias")}
    return {name: zero.expand(shape) for name, shape in shapes.items()}


def test_the_published_number_averages_14_535_249_entries_of_which_89_1_percent_are_embeddings():
    config = {
        "vocab_size": 50257, "hidden_size": 128, "num_layers": 8, "num_heads": 16, "max_position_embeddings": 256,
        "has_layer_by_layer_ablation_mask": False, "has_overall_ablation_mask": False, "ablation_processing": None,
    }  # fmt: skip
    found = mean_abs_weight(from_reference(published_state(config), config))
    assert found.n == PUBLISHED_ENTRIES == 14_535_249
    assert round(100 * found.embedding_share, 1) == 89.1
    assert found.n_embeddings == 2 * 50257 * 128 + 256 * 128 + 50257  # W_E, W_U, W_pos, b_U
    assert found.value == 0


def test_mean_abs_weight_is_of_the_model_with_its_writing_weights_and_unembedding_centred(tiny_model):
    model = tiny_model(ablation={"mask": "global"})
    total, n, inside = 0.0, 0, 0
    for name, weight in model.to_hooked_transformer().named_parameters():
        weight, last = weight.detach(), name.rpartition(".")[2]
        if last in ("W_E", "W_pos", "W_O", "W_out", "b_O", "b_out", "W_U", "b_U"):  # by row: d_model, or the vocabulary
            weight = weight - weight.mean(-1, keepdim=True)
        total, n = total + weight.abs().sum().item(), n + weight.numel()
        inside += 0 if "embed" in name else weight.abs().sum().item()
    found = mean_abs_weight(model)
    gates = sum(p.numel() for name, p in model.named_parameters() if name.startswith("gates"))
    assert found.n == n and gates > 0
    assert found.value == pytest.approx(total / n) and found.without_embeddings == pytest.approx(
        inside / (n - found.n_embeddings)
    )
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert mean_abs_weight(model).value == found.value
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def rescaled(model, how: str):
    """The model in place, its function as it was."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for layer, block in enumerate(f"blocks.{layer}." for layer in range(model.cfg.n_layers)):
            if how == "values":  # each channel of z by its own factor
                factor = torch.linspace(0.2, 4 + layer, model.cfg.n_heads * model.cfg.d_head, dtype=torch.float64)
                factor = factor.view(model.cfg.n_heads, model.cfg.d_head)
                named[f"{block}attn.W_V"] *= factor[:, None]
                model.blocks[layer].attn.b_V *= factor
                named[f"{block}attn.W_O"] /= factor[..., None]
            elif how == "gain":
                for norm, readers in (("ln1", ("attn.W_Q", "attn.W_K", "attn.W_V")), ("ln2", ("mlp.W_in",))):
                    factor = torch.linspace(0.3, 3 + layer, model.cfg.d_model, dtype=torch.float64)
                    named[f"{block}{norm}.w"] *= factor
                    named[f"{block}{norm}.b"] *= factor
                    for reader in readers:
                        named[f"{block}{reader}"] /= factor[:, None]
            else:  # ReLU: a neuron's input weights against its output weights
                factor = torch.linspace(0.2, 4 + layer, model.cfg.d_mlp, dtype=torch.float64)
                named[f"{block}mlp.W_in"] *= factor
                named[f"{block}mlp.b_in"] *= factor
                named[f"{block}mlp.W_out"] /= factor[:, None]
    return model


@pytest.mark.parametrize("how", ["values", "gain", "neurons"])
def test_a_rescaling_that_changes_nothing_moves_the_published_number_alone(tiny_model, texts, how):
    build = {"ablation": {"mask": "local"}, "act_fn": "relu" if how == "neurons" else "gelu_new"}
    before, model = sparsity(tiny_model(**build), texts, null=False), rescaled(tiny_model(**build), how)
    for one, other in zip(
        model(texts.tokens, stream="both"), tiny_model(**build)(texts.tokens, stream="both"), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)
    after = sparsity(model, texts, null=False)
    moved = before.table.metric == "mean_abs_weight"
    assert (abs(after.table.value - before.table.value)[moved] > 1e-3).all() and moved.sum() == 2
    columns = ["value", "ci_low", "ci_high"]
    np.testing.assert_allclose(after.table[~moved][columns], before.table[~moved][columns], rtol=1e-5, atol=1e-8)


def test_weights_without_structure_beside_weights_of_one_entry_a_vector(tiny_model):
    model = tiny_model(ablation={"mask": "none"})
    named = dict(model.named_parameters())
    with torch.no_grad():
        named["blocks.0.mlp.W_out"].zero_()
        named["blocks.0.mlp.W_out"][:, 3] = torch.linspace(1, 5, 24, dtype=torch.float64)
    found = weight_sparsity(model).set_index(["of", "layer", "metric"]).value
    assert found["W_out", 0, "hoyer"] == pytest.approx(1) and found["W_out", 0, "effective_rank"] == pytest.approx(1)
    assert found["W_out", 0, "near_zero"] == pytest.approx(15 / 16)
    assert found["W_out", 1, "hoyer"] < 0.5
    ov = named["blocks.1.ln1.w"][:, None] * named["blocks.1.attn.W_V"] @ named["blocks.1.attn.W_O"]
    assert found["W_OV", 1, "gini"] == pytest.approx(gini_of_arrays(ov.detach().flatten(1).numpy()).mean())
    svd = torch.stack([torch.linalg.svdvals(head) for head in ov.detach()])
    assert found["W_OV", 1, "effective_rank"] == pytest.approx(effective_rank(svd).mean().item(), rel=1e-6)
    assert found[WITH, -1, "hoyer"] != found[WITHOUT, -1, "hoyer"]


def test_a_hard_mask_lets_k_units_speak_and_their_parts_are_what_is_measured(tiny_model, texts):
    model = tiny_model(ablation={"mask": "local", "k_attn": 3, "k_mlp": 5})
    table = sparsity(model, texts, null=False).table.set_index(["of", "stream", "layer", "metric"]).sort_index()
    assert (table.loc["neuron", "ablated"].xs("l0", level="metric").value == 5).all()
    assert (table.loc["channel", "ablated"].xs("l0", level="metric").value == 3).all()
    assert (table.loc["channel", "clean"].xs("l0", level="metric").value == 16).all()
    _, cache = model.run_with_cache(texts.tokens, stream="ablated")
    part = cache["blocks.1.mlp.hook_gated_post"].double() * model.blocks[1].mlp.W_out.norm(dim=-1)
    expected = np.mean([hoyer(part[row, pos]).item() for row, pos in real_tokens(model, texts).nonzero().tolist()])
    row = table.loc[("neuron", "ablated", 1, "hoyer")]
    assert row.value == pytest.approx(expected) and row.n == int(texts.lengths.sum())
    written = cache["blocks.1.ablated.hook_mlp_out"][real_tokens(model, texts)].double()
    singular = torch.linalg.svdvals(written - written.mean(0))
    assert table.loc[("neuron", "ablated", 1, "effective_rank")].value == pytest.approx(
        effective_rank(singular).item(), rel=1e-5
    )
    masks = cache["blocks.1.mlp.hook_mask"][real_tokens(model, texts)]
    assert table.loc[("mask_neuron", "ablated", 1, "live_units")].value == pytest.approx(
        (masks > 0.5).any(0).double().mean().item()
    )


def test_intervals_leave_out_stories_one_group_at_a_time(tiny_model, texts):
    model = tiny_model(ablation={"mask": "none"})
    units = units_of(model, "neuron")
    found = with_intervals(activity_sums(model, texts, units)[0], 2)
    rest = []
    for i in range(6):
        kept = texts.subset(torch.tensor([j for j in range(6) if j != i]))
        rest.append(measured(activity_sums(model, kept, units)[0], 2))
    for name in ("l0", "kurtosis", "effective_rank", "live_units"):
        left_out = np.array([one[name] for one in rest])
        half = 2.5705818 * np.sqrt(5 / 6 * ((left_out - left_out.mean(0)) ** 2).sum(0))  # t, 5 degrees of freedom
        np.testing.assert_allclose(found[name][2] - found[name][0], half, atol=1e-6)


def test_the_null_is_the_same_model_with_each_parameter_s_entries_dealt_anew(tiny_model, texts):
    model = tiny_model(ablation={"mask": "global"})
    other = random_weights(model, 1).eval()
    for (_, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(one.flatten().sort().values, two.flatten().sort().values)
    table = sparsity(model, texts, seed=1).table
    again = sparsity(other, texts, null=False).table
    rows = table.metric != "mean_abs_weight"
    np.testing.assert_allclose(table.null[rows], again.value[rows])
    assert (table.null[~rows] == table.value[~rows]).all()


def test_models_of_every_layout_have_an_answer(tiny_model, texts):
    llama = {"act_fn": "silu", "gated_mlp": True, "normalization_type": "RMS", "n_key_value_heads": 2,
             "positional_embedding_type": "rotary", "rotary_dim": 4, "tie_word_embeddings": False}  # fmt: skip
    for changes in (llama, {"attn_only": True}, {"normalization_type": None}):
        model = tiny_model(ablation={"mask": "local", "unit": "head", "k_attn": 2}, **changes)
        table = sparsity(model, texts, null=False).table
        assert np.isfinite(table.value).all() and len(kinds_of(model)) == (3 if "attn_only" in changes else 6)
        assert ("W_gate" in set(table.of)) == ("gated_mlp" in changes)


def test_arms_are_compared_over_seeds_and_what_is_sparser_is_said(tiny_model, texts):
    results = []
    for i, (mask, seed) in enumerate([(m, s) for m in ("none", "local") for s in range(3)]):
        ablation = {"mask": mask}
        found = sparsity(tiny_model(ablation=ablation, seed=i), texts, null=False)
        training = {"seed": seed}
        meta = {"checkpoint": f"{mask}-{seed}", "ablation": SelfAblation(**ablation).to_dict(), "training": training}
        table = found.table.copy()
        planted = (table.of == "neuron") & (table.stream == "clean") & (table.metric == "hoyer")
        table.loc[planted, "value"] = 0.2 + 0.001 * seed + (0.5 if mask == "local" else 0)
        results.append(Result(found.name, table, found.units, {**found.meta, **meta}))
    compared = sparsity_compared(results)
    found = pd.DataFrame(compared.meta["differences"])
    row = found[found.metric == "neuron clean: hoyer"].iloc[0]
    assert row.difference == pytest.approx(0.5) and row.claim and row.sparser and row.family == "claim"
    assert set(found[found.family == "claim"].metric) == set(CLAIM)
    assert compared.meta["summary"].startswith("local k=4: sparser than none by ")
    assert len(arms_figure(compared).data) == len(CLAIM)
    assert not found[found.metric.str.startswith("neuron ablated")].shape[0]  # the baseline has none
    other = Result(results[1].name, results[1].table, results[1].units, {**results[1].meta, "knobs": {}})
    with pytest.raises(ValueError, match="asked alike"):
        sparsity_compared([results[0], other])


def test_the_command_writes_a_result_that_redraws(tiny_model, tiny_tokenizer, tmp_path, capsys):
    for name, mask in (("one", "none"), ("two", "local")):
        model = tiny_model(ablation={"mask": mask})
        model.tokenizer = tiny_tokenizer
        save(model, tmp_path / name, training={"seed": 0, "tokens_seen": 1, "step": 1}, log="")
    corpus = tmp_path / "corpus.txt"
    words = [f"w{1 + i % 28}" for i in range(90)]
    corpus.write_text("\n<|endoftext|>\n".join(" ".join(words[i : i + 8]) for i in range(0, 80, 4)) + "\n")
    out = tmp_path / "out"
    main([*(str(tmp_path / n) for n in ("one", "two")), "--corpus", str(corpus), "--n", "8", "--out", str(out),
          "--quiet", "--json"])  # fmt: skip
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["name"] for line in lines] == ["sparsity"] * 3
    again = Result.load(out / "sparsity" / "two")
    assert layers_figure(again).data and again.meta["published"]["n_entries_published"] == PUBLISHED_ENTRIES
    assert (out / "sparsity" / "arms" / "figures" / "arms.html").is_file()
    assert again.table.value.notna().all() and all(a != b for a, b in pairwise(lines))
    with pytest.raises(SystemExit):
        main([str(tmp_path / "one"), "--n", "1"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["--n", "1"], "--n must be at least 2 stories"), (["--no-null=1"], "--no-null"), (["--corpus"], "--corpus")],
)
def test_bad_arguments_end_in_one_line(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["none-s0", *argv])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1
