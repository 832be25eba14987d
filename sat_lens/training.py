"""The training loop: AdamW, a cosine, three losses, and nothing that a kill -9 can lose.

A run folder holds `log.jsonl`, and two checkpoint folders, `last` and `best` (lowest held-out total
loss). Batches are a function of (seed, step) alone and the optimizer's state is in `last`, so a run
that goes on after a stop computes, on a CPU, what an undisturbed one would have, bit for bit.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from sat_lens import checkpoint, files
from sat_lens.model import SelfAblatingTransformer
from sat_lens.presets import TrainingSettings

Batches = Callable[[int], Int[Tensor, "batch pos"]]


class TrainingStopped(ValueError):
    """Training cannot go on; the message says why and where the last good checkpoint is."""


class Trainer:
    """What changes while a model is trained.

    Args:
        model: trained in place.
        settings: see `TrainingSettings`.
        batches: training tokens [batch pos] of a step, a pure function of the step.
        held_out: tokens [row pos] and which of them count as targets [row pos - 1].
        folder: the run folder.
        described: what else the checkpoints' `training` and `data` entries should say.
        probes: named functions of the model whose numbers are logged at each evaluation.
        on_log: also told every line of the log (wandb, TensorBoard).
    """

    def __init__(
        self,
        model: SelfAblatingTransformer,
        settings: TrainingSettings,
        batches: Batches,
        held_out: tuple[Int[Tensor, "row pos"], Tensor],
        folder: Path,
        described: dict[str, dict[str, Any]] | None = None,
        probes: dict[str, Callable[[SelfAblatingTransformer], float]] | None = None,
        on_log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.model, self.settings, self.batches, self.held_out = model, settings, batches, held_out
        self.folder, self.described, self.probes, self.on_log = folder, described or {}, probes or {}, on_log
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, foreach=True
        )
        self.step, self.best, self.log = 0, math.inf, ""

    def train(self, progress: bool = True) -> None:
        """Train to the last step.

        Raises:
            TrainingStopped: a loss or gradient that is not finite, or a divergence.
        """
        settings = self.settings
        torch.set_num_threads(settings.threads)
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_whole(self.folder / checkpoint.LOG, self.log)
        if not self.log:
            self._evaluate()
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", disable=None if progress else True)
        since, tokens = time.perf_counter(), 0
        with bar:
            while self.step < settings.steps:
                batch = self.batches(self.step)
                losses = self._update(batch)
                self.step += 1
                tokens += batch[:, 1:].numel()
                bar.update()
                if self.step % settings.log_every == 0:
                    rate, since, tokens = tokens / (time.perf_counter() - since), time.perf_counter(), 0
                    bar.set_postfix_str(" ".join(f"{k} {v:.3f}" for k, v in losses.items()) + f" {rate:,.0f} tok/s")
                    self._write_log({"step": self.step, **losses, "lr": self._lr(), "tokens_per_second": round(rate)})
                if self.step % settings.eval_every == 0 or self.step == settings.steps:
                    self._evaluate()
                    since, tokens = time.perf_counter(), 0

    def resume(self) -> None:
        """Take up the run from its `last` checkpoint.

        Raises:
            CheckpointError: no checkpoint with a training state, or a damaged one.
            ValueError: the run was made with other settings.
        """
        folder = files.recovered(self.folder / "last")
        if not (folder / checkpoint.CONFIG).is_file():
            raise ValueError(f"{self.folder} has no checkpoint to resume from; start it without --resume")
        checkpoint.verify_files(folder)
        config = checkpoint.read_config(folder)
        ours = json.loads(json.dumps(self._training_entry()))
        theirs = {key: config["training"].get(key) for key in ours}
        for key in ours:
            if key not in ("tokens_seen", "step") and ours[key] != theirs[key]:
                raise ValueError(f"{self.folder} was trained with {key}={theirs[key]!r}; got {ours[key]!r}")
        if config["ablation"] != self.model.ablation.to_dict():
            raise ValueError(f"{self.folder} was trained with another self-ablation: {config['ablation']}")
        if config["data"] != json.loads(json.dumps(self.described.get("data") or {})):
            raise ValueError(f"{self.folder} was trained on other data: {config['data']}")
        self.model.load_state_dict(checkpoint.load(folder, str(self.model.cfg.device)).state_dict())
        tensors, state = checkpoint.read_state(folder)
        self.step, self.best = state["step"], math.inf if state["best"] is None else state["best"]
        by_parameter = {
            i: {kind: tensors[f"{kind}.{name}"] for kind in ("exp_avg", "exp_avg_sq", "step")}
            for i, (name, _) in enumerate(self.model.named_parameters())
            if f"step.{name}" in tensors
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})
        torch.set_rng_state(tensors["torch_rng"])
        self.log = (folder / checkpoint.LOG).read_text(encoding="utf-8")

    def _update(self, batch: Int[Tensor, "batch pos"]) -> dict[str, float]:
        """One optimizer step; the losses before it, in nats a token."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.model.train()
        self.optimizer.zero_grad()
        losses = self.model.losses(batch.to(self.model.cfg.device))
        losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        values = {name: value.item() for name, value in losses._asdict().items() if value is not None}
        values["grad_norm"] = norm.item()
        if not all(math.isfinite(value) for value in values.values()):
            raise TrainingStopped(f"step {self.step + 1}: {values} is not finite; {self._last_good()}")
        if self.best < math.inf and values["total"] > 2 * self.best + 2:
            raise TrainingStopped(
                f"step {self.step + 1}: diverged, loss {values['total']:.2f} nats a token after a best of "
                f"{self.best:.2f}; lower the learning rate; {self._last_good()}"
            )
        self.optimizer.step()
        return values

    def _lr(self) -> float:
        """Linear warm-up, then a cosine to 0 at the last step."""
        s = self.settings
        if self.step < s.warmup_steps:
            return s.lr * (self.step + 1) / s.warmup_steps
        share = (self.step - s.warmup_steps) / max(1, s.steps - s.warmup_steps)
        return s.lr * (1 + math.cos(math.pi * share)) / 2

    def _evaluate(self) -> None:
        """Held-out losses and probes; write `last`, and `best` if it is."""
        with evaluating(self.model):
            found = held_out_losses(self.model, *self.held_out)
            found |= {name: probe(self.model) for name, probe in self.probes.items()}
        self._write_log({"step": self.step, **{f"held_out_{name}": value for name, value in found.items()}})
        is_best = found["total"] < self.best
        self.best = min(self.best, found["total"])
        if is_best:
            self._save("best", state=False)  # before `last`, which remembers that it was the best
        self._save("last", state=True)

    def _save(self, name: str, state: bool) -> None:
        checkpoint.save(
            self.model,
            self.folder / name,
            training=self._training_entry(),
            data=self.described.get("data"),
            log=self.log,
            state=self._state() if state else None,
        )

    def _training_entry(self) -> dict[str, Any]:
        seen = self.step * self.settings.batch_size * self.model.cfg.n_ctx
        return {**vars(self.settings), **self.described.get("training", {}), "step": self.step, "tokens_seen": seen}

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {
            f"{kind}.{name}": value
            for name, parameter in self.model.named_parameters()
            for kind, value in self.optimizer.state.get(parameter, {}).items()
        }
        best = self.best if self.best < math.inf else None
        return {**tensors, "torch_rng": torch.get_rng_state()}, {"step": self.step, "best": best}

    def _write_log(self, line: dict[str, Any]) -> None:
        text = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n"
        self.log += text
        with open(self.folder / checkpoint.LOG, "a", encoding="utf-8") as file:
            file.write(text)
        if self.on_log is not None:
            self.on_log(line)

    def _last_good(self) -> str:
        return f"the last good checkpoint is {self.folder / 'last'}"


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode and no gradients, for a while."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def held_out_losses(
    model: SelfAblatingTransformer, tokens: Int[Tensor, "row pos"], counts: Tensor, batch_size: int = 32
) -> dict[str, float]:
    """Mean losses over held-out rows, nats a token; the caller turns gradients off.

    Args:
        tokens: rows; each token is predicted from those before it in its row.
        counts: which predictions count [row pos - 1] (not those of padding).
    """
    names = ("clean",) if model.ablation.mask == "none" else ("clean", "ablated")
    sums = dict.fromkeys(names, 0.0)
    for rows, mask in zip(tokens.split(batch_size), counts.split(batch_size), strict=True):
        rows, mask = rows.to(model.cfg.device), mask.to(model.cfg.device)
        out = model(rows[:, :-1], stream="clean" if len(names) == 1 else "both")
        for name, logits in zip(names, (out,) if len(names) == 1 else out, strict=True):
            losses = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none")
            sums[name] += (losses * mask).sum().item()
    found = {name: value / counts.sum().item() for name, value in sums.items()}
    ablation = model.ablation
    found["total"] = (
        found["clean"] if len(names) == 1 else ablation.w_clean * found["clean"] + ablation.w_ablated * found["ablated"]
    )
    return found
