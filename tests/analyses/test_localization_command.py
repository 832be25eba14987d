"""`python -m analyses.localization`: what it writes and prints, and what it refuses."""

import json
import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from analyses.localization.__main__ import main
from analyses.result import Result
from sat_lens import SelfAblatingTransformer, SelfAblation, save, stories
from sat_lens._tl import HookedTransformerConfig
from sat_lens.commands import run

VOCABULARY = 11


SMALL = {
    "n_layers": 3, "d_model": 8, "n_heads": 4, "d_head": 2, "d_mlp": 5, "n_ctx": 12, "d_vocab": VOCABULARY, "seed": 1,
    "act_fn": "gelu_new", "normalization_type": "LN", "dtype": torch.float64, "initializer_range": 0.7,
}  # fmt: skip


def word_tokenizer():
    """One id a word or punctuation mark of the IOI prompts."""
    words = re.findall(r"\w+|[^\w\s]", re.sub(r"\{\w+\}", "", " ".join(stories.IOI_TEMPLATES)))
    vocabulary = dict.fromkeys(["<|endoftext|>", *words, *stories.PLACES, *stories.OBJECTS, *stories.NAMES])
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<|endoftext|>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Folders of a self-ablating model and of one without masks, both untrained."""
    folder, tokenizer = tmp_path_factory.mktemp("checkpoints"), word_tokenizer()
    for name, settings in (("local", SelfAblation(k_attn=3, k_mlp=2)), ("none", SelfAblation(mask="none"))):
        changes = {"n_layers": 2, "n_ctx": 40, "d_vocab": len(tokenizer), "dtype": torch.float32}
        model = SelfAblatingTransformer(HookedTransformerConfig(**SMALL | changes), ablation=settings)
        model.tokenizer = tokenizer
        save(model, folder / name)
    return folder


def ask(checkpoints, name, *flags, out):
    main([str(checkpoints / name), "--out", str(out), "--n", "6", "--quiet", *flags])
    return out / "localization" / name


def test_the_command_writes_table_meta_and_figures(checkpoints, tmp_path, capsys):
    folder = ask(checkpoints, "none", out=tmp_path)
    result = Result.load(folder)
    assert len(result.table) == 2 * (4 + 8 + 5) and result.table.n.eq(6).all()
    assert result.meta["task"]["name"] == "ioi" and result.meta["checkpoint_sha256_of"] == "model.safetensors"
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "heads.html", "heads_sorted.html", "channels_sorted.html", "neurons_sorted.html", "concentration.html"
    }  # fmt: skip
    printed = capsys.readouterr()
    assert "effect_logit_diff" in printed.out and str(folder) in printed.out
    assert printed.err.startswith("warning: the model does not solve ioi: accuracy")


def test_json_is_the_result_and_nothing_else(checkpoints, tmp_path, capsys):
    folder = ask(checkpoints, "local", "--json", "--stream", "ablated", "--ablation", "resample", out=tmp_path)
    document = json.loads(capsys.readouterr().out)
    assert document["name"] == "localization" and len(document["table"]) == 34
    assert document["meta"]["knobs"]["stream"] == "ablated" and document["meta"]["ablation"]["k_attn"] == 3
    assert document["table"][0]["effect_logit_diff"] == Result.load(f"{folder}.ablated").table.effect_logit_diff[0]


def test_means_over_a_corpus_are_not_those_over_the_prompts(checkpoints, tmp_path):
    effects = []
    for flags in ((), ("--corpus", "stories")):
        table = Result.load(ask(checkpoints, "none", *flags, out=tmp_path)).table
        effects.append(table[table.kind == "neuron"].sort_values(["layer", "neuron"]).effect_loss.to_numpy())
    assert not np.allclose(*effects)


def test_a_task_file_is_taken(checkpoints, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("clean,corrupted,correct,incorrect\nRob and Sue went to,Tom and Ann went to, Rob, Sue\n")
    assert Result.load(ask(checkpoints, "none", "--task", str(path), out=tmp_path)).meta["task"]["name"] == "mine"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--stream", "ablated"], "error: the ablated stream needs a model with masks"),
        (["--task", "nonesuch"], "must be one of ioi, "),
        (["--method", "guess"], "invalid choice: 'guess'"),
        (["--ablation", "zero", "--corpus", "stories"], "--corpus is what means are taken over"),
        (["--corpus", "nonesuch"], "error: a corpus must be"),
    ],
)
def test_what_cannot_be_answered_ends_in_one_line_and_exit_2(checkpoints, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as exit:
        run(main, [str(checkpoints / "none"), "--out", str(tmp_path), "--n", "4", *flags])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.real_data
def test_a_llama_checkpoint_is_localized(real_data, tmp_path):
    main([str(real_data / "stories260K" / "stories260K.bin"), "--out", str(tmp_path), "--n", "2", "--positions", "end"])
    result = Result.load(tmp_path / "localization" / "stories260K")
    assert len(result.table) == 5 * (8 + 64 + 172) and result.table.effect_loss.notna().all()
