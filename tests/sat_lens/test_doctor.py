"""doctor: every check passes on a sound checkpoint and names what is wrong with another."""

import json

import pytest
import torch

from sat_lens import SelfAblatingTransformer, SelfAblation, checkpoint, doctor, files
from sat_lens.presets import host_config


def saved(folder, mask="local", **knobs):
    torch.manual_seed(0)
    model = SelfAblatingTransformer(host_config("cpu", 97), ablation=SelfAblation(mask=mask, **knobs))
    return checkpoint.save(model, folder)


@pytest.mark.parametrize(
    ("mask", "knobs", "said"),
    [
        ("local", {}, "4 of 64 attn units, 4 of 256 mlp units a token and layer"),
        ("global", {"unit": "head", "k_attn": 2}, "2 of 64 attn units"),
        ("both", {"scope": "model", "k_attn": 9}, "9 of 256 attn units, 4 of 1024 mlp units a token and model"),
        ("local", {"forward": "soft"}, "local, soft"),
        ("none", {}, "none: an ordinary transformer"),
    ],
)
def test_a_sound_checkpoint_passes_and_its_masks_are_counted(tmp_path, capsys, mask, knobs, said):
    doctor.main([str(saved(tmp_path / "ckpt", mask, **knobs))])
    out = capsys.readouterr().out
    assert said in out
    assert out.count("ok      ") == 5
    assert "largest difference 0" in out


def test_a_flipped_byte_fails_the_file_check_and_stops_there(tmp_path, capsys):
    folder = saved(tmp_path / "ckpt")
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="1 check failed"):
        doctor.main([str(folder)])
    out = capsys.readouterr().out
    assert "FAILED  files" in out
    assert "sha256" in out
    assert "masks" not in out


def test_a_weight_that_is_nan_fails_even_when_the_hashes_agree(tmp_path, capsys):
    folder = saved(tmp_path / "ckpt")
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["blocks.1.mlp.W_in"][3, 4] = torch.nan
    save_file(weights, folder / "model.safetensors")
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    manifest["sha256"]["model.safetensors"] = files.sha256_file(folder / "model.safetensors")
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="failed"):
        doctor.main([str(folder)])
    assert "blocks.1.mlp.W_in has 1 values that are not finite" in capsys.readouterr().out


def test_a_clean_stream_that_is_not_the_plain_model_is_seen(monkeypatch):
    model = SelfAblatingTransformer(host_config("cpu", 97))
    plain = model.to_hooked_transformer()
    with torch.no_grad():
        plain.blocks[0].mlp.b_out = torch.nn.Parameter(plain.blocks[0].mlp.b_out + 1e-3)
    monkeypatch.setattr(model, "to_hooked_transformer", lambda: plain)
    with pytest.raises(ValueError, match="differ from a plain HookedTransformer"):
        doctor.clean_stream(model)
