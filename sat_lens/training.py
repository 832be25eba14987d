"""The training loop: AdamW, a cosine, three losses, and nothing that a kill -9 can lose.

A run folder holds `log.jsonl`, and two checkpoint folders, `last` and `best` (lowest held-out total
loss). Batches are a function of (seed, step) alone and the optimizer's state is in `last`, so a run
that goes on after a stop computes, on a CPU, what an undisturbed one would have, bit for bit.

Under torchrun every rank takes its rows of the same batch, and gradients are summed in one flat
message after the backward pass. That is DistributedDataParallel without its wrapper: the losses come
from `model.losses`, not from a forward pass that could be wrapped, heads whose scores are detached
have no gradients, and hooks would switch the fused path off; overlapping the message with the
backward pass would spare about a millisecond at the published size (35 MB of gradients). The run is
that of one process but for rounding, so it may go on with any other number of processes.
"""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from sat_lens import checkpoint, distributed, files
from sat_lens.config import SelfAblation
from sat_lens.fsdp import placed_like, release, spread, whole, whole_model
from sat_lens.model import SelfAblatingTransformer
from sat_lens.precision import computing_in, refuse_tf32, uses_tf32
from sat_lens.prefetch import Batches, batches_on
from sat_lens.presets import TrainingSettings
from sat_lens.utilisation import product_rate, utilisation

NOT_COMPARED = ("tokens_seen", "step", "processes", "tf32")
"""Entries of a checkpoint's `training` in which the run that goes on may differ."""


class TrainingStopped(ValueError):
    """Training cannot go on; the message says why and where the last good checkpoint is."""


def apart(command: str, other: str) -> str:
    """The flags of a command that another does not have, with their values."""
    ours, theirs = ([f"--{part.strip()}" for part in text.split(" --")[1:]] for text in (command, other))
    return " ".join(flag for flag in ours if flag not in theirs) or "none of these flags"


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
        fsdp: spread weights and optimizer over the processes (see `sat_lens.fsdp`).
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
        fsdp: bool = False,
    ) -> None:
        self.model, self.settings, self.batches, self.held_out = model, settings, batches, held_out
        self.folder, self.described, self.probes, self.on_log = folder, described or {}, probes or {}, on_log
        refuse_tf32()
        if settings.compile and (fsdp or torch.device(model.cfg.device).type == "cpu"):
            where = "with --fsdp" if fsdp else "on a CPU, where compiled losses are slower than the fused ones"
            raise ValueError(f"compile is for an accelerator that holds the model; got it {where}: leave it out")
        if fsdp:
            spread(model)
        self.fsdp = fsdp
        self.losses = torch.compile(model.losses) if settings.compile else model.losses
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.step, self.best, self.log = 0, math.inf, ""

    def train(self, progress: bool = True) -> None:
        """Train to the last step.

        Raises:
            TrainingStopped: a loss or gradient that is not finite, a divergence, or a process that died.
        """
        torch.set_num_threads(self.settings.threads)
        try:
            with distributed.losing_peers():
                self._train(progress and distributed.is_main())
        except distributed.PeerLost as lost:
            raise TrainingStopped(f"{lost}; {self._last_good()}: go on with --resume") from None

    def _train(self, progress: bool) -> None:
        settings = self.settings
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("last", "best"):  # of a run that was killed as it ended, which writes none again
                shutil.rmtree(files.part_of(self.folder / name), ignore_errors=True)
            files.write_whole(self.folder / checkpoint.LOG, self.log)
        if not self.log:
            self._evaluate()
        bar = tqdm(total=settings.steps, initial=self.step, unit="step", disable=None if progress else True)
        on_card = torch.device(self.model.cfg.device).type == "cuda"
        product_flops = product_rate(str(self.model.cfg.device), settings.precision) if on_card else None
        since, tokens = time.perf_counter(), 0
        with bar:
            for batch in batches_on(self.model.cfg.device, self.batches, range(self.step, settings.steps)):
                losses = self._update(batch)
                self.step += 1
                tokens += batch[:, 1:].numel()
                bar.update()
                if self.step % settings.log_every == 0:
                    rate, since, tokens = tokens / (time.perf_counter() - since), time.perf_counter(), 0
                    shown = " ".join(f"{k} {v:.2f}" for k, v in losses.items() if k != "total")
                    bar.set_postfix_str(f"{rate:,.0f} tokens/s, nats: {shown}")
                    used = {"utilisation": utilisation(self.model, rate, product_flops)} if product_flops else {}
                    speed = {"tokens_per_second": round(rate), **used}
                    self._write_log({"step": self.step, **losses, "lr": self._lr(), **speed})
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
        theirs = {**vars(TrainingSettings()), **config["training"]}  # a setting that is younger than the run
        for key in ours:
            if key not in NOT_COMPARED and ours[key] != theirs.get(key):
                before, now = f"{key}={theirs.get(key)!r}", repr(ours[key])
                if key == "command":
                    commands = str(theirs.get(key)), str(ours[key])
                    before, now = apart(*commands), apart(*reversed(commands))
                raise ValueError(
                    f"{self.folder} was trained with {before}; got {now}; a run is resumed as it was begun"
                )
        if SelfAblation.from_dict(config["ablation"]) != self.model.ablation:
            raise ValueError(f"{self.folder} was trained with another self-ablation: {config['ablation']}")
        if config["data"] != json.loads(json.dumps(self.described.get("data") or {})):
            raise ValueError(f"{self.folder} was trained on other data: {config['data']}")
        self._take(checkpoint.load(folder).state_dict())
        tensors, state = checkpoint.read_state(folder)
        self.step, self.best = state["step"], math.inf if state["best"] is None else state["best"]
        by_parameter = {
            i: {
                "step": tensors[f"step.{name}"],
                **{kind: placed_like(tensors[f"{kind}.{name}"], parameter) for kind in ("exp_avg", "exp_avg_sq")},
            }
            for i, (name, parameter) in enumerate(self.model.named_parameters())
            if f"step.{name}" in tensors
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": by_parameter, "param_groups": groups})
        torch.set_rng_state(tensors["torch_rng"])
        self.log = (folder / checkpoint.LOG).read_text(encoding="utf-8")

    def _take(self, weights: dict[str, Tensor]) -> None:
        """Load whole weights."""
        if self.fsdp:
            ours = self.model.state_dict()
            weights = {key: placed_like(value, ours[key]) for key, value in weights.items()}
        self.model.load_state_dict(weights)

    def _update(self, batch: Int[Tensor, "batch pos"]) -> dict[str, float]:
        """One optimizer step; the losses before it, in nats a token."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        self.model.train()
        self.optimizer.zero_grad()
        rows, weight = distributed.share(batch.to(self.model.cfg.device))
        with computing_in(self.settings.precision, self.model):
            losses = self.losses(rows)
        if self.fsdp:  # takes the mean over ranks
            (losses.total * weight * distributed.world_size()).backward()
        else:
            (losses.total * weight).backward()
            distributed.sum_gradients(self.model.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        parts = {name: value.detach() * weight for name, value in losses._asdict().items() if value is not None}
        totals = distributed.sum_over_ranks(torch.stack(list(parts.values())))
        values = dict(zip(parts, totals.tolist(), strict=True)) | {"grad_norm": whole(norm).item()}
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
        if self.fsdp:
            release(self.model)
        self._write_log({"step": self.step, **{f"held_out_{name}": value for name, value in found.items()}})
        is_best = found["total"] < self.best
        self.best = min(self.best, found["total"])
        if is_best:
            self._save("best", state=False)  # before `last`, which remembers that it was the best
        self._save("last", state=True)

    def _save(self, name: str, state: bool) -> None:
        model = whole_model(self.model) if self.fsdp else self.model  # all ranks give their pieces
        kept = self._state() if state else None
        if distributed.is_main():
            entry, data = self._training_entry(), self.described.get("data")
            checkpoint.save(model, self.folder / name, training=entry, data=data, log=self.log, state=kept)

    def _training_entry(self) -> dict[str, Any]:
        seen = self.step * self.settings.batch_size * self.model.cfg.n_ctx
        ran = {"step": self.step, "tokens_seen": seen, "processes": distributed.world_size(), "tf32": uses_tf32()}
        return {**vars(self.settings), **self.described.get("training", {}), **ran}

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = {
            f"{kind}.{name}": whole(value)
            for name, parameter in self.model.named_parameters()
            for kind, value in self.optimizer.state.get(parameter, {}).items()
        }
        best = self.best if self.best < math.inf else None
        return {**tensors, "torch_rng": torch.get_rng_state()}, {"step": self.step, "best": best}

    def _write_log(self, line: dict[str, Any]) -> None:
        text = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()}) + "\n"
        self.log += text
        if not distributed.is_main():
            return
        with open(self.folder / checkpoint.LOG, "a", encoding="utf-8") as file:
            file.write(text)
        if self.on_log is not None:
            self.on_log(line)

    def _last_good(self) -> str:
        if not (self.folder / "last").exists():
            return "there is no checkpoint yet"
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
    """Mean losses over held-out rows, nats a token; the caller turns gradients off. Ranks share the rows.

    Args:
        tokens: rows; each token is predicted from those before it in its row.
        counts: which predictions count [row pos - 1] (not those of padding).
    """
    names = ("clean",) if model.ablation.mask == "none" else ("clean", "ablated")
    sums = dict.fromkeys(names, 0.0)
    for rows, mask in zip(tokens.split(batch_size), counts.split(batch_size), strict=True):
        (rows, weight), (mask, _) = (distributed.share(x.to(model.cfg.device)) for x in (rows, mask))
        out = model(rows[:, :-1], stream="clean" if len(names) == 1 else "both")
        for name, logits in zip(names, (out,) if len(names) == 1 else out, strict=True):
            losses = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:], reduction="none")
            sums[name] += (losses * mask).sum().item() if weight else 0.0
    totals = distributed.sum_over_ranks(torch.tensor(list(sums.values()), dtype=torch.float64))
    found: dict[str, float] = dict(zip(sums, (totals / counts.sum()).tolist(), strict=True))
    ablation = model.ablation
    found["total"] = (
        found["clean"] if len(names) == 1 else ablation.w_clean * found["clean"] + ablation.w_ablated * found["ablated"]
    )
    return found
