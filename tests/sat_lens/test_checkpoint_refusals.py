"""Folders whose weights and configuration do not fit, and crashes while one is written."""

import json
import os

import pytest
import torch

from sat_lens import load, save
from sat_lens.checkpoint import (
    CheckpointError,
    checkpoint_hash,
    resolve,
)
from tests.sat_lens.test_checkpoint import STATE, edited_config, edited_weights, signed_again


@pytest.fixture
def saved(tiny_model, tiny_tokenizer, tmp_path):
    """A complete checkpoint folder, with a tokenizer, a log and a training state."""
    model = tiny_model({"mask": "both"})
    model.tokenizer = tiny_tokenizer
    return save(model, tmp_path / "checkpoint", log='{"step": 0}\n', state=STATE)


def test_a_missing_gate_is_named(saved):
    edited_weights(saved, lambda weights: weights.pop("gates.local.1.mlp.bias"))
    with pytest.raises(CheckpointError, match="missing key 'gates.local.1.mlp.bias' .1 in all."):
        load(saved)


def test_an_unknown_weight_is_named(saved):
    edited_weights(saved, lambda weights: weights.update({"gates.local.9.mlp.bias": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="unknown key 'gates.local.9.mlp.bias' .1 in all."):
        load(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(saved, value):
    edited_weights(saved, lambda weights: weights["blocks.1.mlp.W_in"][3].__setitem__(2, value))
    with pytest.raises(CheckpointError, match="blocks.1.mlp.W_in has 1 values that are not finite"):
        load(saved)


def test_a_weight_of_another_shape_or_type_is_named_with_both(saved):
    edited_weights(saved, lambda w: w.update({"gates.global.mlp.bias": torch.zeros(5, dtype=torch.float64)}))
    with pytest.raises(CheckpointError, match=r"gates.global.mlp.bias must be torch.float64 \(48,\); got .* \(5,\)"):
        load(saved)
    edited_weights(saved, lambda w: w.update({"gates.global.mlp.bias": torch.zeros(48)}))
    with pytest.raises(CheckpointError, match=r"must be torch.float64 \(48,\); got torch.float32 \(48,\)"):
        load(saved)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x08" + bytes(7) + b'{"a": 1}', b"not safetensors"])
def test_weights_that_are_no_safetensors_are_refused(saved, content):
    (saved / "model.safetensors").write_bytes(content)
    signed_again(saved)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(saved)


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_an_unknown_schema_is_refused(saved, version):
    edited_config(saved, schema_version=version)
    with pytest.raises(CheckpointError, match=f"schema_version must be 1; got {version!r}"):
        load(saved)


def test_an_unknown_or_missing_entry_of_the_configuration_is_named(saved):
    edited_config(saved, colour="blue")
    with pytest.raises(CheckpointError, match="unknown entry 'colour'"):
        load(saved)
    config = json.loads((saved / "config.json").read_text())
    del config["colour"], config["ablation"]
    (saved / "config.json").write_text(json.dumps(config))
    signed_again(saved)
    with pytest.raises(CheckpointError, match="missing entry 'ablation'"):
        load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "Perceptron"},
        {"kind": None},
        {"model": {"colour": "blue"}},
        {"model": {"dtype": "load"}},
        {"model": {"dtype": 3}},
        {"model": {"act_fn": "nothing"}},
        {"model": {"n_layers": 3}},
        {"model": {"n_layers": 10**12}},
        {"model": {"n_layers": "2"}},
        {"model": {"d_vocab": 10**12}},
        {"model": {"n_ctx": 10**12}},
        {"model": {"d_mlp": None}},
        {"model": None},
        {"ablation": {"colour": "blue"}},
        {"ablation": {"k_attn": 10**9}},
        {"ablation": {"mask": "local"}},
    ],
)
def test_a_configuration_that_does_not_describe_the_weights_is_refused(saved, changes):
    edited_config(saved, **changes)
    with pytest.raises(CheckpointError) as refusal:
        load(saved)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("ablation", [None, []])
def test_an_ablation_that_is_none_is_refused(saved, ablation):
    edited_config(saved, ablation=ablation)
    with pytest.raises(CheckpointError, match="config.json: not a valid configuration"):
        load(saved)


def test_a_configuration_cannot_fetch_a_tokenizer_or_run_its_code(saved, monkeypatch):
    import transformers

    fetched = []
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: fetched.append(a))
    edited_config(saved, model={"tokenizer_name": "someone/else", "trust_remote_code": True}, tokenizer=None)
    with pytest.raises(CheckpointError):
        load(saved)
    assert not fetched


@pytest.mark.parametrize("kind", ["HookedTransformer", "SelfAblatingTransformer"])
def test_a_kind_that_does_not_fit_the_weights_is_refused(tiny_model, tmp_path, kind):
    gated = save(tiny_model(), tmp_path / "gated")
    plain = save(tiny_model().to_hooked_transformer(), tmp_path / "plain")
    edited_config(gated, kind="HookedTransformer")
    edited_config(plain, kind="SelfAblatingTransformer")
    for folder in (gated, plain):
        with pytest.raises(CheckpointError):
            load(folder)


def test_a_tokenizer_that_the_configuration_speaks_of_must_be_there(saved):
    (saved / "tokenizer.json").unlink()
    manifest = json.loads((saved / "MANIFEST.json").read_text())
    del manifest["sha256"]["tokenizer.json"]
    (saved / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="tokenizer.json is missing"):
        load(saved)


def test_a_model_with_a_nan_is_not_saved_and_what_was_there_stays(saved, tiny_model):
    model = tiny_model()
    with torch.no_grad():
        model.blocks[0].attn.W_Q[0, 0, 0] = float("nan")
    before = checkpoint_hash(saved)
    with pytest.raises(CheckpointError, match="blocks.0.attn.W_Q has 1 values that are not finite"):
        save(model, saved)
    assert checkpoint_hash(saved) == before
    assert os.listdir(saved.parent) == [saved.name]


def test_a_folder_that_is_no_checkpoint_is_not_replaced(tiny_model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("the only copy")
    (tmp_path / "file").write_text("a file")
    for name in ("thesis", "file"):
        with pytest.raises((ValueError, OSError), match=name):
            save(tiny_model(), tmp_path / name)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "the only copy"
    (tmp_path / "empty").mkdir()
    save(tiny_model(), tmp_path / "empty")


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_between_the_renames_leaves_the_old_checkpoint(saved, tiny_model, monkeypatch, crash_at):
    before, calls, replace = checkpoint_hash(saved), [], os.replace

    def crashing(*args):
        calls.append(args)
        if len(calls) == crash_at:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr("sat_lens.files.exchanged", lambda one, other: False)
    monkeypatch.setattr(os, "replace", crashing)
    with pytest.raises(KeyboardInterrupt):
        save(tiny_model(), saved)
    monkeypatch.undo()
    assert checkpoint_hash(saved) == before
    load(saved)
    save(tiny_model(), saved)
    assert checkpoint_hash(saved) != before


def test_a_crash_while_writing_leaves_the_old_checkpoint(saved, tiny_model, monkeypatch):
    before = checkpoint_hash(saved)
    monkeypatch.setattr("sat_lens.checkpoint.write_manifest", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(tiny_model(), saved)
    monkeypatch.undo()
    assert checkpoint_hash(saved) == before
    load(saved)


def test_a_run_folder_stands_for_its_best_checkpoint_and_else_its_last(tiny_model, tmp_path):
    last = save(tiny_model(seed=1), tmp_path / "run" / "last")
    assert resolve(tmp_path / "run") == last
    best = save(tiny_model(seed=2), tmp_path / "run" / "best")
    assert resolve(tmp_path / "run") == best


def test_a_checkpoint_can_be_loaded_from_inside_its_folder(saved, monkeypatch):
    monkeypatch.chdir(saved)
    assert load(".").ablation.mask == "both"
