"""The training loop of toy models: AdamW on the answers' tokens, the autoencoder's loss beside it.

Batches are a function of (seed, step) alone, and `last` holds the optimizer, so that a run that goes on after a stop
computes on a CPU what an undisturbed one would have. Which evaluation is `best`, `best_by` says.

    loss = CE + alpha MSE(recons, r) + l1 mean ||a||_1     (joint; without masks)
    loss = 1/2 CE(clean) + 1/2 CE(ablated)                 (with masks)
"""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sat_lens import checkpoint, files
from sat_lens.toy.arithmetic import TASKS, Problems
from sat_lens.toy.config import ToyConfig
from sat_lens.toy.model import DecoderToy, answer_losses, counted, exact_match, recorded, states
from sat_lens.toy.runs import STATE, ToyRun, fresh, load_toy, read_entries, save_toy
from sat_lens.toy.side_sae import SideSAE, sae_figures

TRAIN_ROWS = 2000
"""Training examples that an evaluation looks at."""


def train_toy(
    config: ToyConfig, folder: Path | str | None = None, *, resume: bool = False, init_from: Path | str | None = None,
    progress: bool = True,
) -> ToyRun:  # fmt: skip
    """Train a toy model to its last step; returns the best of its evaluations.

    Args:
        folder: gets `last` and `best`; None: nothing is written.
        resume: go on from `last`, where there is one.
        init_from: a finished run whose model a post hoc autoencoder is trained on; None: train the model first.
        progress: show a bar.

    Raises:
        ValueError: a folder that holds a run already, one of another configuration, or one that another process
            writes to; a loss that is not finite.
    """
    if folder is None:
        return trained(config, None, resume, init_from, progress)
    with files.locked(folder):
        return trained(config, Path(folder), resume, init_from, progress)


def trained(
    config: ToyConfig, folder: Path | None, resume: bool, init_from: Path | str | None, progress: bool
) -> ToyRun:
    """`train_toy`, with the folder held against other processes."""
    run, optimizer, best = started(config, folder, resume)
    if init_from is not None:
        run = taken(run, init_from)
    else:
        stepped(run, optimizer, best, folder, progress)
        if folder is not None:
            run = load_toy(folder / "best")
        elif best["weights"] is not None:
            put(run, best["weights"])
            run.step = best["step"]
    if config.sae == "posthoc":
        train_posthoc(run, progress)
        if folder is not None:
            save_toy(run, folder / "best", best_step=run.step)
    run.toy.net.eval()
    run.folder = None if folder is None else folder / "best"
    return run


def started(
    config: ToyConfig, folder: Path | None, resume: bool
) -> tuple[ToyRun, torch.optim.Optimizer, dict[str, Any]]:
    """A run at its first step, or where it was stopped, with its optimizer and the best so far."""
    last = None if folder is None else files.recovered(folder / "last")
    if last is None or not last.exists():
        run = fresh(config)
        return run, optimizer_of(run), {"score": None, "step": 0, "weights": None}
    if not resume:
        raise ValueError(f"{folder} holds a run already; pass --resume to go on, or another folder")
    stored = read_entries(last)
    run = load_toy(last)
    if run.config != config:
        field = next(
            f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(run.config, f.name)
        )
        raise ValueError(
            f"{folder} was trained with {field}={getattr(run.config, field)!r}; got {getattr(config, field)!r}"
        )
    optimizer = optimizer_of(run)
    if (last / STATE).is_file():
        kept = checkpoint.read_weights(last / STATE, finite=False)
        state = {
            i: {kind: kept[f"{kind}.{name}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
            for i, name in enumerate(names_of(run))
            if f"step.{name}" in kept
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return run, optimizer, {"score": stored["best_score"], "step": stored["best_step"], "weights": None}


def stepped(
    run: ToyRun, optimizer: torch.optim.Optimizer, best: dict[str, Any], folder: Path | None, progress: bool
) -> None:
    """All steps that are left."""
    config, train = run.config, run.data.part("train")
    began, spent = time.process_time(), run.history[-1]["cpu_seconds"] if run.history else 0.0
    if run.step == 0:
        judged(run, optimizer, best, folder, 0.0)
    bar = tqdm(total=config.steps, initial=run.step, unit="step", disable=None if progress else True)
    with bar:
        while run.step < config.steps:
            loss = updated(run, optimizer, train.subset(batch_rows(len(train), config, run.step)))
            run.step += 1
            bar.update()
            if run.step % config.eval_every == 0 or run.step == config.steps:
                judged(run, optimizer, best, folder, spent + time.process_time() - began, loss)
                found = run.history[-1]
                bar.set_postfix_str(" ".join(f"{task} {found[f'val_{task}']:.3f}" for task in TASKS))


def batch_rows(n: int, config: ToyConfig, step: int) -> Tensor:
    """Rows of the batch of a step: epochs are shuffled, and what does not fill a batch is left out."""
    size = min(config.batch_size, n)
    epoch, at = divmod(step, n // size)
    generator = torch.Generator().manual_seed((config.seed << 24) + epoch)
    return torch.randperm(n, generator=generator)[at * size : (at + 1) * size]


def learning_rate(config: ToyConfig, step: int) -> float:
    """Linear warm-up, then constant, or a cosine to a twentieth."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant":
        return config.lr * warm
    return config.lr * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / config.steps)) / 2)


def updated(run: ToyRun, optimizer: torch.optim.Optimizer, batch: Problems) -> float:
    """One optimizer step; the loss before it, nats a token."""
    config = run.config
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, run.step)
    run.toy.net.train()
    optimizer.zero_grad()
    loss = total_loss(run, batch)
    if not math.isfinite(value := loss.item()):
        raise ValueError(f"step {run.step + 1}: the loss is not finite; lower the learning rate")
    loss.backward()
    if config.grad_clip:
        torch.nn.utils.clip_grad_norm_(
            [p for group in optimizer.param_groups for p in group["params"]], config.grad_clip
        )
    optimizer.step()
    return value


def total_loss(run: ToyRun, batch: Problems) -> Tensor:
    """What is minimised, nats a token plus the autoencoder's weighted terms."""
    config, toy, joint = run.config, run.toy, run.sae is not None and run.config.sae == "joint"
    names = [toy.site] if joint else []
    if isinstance(toy, DecoderToy) and config.mask != "none":
        with recorded(toy.net, names) as seen:
            both = toy.net(toy.sequence(batch.source, batch.answer), stream="both")
        ablation = toy.net.ablation
        parts = [token_loss(toy.answering(logits), batch.answer, config.score_padding) for logits in both]
        loss = ablation.w_clean * parts[0] + ablation.w_ablated * parts[1]
        held = {name: toy.answering(x) for name, x in seen.items()}
    else:
        logits, held = toy.run(batch.source, batch.answer, names)
        loss = token_loss(logits, batch.answer, config.score_padding)
    if joint:
        counts = counted(batch.answer, config.score_padding)
        loss = loss + run.sae.loss(held[toy.site], counts, config.alpha, config.l1)
    return loss


def token_loss(logits: Tensor, answer: Tensor, padding: bool) -> Tensor:
    """Mean over the tokens that count, of all answers together."""
    counts = counted(answer, padding)
    return torch.nn.functional.cross_entropy(logits[counts], answer[counts])


def optimizer_of(run: ToyRun) -> torch.optim.Optimizer:
    """AdamW; weight decay for the network's matrices, or for everything."""
    config = run.config
    named = dict(zip(names_of(run), parameters_of(run), strict=True))
    decays = [config.decay == "all" or (p.ndim > 1 and name.startswith("net.")) for name, p in named.items()]
    groups = [
        {"params": [p], "weight_decay": config.weight_decay if decay else 0.0}
        for p, decay in zip(named.values(), decays, strict=True)
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), foreach=True)


def names_of(run: ToyRun) -> list[str]:
    joint = run.sae.named_parameters() if run.sae is not None and run.config.sae == "joint" else ()
    return [f"net.{name}" for name, _ in run.toy.net.named_parameters()] + [f"sae.{name}" for name, _ in joint]


def parameters_of(run: ToyRun) -> list[Tensor]:
    joint = run.sae.parameters() if run.sae is not None and run.config.sae == "joint" else ()
    return [*run.toy.net.parameters(), *joint]


def judged(
    run: ToyRun, optimizer: torch.optim.Optimizer, best: dict[str, Any], folder: Path | None, seconds: float,
    loss: float | None = None,
) -> None:  # fmt: skip
    """Evaluate, note it in the history, and write `best` (if it is) and `last`."""
    found = evaluation(run)
    run.history.append({"step": run.step, "loss": loss, **found, "cpu_seconds": round(seconds, 1)})
    score = scored(found, run.config.best_by)
    if best["score"] is None or score > best["score"]:
        best.update(score=score, step=run.step)
        if folder is None:
            best["weights"] = [p.detach().clone() for p in parameters_of(run)]
        else:
            save_toy(run, folder / "best", best_step=run.step)
    if folder is not None:
        kept = optimizer.state_dict()["state"]
        state = {
            f"{kind}.{name}": value for i, name in enumerate(names_of(run)) for kind, value in kept.get(i, {}).items()
        }
        save_toy(run, folder / "last", state=state, best_score=best["score"], best_step=best["step"])


def scored(found: dict[str, Any], best_by: str) -> list[float]:
    """What is to be as large as possible, the first number first."""
    right = [value for key, value in found.items() if key.startswith("val_") and not key.endswith("loss")]
    return [sum(right) / len(right) if best_by == "accuracy" else 0.0, -found["val_loss"]]


def evaluation(run: ToyRun) -> dict[str, Any]:
    """Loss (nats a token), exact match by task (0..1) and, with a joint autoencoder, its sparsity and error."""
    found: dict[str, Any] = {}
    for name in ("train", "val"):
        part = run.data.part(name)
        part = part.subset(torch.arange(min(len(part), TRAIN_ROWS))) if name == "train" else part
        joint = run.sae is not None and run.config.sae == "joint" and name == "val"
        logits, held = states(run.toy, part, [run.toy.site] if joint else [])
        found[f"{name}_loss"] = answer_losses(logits, part.answer, run.config.score_padding).mean().item()
        found |= accuracies(logits, part, name)
        if joint:
            x = held[run.toy.site][counted(part.answer, run.config.score_padding)]
            found |= {key: value for key, value in sae_figures(run.sae, x).items() if key != "density"}
        if run.config.mask != "none":
            logits, _ = states(run.stream("ablated"), part, [])
            ablated = answer_losses(logits, part.answer, run.config.score_padding).mean().item()
            found |= accuracies(logits, part, f"{name}_ablated") | {f"{name}_ablated_loss": ablated}
            found[f"{name}_loss"] = (found[f"{name}_loss"] + ablated) / 2
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items()}


def accuracies(logits: Tensor, part: Problems, name: str) -> dict[str, float]:
    """Share of answers that are right, by task; a task without examples is left out."""
    right = exact_match(logits, part.answer).float()
    rows = {task: part.task == i for i, task in enumerate(TASKS)}
    return {f"{name}_{task}": right[mask].mean().item() for task, mask in rows.items() if mask.any()}


def put(run: ToyRun, weights: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters_of(run), weights, strict=True):
            parameter.copy_(value)


def taken(run: ToyRun, init_from: Path | str) -> ToyRun:
    """A run with the model of another one and an autoencoder of its own."""
    other = load_toy(init_from)
    if run.config.sae != "posthoc":
        raise ValueError(f"a model to begin from is for sae 'posthoc'; got {run.config.sae!r}")
    model_fields = [f.name for f in dataclasses.fields(ToyConfig) if not f.name.startswith("sae")]
    model_fields = [name for name in model_fields if name not in ("n_latents", "alpha", "l1")]
    for name in model_fields:
        if getattr(run.config, name) != getattr(other.config, name):
            theirs, ours = getattr(other.config, name), getattr(run.config, name)
            raise ValueError(f"{init_from} was trained with {name}={theirs!r}; got {ours!r}")
    return dataclasses.replace(run, toy=other.toy, data=other.data, history=other.history, step=other.step)


def train_posthoc(run: ToyRun, progress: bool = True) -> None:
    """Train an autoencoder on the finished model's states of the training examples; its figures end the history.

    Cost: `sae_steps` steps of 1,024 states, which are computed once.
    """
    config, train = run.config, run.data.part("train")
    logits, held = states(run.toy, train, [run.toy.site])
    del logits
    x = held[run.toy.site][counted(train.answer, config.score_padding)][:, None]
    counts = torch.ones(x.shape[:2], dtype=torch.bool)
    run.sae = SideSAE(config.d_model, config.n_latents, config.seed)
    optimizer = torch.optim.Adam(run.sae.parameters(), lr=config.sae_lr)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in tqdm(range(config.sae_steps), unit="step", disable=None if progress else True):
        rows = torch.randint(len(x), (1024,), generator=generator)
        optimizer.zero_grad()
        loss = run.sae.loss(x[rows], counts[rows], config.alpha, config.l1)
        loss.backward()
        optimizer.step()
    val = run.data.part("val")
    _, held = states(run.toy, val, [run.toy.site])
    found = sae_figures(run.sae, held[run.toy.site][counted(val.answer, config.score_padding)])
    kept = {key: round(value, 6) for key, value in found.items() if key != "density"}
    run.history.append({"step": run.step, "sae_step": config.sae_steps, **kept})
