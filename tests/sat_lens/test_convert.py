"""The convert command: each kind of source becomes a checkpoint folder, and nothing else does."""

import json

import pytest
import torch

from sat_lens import convert, load
from sat_lens._tl import HookedTransformer
from sat_lens.convert import main

REFERENCE = {
    "vocab_size": 29, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 10,
    "k_attention": 2, "k_neurons": 3, "mlp_hidden_size": 12, "has_layer_by_layer_ablation_mask": True,
}  # fmt: skip


@pytest.fixture
def reference_pt(tmp_path):
    shapes = {
        "transformer.wte.weight": (29, 8), "transformer.wpe.weight": (10, 8), "transformer.ln_f": (8,),
        "transformer.h.0.ln_1": (8,), "transformer.h.0.ln_2": (8,), "transformer.h.0.mlp.c_fc": (12, 8),
        "transformer.h.0.mlp.c_proj": (8, 12), "transformer.h.0.attn.attention.out_proj": (8, 8),
        "transformer.h.0.attention_ablation_head": (8, 8), "transformer.h.0.neuron_ablation_head": (12, 8),
    }  # fmt: skip
    shapes |= {f"transformer.h.0.attn.attention.{letter}_proj.weight": (8, 8) for letter in "qkv"}
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        if name.endswith(".weight"):
            state[name] = torch.randn(shape)
        else:
            state |= {name + ".weight": torch.randn(shape), name + ".bias": torch.randn(shape[0])}
    torch.save({"model_state_dict": state}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_a_reference_pt_with_a_yaml_configuration_becomes_a_checkpoint(reference_pt, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("model_config:\n" + "".join(f"  {key}: {value}\n" for key, value in REFERENCE.items()))
    main([str(reference_pt), str(tmp_path / "out"), "--config", str(config)])
    model = load(tmp_path / "out")
    assert (model.ablation.k_attn, model.ablation.k_mlp, model.ablation.forward) == (2, 3, "soft")
    expected = convert.from_reference(torch.load(reference_pt, weights_only=True)["model_state_dict"], REFERENCE)
    tokens = torch.randint(29, (1, 7))
    assert torch.equal(model(tokens, stream="ablated"), expected(tokens, stream="ablated"))
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    assert said["data"] == {"converted_from": "model.pt"}, "no folder of this machine"


def test_a_gpt_neo_folder_becomes_a_checkpoint_with_its_tokenizer(tmp_path, tiny_tokenizer):
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=29, hidden_size=8, num_layers=2, num_heads=2, max_position_embeddings=10,
        attention_types=[[["global", "local"], 1]], window_size=3,
    )  # fmt: skip
    GPTNeoForCausalLM(config).save_pretrained(tmp_path / "neo")
    tiny_tokenizer.backend_tokenizer.save(str(tmp_path / "neo" / "tokenizer.json"))
    main([str(tmp_path / "neo"), str(tmp_path / "out")])
    model = load(tmp_path / "out")
    assert model.ablation.mask == "none" and model.cfg.attn_types == ["global", "local"]
    assert model.tokenizer.encode("w5 w6", add_special_tokens=False) == [5, 6]


@pytest.mark.real_data
def test_a_llama2c_file_becomes_a_checkpoint_with_the_tokenizer_beside_it(real_data, tmp_path):
    main([str(real_data / "stories260K" / "stories260K.bin"), str(tmp_path / "out")])
    model = load(tmp_path / "out")
    assert type(model) is HookedTransformer and len(model.tokenizer) == 512


def test_a_tokenizer_of_more_ids_than_the_model_has_is_refused(reference_pt, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(REFERENCE))
    with pytest.raises(ValueError, match="stories-4096 has 4096 ids, the model only 29"):
        main([str(reference_pt), str(tmp_path / "out"), "--tokenizer", "stories-4096"])
    assert not (tmp_path / "out").exists()


def test_a_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder: .*nothing.pt"):
        main([str(tmp_path / "nothing.pt"), str(tmp_path / "out")])


def test_a_folder_in_use_is_not_overwritten(reference_pt, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="out exists and is not empty; choose another name"):
        main([str(reference_pt), str(tmp_path / "out")])
    assert (tmp_path / "out" / "notes").read_text() == "mine"


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(ValueError, match="must be a .pt, .safetensors or .bin file or a GPT-Neo folder"):
        main([str(tmp_path / "model.onnx"), str(tmp_path / "out")])


def test_a_pt_file_without_a_configuration_says_what_to_pass(reference_pt, tmp_path):
    with pytest.raises(FileNotFoundError, match="pass --config FILE"):
        main([str(reference_pt), str(tmp_path / "out")])


def test_the_three_converters_can_be_imported_from_here():
    assert {convert.from_reference.__module__, convert.from_gpt_neo.__module__, convert.from_llama2c.__module__} == {
        "sat_lens.reference", "sat_lens.gpt_neo", "sat_lens.llama2c"
    }  # fmt: skip
    with pytest.raises(AttributeError, match="has no attribute 'from_onnx'"):
        _ = convert.from_onnx
