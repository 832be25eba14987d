"""Checkpoints of the paper's implementation: its own numbers, and its forward pass rewritten here from the formulas."""

import json

import pytest
import torch
from torch import Tensor

from sat_lens.convert import from_reference
from sat_lens.reference import read_config, read_state

CONFIG = {
    "vocab_size": 23,
    "hidden_size": 16,
    "num_layers": 3,
    "num_heads": 4,
    "max_position_embeddings": 12,
    "k_attention": 3,
    "k_neurons": 5,
    "temperature_attention": 0.7,
    "temperature_neurons": 1.3,
    "loss_coeff_base": 0.8,
    "loss_coeff_ablated": 0.3,
    "reconstruction_coeff": 0.1,
    "reconstruction_loss_type": "MSE",
    "has_layer_by_layer_ablation_mask": True,
    "has_overall_ablation_mask": True,
    "ablation_processing": "hard-top-K-with-soft-gradient",
}
CASES = {
    "hard_both": {},
    "soft_both": {"ablation_processing": "soft-top-K-version-1"},
    "soft_local": {"ablation_processing": "soft-top-K-version-1", "has_overall_ablation_mask": False},
    "hard_global": {"has_layer_by_layer_ablation_mask": False},
    "windows": {"attention_layers": ["global", "local", "local"], "window_size": 4},
    "wide_mlp": {"mlp_hidden_size": 40},
}


def random_state(config: dict, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """A state dict of the reference's names and shapes, every entry random."""
    d, n_layers, d_mlp = config["hidden_size"], config["num_layers"], config.get("mlp_hidden_size", 64)
    shapes = {
        "transformer.wte.weight": (config["vocab_size"], d),
        "transformer.wpe.weight": (config["max_position_embeddings"], d),
    }
    norms = ["transformer.ln_f"]
    linears = {}
    if config["has_overall_ablation_mask"]:
        linears |= {"attention_ablations_head": (n_layers * d, d), "neuron_ablations_head": (n_layers * d_mlp, d)}
    for layer in range(n_layers):
        h = f"transformer.h.{layer}."
        norms += [h + "ln_1", h + "ln_2"]
        linears |= {h + "attn.attention.out_proj": (d, d), h + "mlp.c_fc": (d_mlp, d), h + "mlp.c_proj": (d, d_mlp)}
        shapes |= {f"{h}attn.attention.{letter}_proj.weight": (d, d) for letter in "qkv"}
        if config["has_layer_by_layer_ablation_mask"]:
            linears |= {h + "attention_ablation_head": (d, d), h + "neuron_ablation_head": (d_mlp, d)}
    shapes |= {f"{norm}.{part}": (d,) for norm in norms for part in ("weight", "bias")}
    shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    generator = torch.Generator().manual_seed(5)
    state = {
        name: (0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for name, shape in sorted(shapes.items())
    }
    for norm in norms:
        state[norm + ".weight"] += 1
    return state | {"lm_head.weight": state["transformer.wte.weight"]}


def linear(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ p[name + ".weight"].T + p.get(name + ".bias", 0)


def norm(p: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * p[name + ".weight"] + p[name + ".bias"]


def gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def mask_of(s: Tensor, k: int, temperature: float, hard: bool) -> Tensor:
    ordered = s.sort(-1, descending=True).values
    last, first_out = ordered[..., k - 1, None], ordered[..., k, None]
    u = torch.sigmoid((s - (last + first_out) / 2) / ((last - first_out) * temperature + 1e-12))
    soft = u * k / u.sum(-1, keepdim=True)
    return (s >= last).to(s.dtype) - soft.detach() + soft if hard else soft


def attention(p: dict[str, Tensor], h: str, x: Tensor, clean: Tensor, mask: Tensor | float, config: dict, layer: int):
    """Query of x; keys and values of `clean` before it and of x itself at its own position."""
    split = (config["num_heads"], -1)
    q, k, v = (linear(p, f"{h}attn.attention.{n}_proj", x).unflatten(-1, split).transpose(1, 2) for n in "qkv")
    k_clean, v_clean = (
        linear(p, f"{h}attn.attention.{n}_proj", clean).unflatten(-1, split).transpose(1, 2) for n in "kv"
    )
    n = x.shape[1]
    diagonal = torch.eye(n, dtype=torch.bool)
    scores = torch.where(diagonal, q @ k.mT, q @ k_clean.mT)
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    if config.get("attention_layers", ["global"] * 9)[layer] == "local":
        seen &= torch.ones(n, n, dtype=torch.bool).triu(1 - config["window_size"])
    a = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    z = a @ v_clean + a.diagonal(dim1=-2, dim2=-1)[..., None] * (v - v_clean)
    return linear(p, h + "attn.attention.out_proj", z.transpose(1, 2).flatten(-2) * mask)


def mlp(p: dict[str, Tensor], h: str, x: Tensor, mask: Tensor | float) -> Tensor:
    return linear(p, h + "mlp.c_proj", gelu_new(linear(p, h + "mlp.c_fc", x)) * mask)


def written_out(p: dict[str, Tensor], config: dict, ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The two streams and the three losses, by the formulas of the paper's code."""
    layers = range(config["num_layers"])
    x0 = p["transformer.wte.weight"][ids] + p["transformer.wpe.weight"][: ids.shape[1]]
    clean = [x0]
    for layer in layers:
        h, x = f"transformer.h.{layer}.", clean[-1]
        normed = norm(p, h + "ln_1", x)
        x = x + attention(p, h, normed, normed, 1.0, config, layer)
        clean.append(x + mlp(p, h, norm(p, h + "ln_2", x), 1.0))
    final = norm(p, "transformer.ln_f", clean[-1])

    ablated, masks = [x0], []
    for layer in layers:
        h, y = f"transformer.h.{layer}.", ablated[-1]
        chosen = []
        for kind, k, temperature in (
            ("attention", config["k_attention"], config["temperature_attention"]),
            ("neuron", config["k_neurons"], config["temperature_neurons"]),
        ):
            scores = []
            if config["has_layer_by_layer_ablation_mask"]:
                scores.append(linear(p, f"{h}{kind}_ablation_head", clean[layer]))
            if config["has_overall_ablation_mask"]:
                whole = linear(p, f"{kind}_ablations_head", final)
                scores.append(whole.unflatten(-1, (config["num_layers"], -1))[..., layer, :])
            hard = config["ablation_processing"] == "hard-top-K-with-soft-gradient"
            chosen.append(mask_of(sum(scores), k, temperature, hard))
        masks.append(chosen)
        own, past = norm(p, h + "ln_1", y), norm(p, h + "ln_1", clean[layer])
        y = y + attention(p, h, own, past, chosen[0], config, layer)
        ablated.append(y + mlp(p, h, norm(p, h + "ln_2", y), chosen[1]))
    ablated_final = norm(p, "transformer.ln_f", ablated[-1])

    logits = [x @ p["transformer.wte.weight"].T for x in (final, ablated_final)]
    nats = [-x.log_softmax(-1).gather(-1, targets[..., None]).mean() for x in logits]
    pairs = [*zip(clean[1:], ablated[1:], strict=True), (final, ablated_final)]
    distance = sum(
        ((x / x.norm(dim=-1, keepdim=True) - y / y.norm(dim=-1, keepdim=True)) ** 2).mean() for x, y in pairs
    )
    distance = distance / len(pairs)
    total = config["loss_coeff_base"] * nats[0] + config["loss_coeff_ablated"] * nats[1]
    total = total + config["reconstruction_coeff"] * distance
    return {
        "logits_clean": logits[0], "logits_ablated": logits[1], "masks": masks, "total": total,
        "clean": nats[0], "ablated": nats[1], "reconstruction": distance,
    }  # fmt: skip


def theirs_of(model, name: str, gradients: dict[str, Tensor]) -> Tensor:
    """The reference's gradient of one of our parameters, with our axes."""
    if name == "embed.W_E":
        return gradients["transformer.wte.weight"]
    if name == "pos_embed.W_pos":
        return gradients["transformer.wpe.weight"]
    if name.startswith("ln_final"):
        return gradients["transformer.ln_f." + {"w": "weight", "b": "bias"}[name[-1]]]
    if name.startswith("gates."):
        *path, part = name.split(".")[1:]
        kind = {"attn": "attention", "mlp": "neuron"}[path[-1]]
        head = f"{kind}_ablations_head" if path[0] == "global" else f"transformer.h.{path[1]}.{kind}_ablation_head"
        return gradients[f"{head}.{part}"]
    _, layer, module, weight = name.split(".")
    h = f"transformer.h.{layer}."
    if module in ("ln1", "ln2"):
        return gradients[f"{h}ln_{module[-1]}." + {"w": "weight", "b": "bias"}[weight]]
    if module == "mlp":
        found = gradients[
            h + {"in": "mlp.c_fc", "out": "mlp.c_proj"}[weight[2:]] + (".weight", ".bias")[weight[0] == "b"]
        ]
        return found.T if weight[0] == "W" else found
    heads = (model.cfg.n_heads, model.cfg.d_head)
    if weight == "W_O":
        return gradients[h + "attn.attention.out_proj.weight"].T.reshape(*heads, -1)
    if weight == "b_O":
        return gradients[h + "attn.attention.out_proj.bias"]
    found = gradients[f"{h}attn.attention.{weight[-1].lower()}_proj.weight"]
    return found.reshape(*heads, -1).transpose(1, 2)


@pytest.fixture
def ids_and_targets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(23, (3, 11), generator=generator), torch.randint(23, (3, 11), generator=generator)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("case", sorted(CASES))
def test_losses_and_gradients_are_those_of_the_written_out_reference(case, fused, ids_and_targets, monkeypatch):
    if not fused:
        monkeypatch.setattr("sat_lens.fast.applies", lambda model: False)
    config = CONFIG | CASES[case]
    state = random_state(config)
    model = from_reference(state, config)
    parameters = {name: value.clone().requires_grad_() for name, value in state.items() if name != "lm_head.weight"}
    expected = written_out(parameters, config, *ids_and_targets)
    expected["total"].backward()
    found = model.losses(*ids_and_targets)
    found.total.backward()
    for name in ("total", "clean", "ablated", "reconstruction"):
        assert getattr(found, name).item() == pytest.approx(expected[name].item(), rel=1e-12), name
    gradients = {name: value.grad for name, value in parameters.items()}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in model.named_parameters():
        theirs = theirs_of(model, name, gradients)
        scale = max(theirs.abs().max(), 1e-3 * largest)
        assert (parameter.grad - theirs).abs().max() <= 2e-10 * scale, name


@pytest.mark.parametrize("case", sorted(CASES))
def test_logits_and_masks_are_those_of_the_written_out_reference(case, ids_and_targets):
    config = CONFIG | CASES[case]
    state = random_state(config)
    model = from_reference(state, config)
    expected = written_out(state, config, *ids_and_targets)
    found, cache = model.run_with_cache(ids_and_targets[0], stream="both")
    assert (found.clean - expected["logits_clean"]).abs().max() <= 1e-12
    assert (found.ablated - expected["logits_ablated"]).abs().max() <= 1e-11
    for layer, (attn, neurons) in enumerate(expected["masks"]):
        torch.testing.assert_close(cache[f"blocks.{layer}.attn.hook_mask"].flatten(-2), attn, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(cache[f"blocks.{layer}.mlp.hook_mask"], neurons, rtol=1e-9, atol=1e-11)


@pytest.mark.real_data
@pytest.mark.parametrize("case", ["local_hard", "global_hard"])
def test_the_reference_s_own_numbers_are_reproduced(case, real_data):
    from safetensors.torch import load_file

    stored = load_file(real_data / "reference" / f"{case}.safetensors")
    said = json.loads((real_data / "reference" / f"{case}.json").read_text())
    state = {name.removeprefix("state."): value for name, value in stored.items() if name.startswith("state.")}
    model = from_reference(state, said["config"])
    assert model.ablation.mask == case.split("_")[0]
    logits, cache = model.run_with_cache(stored["ids"], stream="both")
    assert (logits.clean - stored["logits_clean"]).abs().max() <= 5e-6
    assert (logits.ablated - stored["logits_ablated"]).abs().max() <= 5e-6
    for layer in range(3):
        attn = cache[f"blocks.{layer}.attn.hook_mask"].flatten(-2)
        assert torch.equal(attn, stored["attention_ablations"][:, :, layer])
        assert torch.equal(cache[f"blocks.{layer}.mlp.hook_mask"], stored["neuron_ablations"][:, :, layer])
    losses = model.losses(stored["ids"], stored["targets"])
    for ours, theirs in (("total", "loss"), ("clean", "loss_clean"), ("ablated", "loss_ablated")):
        assert abs(getattr(losses, ours).item() - said[theirs]) <= 1e-6
    assert abs(losses.reconstruction.item() - said["reconstruction_loss"]) <= 1e-6


@pytest.mark.real_data
@pytest.mark.parametrize("case", ["local_hard", "global_hard"])
def test_the_written_out_reference_agrees_with_the_reference_s_own_numbers(case, real_data):
    from safetensors.torch import load_file

    stored = load_file(real_data / "reference" / f"{case}.safetensors")
    config = json.loads((real_data / "reference" / f"{case}.json").read_text())["config"]
    state = {name.removeprefix("state."): value for name, value in stored.items() if name.startswith("state.")}
    expected = written_out(state, config, stored["ids"], stored["targets"])
    assert (expected["logits_ablated"] - stored["logits_ablated"]).abs().max() <= 1e-5


@pytest.mark.real_data
@pytest.mark.parametrize("case", ["local_hard", "global_hard"])
def test_the_reference_s_files_convert_to_a_checkpoint_by_command(case, real_data, tmp_path):
    from sat_lens import load
    from sat_lens.convert import main

    folder = real_data / "reference"
    main([str(folder / f"{case}.safetensors"), str(tmp_path / "out"), "--config", str(folder / f"{case}.json")])
    model = load(tmp_path / "out")
    assert model.ablation.mask == case.split("_")[0] and model.ablation.k_mlp == 5


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
