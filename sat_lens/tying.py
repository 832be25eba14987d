"""Tied embeddings that still look like TransformerLens': one parameter, two keys, the usual shapes.

`unembed.W_U` is not a parameter of its own but the transposed view of `embed.W_E`; it appears in
`state_dict()` all the same, so that keys and shapes are those of a HookedTransformer. A model built
from scratch with tied embeddings follows the paper's host (GPT-Neo): no bias on queries, keys,
values and the unembedding. TransformerLens' zeros for them stay as buffers, which are saved and
loaded and not trained.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sat_lens._tl import HookedTransformer, Unembed

ARCHITECTURES_WITHOUT_BIAS = (None, "GPTNeoForCausalLM")
TIED_KEY = "unembed.W_U"


class TiedUnembed(Unembed):
    """TransformerLens' Unembed, whose W_U [d_model d_vocab] is the transposed embedding."""

    def tie(self, embed: nn.Module) -> None:
        self._embed = (embed,)  # in a tuple, so that it is not registered as a submodule
        del self._parameters["W_U"]
        self.register_state_dict_post_hook(_add_tied_weight)
        self.register_load_state_dict_pre_hook(_check_tied_weight)

    def __getattr__(self, name: str) -> Any:
        if name == "W_U" and "_embed" in self.__dict__:
            return self._embed[0].W_E.T
        return super().__getattr__(name)


def _add_tied_weight(module: TiedUnembed, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    state[prefix + "W_U"] = module.W_U.detach()


def _check_tied_weight(module: TiedUnembed, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Take `W_U` out of what is loaded, or say that it is not the embedding, which was loaded just before."""
    weight = state.pop(prefix + "W_U", None)
    embedding = module._embed[0].W_E.detach().T
    if weight is not None and not torch.equal(weight.to(embedding), embedding):
        raise ValueError(
            "the embeddings are tied (cfg.tie_word_embeddings), but unembed.W_U is not the transpose of "
            "embed.W_E; untie them in the configuration to load both"
        )


def tie_embeddings(model: HookedTransformer) -> None:
    """Make `model.unembed` share `model.embed`'s weight; drop the biases that the host does not have."""
    state = model.unembed.state_dict()
    model.unembed.__class__ = TiedUnembed
    model.unembed.tie(model.embed)
    if model.cfg.original_architecture in ARCHITECTURES_WITHOUT_BIAS:
        _to_buffer(model.unembed, "b_U", state["b_U"])
        for block in model.blocks:
            for name, value in list(block.attn.named_parameters(recurse=False)):
                if name.removeprefix("_") in ("b_Q", "b_K", "b_V"):
                    _to_buffer(block.attn, name, value.detach())


def _to_buffer(module: nn.Module, name: str, value: Tensor) -> None:
    del module._parameters[name]
    module.register_buffer(name, value)
