"""Where coders sit: hook points, and what passes them, token by token and never kept."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sat_lens.activations import activations
from sat_lens.coders.coder import STREAMS, CoderConfig


class SiteBatch(NamedTuple):
    """What enters and leaves a site in some rows of tokens.

    Args:
        rows: which rows.
        x, y: at the hook points that a coder reads and writes.
        keep: tokens that count.
    """

    rows: Int[Tensor, " row"]
    x: Float[Tensor, "row pos d_in"]
    y: Float[Tensor, "row pos d_out"]
    keep: Bool[Tensor, "row pos"]


def mlp_site(model: Any, layer: int, stream: str = "clean") -> tuple[str, str]:
    """The hook points at which an MLP is read and written.

    The input is the normalised stream before the norm's gain and bias, which a linear encoder takes up (a coder made
    for what comes behind them needs `foreign.reading_before_gain`). Where that has no hook point (no norm; the ablated
    stream, whose norms have none) it is the stream itself, before the norm.

    Raises:
        ValueError: no such layer or stream, or a model without MLPs.
    """
    cfg = model.cfg
    if not 0 <= layer < cfg.n_layers:
        raise ValueError(f"layer must be one of 0 to {cfg.n_layers - 1}; got {layer}")
    if cfg.attn_only:
        raise ValueError("this model has no MLP: it is attention only; take a residual site, such as hook_resid_post")
    check_stream(model, stream)
    block = f"blocks.{layer}." + ("ablated." if stream == "ablated" else "")
    names = (f"{block}ln2.hook_normalized", f"{block}hook_resid_mid", f"{block}hook_resid_pre")
    return next(name for name in names if name in model.hook_dict), f"{block}hook_mlp_out"


def check_stream(model: Any, stream: str) -> None:
    """Raise a ValueError where the model does not have this stream."""
    if stream not in STREAMS:
        raise ValueError(f"the stream of a coder must be one of {', '.join(STREAMS)}; got {stream!r}")
    if stream == "ablated" and getattr(getattr(model, "ablation", None), "mask", "none") == "none":
        raise ValueError("this model has no ablated stream; take stream='clean'")


def check_site(model: Any, cfg: CoderConfig) -> None:
    """Raise a ValueError where a coder's hook points or stream are not the model's."""
    check_stream(model, cfg.stream)
    for name in (cfg.hook_in, cfg.hook_out):
        if name not in model.hook_dict:
            raise ValueError(f"a coder sits at hook points of the model; it has no {name!r}")


def kept_tokens(
    tokens: Int[Tensor, "row pos"], lengths: Int[Tensor, " row"] | None, keep: Bool[Tensor, "row pos"] | None
) -> Bool[Tensor, "row pos"]:
    """Tokens that count: inside of their row's length, and kept.

    Raises:
        ValueError: shapes that do not fit.
    """
    inside = torch.ones(tokens.shape, dtype=torch.bool)
    if lengths is not None:
        if (
            lengths.shape != tokens.shape[:1]
            or len(lengths)
            and not 0 <= int(lengths.min()) <= int(lengths.max()) <= tokens.shape[1]
        ):
            raise ValueError(f"lengths must be {len(tokens)} numbers from 0 to {tokens.shape[1]}, one a row of tokens")
        inside = torch.arange(tokens.shape[1]) < lengths.cpu()[:, None]
    if keep is None:
        return inside
    if keep.shape != tokens.shape:
        raise ValueError(f"keep must have the shape of tokens, {tuple(tokens.shape)}; got {tuple(keep.shape)}")
    return inside & keep.cpu()


def site_batches(
    model: Any,
    cfg: CoderConfig,
    tokens: Int[Tensor, "row pos"],
    lengths: Int[Tensor, " row"] | None = None,
    keep: Bool[Tensor, "row pos"] | None = None,
    batch_size: int = 32,
) -> Iterator[SiteBatch]:
    """What passes a coder's site, `batch_size` rows at a time; inference tensors, not to be kept.

    Args:
        lengths: tokens of each row that are no padding; None: all.
        keep: tokens that count besides (a beginning-of-text token often should not); None: all.

    Raises:
        ValueError: hook points that the model does not have, do not fire, or are not of the coder's widths.

    Cost: one forward pass as far as the site; both streams whole for the ablated one. Memory: two batches.
    """
    check_site(model, cfg)
    counted = kept_tokens(tokens, lengths, keep)
    names = sorted({cfg.hook_in, cfg.hook_out})
    for batch in activations(model, tokens, names, batch_size=batch_size, stream=cfg.stream):
        x, y = (flat(batch.activations[name]) for name in (cfg.hook_in, cfg.hook_out))
        for name, given, wanted in (("hook_in", x, cfg.d_in), ("hook_out", y, cfg.d_out)):
            if given.shape[-1] != wanted:
                raise ValueError(f"{getattr(cfg, name)} is {given.shape[-1]} wide; the coder expects {wanted}")
        yield SiteBatch(batch.rows, x, y, counted[batch.rows].to(x.device))


def flat(activation: Tensor) -> Float[Tensor, "row pos width"]:
    """Heads and their channels as one axis."""
    return activation.flatten(2)


def widths(model: Any, hook_in: str, hook_out: str, stream: str = "clean") -> tuple[int, int]:
    """How wide two hook points are, by one token's pass."""
    check_site(model, CoderConfig("transcoder", hook_in, hook_out, 1, 1, 1, 1, stream))
    token = torch.zeros(1, 2, dtype=torch.long)
    batch = next(iter(activations(model, token, sorted({hook_in, hook_out}), stream=stream)))
    return math.prod(batch.activations[hook_in].shape[2:]), math.prod(batch.activations[hook_out].shape[2:])
