"""Untangling as a whole: masked models, planted tasks removed on held-out pairs, the reproduction."""

import numpy as np
import pytest
import torch

from analyses.localization import unit_effects
from analyses.untangling.examples import folds, matched_examples, source_examples
from analyses.untangling.masks import mask_usage
from analyses.untangling.methods import methods
from analyses.untangling.parts import all_units
from analyses.untangling.reproduction import reproduction_result
from analyses.untangling.sweep import tolerance_sweep
from sat_lens.toy.arithmetic import task_data
from sat_lens.toy.config import ToyConfig
from sat_lens.toy.model import answer_logits, counted, states
from sat_lens.toy.runs import ToyRun, fresh
from sat_lens.toy.side_sae import SideSAE
from sat_lens.toy.task import operator_task
from tests.cases.untangling import OPERANDS, addition_and_concatenation, planted_tasks, small_runs


@pytest.fixture(scope="module")
def data():
    return addition_and_concatenation()


@pytest.fixture(scope="module")
def planted(data):
    return planted_tasks(data)


@pytest.fixture(scope="module")
def trained():
    return small_runs()


@pytest.fixture(scope="module")
def masked():
    config = ToyConfig(operands=OPERANDS, d_model=16, n_heads=2, d_mlp=24, n_layers=2, mask="local", k_attn=3, k_mlp=5,
                       sae="none", train_share=0.6, val_share=0.2)  # fmt: skip
    return fresh(config)


def test_the_use_of_masks_is_counted_and_k_units_speak_at_every_token(masked):
    ablated, problems = masked.stream("ablated"), masked.data.problems.subset(torch.arange(12))
    usage = mask_usage(ablated, problems)
    assert usage.shape == (2 * (16 + 24), 12) and torch.allclose(usage.sum(0), torch.tensor(2.0 * (3 + 5)))
    _, held = states(ablated, problems, ["blocks.1.mlp.hook_mask"])
    counts = counted(problems.answer)
    naive = torch.stack([held["blocks.1.mlp.hook_mask"][i][counts[i]].mean(0) for i in range(12)], 1)
    assert torch.allclose(usage[-24:], naive, atol=1e-6)


def test_closed_units_are_masks_with_fewer_ones(masked):
    ablated, problems = masked.stream("ablated"), masked.data.problems.subset(torch.arange(12))
    units = all_units(ablated)
    chosen = [2, 20, 45, 60]  # layer 0: channel 2, neuron 4; layer 1: channel 5, neuron 4
    closed = {"blocks.0.attn": (0, 2), "blocks.1.attn": (0, 5), "blocks.0.mlp": 4, "blocks.1.mlp": 4}

    def gate(at):
        def edit(mask, hook):
            mask = mask.clone()
            mask[(..., *(at if isinstance(at, tuple) else (at,)))] = 0.0
            return mask

        return edit

    masks = [(f"{place}.hook_mask", gate(at)) for place, at in closed.items()]
    by_masks = answer_logits(ablated, problems, masks)
    by_units = answer_logits(ablated, problems, units.hooks(ablated, chosen))
    assert torch.allclose(by_masks, by_units, atol=1e-6)
    assert (by_units - answer_logits(ablated, problems)).abs().max() > 1e-6


def run_of(planted, data, sae=None):
    """What a sweep asks of a run."""
    config = ToyConfig(operands=OPERANDS, sae="joint" if sae else "none")
    return ToyRun(config, data, planted, sae, [], 0)


@pytest.fixture(scope="module")
def planted_sae(data):
    """Latents that are the dimensions of `planted`."""
    width = 2 * len(data.tokenizer) + 1
    sae = SideSAE(width, width).double()
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(width))
        sae.W_dec.copy_(torch.eye(width))
    return sae


def test_a_planted_task_is_removed_on_pairs_that_were_held_out(planted, planted_sae, data):
    """An answer goes if and only if one of its tokens was seen among those that the latents were chosen on."""
    run = run_of(planted, data, planted_sae)
    table = tolerance_sweep(run, "concat", "sum", taus=(0.0, 0.5), k=5, part="all", with_units=False, seed=0)
    kinds = {"latents", "latents, one by one", "greedy", "random", "magnitude", "swapped", "shuffled", "PCA"}
    assert set(table.method) == kinds | {"mean difference"}
    problems = matched_examples(planted, data, "all", 100)
    fold = folds(problems, 5)
    held = table[(table.split == "held_out") & (table.tau == 0)].set_index(["method", "fold"])
    for at in range(5):
        for method, task, column in (("latents", 1, "target"), ("swapped", 0, "preserved")):
            shown = problems.answer[(fold != at) & (problems.task == task)]
            seen = set(shown.unique().tolist()) - {0, data.tokenizer.ids["E"]}
            asked = problems.answer[(fold == at) & (problems.task == task)].tolist()
            expected = np.mean([not seen & set(tokens) for tokens in asked])
            assert held.loc[(method, at), f"{column}_accuracy"] == pytest.approx(expected)
        assert held.loc[("latents", at), "preserved_accuracy"] == held.loc[("swapped", at), "target_accuracy"] == 1.0
        assert held.loc[("random", at), "n_removed"] == held.loc[("latents", at), "n_removed"]
    means = held.groupby("method")[["target_accuracy", "preserved_accuracy"]].mean()
    assert means.loc["latents"].equals(means.loc["latents, one by one"])  # nothing overlaps
    assert means.loc["latents", "target_accuracy"] < 0.2 and means.loc["random", "preserved_accuracy"] < 0.9
    assert (table.n_target == table.n_preserved).all() and set(table.fold) == set(range(5))
    sizes = table[table.method == "latents"].groupby(["tau", "fold"]).n_target.sum()
    assert (sizes == 25).all()  # the two splits of each fold together are all pairs


def test_the_reproduction_stands_beside_the_published_points(planted, planted_sae, data):
    table = reproduction_result([run_of(planted, data, planted_sae)], n=5).table
    published = table[table.source == "published"]
    assert published[["tau_sum", "preserved_accuracy", "target_accuracy"]].to_numpy().tolist() == [
        [0.0, 1.0, 0.88], [0.1, 0.97, 0.59], [0.2, 0.94, 0.3],
    ]  # fmt: skip
    ours = table[table.source != "published"]
    assert len(ours) == 3 * 2 * 2 and set(ours.judged_on) == {"selection", "held_out"}
    chosen_on = ours[ours.judged_on == "selection"]
    assert (chosen_on.preserved_accuracy == 1.0).all() and (chosen_on.target_accuracy == 0.0).all()
    n_sums = len(source_examples(planted, data, 5).of("sum"))
    others = source_examples(planted, data, 5, others=True)
    assert n_sums == 5 and not set(others.texts()) & set(source_examples(planted, data, 5).texts())
    assert chosen_on.tau.tolist() == pytest.approx((chosen_on.tau_sum / n_sums).tolist())
    with pytest.raises(ValueError, match="has none"):
        reproduction_result([run_of(planted, data)])


def test_what_was_chosen_on_one_part_is_judged_on_the_test_part(planted, data):
    run = run_of(planted, data)
    table = tolerance_sweep(run, "sum", "concat", taus=(0.1,), k=2, part="val", with_units=False)
    n_test = len(data.part("test").of("sum"))
    tested = table[table.split == "test"]
    assert (tested.fold == -1).all() and (tested.n_target == n_test).all() and len(tested)
    for bad, words in (
        (("sum", "sum"), "must differ; got 'sum' for both"),
        (("sum", "difference"), "a task is one of"),
    ):
        with pytest.raises(ValueError, match=words):
            tolerance_sweep(run, *bad, part="all")
    with pytest.raises(ValueError, match="a tolerance must be"):
        tolerance_sweep(run, "sum", "concat", taus=(-1.0,))


def test_every_method_of_a_masked_model_is_there(masked):
    problems = masked.data.problems.subset(torch.arange(8))
    found = {method.name: method for method in methods(masked, problems, "sum", "concat", with_units=False)}
    assert set(found) == {"PCA", "mean difference", "masks", "masks clean"}
    assert found["masks"].bench.toy.stream == "ablated" and found["masks clean"].bench.toy.stream == "clean"
    shown = torch.ones(8, dtype=torch.bool)
    sizes = [len(found["masks"].choice(shown, tau)[0]) for tau in (0.0, 0.05, 0.5)]
    assert sizes == sorted(sizes) and len(found["masks"].bench.parts) == 80


def test_units_of_both_stacks_are_taken_out_one_by_one(trained):
    run = trained["seq2seq"]
    problems = run.data.problems.subset(torch.arange(6))
    found = {method.name: method for method in methods(run, problems, "sum", "concat", with_greedy=False)}
    assert {"units", "neurons", "latents, one by one", "magnitude"} <= set(found)
    judged = found["units"].bench
    names = ["encoder.0.attn.hook_z", "encoder.0.mlp.hook_post", "decoder.0.attn.hook_z", "decoder.0.mlp.hook_post",
             "decoder.0.cross_attn.hook_z"]  # fmt: skip
    assert [place for place, _ in judged.parts.places] == names
    neuron = 16 + 24 + 16 + 3  # the fourth of the decoder's
    assert torch.allclose(judged.losses([neuron]), found["neurons"].bench.losses([3]), atol=1e-6)
    assert (judged.losses([neuron]) - judged.losses()).abs().max() > 1e-6


def test_other_questions_can_be_asked_of_a_toy_decoder(trained):
    run = trained["decoder"]
    task = operator_task(run.data, "concat", n=10)
    assert task.n == 10 and all("C" in prompt for prompt in task.prompts)
    other = run.data.ask([prompt.replace("C", "+") for prompt in task.prompts])
    assert torch.equal(task.corrupt, other.source) and torch.equal(task.wrong_answers, other.answer[:, 0])
    effects = unit_effects(run.toy.net, task, units=("head",), ablation="mean")
    assert len(effects.table) == 2 and effects.table.effect_logit_diff.abs().max() > 0
    characters = task_data(12, tokenizer="characters")
    with pytest.raises(ValueError, match="prompts must have one length"):
        operator_task(characters, "sum")
