"""What a name stands for: folders, shipped checkpoints, files of llama2.c, pretrained models."""

import pytest
import torch

from sat_lens import load, save
from sat_lens._tl import HookedTransformer
from sat_lens.checkpoint import (
    CheckpointError,
    load_any,
)


def test_a_checkpoint_that_does_not_exist_lists_the_shipped_ones(monkeypatch, tmp_path, tiny_model):
    monkeypatch.setattr("sat_lens.checkpoint.SHIPPED", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'no-such': .* shipped ones \(none\)"):
        load("no-such")
    save(tiny_model(), tmp_path / "local-k4-s0")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'no-such': .* shipped ones \(local-k4-s0\)"):
        load("no-such")
    assert load("local-k4-s0").ablation.mask == "local"


def test_a_name_with_a_folder_in_it_is_no_shipped_checkpoint(monkeypatch, tmp_path, tiny_model):
    monkeypatch.setattr("sat_lens.checkpoint.SHIPPED", tmp_path / "shipped")
    save(tiny_model(), tmp_path / "secret")
    with pytest.raises(FileNotFoundError):
        load("../secret")


def test_a_folder_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="is no checkpoint folder: it has no config.json"):
        load(tmp_path)


def test_load_any_says_all_that_it_tried():
    with pytest.raises(FileNotFoundError, match="no checkpoint 'no-such': .* not a model that TransformerLens knows"):
        load_any("no-such")


def test_load_any_refuses_what_is_neither_cached_nor_reachable(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(HookedTransformer, "from_pretrained_no_processing", offline)
    with pytest.raises(FileNotFoundError, match="gpt2 is neither in the local cache nor could it be fetched"):
        load_any("gpt2")


@pytest.mark.real_data
def test_load_any_takes_a_llama2c_file_which_survives_a_round_trip(real_data, tmp_path):
    model = load_any(real_data / "stories260K" / "stories260K.bin")
    other = load(save(model, tmp_path / "checkpoint"))
    tokens = torch.randint(512, (1, 20))
    assert type(other) is HookedTransformer and torch.equal(model(tokens), other(tokens))
    assert other.tokenizer.encode("Once upon a time", add_special_tokens=False) == model.tokenizer.encode(
        "Once upon a time", add_special_tokens=False
    )


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [
        ("eps", "x", "eps must be a number"),
        ("eps", -1, "eps must be a number"),
        ("n_key_value_heads", 0, "not a valid configuration"),
        ("original_architecture", [], "original_architecture must be text"),
        ("load_in_4bit", True, "load_in_4bit is not supported"),
        ("dtype", "Tensor", "not a valid configuration"),
    ],
)
def test_a_hostile_entry_of_the_configuration_is_refused(tmp_path, entry, value, said):
    import json

    from sat_lens import SelfAblatingTransformer, checkpoint, files
    from sat_lens.presets import host_config

    folder = checkpoint.save(SelfAblatingTransformer(host_config("cpu", 31)), tmp_path / "ckpt")
    config = json.loads((folder / "config.json").read_text())
    config["model"][entry] = value
    (folder / "config.json").write_text(json.dumps(config))
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["sha256"]["config.json"] = files.sha256_file(folder / "config.json")
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.CheckpointError, match=said):
        checkpoint.load(folder)
