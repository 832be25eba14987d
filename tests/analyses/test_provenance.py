import json
import re

import pytest
import torch

from analyses.provenance import commit, provenance, versions, weights_sha256
from analyses.result import plain
from sat_lens import SelfAblatingTransformer, SelfAblation, save
from sat_lens._tl import HookedTransformerConfig
from sat_lens.files import sha256_file


@pytest.fixture
def model():
    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_heads=2, d_head=4, d_mlp=6, n_ctx=10, d_vocab=11, act_fn="gelu", seed=0,
        normalization_type="LN",
    )  # fmt: skip
    return SelfAblatingTransformer(cfg, ablation=SelfAblation(k_attn=2, k_mlp=3))


def test_it_says_which_model_made_the_result_and_is_json(model):
    meta = provenance(model, "somewhere", seed=3, command=["python", "-m", "analyses.localization", "a b"])
    assert meta["checkpoint"] == "somewhere" and meta["seed"] == 3 and meta["device"] == "cpu"
    assert (meta["ablation"]["k_attn"], meta["model"]["n_heads"], meta["dtype"]) == (2, 2, "float32")
    assert meta["command"] == "python -m analyses.localization 'a b'"
    assert plain(meta) == json.loads(json.dumps(meta, allow_nan=False))


def test_a_checkpoint_folder_is_named_by_the_hash_of_its_weights_file(model, tmp_path):
    save(model, tmp_path / "ckpt")
    meta = provenance(model, str(tmp_path / "ckpt"), seed=0)
    assert meta["checkpoint_sha256_of"] == "model.safetensors"
    assert meta["checkpoint_sha256"] == sha256_file(tmp_path / "ckpt" / "model.safetensors")


def test_weights_without_a_file_are_hashed_themselves_and_one_bit_shows(model):
    meta = provenance(model, "gpt-from-the-hub", seed=0)
    assert (meta["checkpoint_sha256_of"], meta["checkpoint_sha256"]) == ("weights", weights_sha256(model))
    with torch.no_grad():
        model.blocks[0].attn.W_Q[0, 0, 0] += 1e-6
    assert weights_sha256(model) != meta["checkpoint_sha256"]


def test_versions_and_commit_have_their_form():
    assert {"python", "torch", "transformer-lens"} <= set(versions())
    assert commit() is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit())
