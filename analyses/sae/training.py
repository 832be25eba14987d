"""An SAE trained by sae-lens on what passes a hook point of a model, and kept in sae-lens' own format.

sae-lens' runner does it, with our model as `override_model`. It writes `cfg.json`, `runner_cfg.json`,
`sae_weights.safetensors` and `sparsity.safetensors`; its checkpoints in between, whose optimizer state is a pickle, are
switched off, and so is wandb.

Source: sae-lens 6.54; arXiv 2309.08600 (sparse autoencoders of language models).
"""

import contextlib
import io
import logging
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from analyses.sae.settings import Settings

MISSING = "SAEs are trained by sae-lens, which is not installed: pip install sat_lens[sae]"


def require_sae_lens() -> Any:
    """The package, imported.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import sae_lens
    except ImportError:
        raise ValueError(MISSING) from None
    return sae_lens


def trained_sae(
    model: Any,
    windows: Int[Tensor, "window pos"],
    hook: str,
    coefficient: float,
    settings: Settings,
    folder: Path | None = None,
    *,
    separator: int | None = None,
    progress: bool = False,
) -> Any:
    """A standard SAE (ReLU, L1) of sae-lens, in evaluation mode.

    Args:
        model: a HookedTransformer.
        windows: text to train on, rows of one length.
        hook: a hook point of the residual stream's width.
        coefficient: of the L1 penalty.
        folder: where it is kept; None: nowhere.
        separator: a token whose activations are left out; None: all count.
        progress: show sae-lens' bar on stderr.

    Raises:
        ValueError: sae-lens is not installed.

    Cost: `settings.n_tokens` tokens through the model as far as the site, and through the SAE.
    """
    require_sae_lens()
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, StandardTrainingSAEConfig
    from sae_lens.config import LoggingConfig

    steps, width = settings.n_steps, model.cfg.d_model
    device = str(model.cfg.device)
    sae = StandardTrainingSAEConfig(
        d_in=width, d_sae=settings.expansion * width, l1_coefficient=coefficient,
        l1_warm_up_steps=int(settings.warmup * steps), lp_norm=1.0, apply_b_dec_to_input=False, device=device,
        normalize_activations="expected_average_only_in", decoder_init_norm=0.1,
    )  # fmt: skip
    with _quiet(progress), _undisturbed(settings.seed):
        cfg = LanguageModelSAERunnerConfig(
            sae=sae, model_name="sat_lens", hook_name=hook, dataset_path="", streaming=False, prepend_bos=False,
            context_size=windows.shape[1], training_tokens=steps * settings.batch_tokens,
            train_batch_size_tokens=settings.batch_tokens, store_batch_size_prompts=settings.rows,
            n_batches_in_buffer=settings.buffer_rows, n_batches_for_norm_estimate=settings.norm_batches,
            lr=settings.lr, lr_scheduler_name="constant", lr_decay_steps=int(settings.decay * steps),
            adam_beta1=settings.beta1, adam_beta2=0.999, seed=settings.seed, device=device, verbose=False,
            exclude_special_tokens=False if separator is None else [separator],
            logger=LoggingConfig(log_to_wandb=False), n_checkpoints=0, checkpoint_path=None,
            save_final_checkpoint=False, output_path=None if folder is None else str(folder),
        )  # fmt: skip
        dataset = Dataset.from_dict({"tokens": windows.numpy()})
        runner = LanguageModelSAETrainingRunner(cfg, override_dataset=dataset, override_model=model)
        found = runner.run()
    return found.eval().requires_grad_(False)


@contextlib.contextmanager
def _undisturbed(seed: int) -> Iterator[None]:
    """Random numbers and signal handlers are, afterwards, as they were."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _quiet(progress: bool) -> Iterator[None]:
    """Without the warnings of an override; without the bar, unless it is wanted."""
    logger = logging.getLogger("sae_lens")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore")
            if not progress:
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        logger.setLevel(level)
