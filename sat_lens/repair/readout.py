"""The readout: from the last residual stream to a token's logit, with the final norm taken apart.

    logit[tok] - mean over ids = C(x) . v / s(x) + constant,   v = C(gain * (W_U[:, tok] - mean of W_U))

C subtracts the mean over d_model (LayerNorm; nothing for RMSNorm), s is the norm's scale, and v holds what is left
of the final norm and of the unembedding. So the score f = x . v is linear in the stream, and everything that is
not linear about the readout is the one number s. The constant drops out of every difference.

Source: arXiv 2402.15390, section 2; differs: gain and centring are folded into v rather than into the model's
weights, so that models need no processing.
"""

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PROBED = (2, 16)
"""Rows and positions that `verify` looks at, at most."""


@dataclasses.dataclass(frozen=True)
class LogitDiff:
    """The target "logit of a minus logit of b": ids, or tensors of ids that broadcast to [n pos]."""

    a: Any
    b: Any


@dataclasses.dataclass(frozen=True)
class FinalNorm:
    """The norm before the unembedding: gain * C(x) / s(x) + bias.

    Args:
        kind: "LN", "RMS" or None for no norm (then s is 1).
        eps: under the root.
    """

    kind: str | None
    eps: float
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]

    @classmethod
    def of(cls, model: Any) -> "FinalNorm":
        """That of a model. Gain and bias are read off what the module does to two inputs, whatever it calls them."""
        kind = model.cfg.normalization_type
        w_u = model.W_U
        ones = torch.ones(w_u.shape[0], dtype=w_u.dtype, device=w_u.device)
        if kind is None:
            return cls(None, 0.0, ones, torch.zeros_like(ones))
        if kind not in ("LN", "LNPre", "RMS", "RMSPre"):
            raise ValueError(f"the final norm must be LayerNorm or RMSNorm, or absent; got {kind!r}")
        norm = cls(kind.removesuffix("Pre"), float(model.cfg.eps), ones, torch.zeros_like(ones))
        signs = ones.clone()
        signs[1::2] = -1
        with torch.no_grad():
            up, down = (model.ln_final(x[None, None])[0, 0] for x in (signs, -signs))
        unit = norm.centred(signs) / norm.scale(signs)[..., None]
        return dataclasses.replace(norm, gain=(up - down) / 2 / unit, bias=(up + down) / 2)

    def centred(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """C(x)."""
        return x - x.mean(-1, keepdim=True) if self.kind == "LN" else x

    def scale(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch"]:
        """s(x): root of the mean square of C(x), plus eps."""
        if self.kind is None:
            return x.new_ones(x.shape[:-1])
        x = self.centred(x)
        return (torch.einsum("...d,...d->...", x, x) / x.shape[-1] + self.eps).sqrt()


class Readout:
    """Directions that logits are read in.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        target: whose logit: `next_token` (the token that follows in the text), `argmax` (the clean model's own
            first choice), a `LogitDiff`, or ids [n pos] (-1: none).
        center: logits are taken minus their mean over the vocabulary, so that what is added to all of them
            alike counts for nothing. A LogitDiff is the same either way.
        n_ids: the first so many ids are the vocabulary; the others are padding of W_U and stay out of that mean.

    Raises:
        ValueError: an unknown target, or a readout that is known not to be linear behind the norm.
    """

    def __init__(self, model: Any, target: Any = "next_token", center: bool = True, n_ids: int | None = None) -> None:
        if isinstance(target, str) and target not in ("next_token", "argmax"):
            raise ValueError(f"a target must be 'next_token', 'argmax', a LogitDiff or ids [n pos]; got {target!r}")
        cap = getattr(model.cfg, "output_logits_soft_cap", None)
        if cap is not None and cap > 0:
            raise ValueError(
                f"the readout must be linear behind the final norm; this model soft-caps its logits at {cap}"
            )
        self.target = target
        self.norm = FinalNorm.of(model)
        self.unembed: Float[Tensor, "d_model d_vocab"] = model.W_U.detach()
        self.bias: Float[Tensor, " d_vocab"] = model.b_U.detach()
        real = self.unembed[:, :n_ids]
        self.mean = real.double().mean(1).to(real) if center else torch.zeros_like(real[:, 0])

    @property
    def name(self) -> str:
        """Of the target, in a few words."""
        if isinstance(self.target, str):
            return self.target
        return "logit difference" if isinstance(self.target, LogitDiff) else "given ids"

    @property
    def needs_next(self) -> bool:
        """Whether the last token of a text has no target."""
        return isinstance(self.target, str) and self.target == "next_token"

    def defined(self, tokens: Int[Tensor, "n pos"]) -> Bool[Tensor, "n pos"]:
        """Tokens for which a target is given (all, unless the targets are ids)."""
        if not isinstance(self.target, Tensor):
            return torch.ones_like(tokens, dtype=torch.bool)
        return self._ids(self.target.to(tokens.device), torch.arange(len(tokens)), tokens) >= 0

    def targets(
        self, rows: Int[Tensor, " batch"], tokens: Int[Tensor, "batch pos"], final: Float[Tensor, "batch pos d_model"]
    ) -> Int[Tensor, "batch pos"]:
        """Ids whose logits are measured, -1 where there is none; of a LogitDiff its `a`."""
        if isinstance(self.target, LogitDiff):
            return self._ids(self.target.a, rows, tokens)
        if isinstance(self.target, Tensor):
            return self._ids(self.target, rows, tokens)
        if self.target == "argmax":
            return torch.stack([self.logits(x).argmax(-1) for x in final])
        return torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], -1)], 1)

    def directions(
        self,
        rows: Int[Tensor, " batch"],
        tokens: Int[Tensor, "batch pos"],
        targets: Int[Tensor, "batch pos"],
    ) -> Float[Tensor, "batch pos d_model"]:
        """v of each token. The score of a stream x is x . v; the logit, up to a constant, is x . v / scale(x)."""
        other = self.mean
        if isinstance(self.target, LogitDiff):
            other = self._columns(self._ids(self.target.b, rows, tokens))
        return self.norm.centred((self._columns(targets) - other) * self.norm.gain)

    def logits(self, x: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos d_vocab"]:
        """What the model should give for this last residual stream, uncentred."""
        unit = self.norm.centred(x) / self.norm.scale(x)[..., None]
        return (unit * self.norm.gain + self.norm.bias) @ self.unembed + self.bias

    def _columns(self, ids: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        return self.unembed.T[ids.clamp(min=0)]

    def _ids(self, given: Any, rows: Tensor, tokens: Tensor) -> Int[Tensor, "batch pos"]:
        ids = torch.as_tensor(given, device=tokens.device)
        if ids.ndim == 2:
            ids = ids[rows.to(ids.device)][:, : tokens.shape[1]]
        elif ids.ndim == 1:
            ids = ids[rows.to(ids.device)][:, None]
        return ids.expand(tokens.shape)

    def verify(self, model: Any, tokens: Int[Tensor, "n pos"], final: Float[Tensor, "n pos d_model"]) -> float:
        """The largest error of this readout on the first tokens, in logits.

        Args:
            final: the model's last residual stream on these tokens.

        Raises:
            ValueError: an error above 1e-3 (1e-5 in float64) of the largest logit: logits are capped, scaled or
                mixed after the norm, or the norm is of another kind. The analysis would be wrong, silently.
        """
        n, length = PROBED
        with torch.inference_mode():
            real = model(tokens[:n, :length])
            ours = torch.stack([self.logits(x) for x in final[:n, :length]])
        error = (ours - real).abs().max().item()
        allowed = (1e-5 if real.dtype == torch.float64 else 1e-3) * max(1.0, real.abs().max().item())
        if not error <= allowed:
            raise ValueError(
                "the readout must be the final norm and a linear map; this model's logits are off from that by "
                f"{error:.2g} (capped or scaled logits, or another kind of norm)"
            )
        return error
