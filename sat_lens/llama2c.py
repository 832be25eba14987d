"""llama2.c model files (format v0), as plain HookedTransformers.

Seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len; a negative
vocab_size means an unembedding of its own) and then, in float32: token embedding, attention norms,
wq, wk, wv, wo, MLP norms, w1, w2, w3, final norm, two rotary tables, and the unembedding where it is
not the embedding. The file ends exactly there.

Source: karpathy/llama2.c, export format "legacy".
"""

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sat_lens._tl import HookedTransformer, HookedTransformerConfig, hooked_transformer
from sat_lens.files import regular

HEADER = "<7i"


def from_llama2c(path: Path | str, tokenizer: Path | str | None = None) -> HookedTransformer:
    """The model of a `.bin` file; with its tokenizer, where that is given or lies beside it.

    Args:
        tokenizer: llama2.c tokenizer file; default `tok512.bin` or `tokenizer.bin` beside the model.

    Raises:
        ValueError: a header that lies about the file's size, or values that are not finite.
    """
    path = regular(path)
    with open(path, "rb") as file:
        head = file.read(struct.calcsize(HEADER))
    if len(head) < struct.calcsize(HEADER):
        raise ValueError(f"{path}: not a llama2.c model: {len(head)} bytes, shorter than its header")
    dim, hidden, n_layers, n_heads, n_kv, vocab, n_ctx = struct.unpack(HEADER, head)
    shared, vocab = vocab > 0, abs(vocab)
    sizes = (dim, hidden, n_layers, n_heads, n_kv, vocab, n_ctx)
    if not all(size > 0 for size in sizes) or dim % n_heads or n_heads % n_kv or dim // n_heads % 2:
        raise ValueError(f"{path}: not a llama2.c model: impossible header {sizes}")
    d_head = dim // n_heads
    shapes = {
        "embed": (vocab, dim),
        "ln1": (n_layers, dim),
        "q": (n_layers, n_heads, d_head, dim),
        "k": (n_layers, n_kv, d_head, dim),
        "v": (n_layers, n_kv, d_head, dim),
        "o": (n_layers, dim, n_heads, d_head),
        "ln2": (n_layers, dim),
        "w1": (n_layers, hidden, dim),
        "w2": (n_layers, dim, hidden),
        "w3": (n_layers, hidden, dim),
        "ln_final": (dim,),
        "cos": (n_ctx, d_head // 2),
        "sin": (n_ctx, d_head // 2),
        **({} if shared else {"unembed": (vocab, dim)}),
    }
    expected = len(head) + 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    if (size := path.stat().st_size) != expected:
        raise ValueError(f"{path}: its header asks for {expected} bytes; the file has {size}")
    parts = _tensors(path, len(head), shapes)
    cfg = HookedTransformerConfig(
        n_layers=n_layers,
        d_model=dim,
        n_heads=n_heads,
        n_key_value_heads=n_kv if n_kv < n_heads else None,
        d_head=d_head,
        d_mlp=hidden,
        d_vocab=vocab,
        n_ctx=n_ctx,
        act_fn="silu",
        gated_mlp=True,
        normalization_type="RMS",
        final_rms=True,
        eps=1e-5,
        positional_embedding_type="rotary",
        rotary_dim=d_head,
        rotary_adjacent_pairs=True,
        rotary_base=10000,
        original_architecture="LlamaForCausalLM",
        model_name=path.stem,
        init_weights=False,
        device="cpu",
    )
    model = hooked_transformer(cfg)
    model.load_state_dict(model.state_dict() | _weights(parts, n_layers, grouped=n_kv < n_heads), strict=True)
    _attach_tokenizer(model, path, tokenizer)
    return model.eval()


def _tensors(path: Path, offset: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    flat, parts = np.fromfile(path, dtype="<f4", offset=offset), {}
    if not np.isfinite(flat).all():
        raise ValueError(f"{path}: {int((~np.isfinite(flat)).sum())} weights are not finite")
    start = 0
    for name, shape in shapes.items():
        end = start + int(np.prod(shape))
        parts[name] = torch.from_numpy(flat[start:end].reshape(shape).copy())
        start = end
    return parts


def _weights(parts: dict[str, Tensor], n_layers: int, grouped: bool) -> dict[str, Tensor]:
    """Under TransformerLens' names; biases stay the zeros that they are there."""
    state = {
        "embed.W_E": parts["embed"],
        "unembed.W_U": parts.get("unembed", parts["embed"]).T,
        "ln_final.w": parts["ln_final"],
    }
    kv = "_" if grouped else ""
    for layer in range(n_layers):
        block = f"blocks.{layer}."
        state |= {
            block + "ln1.w": parts["ln1"][layer],
            block + "ln2.w": parts["ln2"][layer],
            block + "attn.W_Q": parts["q"][layer].transpose(1, 2),
            block + f"attn.{kv}W_K": parts["k"][layer].transpose(1, 2),
            block + f"attn.{kv}W_V": parts["v"][layer].transpose(1, 2),
            block + "attn.W_O": parts["o"][layer].permute(1, 2, 0),
            block + "mlp.W_gate": parts["w1"][layer].T,
            block + "mlp.W_in": parts["w3"][layer].T,
            block + "mlp.W_out": parts["w2"][layer].T,
        }
    return {key: value.contiguous() for key, value in state.items()}


def _attach_tokenizer(model: HookedTransformer, path: Path, given: Path | str | None) -> None:
    from sat_lens.tokenizers import load_tokenizer

    beside = [path.with_name(name) for name in ("tok512.bin", f"tok{model.cfg.d_vocab}.bin", "tokenizer.bin")]
    source = given or next((p for p in beside if p.is_file()), None)
    if source is None:
        return
    tokenizer = load_tokenizer(source)
    if len(tokenizer) != model.cfg.d_vocab:
        raise ValueError(
            f"{source} has {len(tokenizer)} ids, the model {model.cfg.d_vocab}: they do not belong together"
        )
    model.tokenizer = tokenizer
    model.cfg.tokenizer_prepends_bos = False
