"""sat_lens: train, load and intervene on self-ablating transformers, on TransformerLens.

    from sat_lens import SelfAblatingTransformer, SelfAblation, load, save, k_winners

Glossary, in the words of the paper (arXiv 2505.00509) and of TransformerLens:

clean stream        the residual stream of the ordinary transformer; what is used after training.
ablated stream      a second residual stream, in which only the winners speak.
unit                one dimension of an attention head's z ("channel"), or one neuron of an MLP.
relevance           the score of a unit for a token, before the mask; read off the clean stream.
mask                1 for the k most relevant units of a layer (hard), or a soft version of it.
k_attn, k_mlp       how many channels and how many neurons of a layer may speak at a token.
gate                a relevance head: the linear map that scores units.
local               gates of layer l read the clean stream that enters layer l.
global              gates of all layers read the final, normalised clean stream.
gated z, post       the ablated stream's z and neuron activations after multiplication by the mask.

Nothing happens on import, and neither torch nor TransformerLens is imported before a name that
needs it is asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "SelfAblation": "config",
    "SelfAblatingTransformer": "model",
    "TwoStreams": "model",
    "Losses": "losses",
    "k_winners": "winners",
    "load": "checkpoint",
    "load_any": "checkpoint",
    "save": "checkpoint",
    "load_tokenizer": "tokenizers",
    "load_task": "tasks",
}
__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sat_lens' has no attribute {name!r}")
    return getattr(import_module(f"sat_lens.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
