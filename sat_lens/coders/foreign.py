"""Coders that sae-lens and sparsify wrote, read without those packages.

Both keep JSON and safetensors. What they do differently is folded into the weights, so that a coder read here gives
what theirs gives, up to rounding:

- a decoder bias that is subtracted from the input: b_enc - W_enc b_dec takes the place of b_enc;
- winners by activation times decoder norm: encoder rows are multiplied by the norm, decoder rows divided;
- 16-bit weights become float32.

What cannot be folded, such as a normalisation by the token's own norm, is refused.
Source: sae-lens 6.54, sparsify 1.3 (their folders).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_lens import checkpoint
from sat_lens.checkpoint import CheckpointError
from sat_lens.coders.coder import Coder, CoderConfig
from sat_lens.coders.folder import coder_of

SAE_LENS, SPARSIFY, CFG = "sae_weights.safetensors", "sae.safetensors", "cfg.json"
ARCHITECTURES = {"topk": "sae", "standard": "sae", "transcoder": "transcoder", "skip_transcoder": "skip"}


def from_sae_lens(folder: Path, hook_in: str | None, hook_out: str | None, device: str = "cpu") -> Coder:
    """A top-k or ReLU SAE, a transcoder or a skip transcoder of sae-lens (version 6); see `load_coder`."""
    where, fields = folder / CFG, checkpoint.read_json(folder / CFG)
    architecture = fields.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{where}: architecture must be one of {known}; got {architecture!r}")
    for name in ("normalize_activations", "reshape_activations"):
        if fields.get(name, "none") != "none":
            raise CheckpointError(f"{where}: {name} must be 'none', or folded by sae-lens first; got {fields[name]!r}")
    kind = ARCHITECTURES[architecture]
    metadata = fields.get("metadata") if isinstance(fields.get("metadata"), dict) else {}
    hook_in = hook_in or metadata.get("hook_name")
    hook_out = hook_out or (hook_in if kind == "sae" else metadata.get("hook_name_out"))
    d_in = fields.get("d_in")
    d_out = d_in if kind == "sae" else fields.get("d_out")
    k = fields.get("k") if architecture == "topk" else None
    if architecture == "topk" and k is None:
        raise CheckpointError(f"{where}: missing entry 'k'")
    cfg = _config(where, kind, hook_in, hook_out, d_in, d_out, fields.get("d_sae"), k)
    weights = _weights(folder / SAE_LENS, device)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        _need(weights, name, folder / SAE_LENS)
    if weights["W_enc"].ndim != 2:
        raise CheckpointError(f"{folder / SAE_LENS}: W_enc must be a matrix")
    weights["W_enc"] = weights["W_enc"].T.contiguous()
    coder = coder_of(cfg, weights, folder / SAE_LENS)
    with torch.no_grad():
        if kind == "sae" and _flag(fields, "apply_b_dec_to_input", True, where):
            _fold_input_bias(coder)
        if _flag(fields, "rescale_acts_by_decoder_norm", False, where):
            if not (coder.W_dec.norm(dim=-1) > 0).all():
                raise CheckpointError(f"{folder / SAE_LENS}: decoder rows must not be 0 where they rescale activations")
            folded_norms(coder)
    return coder


def from_sparsify(folder: Path, hook_in: str | None, hook_out: str | None, device: str = "cpu") -> Coder:
    """A top-k SAE, transcoder or skip transcoder of sparsify; see `load_coder`."""
    where, fields = folder / CFG, checkpoint.read_json(folder / CFG)
    if fields.get("activation", "topk") != "topk" or _flag(fields, "signed", False, where):
        got = "signed" if fields.get("signed") else fields.get("activation")
        raise CheckpointError(f"{where}: activation must be 'topk', without signs; got {got!r}")
    transcodes = _flag(fields, "transcode", False, where)
    if _flag(fields, "skip_connection", False, where) and not transcodes:
        raise CheckpointError(f"{where}: an SAE with a skip connection is nothing that these coders know")
    kind = ("skip" if fields.get("skip_connection") else "transcoder") if transcodes else "sae"
    given = _weights(folder / SPARSIFY, device)
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}
    weights = {names.get(name, name): value for name, value in given.items()}
    for name in ("W_enc", "W_dec"):
        _need(weights, name, folder / SPARSIFY)
    if weights["W_dec"].ndim != 2:
        raise CheckpointError(f"{folder / SPARSIFY}: W_dec must be a matrix")
    d_in, n_latents = fields.get("d_in"), fields.get("num_latents") or None
    if n_latents is None and isinstance(d_in, int) and isinstance(fields.get("expansion_factor"), int):
        n_latents = d_in * fields["expansion_factor"]
    hook_out = hook_out or (hook_in if kind == "sae" else None)
    d_out = d_in if kind == "sae" else weights["W_dec"].shape[1]
    cfg = _config(where, kind, hook_in, hook_out, d_in, d_out, n_latents, fields.get("k"))
    coder = coder_of(cfg, weights, folder / SPARSIFY)
    if kind == "sae":
        with torch.no_grad():
            _fold_input_bias(coder)
    return coder


def _config(
    where: Path, kind: str, hook_in: Any, hook_out: Any, d_in: Any, d_out: Any, n_latents: Any, k: Any
) -> CoderConfig:
    for name, value in (("hook_in", hook_in), ("hook_out", hook_out)):
        if value is None:
            raise CheckpointError(f"{where} does not say at which hook points the coder sits; give {name}")
    try:
        return CoderConfig.from_dict(
            {
                "kind": kind, "hook_in": hook_in, "hook_out": hook_out, "d_in": d_in, "d_out": d_out,
                "n_latents": n_latents, "k": k, "stream": "clean",
            }
        )  # fmt: skip
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from None


def _weights(path: Path, device: str) -> dict[str, Tensor]:
    weights = checkpoint.read_weights(path, device)
    low = (torch.bfloat16, torch.float16)
    return {name: value.float() if value.dtype in low else value for name, value in weights.items()}


def _need(weights: dict[str, Tensor], name: str, where: Path) -> None:
    if name not in weights:
        raise CheckpointError(f"{where}: missing key {name!r}")


def _flag(fields: dict[str, Any], name: str, otherwise: bool, where: Path) -> bool:
    value = fields.get(name, otherwise)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {name} must be true or false; got {value!r}")
    return value


def _fold_input_bias(coder: Coder) -> None:
    """Encode x where x - b_dec was encoded."""
    coder.b_enc -= coder.W_enc @ coder.b_dec


def folded_norms(coder: Coder) -> None:
    """Winners by activation times decoder norm: make both one activation, and decoder rows of norm 1; in place."""
    norms = coder.W_dec.norm(dim=-1)
    coder.W_enc *= norms[:, None]
    coder.b_enc *= norms
    coder.W_dec /= norms[:, None]


@torch.no_grad()
def reading_before_gain(coder: Coder, norm: Any) -> Coder:
    """The coder, in place, reading `ln2.hook_normalized` where it was made for what the norm gives.

    TransformerLens' hook point is before the gain w and the bias b of the norm; coders of other packages read the MLP's
    input, behind them. What the skip connection makes of b goes to b_dec.

    Args:
        norm: of the model, with its weights unprocessed, such as `model.blocks[6].ln2`.
    """
    gain, bias = getattr(norm, "w", None), getattr(norm, "b", None)
    if bias is not None:
        coder.b_enc += coder.W_enc @ bias.to(coder.b_enc)
        if coder.W_skip is not None:
            coder.b_dec += coder.W_skip @ bias.to(coder.b_dec)
    if gain is not None:
        coder.W_enc *= gain.to(coder.W_enc)
        if coder.W_skip is not None:
            coder.W_skip *= gain.to(coder.W_skip)
    return coder
