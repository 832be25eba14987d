"""Toy models: what their data are, that both architectures are what they say, and that training can go on."""

import dataclasses

import pytest
import torch

from sat_lens import checkpoint
from sat_lens.toy import training
from sat_lens.toy.arithmetic import TASKS, task_data
from sat_lens.toy.config import ToyConfig, toy_config
from sat_lens.toy.model import DecoderToy, answer_logits, answer_losses, exact_match, greedy, states
from sat_lens.toy.munch import MaximalMunch, character_tokenizer, number_tokenizer
from sat_lens.toy.runs import fresh, load_toy
from sat_lens.toy.side_sae import SideSAE, sae_figures

SMALL = {"operands": 5, "d_model": 16, "n_heads": 2, "d_mlp": 24, "n_latents": 20, "n_layers": 1, "batch_size": 16,
         "train_share": 0.6, "val_share": 0.2, "k_attn": 3, "k_mlp": 5}  # fmt: skip


def small(**changes):
    return ToyConfig(**{**SMALL, "steps": 8, "eval_every": 4, **changes})


@pytest.fixture(scope="module")
def hundred():
    return task_data(100, split="pair", seed=3)


def test_the_longest_item_that_fits_is_the_next_token():
    munch = number_tokenizer(100)
    words = [munch.vocabulary[i] for i in munch.encode("B1023E")]
    assert words == ["B", "102", "3", "E"]
    assert [munch.vocabulary[i] for i in munch.encode("199")] == ["19", "9"]  # 198 is the largest number
    assert len(munch) == 204 and munch.decode(munch.encode("B12C7E") + [0, 0]) == "B12C7E"
    assert [len(character_tokenizer().encode(text)) for text in ("B1023E", "B7E")] == [6, 3]


def test_a_text_without_a_token_and_a_bad_vocabulary_are_refused():
    with pytest.raises(ValueError, match=r"no token for 'x', character 3 of 'B1x'"):
        number_tokenizer(10).encode("B1x")
    with pytest.raises(ValueError, match="different and not empty"):
        MaximalMunch(["a", "a"])


def test_the_facts_of_the_source_s_data(hundred):
    """Sources of 5 tokens; sums of 1 token; 278 concatenations of 1 token; 1,889 not split where the operands meet."""
    assert hundred.problems.source.shape == (20_000, 5) and (hundred.problems.source != 0).all()
    lengths = (hundred.problems.answer != 0).sum(1) - 1  # without E
    sums, concats = (hundred.problems.task == i for i in (0, 1))
    assert (lengths[sums] == 1).all() and set(lengths[concats].tolist()) == {1, 2}
    assert int((lengths[concats] == 1).sum()) == 278
    munch = hundred.tokenizer
    other = sum(
        munch.encode(f"{a}{b}") != munch.encode(str(a)) + munch.encode(str(b)) for a in range(100) for b in range(100)
    )
    assert other == 1889
    assert hundred.ask(["12+7", "10C23"]).texts() == ["12+7", "10C23"]
    assert munch.decode(hundred.ask(["10C23"]).answer[0].tolist()) == "1023E"


@pytest.mark.parametrize("split", ["example", "pair"])
def test_the_three_parts_never_meet_and_together_are_all(split):
    data = task_data(12, split=split, train_share=0.5, val_share=0.3, seed=1)
    rows = torch.cat([data.rows[name] for name in ("train", "val", "test")])
    assert sorted(rows.tolist()) == list(range(288))
    pairs = [set(data.part(name).pair.tolist()) for name in ("train", "val", "test")]
    shared = [pairs[i] & pairs[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    assert all(shared) if split == "example" else not any(shared)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"operands": 1}, "operands must be 2 to 1000; got 1"),
        ({"answer_length": 2}, "answer_length must be at least 3, the tokens of the answer of 0C"),
        ({"source_length": 4}, "source_length must be at least 5"),
        ({"split": "row"}, "split must be one of example, pair; got 'row'"),
        ({"train_share": 0.9, "val_share": 0.2}, "at most 1 together; got 0.9 and 0.2"),
        ({"train_share": 0.001}, "train would have no examples"),
    ],
)
def test_bad_data_settings_get_one_line(changes, words):
    with pytest.raises(ValueError, match=words):
        task_data(**{"operands": 9, **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [("3-4", "operator must be one of"), ("3+9", "operands must be 0 to 8; got 9"), ("3 + 4", "a problem is written"),
     ("+4", "a problem is written")],
)  # fmt: skip
def test_a_problem_that_cannot_be_asked_is_named(text, words):
    with pytest.raises(ValueError, match=words):
        task_data(9).ask([text])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arch": "rnn"}, "arch must be one of decoder, seq2seq; got 'rnn'"),
        ({"d_model": 30, "n_heads": 4}, "d_model must be a multiple of n_heads"),
        ({"mask": "local", "arch": "seq2seq"}, "needs arch 'decoder'"),
        ({"mask": "local", "k_mlp": 999}, "k_mlp must be between 1 and the"),
        ({"steps": 0}, "steps must be a whole number from 1"),
        ({"l1": -1.0}, "l1 must be a finite number"),
        ({"colour": 1}, "unknown setting 'colour'"),
    ],
)
def test_bad_settings_get_one_line(changes, words):
    with pytest.raises(ValueError, match=words):
        toy_config("tiny", **changes)


def test_the_presets_hold_what_they_name():
    paper = toy_config("paper", arch="seq2seq")
    assert (paper.operands, paper.d_model, paper.n_latents, paper.steps) == (100, 256, 1024, 12_000)
    assert paper.steps // (20_000 * paper.train_share // paper.batch_size + 1) == 1000  # epochs, as published
    assert (paper.source_length, paper.answer_length, paper.weight_decay, paper.decay) == (8, 7, 1.0, "all")
    assert toy_config("cpu").arm == "decoder-n50-joint-l0.01" and toy_config("tiny").operands == 20


@pytest.mark.parametrize("arch", ["decoder", "seq2seq"])
def test_exact_match_of_taught_logits_is_that_of_greedy_decoding(arch):
    run = fresh(small(arch=arch, warmup_steps=0, lr=1e-2))
    train = run.data.part("train")
    optimizer = training.optimizer_of(run)
    for _ in range(40):  # part of the answers right
        training.updated(run, optimizer, train)
    logits = answer_logits(run.toy, run.data.problems)
    right = exact_match(logits, run.data.problems.answer)
    written = greedy(run.toy, run.data.problems)
    texts = [run.data.tokenizer.decode(row).split("E")[0] for row in written.tolist()]
    wanted = [run.data.tokenizer.decode(row).split("E")[0] for row in run.data.problems.answer.tolist()]
    assert [a == b for a, b in zip(texts, wanted, strict=True)] == right.tolist()
    assert 0 < right.double().mean() < 1


@pytest.mark.parametrize("arch", ["decoder", "seq2seq"])
def test_the_readout_of_the_site_is_the_logits_and_later_tokens_are_not_seen(arch):
    run = fresh(small(arch=arch))
    problems = run.data.problems.subset(torch.arange(7))
    logits, held = states(run.toy, problems, [run.toy.site])
    with torch.no_grad():
        assert torch.allclose(run.toy.readout(held[run.toy.site]), logits, atol=1e-6)
        shifted = held[run.toy.site] + 1.0
        moved = run.toy.readout(shifted) - logits
        assert torch.allclose(moved, run.toy.unembedding.sum(0).expand_as(moved), atol=1e-5)
    other = dataclasses.replace(problems, answer=problems.answer.clone())
    other.answer[:, 1] = 9
    changed = (answer_logits(run.toy, other) - logits).abs().amax((0, 2))
    assert changed[:2].max() == 0 and changed[2] > 1e-6


def test_every_hook_point_of_the_encoder_decoder_lies_in_the_data_path():
    run = fresh(small(arch="seq2seq", source_length=7))
    problems = run.data.problems.subset(torch.arange(9))
    logits = answer_logits(run.toy, problems)
    assert {"decoder.0.cross_attn.hook_pattern", "decoder.0.hook_resid_mid_cross"} <= set(run.toy.net.hook_dict)
    for name in run.toy.net.hook_dict:
        noise = torch.Generator().manual_seed(0)
        hook = lambda x, hook, noise=noise: x + torch.randn(x.shape, generator=noise)  # noqa: E731
        assert (answer_logits(run.toy, problems, [(name, hook)]) - logits).abs().max() > 1e-6, name
    longer = dataclasses.replace(problems, source=problems.source[:, :5])
    assert torch.allclose(answer_logits(run.toy, longer), logits, atol=1e-6)  # padding of the source is not read


def test_losses_count_the_answer_and_its_end_and_padding_where_asked():
    answer = task_data(20).ask(["3+4"]).answer  # 7 E pad
    logits = torch.zeros(1, 3, 44)
    logits[0, 2] = -100.0 * torch.arange(44)  # certain of padding
    wrong = logits.clone()
    wrong[0, 2, 0] = -1e4
    assert answer_losses(logits, answer).item() == pytest.approx(torch.tensor(44.0).log().item())
    assert answer_losses(wrong, answer).item() == answer_losses(logits, answer).item()
    assert answer_losses(wrong, answer, padding=True) > answer_losses(logits, answer, padding=True)


def test_the_autoencoder_s_loss_and_figures_by_hand():
    sae = SideSAE(2, 3)
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))
    x = torch.tensor([[[2.0, 3.0]], [[-4.0, -1.0]], [[9.0, 9.0]]])
    counts = torch.tensor([[True], [True], [False]])
    # activations (2, 0, 3), (0, 4, 0); reconstructions (2, 0), (0, 0); squared errors 0 9 16 1, mean 6.5; L1 5 and 4
    assert sae.loss(x, counts, 2.0, 0.1).item() == pytest.approx(2 * 6.5 + 0.1 * 4.5)
    found = sae_figures(sae, x[:2, 0])
    # means of x: (-1, 1); spread 9 + 4 + 9 + 4 = 26; density 1/2 each
    assert found["l0"] == 1.5 and found["alive"] == 3 and found["fvu"] == pytest.approx(1.0)
    assert found["density"] == [0.5, 0.5, 0.5]
    assert set(sae.hook_dict) == {"hook_sae_input", "hook_sae_acts_pre", "hook_sae_acts_post", "hook_sae_recons"}


def test_the_joint_autoencoder_moves_the_model_and_the_logits_do_not_pass_through_it():
    run = fresh(small())
    before = answer_logits(run.toy, run.data.problems)
    with torch.no_grad():
        run.sae.W_dec.mul_(100)
    assert torch.equal(answer_logits(run.toy, run.data.problems), before)
    batch = run.data.part("train")
    training.total_loss(run, batch).backward()
    joint = run.toy.net.embed.W_E.grad.clone()
    run.toy.net.zero_grad()
    alone = dataclasses.replace(run, sae=None)
    training.total_loss(alone, batch).backward()
    assert not torch.allclose(joint, run.toy.net.embed.W_E.grad, rtol=1e-3)


@pytest.mark.parametrize(
    "changes", [{"arch": "decoder"}, {"arch": "seq2seq"}, {"arch": "decoder", "mask": "local", "sae": "none"}]
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(changes, tmp_path, monkeypatch):
    config = small(**changes)
    whole = training.train_toy(config, tmp_path / "whole", progress=False)
    updated = training.updated

    def stopped(run, optimizer, batch):
        if run.step == 6:
            raise KeyboardInterrupt
        return updated(run, optimizer, batch)

    monkeypatch.setattr(training, "updated", stopped)
    with pytest.raises(KeyboardInterrupt):
        training.train_toy(config, tmp_path / "cut", progress=False)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="pass --resume"):
        training.train_toy(config, tmp_path / "cut", progress=False)
    with pytest.raises(ValueError, match=r"was trained with lr=0\.003; got 0\.1"):
        training.train_toy(dataclasses.replace(config, lr=0.1), tmp_path / "cut", resume=True, progress=False)
    again = training.train_toy(config, tmp_path / "cut", resume=True, progress=False)
    for one, other in ((whole, again), (load_toy(tmp_path / "whole" / "last"), load_toy(tmp_path / "cut" / "last"))):
        assert all(torch.equal(a, b) for a, b in zip(
            one.toy.net.state_dict().values(), other.toy.net.state_dict().values(), strict=True))  # fmt: skip
    assert [line["val_loss"] for line in whole.history] == [line["val_loss"] for line in again.history]
    assert whole.step == again.step


def test_a_decoder_s_run_is_a_checkpoint_that_every_question_can_load(tmp_path):
    run = training.train_toy(small(mask="local", sae="none"), tmp_path / "run", progress=False)
    model = checkpoint.load(tmp_path / "run" / "best" / "model")
    tokens = DecoderToy.sequence(run.toy, run.data.problems.source, run.data.problems.answer)
    with torch.no_grad():
        assert torch.equal(model(tokens), run.toy.net(tokens))
        clean, ablated = (answer_logits(run.stream(name), run.data.problems) for name in ("clean", "ablated"))
    assert not torch.allclose(clean, ablated)


def test_a_damaged_run_is_refused(tmp_path):
    training.train_toy(small(arch="seq2seq"), tmp_path / "run", progress=False)
    path = tmp_path / "run" / "best" / "sae.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(checkpoint.CheckpointError, match="sha256"):
        load_toy(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no toy run 'nothing'"):
        load_toy("nothing")


def test_a_post_hoc_autoencoder_learns_and_leaves_the_model_alone(tmp_path):
    model = training.train_toy(small(sae="none", steps=30), tmp_path / "model", progress=False)
    config = small(sae="posthoc", steps=30, sae_steps=150, l1=0.0)
    run = training.train_toy(config, tmp_path / "run", init_from=tmp_path / "model", progress=False)
    loaded = load_toy(tmp_path / "run")
    for other in (run, loaded):
        assert all(torch.equal(a, b) for a, b in zip(
            model.toy.net.state_dict().values(), other.toy.net.state_dict().values(), strict=True))  # fmt: skip
    untrained = SideSAE(16, 20, 0)
    _, held = states(run.toy, run.data.part("val"), [run.toy.site])
    x = held[run.toy.site].flatten(0, 1)
    assert sae_figures(loaded.sae, x)["fvu"] < 0.5 * sae_figures(untrained, x)["fvu"]
    assert run.history[-1]["sae_step"] == 150
    with pytest.raises(ValueError, match="was trained with seed=0; got 1"):
        training.train_toy(dataclasses.replace(config, seed=1), init_from=tmp_path / "model", progress=False)


@pytest.mark.slow
def test_the_tiny_preset_learns_both_tasks_in_a_minute():
    run = training.train_toy(toy_config("tiny"), progress=False)
    problems = run.data.problems
    right = exact_match(answer_logits(run.toy, problems), problems.answer).double()
    assert min(right[problems.task == i].mean() for i in range(len(TASKS))) >= 0.95
    assert max(line["cpu_seconds"] for line in run.history if "cpu_seconds" in line) < 60
