"""The reference implementation's files: settings, names of weights, `.pt` files that may hide code."""

import pytest
import torch

from sat_lens.convert import from_reference
from sat_lens.reference import read_config, read_state
from tests.sat_lens.test_reference import CONFIG, random_state


def test_absent_settings_take_the_reference_s_defaults():
    config = {name: CONFIG[name] for name in ("vocab_size", "hidden_size", "num_layers", "num_heads")}
    ours = CONFIG | {"has_overall_ablation_mask": False, "max_position_embeddings": 2048}
    config |= {"hidden_size": 64, "mlp_hidden_size": 64}
    model = from_reference(random_state(ours | {"hidden_size": 64, "mlp_hidden_size": 64}), config)
    a = model.ablation
    assert (a.mask, a.forward, a.k_attn, a.k_mlp, a.temperature, a.temperature_mlp) == (
        "local",
        "soft",
        32,
        32,
        0.1,
        0.1,
    )
    assert (a.w_clean, a.w_ablated, a.w_reconstruction) == (1.0, 0.1, 0.1)
    assert model.cfg.n_ctx == 2048


def test_no_processing_means_no_mask():
    config = CONFIG | {"ablation_processing": None, "has_layer_by_layer_ablation_mask": False,
                       "has_overall_ablation_mask": False}  # fmt: skip
    assert from_reference(random_state(config), config).ablation.mask == "none"


def test_a_reconstruction_loss_without_a_type_is_none():
    config = CONFIG | {"reconstruction_loss_type": None}
    assert from_reference(random_state(config), config).ablation.w_reconstruction == 0


def test_names_of_a_parallel_run_lose_their_prefix_and_attention_buffers_are_ignored():
    state = {f"module.{name}": value for name, value in random_state(CONFIG).items()}
    state["module.transformer.h.0.attn.attention.bias"] = torch.ones(1, 1, 12, 12, dtype=torch.bool)
    state["module.transformer.h.0.attn.attention.masked_bias"] = torch.tensor(-1e9)
    from_reference(state, CONFIG)


@pytest.mark.parametrize(
    "key",
    ["transformer.wpe.weight", "transformer.h.1.mlp.c_fc.bias", "transformer.h.2.neuron_ablation_head.weight",
     "attention_ablations_head.bias"],
)  # fmt: skip
def test_a_missing_key_is_named(key):
    state = random_state(CONFIG)
    del state[key]
    with pytest.raises(ValueError, match=f"missing key '{key}'"):
        from_reference(state, CONFIG)


def test_an_unknown_key_is_named():
    state = random_state(CONFIG) | {"transformer.h.0.attn.attention.q_proj.bias": torch.zeros(16)}
    with pytest.raises(ValueError, match="unknown key 'transformer.h.0.attn.attention.q_proj.bias'"):
        from_reference(state, CONFIG)


def test_heads_that_the_configuration_does_not_speak_of_are_unknown_keys():
    with pytest.raises(ValueError, match="unknown key 'attention_ablations_head.bias'"):
        from_reference(random_state(CONFIG), CONFIG | {"has_overall_ablation_mask": False})


def test_a_weight_of_the_wrong_shape_is_named_with_both_shapes():
    state = random_state(CONFIG)
    state["transformer.wpe.weight"] = state["transformer.wpe.weight"][:5]
    with pytest.raises(ValueError, match=r"pos_embed.W_pos must have shape \(12, 16\); got \(5, 16\)"):
        from_reference(state, CONFIG)


def test_an_untied_unembedding_is_refused():
    state = random_state(CONFIG)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(ValueError, match="must be equal .tied.; they differ"):
        from_reference(state, CONFIG)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ablation_processing": "top-p"}, "ablation_processing must be one of .*; got 'top-p'"),
        ({"hidden_size": 18}, "hidden_size must be a multiple of num_heads; got 18 and 4"),
        ({"k_neurons": 65}, "k_mlp must be between 1 and the 64 units"),
        ({"num_layers": None}, "num_layers"),
    ],
)
def test_an_impossible_configuration_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        from_reference(random_state(CONFIG), CONFIG | changes)


def test_pt_files_are_read_whatever_they_are_wrapped_in(tmp_path):
    state = random_state(CONFIG)
    for name, content in (("bare", state), ("wrapped", {"model_state_dict": state, "step": 3})):
        path = tmp_path / f"{name}.pt"
        torch.save(content, path)
        found = read_state(path)
        assert set(found) == set(state)
        torch.testing.assert_close(found, state)


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pt_file_that_hides_code_is_refused_and_the_code_does_not_run(tmp_path):
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    torch.save({"state_dict": random_state(CONFIG), "payload": Payload(trace)}, path)
    with pytest.raises(ValueError, match="not a file of tensors alone") as refusal:
        read_state(path)
    assert not trace.exists() and "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 cut off"])
def test_a_pt_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a file of tensors alone"):
        read_state(path)


def test_a_pt_file_of_other_objects_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match="must hold a state dict"):
        read_state(path)


def test_the_configuration_lies_beside_the_weights_as_yaml_or_json(tmp_path):
    weights = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError, match="no configuration for model.pt: pass --config FILE"):
        read_config(weights, None)
    (tmp_path / "config.yaml").write_text("model_config:\n  vocab_size: 23\n")
    assert read_config(weights, None) == {"vocab_size": 23}
    (tmp_path / "model.json").write_text('{"vocab_size": 24}')
    assert read_config(weights, None) == {"vocab_size": 24}
    (tmp_path / "other.yaml").write_text("- a list")
    with pytest.raises(ValueError, match="must map names to values; got list"):
        read_config(weights, tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not readable"):
        read_config(weights, tmp_path / "other.yaml")
