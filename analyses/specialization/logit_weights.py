"""Which tokens a unit promotes and suppresses: its output direction, read by the unembedding.

A neuron's row of `W_out`, a channel's row of `W_O`; a head's direction is the one in which it can write the most (the
first right singular vector of its `W_O`), whose sign means nothing. The final norm's centring and gain are folded in,
its scale and every later layer left out: the direct path. A long tail (kurtosis) means that a unit speaks for few
tokens; its null are random directions of the residual stream, read the same way.

Source: direct logit attribution; the kurtosis of a neuron's logit weights: Gurnee et al. 2024 (arXiv 2401.12181).
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.unit_streams import Units

CHUNK = 512  # directions whose logits are held at once: 512 x 50,257 float64 are 200 MB
N_DIRECTIONS = 256
TOP = 8


@dataclasses.dataclass(frozen=True)
class LogitWeights:
    """One row a unit.

    Args:
        kurtosis: excess, of the weights over the vocabulary.
        promoted, suppressed: tokens of the largest and the smallest weights, the outermost first.
        largest, smallest: those weights, logits for each unit of activation.
        null: kurtosis of random directions.
    """

    kurtosis: Float[np.ndarray, " unit"]
    promoted: Int[np.ndarray, "unit top"]
    suppressed: Int[np.ndarray, "unit top"]
    largest: Float[np.ndarray, "unit top"]
    smallest: Float[np.ndarray, "unit top"]
    null: Float[np.ndarray, " direction"]


def logit_weights(model: Any, units: Units, *, top: int = TOP, seed: int = 0) -> LogitWeights:
    """What each unit's direction does to the logits, directly.

    Raises:
        ValueError: entries of masks, which write nothing of their own.

    Cost: one product with the unembedding a layer, 512 directions at a time.
    """
    if units.kind.startswith("mask"):
        raise ValueError("an entry of a mask writes nothing; ask for the logit weights of neurons, channels or heads")
    draw = torch.Generator().manual_seed(seed)
    d_model = model.cfg.d_model
    random = torch.randn(N_DIRECTIONS, d_model, generator=draw, dtype=torch.float64)
    parts = [_read(model, directions(model, units.kind, layer), top) for layer in units.layers]
    return LogitWeights(*(np.concatenate(column) for column in zip(*parts, strict=True)), _read(model, random, top)[0])


def directions(model: Any, kind: str, layer: int) -> Float[Tensor, "unit d_model"]:
    """What the units of a layer write for each unit of activation, float64 on the CPU."""
    block = model.blocks[layer]
    weight = block.mlp.W_out if kind == "neuron" else block.attn.W_O
    weight = weight.detach().cpu().double()
    if kind == "head":
        return torch.linalg.svd(weight, full_matrices=False).Vh[:, 0]
    return weight.reshape(-1, weight.shape[-1])


def token_lists(weights: LogitWeights, tokenizer: Any, n: int = 3) -> list[str]:
    """For each unit "+ Tom, Lily, Sam; - the, a, is"; ids where there is no tokenizer."""

    def name(i: int) -> str:
        return str(i) if tokenizer is None else (text := tokenizer.decode([i])).strip() or repr(text)

    ids = np.unique(np.concatenate([weights.promoted[:, :n], weights.suppressed[:, :n]]))
    names = {int(i): name(int(i)) for i in ids}
    return [
        f"+ {', '.join(names[i] for i in up)}; - {', '.join(names[i] for i in down)}"
        for up, down in zip(weights.promoted[:, :n].tolist(), weights.suppressed[:, :n].tolist(), strict=True)
    ]


def _read(model: Any, written: Float[Tensor, "unit d_model"], top: int) -> tuple[np.ndarray, ...]:
    norm = getattr(model, "ln_final", None)
    W_U = model.unembed.W_U.detach().cpu().double()
    gain = getattr(norm, "w", None)
    if gain is not None:
        W_U = gain.detach().cpu().double()[:, None] * W_U
    if model.cfg.normalization_type in ("LN", "LNPre"):
        W_U = W_U - W_U.mean(0)  # centring what is written: (v - mean v) W = v (W - mean of W's rows)
    W_U = W_U - W_U.mean(1, keepdim=True)  # softmax does not see what all tokens share
    columns: list[tuple[Tensor, ...]] = []
    for part in written.split(CHUNK):
        logits = part @ W_U
        apart = logits - logits.mean(1, keepdim=True)
        variance = apart.square().mean(1)
        kurtosis = apart.pow(4).mean(1) / variance.square() - 3  # NaN for a unit that writes nothing
        up, down = (logits.topk(min(top, logits.shape[1]), largest=largest) for largest in (True, False))
        columns.append((kurtosis, up.indices, down.indices, up.values, down.values))
    return tuple(torch.cat(column).numpy() for column in zip(*columns, strict=True))
