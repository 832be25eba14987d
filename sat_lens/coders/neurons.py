"""The MLP's own neurons as a coder: what is asked of latents can be asked of ordinary and of gated neurons alike.

Latents are the neurons' activations (in the ablated stream: behind the mask), read where `W_out` reads them; the
decoder is `W_out` with its bias, so that all neurons together are the MLP. Activations may be negative: winners are
the largest by magnitude.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sat_lens.coders.coder import CoderConfig, decoded
from sat_lens.coders.latents import Latents, top_latents


class NeuronCoder(nn.Module):
    """Encodes and decodes as `Coder` does; it has no weights of its own.

    Args:
        cfg: of kind `neurons`.
        W_dec, b_dec: the MLP's, shared.
    """

    W_skip = None

    def __init__(self, cfg: CoderConfig, W_dec: Float[Tensor, "neuron d_out"], b_dec: Float[Tensor, " d_out"]) -> None:
        super().__init__()
        self.cfg = cfg
        self.register_buffer("W_dec", W_dec.detach(), persistent=False)
        self.register_buffer("b_dec", b_dec.detach(), persistent=False)

    def encode(self, x: Float[Tensor, "*batch neuron"]) -> Latents:
        """The neurons that are not 0, or the k largest of them."""
        return top_latents(x, self.cfg.k, signed=True)

    def decode(
        self, latents: Latents | Tensor, x: Tensor | None = None, skip: bool = True, bias: bool = True
    ) -> Float[Tensor, "*batch d_out"]:
        """What these neurons write, as `Coder.decode`; there is no skip connection."""
        y = decoded(latents, self.W_dec)
        return y + self.b_dec if bias else y

    def dense(self, latents: Latents) -> Float[Tensor, "*batch neuron"]:
        """All neurons, 0 where not among the latents."""
        return latents.dense(self.cfg.n_latents)

    def forward(self, x: Float[Tensor, "*batch neuron"]) -> Float[Tensor, "*batch d_out"]:
        """The MLP's output from these neurons."""
        return self.decode(self.encode(x))


def neuron_coder(model: Any, layer: int, stream: str = "clean", k: int | None = None) -> NeuronCoder:
    """The coder of one layer's neurons.

    Args:
        model: a HookedTransformer, or one with two streams.
        stream: `clean`, or `ablated`: the neurons behind the mask, and what they write to the ablated stream.
        k: neurons kept a token; None: all that are not 0.

    Raises:
        ValueError: a model without such neurons, or an MLP whose output is not W_out of them plus a bias.
    """
    from sat_lens.coders.sites import check_stream

    cfg = model.cfg
    if not 0 <= layer < cfg.n_layers:
        raise ValueError(f"layer must be one of 0 to {cfg.n_layers - 1}; got {layer}")
    check_stream(model, stream)
    W_out, b_out = (getattr(getattr(model.blocks[layer], "mlp", None), name, None) for name in ("W_out", "b_out"))
    if not isinstance(W_out, Tensor) or cfg.use_normalization_before_and_after or cfg.load_in_4bit:
        raise ValueError("neurons as a coder need an MLP whose output is W_out of its neurons; this model has none")
    b_out = W_out.new_zeros(W_out.shape[1]) if b_out is None else b_out
    post, out = (
        ("mlp.hook_gated_post", "ablated.hook_mlp_out") if stream == "ablated" else ("mlp.hook_post", "hook_mlp_out")
    )
    d_mlp, d_model = W_out.shape
    fields = CoderConfig("neurons", f"blocks.{layer}.{post}", f"blocks.{layer}.{out}", d_mlp, d_model, d_mlp, k, stream)
    with torch.no_grad():
        return NeuronCoder(fields, W_out, b_out).to(cfg.device)
