"""`python -m analyses.specialization CKPT --explain` with a language model of each kind, as a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from analyses.explain.chat import ChatReply, OneByOne
from analyses.explain.chat_replay import Recording
from analyses.explain.llm_explainer import MARKER
from analyses.explain.llm_explainer import SYSTEM as EXPLAIN
from analyses.result import Result
from analyses.specialization import __main__ as command
from analyses.specialization.explained_by_model import explained_by_model
from analyses.texts import stories
from sat_lens import SelfAblatingTransformer, SelfAblation, load_tokenizer, save
from sat_lens._tl import HookedTransformerConfig
from sat_lens.commands import run
from tests.cases.chat_server import completion, serving
from tests.cases.chat_weights import single_minded_weights

ROOT = Path(__file__).resolve().parents[2]
SAID = "The word dog."
ASKED = ["--explain", "--n", "16", "--per-layer", "2", "--scored", "3", "--mode", "marked", "--quiet"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Checkpoint and corpus: neuron 0 is 1 on the token " dog" and 0 elsewhere, neuron 1 is never active."""
    folder, tokenizer = tmp_path_factory.mktemp("planted"), load_tokenizer("stories-4096")
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=2, n_ctx=32, d_vocab=len(tokenizer), act_fn="relu",
        normalization_type=None, seed=0,
    )  # fmt: skip
    model = SelfAblatingTransformer(cfg, ablation=SelfAblation(mask="none"))
    model.tokenizer = tokenizer
    (dog,) = tokenizer(" dog", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        named = dict(model.named_parameters())
        for parameter in named.values():
            parameter.zero_()
        named["embed.W_E"][dog, 0] = named["blocks.0.mlp.W_in"][0, 0] = 1.0
    save(model, folder / "planted", training={"seed": 0, "tokens_seen": 1, "step": 1}, log="")
    names, ends = ("Tom", "Lily", "Ben", "Anna"), ("ran.", "sat.", "was big.", "had a ball.")
    texts = [f"{name} saw a dog and a cat. The {pet} {end}" for name in names for end in ends for pet in ("dog", "cat")]
    (folder / "corpus.txt").write_text("\n<|endoftext|>\n".join([*texts, ""]), encoding="utf-8")
    return folder / "planted", folder / "corpus.txt"


def argv(planted, out, *more):
    checkpoint, corpus = map(str, planted)
    return [checkpoint, *ASKED, "--corpus", corpus, "--out", str(out), *map(str, more)]


def run_alone(planted, out, *more):
    """The command's process, and the table that it left."""
    words = [sys.executable, "-m", "analyses.specialization", *argv(planted, out, *more)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert str(out / "specialization") in done.stdout
    (folder,) = (path for path in (out / "specialization").iterdir() if path.name.startswith("planted"))
    return folder.name, Result.load(folder).table.set_index("unit")


def assert_explained(table, explainer):
    """The planted neuron is explained in the model's words, and what the words predict is exactly what it does."""
    row, dead = table.loc["L0.N0"], table.loc["L0.N1"]
    assert row.explainer == explainer and row.text == SAID and row.r == pytest.approx(1.0)
    assert row.precision == row.recall == 1 and 0 < row.n_active < row.n
    assert dead.missing == "it is never active" and np.isnan(dead.r)


@pytest.mark.slow
def test_a_server_explains_and_simulates_and_a_cassette_of_it_does_the_same_again(planted, tmp_path):
    answers = [
        {"when": json.dumps(EXPLAIN)[1:60], "times": None, "do": "json", "body": completion(f"{MARKER} {SAID}")},
        {"when": "<< dog>>", "times": None, "do": "json", "body": completion("9")},
        {"when": "", "times": None, "do": "json", "body": completion("0")},
    ]
    cassette = tmp_path / "recorded.jsonl"
    with serving(tmp_path, *answers) as server:
        asked = ["--explainer", "http", "--url", server.url, "--model", "scripted", "--cassette", cassette]
        name, table = run_alone(planted, tmp_path / "http", *asked)
        assert name == "planted.explained.http" and server.requests[0]["body"]["model"] == "scripted"
        questions = [json.dumps(request["body"]["messages"]) for request in server.requests]
    assert 10 < len(questions) == len(set(questions)) <= table.loc["L0.N0"].n + 1  # stories may begin alike
    assert_explained(table, "http:scripted")
    name, again = run_alone(planted, tmp_path / "replay", "--explainer", "replay", "--cassette", cassette)
    assert name == "planted.explained.replay"
    assert_explained(again, "replay:http:scripted")
    assert again.drop(columns="explainer").equals(table.drop(columns="explainer"))


@pytest.mark.slow
def test_local_weights_explain_and_a_constant_prediction_is_worth_nothing(planted, tmp_path):
    folder = single_minded_weights(tmp_path / "weights", f"{MARKER} {SAID}", "5")
    name, table = run_alone(planted, tmp_path / "hf", "--explainer", "hf", "--weights", folder)
    row = table.loc["L0.N0"]
    assert name == "planted.explained.hf" and row.explainer == "hf:weights" and row.text == SAID
    assert row.r == 0 and row.n > row.n_active > 0  # the expected digit is the same at every token


class Scripted(OneByOne):
    """What the server of the first test says."""

    name, identity = "scripted", {"kind": "scripted"}

    def answer(self, request):
        if request.messages[0].content == EXPLAIN:
            return ChatReply(f"{MARKER} {SAID}", finish="stop")
        return ChatReply("9" if "<< dog>>" in request.messages[-1].content else "0", finish="stop")


def test_recorded_answers_are_played_back_by_the_command(planted, tmp_path, capsys):
    from sat_lens import load

    model, cassette = load(planted[0]), tmp_path / "recorded.jsonl"
    texts = stories(str(planted[1]), model, 16)
    recording = Recording(Scripted(), cassette)
    explained_by_model(model, texts, recording, per_layer=2, n_scored=3, mode="marked")
    command.main(argv(planted, tmp_path, "--explainer", "replay", "--cassette", cassette))
    assert "mean score 1.000" in capsys.readouterr().out
    table = Result.load(tmp_path / "specialization" / "planted.explained.replay").table
    assert_explained(table.set_index("unit"), "replay:scripted")
    with pytest.raises(SystemExit) as exit:  # of other settings, of which nothing is recorded
        run(command.main, argv(planted, tmp_path, "--explainer", "replay", "--cassette", cassette, "--seed", "5"))
    error = capsys.readouterr().err
    assert exit.value.code == 2 and "record it with the settings of this run" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--explainer", "hf", "--weights", "EMPTY"], "a local model must have *.safetensors"),
        (["--explainer", "replay", "--cassette", "CORPUS"], "must be a cassette"),
        (["--explainer", "http", "--model", "m", "--url", "http://u:secret@127.0.0.1/v1"], "without user, password"),
        (
            ["--explainer", "http", "--model", "m", "--url", "http://127.0.0.1:1/v1"],
            "has answered nothing in 6 attempt",
        ),
    ],
)
def test_a_model_that_cannot_be_asked_ends_in_one_line_and_exit_2(
    planted, more, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("analyses.explain.chat_http.HttpChat._pause", lambda *_: None)
    (tmp_path / "empty").mkdir()
    words = {"EMPTY": str(tmp_path / "empty"), "CORPUS": str(planted[1])}
    with pytest.raises(SystemExit) as exit:
        run(command.main, argv(planted, tmp_path, *(words.get(word, word) for word in more)))
    error = capsys.readouterr().err
    assert exit.value.code == 2 and message in error and error.count("\n") == 1 and "secret" not in error
    assert not list(tmp_path.glob("specialization/planted*"))
