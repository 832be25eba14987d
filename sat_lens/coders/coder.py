"""Skip transcoders, transcoders and top-k sparse autoencoders: one formula.

    z = TopK(ReLU(W_enc x + b_enc))        y_hat = W_dec^T z + b_dec + W_skip x

| kind | from, to | W_skip |
| --- | --- | --- |
| `skip` | the input of an MLP to its output (any two hook points) | learned |
| `transcoder` | the same | none |
| `sae` | one hook point to itself | none |

Published conventions that are another form of this one (a decoder bias that is subtracted from the input, winners
chosen by activation times decoder norm) are folded into it when a coder is read.

Source: arXiv 2406.11944 (transcoders), 2406.04093 (TopK), 2501.18823 (skip transcoders).
"""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sat_lens.coders.latents import Latents, top_latents

KINDS = ("skip", "transcoder", "sae")
STREAMS = ("clean", "ablated")
FEW = 8
"""Times as many latents as winners, at least, for the winners' rows alone to be read when decoding."""


@dataclasses.dataclass(frozen=True)
class CoderConfig:
    """What a coder is and where it sits.

    Args:
        kind: see the module; `neurons` for an MLP's own (see `sat_lens.coders.neurons`).
        hook_in, hook_out: hook points that are read and written; the same one for an SAE.
        d_in, d_out: their widths.
        n_latents: latents.
        k: winners a token; None: all that are above 0.
        stream: pass in which both hook points fire, `clean` or `ablated`.

    Raises:
        ValueError: anything else.
    """

    kind: str
    hook_in: str
    hook_out: str
    d_in: int
    d_out: int
    n_latents: int
    k: int | None
    stream: str = "clean"

    def __post_init__(self) -> None:
        if self.kind not in (*KINDS, "neurons"):
            raise ValueError(f"the kind of a coder must be one of {', '.join(KINDS)}; got {self.kind!r}")
        if self.stream not in STREAMS:
            raise ValueError(f"the stream of a coder must be one of {', '.join(STREAMS)}; got {self.stream!r}")
        for name in ("hook_in", "hook_out"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ValueError(f"{name} must name a hook point; got {getattr(self, name)!r}")
        for name in ("d_in", "d_out", "n_latents"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} must be a whole number of at least 1; got {getattr(self, name)!r}")
        if self.k is not None and not (_is_count(self.k) and self.k <= self.n_latents):
            raise ValueError(f"k must be between 1 and the {self.n_latents:,} latents; got {self.k!r}")
        if self.kind == "sae" and (self.hook_in, self.d_in) != (self.hook_out, self.d_out):
            raise ValueError(
                f"an SAE reads and writes one hook point; got {self.hook_in} ({self.d_in}) and "
                f"{self.hook_out} ({self.d_out})"
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "CoderConfig":
        """From JSON. Raises: ValueError for a missing or unknown entry, or one of the wrong type."""
        names = {field.name for field in dataclasses.fields(cls)}
        for word, wrong in (("missing", names - fields.keys()), ("unknown", fields.keys() - names)):
            if wrong:
                raise ValueError(f"a coder's configuration has {word} entry {min(wrong)!r}")
        for name, value in fields.items():
            if name in ("kind", "hook_in", "hook_out", "stream") and not isinstance(value, str):
                raise ValueError(f"{name} must be text; got {value!r}")
            if name in ("d_in", "d_out", "n_latents") and not _is_count(value):
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
        if fields["k"] is not None and not _is_count(fields["k"]):
            raise ValueError(f"k must be a whole number of at least 1; got {fields['k']!r}")
        return cls(**fields)


def weight_shapes(cfg: CoderConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a coder's weights."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (cfg.n_latents, cfg.d_in),
        "b_enc": (cfg.n_latents,),
        "W_dec": (cfg.n_latents, cfg.d_out),
        "b_dec": (cfg.d_out,),
    }
    return shapes | ({"W_skip": (cfg.d_out, cfg.d_in)} if cfg.kind == "skip" else {})


class Coder(nn.Module):
    """A coder with its weights, all 0 until they are trained or loaded.

    Args:
        cfg: what it is.
        dtype: of the weights.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter | None

    def __init__(
        self, cfg: CoderConfig, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__()
        if cfg.kind not in KINDS:
            raise ValueError(f"a coder with weights of its own is one of {', '.join(KINDS)}; got {cfg.kind!r}")
        self.cfg = cfg

        self.W_skip = None
        for name, shape in weight_shapes(cfg).items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=dtype, device=device)))

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """W_enc x + b_enc."""
        return F.linear(x.to(self.W_enc.dtype), self.W_enc, self.b_enc)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Latents:
        """The active latents of an input."""
        return top_latents(self.pre(x).relu(), self.cfg.k)

    def decode(
        self,
        latents: Latents | Tensor,
        x: Float[Tensor, "*batch d_in"] | None = None,
        skip: bool = True,
        bias: bool = True,
    ) -> Float[Tensor, "*batch d_out"]:
        """What these latents say.

        Args:
            latents: those of `encode`, or all of them [... latent]. The two forms of the same latents agree up to
                rounding: for a comparison that has to be exact, take one form on both sides.
            x: the true input, which the skip connection reads; needed where there is one and it is wanted.
            skip, bias: whether W_skip x and b_dec are added.
        """
        y = decoded(latents, self.W_dec)
        if bias:
            y = y + self.b_dec
        if skip and self.W_skip is not None:
            if x is None:
                raise ValueError("a skip transcoder decodes with the true input x; give it, or skip=False")
            y = y + F.linear(x.to(self.W_skip.dtype), self.W_skip)
        return y

    def dense(self, latents: Latents) -> Float[Tensor, "*batch latent"]:
        """All latents, 0 where not active."""
        return latents.dense(self.cfg.n_latents)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The reconstruction."""
        return self.decode(self.encode(x), x)


def decoded(latents: Latents | Tensor, W_dec: Float[Tensor, "latent d_out"]) -> Float[Tensor, "*batch d_out"]:
    """W_dec^T z, from all latents or from the active ones alone."""
    if isinstance(latents, Latents):
        k = latents.indices.shape[-1]
        if k * FEW <= len(W_dec):
            indices, values = latents.indices.reshape(-1, k), latents.values.reshape(-1, k).to(W_dec.dtype)
            y = F.embedding_bag(indices, W_dec, per_sample_weights=values, mode="sum")
            return y.view(*latents.indices.shape[:-1], W_dec.shape[1])
        latents = latents.dense(len(W_dec))
    return latents.to(W_dec.dtype) @ W_dec


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
