"""GPT-Neo folders against transformers' own implementation."""

import json

import pytest
import torch
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from sat_lens import SelfAblatingTransformer
from sat_lens.gpt_neo import from_gpt_neo

LAYERS = {
    "global": [[["global"], 3]],
    "windows": [[["global", "local"], 1], [["local"], 1]],
}


@pytest.fixture
def folder(tmp_path):
    def write(layers: str = "windows", **changes):
        config = GPTNeoConfig(
            vocab_size=31, hidden_size=16, num_layers=3, num_heads=4, max_position_embeddings=14,
            intermediate_size=40, window_size=4, attention_types=LAYERS[layers], bos_token_id=0, eos_token_id=0,
            **changes,
        )  # fmt: skip
        torch.manual_seed(0)
        theirs = GPTNeoForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in theirs.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        theirs.save_pretrained(tmp_path / "neo")
        return theirs, tmp_path / "neo"

    return write


@pytest.mark.parametrize("layers", sorted(LAYERS))
@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_logits_are_those_of_transformers(folder, layers, activation):
    theirs, path = folder(layers, activation_function=activation)
    tokens = torch.randint(31, (2, 13), generator=torch.Generator().manual_seed(1))
    model = from_gpt_neo(path)
    with torch.no_grad():
        assert (model(tokens) - theirs(tokens).logits).abs().max() <= 1e-5


def test_windows_matter_to_the_logits(folder):
    _, path = folder("windows")
    tokens = torch.randint(31, (1, 13), generator=torch.Generator().manual_seed(1))
    before = from_gpt_neo(path)(tokens)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"window_size": 14}))
    assert (from_gpt_neo(path)(tokens) - before).abs().max() > 1e-3


def test_it_is_a_model_without_a_mask_whose_parameters_are_theirs(folder):
    theirs, path = folder()
    model = from_gpt_neo(path)
    assert isinstance(model, SelfAblatingTransformer) and model.ablation.mask == "none"
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_an_old_bin_file_of_weights_is_read_too(folder):
    theirs, path = folder()
    expected = from_gpt_neo(path).state_dict()
    (path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), path / "pytorch_model.bin")
    found = from_gpt_neo(path).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_another_model_type_is_refused_by_name(folder):
    _, path = folder()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(ValueError, match="model_type must be 'gpt_neo'; got 'llama'"):
        from_gpt_neo(path)


@pytest.mark.parametrize("content", ["", "[1", "[]", "3"])
def test_a_configuration_that_is_none_is_refused(folder, content):
    _, path = folder()
    (path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json"):
        from_gpt_neo(path)


@pytest.mark.parametrize("key", ["hidden_size", "num_heads", "attention_types", "vocab_size"])
def test_a_missing_entry_of_the_configuration_is_named(folder, key):
    _, path = folder()
    config = json.loads((path / "config.json").read_text())
    del config[key]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"not a GPT-Neo configuration: KeyError.'{key}'"):
        from_gpt_neo(path)


def test_weights_of_another_size_are_refused_with_both_shapes(folder):
    _, path = folder()
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 20}))
    with pytest.raises(ValueError, match=r"pos_embed.W_pos must have shape \(20, 16\); got \(14, 16\)"):
        from_gpt_neo(path)


def test_a_folder_without_weights_or_configuration_says_which_is_missing(folder, tmp_path):
    _, path = folder()
    (path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor pytorch_model.bin"):
        from_gpt_neo(path)
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        from_gpt_neo(tmp_path)
