"""A model of two layers whose neurons fire on known tokens, and stories for it."""

from collections.abc import Callable
from typing import Any

import torch

from analyses.texts import Stories

V, POS = 8, 12
FIRES_ON = {(0, 0): 3, (0, 1): 5, (1, 0): 6, (1, 1): 2}
"""By layer and neuron, the token; neuron 2 of each layer fires on nothing, neuron 3 is always 1."""
TOKEN, OTHER, NOTHING, EVERYTHING = range(4)


def fixed_model(tiny_model: Callable[..., Any]) -> Any:
    """One-hot embeddings, no attention, no norm: a neuron reads its token and writes token 4 (layer 0) or 7."""
    model = tiny_model(
        ablation={"mask": "none"}, n_layers=2, d_model=2 * V, n_heads=1, d_head=2 * V, d_mlp=4, d_vocab=V, n_ctx=POS,
        act_fn="relu", normalization_type=None, tie_word_embeddings=False,
    )  # fmt: skip
    named = dict(model.named_parameters())
    ids = torch.arange(V)
    with torch.no_grad():
        for parameter in named.values():
            parameter.zero_()
        named["embed.W_E"][ids, ids] = 1.0
        named["unembed.W_U"][V + ids, ids] = 1.0
        for layer in range(2):
            w_in, b_in = named[f"blocks.{layer}.mlp.W_in"], named[f"blocks.{layer}.mlp.b_in"]
            b_in[NOTHING], b_in[EVERYTHING] = -1.0, 1.0
            for neuron in (TOKEN, OTHER):
                w_in[FIRES_ON[layer, neuron], neuron] = 2.0
                named[f"blocks.{layer}.mlp.W_out"][neuron, V + (4 if layer == 0 else 7)] = 1.0
    return model


def fixed_stories(n: int = 64) -> Stories:
    """Uniform tokens."""
    tokens = torch.randint(V, (n, POS), generator=torch.Generator().manual_seed(1))
    return Stories(tokens, torch.full((n,), POS))
