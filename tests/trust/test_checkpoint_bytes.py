"""Checkpoint folders with any byte wrong: refused in one line, or the very model; also under a manifest that agrees."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sat_lens import files, load, save
from sat_lens.checkpoint import CheckpointError, config_dict
from tests.trust.oracle import KINDS, Mutation, drawn_mutations, mutated, outcome, systematic

WEIGHTS, CONFIG, MANIFEST = "model.safetensors", "config.json", "MANIFEST.json"
TOKENIZER = "tokenizer.json"


@pytest.fixture
def folder(small_model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Path:
    model = small_model()
    model.tokenizer = tiny_tokenizer
    return save(model, tmp_path / "checkpoint", training={"step": 3})


def damageable(folder: Path) -> dict[str, int]:
    """Bytes of what is parsed: the configuration, the manifest, the header of the weights and the tokenizer."""
    header = 8 + int.from_bytes((folder / WEIGHTS).read_bytes()[:8], "little")
    return {name: (folder / name).stat().st_size for name in (CONFIG, MANIFEST, TOKENIZER)} | {WEIGHTS: header}


def sign(folder: Path) -> None:
    """Let the manifest agree with what is there."""
    manifest = json.loads((folder / MANIFEST).read_text())
    hashes = {name: files.sha256_file(folder / name) for name in manifest["sha256"]}
    (folder / MANIFEST).write_text(json.dumps({"sha256": hashes}))


def assert_same_weights(one: Any, other: Any, case: str) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert set(ours) == set(theirs), case
    assert all(torch.equal(ours[key], theirs[key]) for key in ours), f"{case}: other weights were loaded"


EXTENTS = ["sample", pytest.param("every byte", marks=pytest.mark.slow)]


def chosen(places: dict[str, int], extent: str, n: int, seed: int) -> list[Mutation]:
    """`n` of all kinds; before them, on demand, each byte flipped and each file cut off at each byte."""
    first = list(systematic(places, seed)) if extent == "every byte" else []
    assert len(first) in (0, 2 * sum(places.values()))
    found = [*first, *drawn_mutations(places, n, seed)]
    assert {kind for _, _, kind, _ in found} == set(KINDS)
    return found


@pytest.mark.parametrize("extent", EXTENTS)
def test_a_damaged_folder_is_refused_or_is_the_very_model(folder, tried, extent):
    original, n_refused = load(folder), 0
    cases = chosen(damageable(folder), extent, n=200 if extent == "sample" else 2000, seed=1)
    for name, at, kind, choice in cases:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(changed := mutated(content, at, kind, choice))
        case = f"{kind} {name} at {at}"
        found = outcome(lambda: load(folder), CheckpointError, case=case)
        if found.refusal is None:
            assert name == MANIFEST or changed == content, f"{case}: was not noticed"
            assert_same_weights(found.value, original, case)
        n_refused += found.refusal is not None
        (folder / name).write_bytes(content)
    assert n_refused > 0.9 * len(cases)
    load(folder)
    tried("checkpoint folders, a byte wrong", len(cases))


@pytest.mark.parametrize("extent", EXTENTS)
def test_under_a_manifest_that_agrees_the_model_is_what_the_folder_says(folder, tmp_path, tried, extent):
    original, n_refused, places = load(folder), 0, damageable(folder)
    del places[MANIFEST]
    kept = shutil.copytree(folder, tmp_path / "kept")
    cases = chosen(places, extent, n=100 if extent == "sample" else 2000, seed=2)
    for name, at, kind, choice in cases:
        (folder / name).write_bytes(mutated((folder / name).read_bytes(), at, kind, choice))
        sign(folder)
        case = f"{kind} {name} at {at}, seed 2"
        found = outcome(lambda: load(folder), ValueError, case=case)
        n_refused += found.refusal is not None
        if found.refusal is None:
            assert_same_weights(found.value, original, case)
            assert_says_what_is_written(found.value, folder, case)
        for file in (name, MANIFEST):
            shutil.copyfile(kept / file, folder / file)
    assert n_refused > 0.5 * len(cases)
    tried("checkpoint folders, a byte wrong under a manifest that agrees", len(cases))


def assert_says_what_is_written(model: Any, folder: Path, case: str) -> None:
    """No entry of config.json was passed over or taken for something else; the tokenizer can be used."""
    written = json.loads((folder / CONFIG).read_text())
    said = json.loads(json.dumps(config_dict(model.cfg)))
    for key, value in written["model"].items():
        if key == "tokenizer_prepends_bos" and model.tokenizer is not None:
            continue  # follows from the tokenizer
        assert json.dumps(said.get(key)) == json.dumps(value), f"{case}: {key} is {said.get(key)!r}, not {value!r}"
    assert type(model).__name__ == written["kind"], case
    assert json.dumps(model.ablation.to_dict(), sort_keys=True) == json.dumps(written["ablation"], sort_keys=True), case
    if model.tokenizer is not None:
        ids = model.tokenizer.encode("w3 unseen \u2603", add_special_tokens=False)
        assert all(0 <= i < model.cfg.d_vocab for i in ids), f"{case}: ids {ids} that the model does not have"
