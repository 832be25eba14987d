"""Checkpoint folders: the same model after a round trip, and refused when anything is not what it says."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_lens import SelfAblatingTransformer, files, load, save
from sat_lens._tl import HookedTransformer
from sat_lens.checkpoint import (
    CheckpointError,
    checkpoint_hash,
    read_state,
    verify_files,
)

NAMES = ("config.json", "model.safetensors", "tokenizer.json", "log.jsonl", "state/optimizer.safetensors",
         "state/state.json")  # fmt: skip
STATE = ({"exp_avg.x": torch.arange(3.0)}, {"step": 7, "best": 1.5})
LLAMA = {
    "positional_embedding_type": "rotary", "rotary_dim": 4, "normalization_type": "RMS", "gated_mlp": True,
    "act_fn": "silu", "n_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    """A complete checkpoint folder, with a tokenizer, a log and a training state."""
    model = tiny_model({"mask": "both"})
    model.tokenizer = tiny_tokenizer
    return save(model, tmp_path / "checkpoint", log='{"step": 0}\n', state=STATE)


def signed_again(folder) -> None:
    """Rewrite the manifest, as someone who wants to be believed would."""
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] = {name: files.sha256_file(folder / name) for name in manifest["sha256"]}
    path.write_text(json.dumps(manifest))


def edited_config(folder, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            config[key] = config[key] | value
        else:
            config[key] = value
    path.write_text(json.dumps(config))
    signed_again(folder)


def edited_weights(folder, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")
    signed_again(folder)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, LLAMA, {"dtype": torch.float32}])
@pytest.mark.parametrize("mask", ["none", "local", "global", "both"])
def test_a_model_survives_a_round_trip_bit_for_bit(tiny_model, tokens, tmp_path, mask, changes):
    model = tiny_model({"mask": mask, "temperature": 0.3, "unit": "head"}, **changes)
    other = load(save(model, tmp_path / "checkpoint"))
    assert type(other) is SelfAblatingTransformer and other.ablation == model.ablation and not other.training
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in other.named_parameters()]
    assert torch.equal(other(tokens), model(tokens))
    if mask != "none":
        assert torch.equal(other(tokens, stream="ablated"), model(tokens, stream="ablated"))


@pytest.mark.parametrize("changes", [{}, LLAMA])
def test_a_plain_hooked_transformer_survives_a_round_trip(tiny_model, tokens, tmp_path, changes):
    plain = tiny_model(**changes).to_hooked_transformer()
    other = load(save(plain, tmp_path / "checkpoint"))
    assert type(other) is HookedTransformer and torch.equal(other(tokens), plain(tokens))


def test_the_tokenizer_comes_back_with_its_special_tokens(saved):
    tokenizer = load(saved).tokenizer
    assert tokenizer.encode("w3 w28 w1", add_special_tokens=False) == [3, 28, 1]
    assert tokenizer.decode([0, 5]) == "<|endoftext|> w5"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)


def test_a_loaded_model_reads_strings(saved):
    model = load(saved)
    assert torch.equal(model.to_tokens("w3 w4"), torch.tensor([[0, 3, 4]]))
    assert model("w3 w4", stream="both").ablated.shape == (1, 3, 29)


def test_a_folder_holds_the_files_of_the_interface_and_their_hashes(saved):
    found = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert found == {*NAMES, "MANIFEST.json"}
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    assert manifest == {"sha256": {name: files.sha256_file(saved / name) for name in NAMES}}
    config = json.loads((saved / "config.json").read_text())
    assert config["schema_version"] == 1 and set(config["versions"]) >= {"sat_lens", "torch", "transformer_lens"}
    assert config["processing"] == dict.fromkeys(
        ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"), False
    )
    verify_files(saved)


def test_weights_carry_plain_keys_and_the_tied_one_is_stored_once(saved, tiny_model):
    stored = set(load_file(saved / "model.safetensors"))
    gates = {key for key in stored if key.startswith("gates.")}
    plain = set(tiny_model({"mask": "none"}).state_dict()) - {"unembed.W_U"}
    assert stored - gates == plain and len(gates) == 2 * (2 * 2 + 2)


def test_a_model_without_tokenizer_or_state_has_no_files_of_them(tiny_model, tmp_path):
    folder = save(tiny_model(), tmp_path / "checkpoint")
    assert sorted(p.name for p in folder.iterdir()) == [
        "MANIFEST.json",
        "config.json",
        "log.jsonl",
        "model.safetensors",
    ]
    with pytest.raises(CheckpointError, match="holds no training state .state/optimizer.safetensors is missing."):
        read_state(folder)


def test_training_state_comes_back(saved):
    tensors, state = read_state(saved)
    assert torch.equal(tensors["exp_avg.x"], torch.arange(3.0)) and state == {"step": 7, "best": 1.5}


def test_what_was_said_of_training_and_data_is_kept(tiny_model, tmp_path):
    told = {"training": {"steps": 3}, "data": {"corpus": "stories"}, "processing": {"fold_ln": True}, "log": "a\n"}
    folder = save(tiny_model(), tmp_path / "checkpoint", **told)
    config = json.loads((folder / "config.json").read_text())
    assert config["training"] == {"steps": 3} and config["data"] == {"corpus": "stories"}
    assert config["processing"]["fold_ln"] is True and (folder / "log.jsonl").read_text() == "a\n"


def test_saving_twice_gives_the_same_bytes(tiny_model, tmp_path):
    model = tiny_model()
    one, other = (save(model, tmp_path / name) for name in ("a", "b"))
    for name in ("config.json", "model.safetensors", "MANIFEST.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert checkpoint_hash(one) == files.sha256_file(other / "model.safetensors")


@pytest.mark.parametrize("bit", [0, 3, 7])
@pytest.mark.parametrize("where", [0.0, 0.37, 0.74, 0.999])
@pytest.mark.parametrize("name", [*NAMES, "MANIFEST.json"])
def test_one_flipped_bit_anywhere_is_refused_and_the_file_named(saved, name, where, bit):
    content = bytearray((saved / name).read_bytes())
    content[int(where * len(content))] ^= 1 << bit
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError) as refusal:
        load(saved)
    assert "\n" not in str(refusal.value)
    if name != "MANIFEST.json":
        assert f"{saved / name}: its sha256 is not the manifest's" in str(refusal.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: listed in the manifest but missing"):
        load(saved)


def test_a_missing_manifest_is_said_to_be_missing(saved):
    (saved / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match="MANIFEST.json: no such file"):
        load(saved)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_the_manifest_does_not_list_is_refused(saved, name):
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    del manifest["sha256"][name]
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"{name}: not listed in the manifest"):
        load(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_must_have_a_configuration_and_weights(saved, name):
    (saved / name).unlink()
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    del manifest["sha256"][name]
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load(saved)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/hostname", "notes.txt", "state/../../x"])
def test_a_manifest_that_lists_another_path_is_refused(saved, name):
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    manifest["sha256"][name] = "0" * 64
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="unknown file name"):
        load(saved)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"sha256": []}', "{}", "[" * 100_000])
def test_a_manifest_that_is_none_is_refused(saved, content):
    (saved / "MANIFEST.json").write_text(content)
    with pytest.raises(CheckpointError, match="MANIFEST.json"):
        load(saved)


@pytest.mark.parametrize("name", [*NAMES, "MANIFEST.json", "state"])
def test_links_are_not_followed(saved, tmp_path, name):
    shutil.move(saved / name, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", saved / name)
    with pytest.raises(CheckpointError):
        load(saved)
