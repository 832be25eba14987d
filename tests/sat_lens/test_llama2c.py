"""llama2.c files: a published model's own output, and a forward pass written with numpy loops."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sat_lens._tl import HookedTransformer
from sat_lens.llama2c import from_llama2c

DIM, HIDDEN, N_LAYERS, N_HEADS, VOCAB, N_CTX = 24, 20, 2, 6, 11, 9
D_HEAD = DIM // N_HEADS


def random_parts(n_kv: int, shared: bool) -> dict[str, np.ndarray]:
    """Weights in the order of the file."""
    rng = np.random.default_rng(n_kv + 10 * shared)
    kv = n_kv * D_HEAD
    shapes = {
        "embed": (VOCAB, DIM), "ln1": (N_LAYERS, DIM), "q": (N_LAYERS, DIM, DIM), "k": (N_LAYERS, kv, DIM),
        "v": (N_LAYERS, kv, DIM), "o": (N_LAYERS, DIM, DIM), "ln2": (N_LAYERS, DIM), "w1": (N_LAYERS, HIDDEN, DIM),
        "w2": (N_LAYERS, DIM, HIDDEN), "w3": (N_LAYERS, HIDDEN, DIM), "ln_final": (DIM,),
        "cos": (N_CTX, D_HEAD // 2), "sin": (N_CTX, D_HEAD // 2),
    }  # fmt: skip
    if not shared:
        shapes["unembed"] = (VOCAB, DIM)
    return {name: (0.4 * rng.standard_normal(shape)).astype("<f4") for name, shape in shapes.items()}


def write(path: Path, kv_heads: int = 2, shared: bool = True, **header: int) -> dict[str, np.ndarray]:
    """A llama2.c file; `header` replaces entries of its header."""
    parts = random_parts(kv_heads, shared)
    sizes = {"dim": DIM, "hidden": HIDDEN, "n_layers": N_LAYERS, "n_heads": N_HEADS, "n_kv": kv_heads,
             "vocab": VOCAB if shared else -VOCAB, "n_ctx": N_CTX} | header  # fmt: skip
    path.write_bytes(struct.pack("<7i", *sizes.values()) + b"".join(part.tobytes() for part in parts.values()))
    return parts


def naive_logits(parts: dict[str, np.ndarray], tokens: list[int], n_kv: int) -> np.ndarray:
    """Logits [pos vocab] as llama2.c's run.c computes them, in float64, one position and head at a time."""
    p = {name: part.astype(np.float64) for name, part in parts.items()}

    def rms(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return gain * x / np.sqrt(np.mean(x**2) + 1e-5)

    def rotated(x: np.ndarray, pos: int) -> np.ndarray:
        out = x.copy()
        for i in range(0, len(x), 2):
            angle = pos / 10000.0 ** ((i % D_HEAD) / D_HEAD)
            out[i] = x[i] * np.cos(angle) - x[i + 1] * np.sin(angle)
            out[i + 1] = x[i] * np.sin(angle) + x[i + 1] * np.cos(angle)
        return out

    keys: list[list[np.ndarray]] = [[] for _ in range(N_LAYERS)]
    values: list[list[np.ndarray]] = [[] for _ in range(N_LAYERS)]
    logits = []
    for pos, token in enumerate(tokens):
        x = p["embed"][token].copy()
        for layer in range(N_LAYERS):
            h = rms(x, p["ln1"][layer])
            q = rotated(p["q"][layer] @ h, pos)
            keys[layer].append(rotated(p["k"][layer] @ h, pos))
            values[layer].append(p["v"][layer] @ h)
            z = np.zeros(DIM)
            for head in range(N_HEADS):
                own = slice(head * D_HEAD, (head + 1) * D_HEAD)
                kv = head // (N_HEADS // n_kv)
                theirs = slice(kv * D_HEAD, (kv + 1) * D_HEAD)
                scores = np.array([q[own] @ k[theirs] for k in keys[layer]]) / np.sqrt(D_HEAD)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                z[own] = sum(w * v[theirs] for w, v in zip(weights, values[layer], strict=True))
            x = x + p["o"][layer] @ z
            h = rms(x, p["ln2"][layer])
            gate = p["w1"][layer] @ h
            x = x + p["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (p["w3"][layer] @ h))
        logits.append(p.get("unembed", p["embed"]) @ rms(x, p["ln_final"]))
    return np.array(logits)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("n_kv", [1, 2, 6])
def test_logits_are_those_of_a_naive_llama(tmp_path, n_kv, shared):
    parts = write(tmp_path / "tiny.bin", n_kv, shared)
    model = from_llama2c(tmp_path / "tiny.bin")
    tokens = [3, 1, 10, 0, 7, 7, 2, 5, 9]
    found = model(torch.tensor([tokens]))[0]
    np.testing.assert_allclose(found.detach().numpy(), naive_logits(parts, tokens, n_kv), rtol=1e-4, atol=1e-4)


def test_it_is_a_plain_hooked_transformer_with_grouped_heads(tmp_path):
    write(tmp_path / "tiny.bin", kv_heads=2)
    model = from_llama2c(tmp_path / "tiny.bin")
    assert type(model) is HookedTransformer and not model.training
    assert (model.cfg.n_key_value_heads, model.cfg.normalization_type, model.cfg.gated_mlp) == (2, "RMS", True)
    assert model.tokenizer is None


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"n_layers": 3}, "asks for .* bytes; the file has"),
        ({"n_layers": 1}, "asks for .* bytes; the file has"),
        ({"vocab": -VOCAB}, "asks for .* bytes; the file has"),
        ({"n_ctx": N_CTX + 1}, "asks for .* bytes; the file has"),
        ({"vocab": 16_000_000, "dim": 16_000_000, "n_heads": 2, "n_kv": 1}, "asks for .* bytes; the file has"),
        ({"hidden": 16_000_000, "n_layers": 16_000_000}, "asks for .* bytes; the file has"),
        ({"dim": 2**31 - 1}, "impossible header"),
        ({"dim": -DIM}, "impossible header"),
        ({"n_heads": 0}, "impossible header"),
        ({"n_kv": 0}, "impossible header"),
        ({"n_kv": -2}, "impossible header"),
        ({"n_kv": 4}, "impossible header"),
        ({"n_heads": 5}, "impossible header"),
        ({"n_heads": 24}, "impossible header"),
        ({"vocab": 0}, "impossible header"),
        ({"vocab": -(2**31)}, "asks for .* bytes; the file has"),
    ],
)
def test_a_header_that_lies_is_refused_on_one_line_before_anything_is_allocated(tmp_path, header, words, monkeypatch):
    path = tmp_path / "tiny.bin"
    write(path, **header)
    monkeypatch.setattr("sat_lens.llama2c.hooked_transformer", None)
    monkeypatch.setattr("sat_lens.llama2c.np.fromfile", None)
    with pytest.raises(ValueError, match=words) as refusal:
        from_llama2c(path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


@pytest.mark.parametrize("change", [-4, -1, 1, 4])
def test_a_file_cut_off_or_with_something_behind_it_is_refused(tmp_path, change):
    path = tmp_path / "tiny.bin"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(ValueError, match=f"asks for {len(content)} bytes; the file has {len(content) + change}"):
        from_llama2c(path)


@pytest.mark.parametrize("size", [0, 5, 27])
def test_a_file_shorter_than_a_header_is_refused(tmp_path, size):
    path = tmp_path / "tiny.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=f"{size} bytes, shorter than its header"):
        from_llama2c(path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "tiny.bin"
    write(path)
    content = bytearray(path.read_bytes())
    content[100:104] = struct.pack("<f", float("nan"))
    path.write_bytes(content)
    with pytest.raises(ValueError, match="1 weights are not finite"):
        from_llama2c(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        from_llama2c(tmp_path / "no.bin")


@pytest.fixture(scope="module")
def stories260k(real_data):
    return from_llama2c(real_data / "stories260K" / "stories260K.bin")


@pytest.mark.real_data
def test_stories260k_has_its_published_size_and_its_tokenizer(stories260k):
    trained = {name: p for name, p in stories260k.named_parameters() if "b_" not in name and name != "unembed.W_U"}
    assert sum(p.numel() for p in trained.values()) == 260_032
    assert len(stories260k.tokenizer) == 512


@pytest.mark.real_data
def test_stories260k_writes_the_published_story_character_for_character(stories260k, real_data):
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    expected = (real_data / "stories260K" / "greedy.txt").read_text(encoding="utf-8")
    cache = TransformerLensKeyValueCache.init_cache(stories260k.cfg, "cpu", 1)
    token, ids = torch.tensor([[1]]), []
    with torch.no_grad():
        for _ in range(256):
            token = stories260k(token, past_kv_cache=cache)[:, -1:].argmax(-1)
            ids.append(token.item())
    assert stories260k.tokenizer.decode(ids).strip() == expected.strip()


@pytest.mark.real_data
def test_stories260k_has_its_published_loss_on_held_out_stories(stories260k, real_data):
    from itertools import islice

    from sat_lens.corpora import read_stories

    nats, n_tokens, n_characters = 0.0, 0, 0
    for story in islice(read_stories(str(real_data / "tinystories" / "valid.txt")), 60):
        ids = [1, *stories260k.tokenizer.encode(story, add_special_tokens=False)][:512]
        with torch.no_grad():
            per_token = stories260k(torch.tensor([ids]), return_type="loss", loss_per_token=True)
        nats, n_tokens = nats + per_token.sum().item(), n_tokens + per_token.numel()
        n_characters += len(story) * (len(ids) - 1) / len(stories260k.tokenizer.encode(story, add_special_tokens=False))
    assert nats / n_tokens == pytest.approx(1.23, abs=0.03)
    assert nats / n_characters / np.log(2) == pytest.approx(0.83, abs=0.03)
