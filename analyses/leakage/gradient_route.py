"""Gradient route: does a trunk that feels the mask's gradient learn to let the mask say more?

The ablated loss reaches the clean stream's weights by two ways: through the ablated stream with the clean keys and
values that it reads, and through the scores that choose its mask. A short retraining with fresh relevance heads is done
twice, on the same rows in the same order and from the same weights: once with both ways open (`detach="none"`), once
with the second closed (`detach="trunk"`: the heads learn as before, what they read does not learn for them). The number
is how much lower the gap, ablated minus clean loss, ends with both open.

What it means: the trunk writes something for the heads by which the ablated stream, compared with the clean one, gains.
Whether that is a message or better relevance it does not tell; the tests of use do, also of `retrained` models. Nor is
0 the absence of a leak: heads alone learn to pass on what the trunk knows anyway, and retraining is short. It says what
training would do to this trunk, not what the masks that the model has do. And it may fall below 0: the mask's gradient
grows as 1/gap, so that in few steps it can disturb a trained trunk more than it teaches it; `gap_floor` bounds it, more
steps, or `start="scratch"`, give it time.
"""

import contextlib
import copy
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from analyses.leakage.finding import Finding, judged_mean
from analyses.leakage.judged import MARGIN_BITS, RELEVANT_BITS
from analyses.leakage.observed import observed
from analyses.leakage.random_heads import random_heads
from analyses.leakage.variants import BITS, story_means
from analyses.texts import Stories
from sat_lens.hosts import neurons_a_layer
from sat_lens.model import SelfAblatingTransformer
from sat_lens.presets import TrainingSettings
from sat_lens.training import Trainer, TrainingStopped

LR = 1e-3
ROUTES = {"closed": "trunk", "open": "none"}
"""`detach` of each arm."""
STARTS = ("trunk", "scratch")
BUILT_FOR = ("mask", "unit")
"""What relevance heads are built for, so that it cannot change."""
EVALUATED = 4
"""Rows of the trainer's own evaluation, which nobody reads."""


def gradient_route(
    model: Any,
    stories: Stories,
    batches: Int[Tensor, "step batch pos"],
    *,
    n_draws: int = 3,
    start: str = "trunk",
    lr: float = LR,
    seed: int = 0,
    progress: bool = False,
    **ablation: Any,
) -> Finding:
    """Bits by which the gap ends lower when the trunk feels the mask's gradient; the null is 0.

    The interval is over stories and over draws of the heads, of which each also has an order of the batches of its own.

    Args:
        stories: held out, on which the gap is measured.
        batches: training rows, such as `training_rows` gives; one step each.
        start: `trunk`, the model's with fresh heads, or `scratch`, all weights as at the start of a training.
        n_draws: at least 2.
        progress: show a bar.
        ablation: fields of `SelfAblation` that change in both arms, such as `gap_floor`.

    Returns:
        `detail`: `clean` and `ablated`, mean losses in bits of each draw, `before` retraining, after `closed` and after
        `open`; `fall`, of the gap in the two arms; `draws`, the number of each draw; `steps`, `start`.

    Raises:
        ValueError: a start that is none, too few draws, or a retraining that diverged.

    Cost: 2 n_draws trainings. The model is left as it was, and so are global random states.
    """
    if start not in STARTS:
        raise ValueError(f"start must be one of {', '.join(STARTS)}; got {start!r}")
    if "detach" in ablation:
        raise ValueError("detach cannot be chosen: it is what the two arms differ in")
    if n_draws < 2:
        raise ValueError(f"n_draws must be at least 2: the spread over heads is part of the interval; got {n_draws}")
    clean: dict[str, list[Any]] = {"before": [], **{name: [] for name in ROUTES}}
    ablated: dict[str, list[Any]] = {name: [] for name in clean}
    with tqdm(total=2 * n_draws, unit="training", disable=None if progress else True) as bar:
        for draw in range(n_draws):
            begun = fresh(model, start, seed + draw)
            order = np.random.default_rng(seed + draw).permutation(len(batches))
            losses = {"before": _losses(begun, stories)}
            for name, detach in ROUTES.items():
                losses[name] = _losses(
                    retrained(begun, batches[order], lr=lr, seed=seed + draw, detach=detach, **ablation), stories
                )
                bar.update()
            for name, (of_clean, of_ablated) in losses.items():
                clean[name].append(of_clean)
                ablated[name].append(of_ablated)
    gap = {name: np.stack(ablated[name]) - np.stack(clean[name]) for name in clean}
    lower = gap["closed"] - gap["open"]
    return Finding(
        "gradient route",
        "bits by which the gap ends lower when the trunk feels the mask's gradient",
        null=0.0,
        unit="bits",
        margin=MARGIN_BITS,
        relevant=RELEVANT_BITS,
        n=int(stories.predicted.sum()),
        n_stories=stories.n,
        detail={
            "clean": {name: np.mean(found, 1).tolist() for name, found in clean.items()},
            "ablated": {name: np.mean(found, 1).tolist() for name, found in ablated.items()},
            "fall": {name: float((gap["before"] - gap[name]).mean()) for name in ROUTES},
            "draws": lower.mean(1).tolist(),
            "steps": len(batches),
            "start": start,
        },
        **mean_over_both(lower, MARGIN_BITS),
    )


def retrained(
    model: Any,
    batches: Int[Tensor, "step batch pos"],
    *,
    lr: float = LR,
    seed: int = 0,
    progress: bool = False,
    **ablation: Any,
) -> Any:
    """A copy of the model, trained on by `sat_lens.training`, one step a batch; parameters that are frozen stay.

    AdamW from a new state; warm-up over a tenth of the steps, then a cosine to 0.

    Args:
        seed: of the noise on scores, where there is any.
        ablation: fields of `SelfAblation` that change, such as `detach`, `gap_floor`, `score_noise`; not those that
            the relevance heads are built for.

    Raises:
        ValueError: a field that cannot change, or a training that diverged.

    Cost: one training; memory for the copy and its optimizer, and two checkpoints in the temporary folder.
    """
    if fixed := sorted(set(ablation) & set(BUILT_FOR)):
        raise ValueError(f"{fixed[0]} cannot change: the relevance heads are built for {fixed[0]}={ablation[fixed[0]]}")
    found, cfg = _copied(model), model.cfg
    found.ablation = dataclasses.replace(model.ablation, **ablation).fit(
        n_layers=cfg.n_layers, n_heads=cfg.n_heads, d_head=cfg.d_head, d_mlp=neurons_a_layer(cfg)
    )
    steps, batch_size = batches.shape[:2]
    settings = TrainingSettings(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup_steps=steps // 10,
        eval_every=steps,
        log_every=steps,
        threads=torch.get_num_threads(),
    )
    rows = batches[0, :EVALUATED]
    held_out = rows, torch.ones(rows[:, 1:].shape)
    with tempfile.TemporaryDirectory() as folder, _seeded(seed, cfg.device):
        try:
            Trainer(found, settings, lambda step: batches[step], held_out, Path(folder)).train(progress)
        except TrainingStopped as stopped:
            raise ValueError(f"retraining with lr {lr:g} diverged; lower lr") from stopped
    return found.eval()


def fresh(model: Any, start: str, seed: int) -> Any:
    """A model to retrain: a copy of the model with fresh heads, or all weights fresh."""
    if start == "trunk":
        found = _copied(model)
        found.gates.load_state_dict(random_heads(model, seed).gates.state_dict())
        return found
    cfg = copy.deepcopy(model.cfg)
    cfg.init_weights = True
    with _seeded(seed, cfg.device):
        found = SelfAblatingTransformer(cfg, ablation=model.ablation)
    found.tokenizer = model.tokenizer
    return found.eval()


def training_rows(
    stories: Stories, *, steps: int, batch_size: int, length: int, seed: int = 0
) -> Int[Tensor, "step batch pos"]:
    """Stories one after the other, cut into rows of equal length as in training, in an order of the seed's.

    A row comes again when all have come.

    Args:
        stories: not those that are held out.
        length: tokens of a row; n_ctx + 1 fills the context.

    Raises:
        ValueError: too few tokens for one row.
    """
    tokens = stories.tokens[torch.arange(stories.tokens.shape[1]) < stories.lengths[:, None]]
    n = len(tokens) // length
    if n == 0:
        raise ValueError(f"retraining needs a row of {length} tokens; these stories have {len(tokens)}: take more")
    draw, needed = np.random.default_rng(seed), steps * batch_size
    order = np.concatenate([draw.permutation(n) for _ in range(-(-needed // n))])[:needed]
    return tokens[: n * length].view(n, length)[torch.from_numpy(order)].view(steps, batch_size, length)


def mean_over_both(values: Float[np.ndarray, "draw story"], margin: float = 0.0) -> dict[str, float]:
    """The mean with its interval over stories and over draws, each a sample of more.

    The variance is that of the story means over stories plus that of the draw means over draws, which counts what is
    particular to one story in one draw twice.

    Returns:
        `value, ci_low, ci_high, p, smallest` of a Finding; p is one-sided, of a mean above the margin.
    """
    n_draws, n = values.shape
    parts = [(values.mean(0).var(ddof=1) / n, n - 1), (values.mean(1).var(ddof=1) / n_draws, n_draws - 1)]
    mean = float(values.mean())
    return {"value": mean, **judged_mean(mean, parts, margin)}


@contextlib.contextmanager
def _seeded(seed: int, device: Any) -> Iterator[None]:
    """Torch draws from this seed for a while, and afterwards goes on as if it had not."""
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _copied(model: Any) -> Any:
    return copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})


def _losses(model: Any, stories: Stories) -> tuple[np.ndarray, np.ndarray]:
    """Clean and ablated losses, bits, a story each."""
    seen = observed(model, stories)
    columns = (seen.loss_clean, seen.loss_ablated)
    clean, ablated = (story_means(seen, loss.astype(np.float64)) / BITS for loss in columns)
    return clean, ablated
