"""Checkpoints of the paper's implementation: its own numbers, and its forward pass rewritten here from the formulas."""

import json

import pytest
import torch
from torch import Tensor

from sat_lens.convert import from_reference

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
