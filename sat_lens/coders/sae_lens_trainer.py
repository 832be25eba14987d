"""A top-k SAE trained by sae-lens on what passes a site: its objective and optimizer, our streaming.

A second route to what `sat_lens.coders.train` does for kind `sae`. Differs from it: mean squared error, winners by
activation times decoder norm, AuxK always on, gradients clipped at 1. It cannot be resumed, as sae-lens keeps the
trainer's state as a pickle, and needs `pip install sat_lens[sae]`.

Source: sae-lens 6.54.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sat_lens.coders.coder import Coder, CoderConfig
from sat_lens.coders.foreign import folded_norms
from sat_lens.coders.sites import kept_tokens, site_batches
from sat_lens.coders.train import CoderTraining


def train_with_sae_lens(
    model: Any,
    tokens: Int[Tensor, "row pos"],
    cfg: CoderConfig,
    settings: CoderTraining | None = None,
    *,
    lengths: Int[Tensor, " row"] | None = None,
    keep: Bool[Tensor, "row pos"] | None = None,
) -> Coder:
    """A top-k SAE.

    Args:
        cfg: of kind `sae`, with k.
        settings: n_tokens, lr (None: 3e-4), warmup_steps, batch_tokens, rows and seed count.
        lengths, keep: tokens that count.

    Raises:
        ValueError: another kind of coder, or sae-lens is not installed.
    """
    if cfg.kind != "sae" or cfg.k is None:
        raise ValueError(f"sae-lens trains top-k SAEs here; got kind {cfg.kind!r} with k={cfg.k}")
    try:
        from sae_lens import SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.config import SAETrainerConfig
    except ImportError:
        raise ValueError("training by sae-lens needs it: pip install sat_lens[sae]") from None
    settings = CoderTraining() if settings is None else settings
    device = str(model.cfg.device)
    n_steps = max(1, settings.n_tokens // settings.batch_tokens)
    plan = SAETrainerConfig(
        total_training_samples=n_steps * settings.batch_tokens,
        train_batch_size_samples=settings.batch_tokens,
        lr=3e-4 if settings.lr is None else settings.lr,
        lr_end=0.0,
        lr_warm_up_steps=min(settings.warmup_steps, n_steps // 10),
        device=device,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        fields = TopKTrainingSAEConfig(d_in=cfg.d_in, d_sae=cfg.n_latents, k=cfg.k, device=device)
        sae = TopKTrainingSAE(fields).to(device)
        provided = _tokens_at_site(model, tokens, kept_tokens(tokens, lengths, keep), cfg, settings)
        trainer = SAETrainer(plan, sae, provided)
        for _ in range(n_steps):  # as `fit` does, without its bar
            trainer.step(next(provided))
            trainer.n_training_steps += 1
    coder = Coder(cfg, torch.float32, device)
    with torch.no_grad():
        coder.W_enc.copy_(sae.W_enc.T)
        coder.W_dec.copy_(sae.W_dec)
        coder.b_dec.copy_(sae.b_dec)
        coder.b_enc.copy_(sae.b_enc - coder.W_enc @ sae.b_dec if fields.apply_b_dec_to_input else sae.b_enc)
        if fields.rescale_acts_by_decoder_norm:
            folded_norms(coder)
    return coder.eval().requires_grad_(False)


def _tokens_at_site(
    model: Any, tokens: Tensor, keep: Tensor, cfg: CoderConfig, settings: CoderTraining
) -> Iterator[Float[Tensor, "token d_in"]]:
    """Batches of exactly `batch_tokens` tokens, without end, in random order within 8 passes."""
    if not keep.any():
        raise ValueError("a coder is trained on tokens that count; there are none")
    draw = torch.Generator().manual_seed(settings.seed)
    size, waiting = settings.batch_tokens, torch.zeros(0, cfg.d_in)
    wanted = max(size, 8 * settings.rows * tokens.shape[1])
    while True:
        order = torch.randperm(len(tokens), generator=draw)
        for batch in site_batches(model, cfg, tokens[order], None, keep[order], settings.rows):
            waiting = torch.cat([waiting, batch.x[batch.keep].float().cpu()])
            if len(waiting) >= wanted:
                whole, waiting = waiting[torch.randperm(len(waiting), generator=draw)], waiting[:0]
                parts = whole.split(size)
                if len(parts[-1]) < size:
                    waiting = parts[-1]
                    parts = parts[:-1]
                yield from parts
