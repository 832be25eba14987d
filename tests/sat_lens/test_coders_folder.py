"""Coders on disk: ours, those that sae-lens itself writes, sparsify's; and folders that lie."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_lens import checkpoint
from sat_lens.checkpoint import CheckpointError
from sat_lens.coders import Coder, CoderConfig, load_coder, neuron_coder, save_coder


def made(kind="skip", k=3, n=12, d_in=6, d_out=5):
    hook_out = "in" if kind == "sae" else "out"
    coder = Coder(CoderConfig(kind, "in", hook_out, d_in, d_in if kind == "sae" else d_out, n, k))
    with torch.no_grad():
        for i, parameter in enumerate(coder.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return coder


def some_input(d_in=6):
    return torch.randn(20, d_in, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("kind", ["skip", "transcoder", "sae"])
def test_a_coder_comes_back_as_it_was(kind, tmp_path):
    coder = made(kind)
    folder = save_coder(coder, tmp_path / "coder", training={"n_tokens": 5}, log="{}\n")
    found = load_coder(folder)
    assert found.cfg == coder.cfg
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in coder.state_dict().items())
    assert json.loads((folder / "config.json").read_text())["training"] == {"n_tokens": 5}


def test_a_folder_is_replaced_whole_and_others_are_left_alone(tmp_path, tiny_model):
    save_coder(made("skip"), tmp_path / "coder")
    save_coder(made("sae"), tmp_path / "coder")
    assert load_coder(tmp_path / "coder").cfg.kind == "sae"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(CheckpointError, match="is no coder's folder; choose another name"):
        save_coder(made(), tmp_path / "mine")
    broken = made()
    with torch.no_grad():
        broken.W_dec[0, 0] = float("nan")
    with pytest.raises(CheckpointError, match="W_dec of the coder has values that are not finite"):
        save_coder(broken, tmp_path / "broken")
    assert not (tmp_path / "broken").exists()
    with pytest.raises(ValueError, match="neurons have no weights of their own"):
        save_coder(neuron_coder(tiny_model({"mask": "none"}), 0), tmp_path / "neurons")


def rewritten(folder, weights=None, **config):
    """The folder with other content and a manifest that fits it."""
    if weights is not None:
        save_file(weights, folder / "model.safetensors")
    entries = json.loads((folder / "config.json").read_text())
    for name, value in config.items():
        entries["coder"][name] = value
    (folder / "config.json").write_text(json.dumps(entries))
    (folder / "MANIFEST.json").unlink()
    checkpoint.write_manifest(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f, w: rewritten(f, n_latents=13), "W_enc must have shape .13, 6. by its configuration; got .12, 6."),
        (lambda f, w: rewritten(f, n_latents=10**18, d_in=10**18), "must have shape"),
        (lambda f, w: rewritten(f, n_latents="12"), "n_latents must be a whole number"),
        (lambda f, w: rewritten(f, kind="neurons"), "neurons"),
        (lambda f, w: rewritten(f, kind="sae"), "an SAE reads and writes one hook point"),
        (lambda f, w: rewritten(f, kind=["skip"]), "kind must be text"),
        (lambda f, w: rewritten(f, colour="red"), "unknown entry 'colour'"),
        (lambda f, w: rewritten(f, {n: v for n, v in w.items() if n != "W_skip"}), "missing key 'W_skip'"),
        (lambda f, w: rewritten(f, {**w, "more": torch.ones(1)}), "unknown key 'more'"),
        (lambda f, w: rewritten(f, {**w, "b_enc": w["b_enc"].int()}), "weights must all be float32 or all float64"),
        (lambda f, w: rewritten(f, {**w, "b_enc": w["b_enc"] / 0}), "not finite"),
        (lambda f, w: (f / "model.safetensors").write_bytes(b"not weights"), "sha256 is not the manifest's"),
        (lambda f, w: (f / "config.json").write_text("{"), "sha256 is not the manifest's"),
        (lambda f, w: (f / "MANIFEST.json").unlink(), "no coder's folder"),
    ],
)
def test_a_folder_that_lies_ends_in_one_line(change, message, tmp_path):
    folder = save_coder(made(), tmp_path / "coder")
    change(folder, load_file(folder / "model.safetensors"))
    with pytest.raises(ValueError, match=message) as error:
        load_coder(folder)
    assert "\n" not in str(error.value)


def test_truncated_weights_and_missing_folders_are_refused(tmp_path):
    folder = save_coder(made(), tmp_path / "coder")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    rewritten(folder)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_coder(folder)
    with pytest.raises(FileNotFoundError, match="no coder at"):
        load_coder(tmp_path / "nowhere")


def sae_lens_coder(kind, **fields):
    """A random coder of sae-lens, every weight of which matters."""
    import sae_lens

    name = {"sae": "TopKSAE", "relu": "StandardSAE", "transcoder": "Transcoder", "skip": "SkipTranscoder"}[kind]
    cfg = getattr(sae_lens, f"{name}Config")(d_in=6, d_sae=12, **fields)
    theirs = getattr(sae_lens, name)(cfg)
    theirs.cfg.metadata.hook_name = "in"
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(theirs.named_parameters())):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return theirs


@pytest.mark.parametrize(
    "kind, fields",
    [
        ("sae", {"k": 3}),
        ("sae", {"k": 3, "apply_b_dec_to_input": False}),
        ("sae", {"k": 3, "rescale_acts_by_decoder_norm": True}),
        ("relu", {}),
        ("transcoder", {"d_out": 5, "apply_b_dec_to_input": False}),
        ("skip", {"d_out": 5, "apply_b_dec_to_input": False}),
    ],
)
def test_what_sae_lens_writes_gives_what_sae_lens_gives(kind, fields, tmp_path):
    theirs = sae_lens_coder(kind, **fields)
    theirs.save_model(tmp_path)
    ours = load_coder(tmp_path, hook_out=None if kind in ("sae", "relu") else "out")
    x = some_input()
    with torch.no_grad():
        torch.testing.assert_close(ours.dense(ours.encode(x)), theirs.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert ours.cfg.kind == ("sae" if kind == "relu" else kind) and ours.cfg.hook_in == "in"
    again = load_coder(save_coder(ours, tmp_path / "ours"))
    assert torch.equal(again(x), ours(x))


def written(folder, name, cfg, weights):
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    save_file(weights, folder / name)
    return folder


SPARSIFY = {"activation": "topk", "expansion_factor": 2, "normalize_decoder": True, "num_latents": 0, "k": 3,
            "multi_topk": False, "skip_connection": True, "transcode": True, "d_in": 6}  # fmt: skip


def sparsify_weights(skip=True):
    draw = torch.Generator().manual_seed(4)
    shapes = {"encoder.weight": (12, 6), "encoder.bias": (12,), "W_dec": (12, 6), "b_dec": (6,)}
    shapes |= {"W_skip": (6, 6)} if skip else {}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


@pytest.mark.parametrize("transcode", [True, False])
def test_what_sparsify_writes_is_its_formula(transcode, tmp_path):
    weights = sparsify_weights(skip=transcode)
    cfg = SPARSIFY | {"transcode": transcode, "skip_connection": transcode}
    folder = written(tmp_path / "layers.0.mlp", "sae.safetensors", cfg, weights)
    coder = load_coder(folder, hook_in="in", hook_out="out" if transcode else None)
    x = some_input()
    pre = (x if transcode else x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"]
    values, indices = pre.relu().topk(3)
    y = (values[..., None] * weights["W_dec"][indices]).sum(1) + weights["b_dec"]
    y = y + x @ weights["W_skip"].T if transcode else y
    torch.testing.assert_close(coder(x).detach(), y, rtol=1e-5, atol=1e-5)
    half = written(tmp_path / "half", "sae.safetensors", cfg, {n: v.bfloat16() for n, v in weights.items()})
    assert load_coder(half, hook_in="in", hook_out="out" if transcode else None).W_dec.dtype == torch.float32


SAE_LENS = {"architecture": "topk", "d_in": 6, "d_sae": 12, "k": 3, "metadata": {"hook_name": "in"}}


@pytest.mark.parametrize(
    "changes, weights, message",
    [
        ({"architecture": "jumprelu"}, {}, "architecture must be one of topk, standard, transcoder, skip_transcoder"),
        ({"architecture": ["topk"]}, {}, "architecture must be one of"),
        ({"normalize_activations": "layer_norm"}, {}, "normalize_activations must be 'none'"),
        ({"reshape_activations": "hook_z"}, {}, "reshape_activations must be 'none'"),
        ({"metadata": {}}, {}, "does not say at which hook points"),
        ({"metadata": 7}, {}, "does not say at which hook points"),
        ({"k": None}, {}, "missing entry 'k'"),
        ({"k": 99}, {}, "k must be between 1 and the 12 latents"),
        ({"d_sae": 10**12}, {}, "W_enc must have shape"),
        ({"d_in": "6"}, {}, "d_in must be a whole number"),
        ({"apply_b_dec_to_input": "yes"}, {}, "apply_b_dec_to_input must be true or false"),
        ({}, {"W_dec": None}, "missing key 'W_dec'"),
        ({}, {"W_enc": torch.ones(3)}, "W_enc must be a matrix"),
        ({}, {"threshold": torch.ones(12)}, "unknown key 'threshold'"),
        ({"rescale_acts_by_decoder_norm": True}, {"W_dec": torch.zeros(12, 6)}, "decoder rows must not be 0"),
    ],
)
def test_sae_lens_folders_that_cannot_be_ours_are_refused(changes, weights, message, tmp_path):
    tensors = {"W_enc": torch.ones(6, 12), "W_dec": torch.ones(12, 6), "b_enc": torch.ones(12), "b_dec": torch.ones(6)}
    tensors = {name: value for name, value in (tensors | weights).items() if value is not None}
    written(tmp_path / "theirs", "sae_weights.safetensors", SAE_LENS | changes, tensors)
    with pytest.raises(ValueError, match=message) as error:
        load_coder(tmp_path / "theirs")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, weights, message",
    [
        ({"activation": "groupmax"}, {}, "activation must be 'topk'"),
        ({"signed": True}, {}, "without signs"),
        ({"transcode": False}, {}, "an SAE with a skip connection"),
        ({"k": 0}, {}, "k must be a whole number of at least 1"),
        ({}, {"encoder.weight": None}, "missing key 'W_enc'"),
        ({}, {"W_skip": None}, "missing key 'W_skip'"),
        ({"num_latents": 11}, {}, "W_enc must have shape"),
    ],
)
def test_sparsify_folders_that_cannot_be_ours_are_refused(changes, weights, message, tmp_path):
    tensors = {name: value for name, value in (sparsify_weights() | weights).items() if value is not None}
    written(tmp_path / "theirs", "sae.safetensors", SPARSIFY | changes, tensors)
    with pytest.raises(ValueError, match=message) as error:
        load_coder(tmp_path / "theirs", hook_in="in", hook_out="out")
    assert "\n" not in str(error.value)
