"""Training a coder on what passes its site: streamed through the model, never stored.

A pass runs some rows of tokens as far as the site, shuffles their tokens, and takes a few optimizer steps on them. Rows
and their order are a function of (seed, pass) alone, and the optimizer's state is in the folder, so that a run that
goes on after a stop computes, on a CPU, what an undisturbed one would have, bit for bit.

Adam at 2e-4 / sqrt(n_latents / 2^14), linear warm-up, then linearly to 0; the loss and the start are in
`sat_lens.coders.objective`. sae-lens trains top-k SAEs, too (`sat_lens.coders.sae_lens_trainer`), and is not used here:
it does not train skip transcoders, and its trainer's state is a pickle, which is not read.

Source: arXiv 2501.18823 and its code (Adam, loss, start); differs: several steps a pass over the model, so that short
runs take enough of them.
"""

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sat_lens import checkpoint, files
from sat_lens.checkpoint import LOG, STATE, WEIGHTS
from sat_lens.coders.coder import Coder, CoderConfig
from sat_lens.coders.folder import coder_of, load_coder, read_config, read_entries, save_coder
from sat_lens.coders.objective import initialise, losses, remove_parallel_gradient, unit_rows
from sat_lens.coders.sites import kept_tokens, site_batches
from sat_lens.memory import require
from sat_lens.precision import refuse_tf32
from sat_lens.training import TrainingStopped

REFERENCE_LATENTS = 2**14


@dataclasses.dataclass(frozen=True)
class CoderTraining:
    """How a coder is trained.

    Args:
        n_tokens: tokens learned from; those given are gone through again where there are fewer.
        lr: None: 2e-4 / sqrt(n_latents / 2^14).
        warmup_steps: of linear warm-up; at most a tenth of the run.
        batch_tokens: tokens of an optimizer step.
        rows: rows of tokens of a pass through the model.
        aux: weight of AuxK.
        dead_tokens: a latent is dead when it has not been active for so many tokens.
        save_every: passes between two saved states.
        seed: of the encoder and of the order.

    Raises:
        ValueError: a number that makes no sense.
    """

    n_tokens: int = 10_000_000
    lr: float | None = None
    warmup_steps: int = 1000
    batch_tokens: int = 512
    rows: int = 32
    aux: float = 0.0
    dead_tokens: int = 10_000_000
    save_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("n_tokens", "batch_tokens", "rows", "dead_tokens", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.warmup_steps < 0 or self.aux < 0:
            raise ValueError(f"warmup_steps and aux must be at least 0; got {self.warmup_steps} and {self.aux}")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be above 0; got {self.lr}")


def train_coder(
    model: Any,
    tokens: Int[Tensor, "row pos"],
    cfg: CoderConfig,
    settings: CoderTraining | None = None,
    *,
    lengths: Int[Tensor, " row"] | None = None,
    keep: Bool[Tensor, "row pos"] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    described: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = False,
) -> Coder:
    """A coder of the model's activations, with gradients off.

    Args:
        tokens: rows, padded on the right.
        cfg: what coder, and where.
        lengths, keep: tokens that count (see `site_batches`).
        out: folder to write to, with a state every `save_every` passes; None: nothing is written.
        resume: go on from the state in `out`; a run that has ended is read and returned.
        described: what else the folder's `training` entry should say (JSON), such as the model's name.
        dtype: of the coder.

    Raises:
        ValueError: no tokens that count, hook points that are not the model's, too little memory, a folder made with
            other settings or tokens, or written to by another process.
        TrainingStopped: a loss that is not finite; what was saved before stays.

    Cost: a forward pass as far as the site and about 6 n_latents (d_in + d_out) FLOPs a token. Memory: four times the
    coder, and a pass.
    """
    settings = CoderTraining() if settings is None else settings
    run = _Run(model, tokens, kept_tokens(tokens, lengths, keep), cfg, settings, dtype, described or {})
    if out is None:
        if resume:
            raise ValueError("resume needs the folder of the run to go on from")
        return run.train(progress)
    with files.locked(out, beside=True):
        run.folder = files.recovered(out)
        if resume:
            run.resume()
        elif (run.folder / checkpoint.CONFIG).is_file():
            raise ValueError(f"{run.folder} holds a coder already; go on with resume, or choose another folder")
        return run.train(progress)


class _Run:
    """What changes while a coder is trained."""

    def __init__(
        self,
        model: Any,
        tokens: Tensor,
        keep: Tensor,
        cfg: CoderConfig,
        settings: CoderTraining,
        dtype: torch.dtype,
        described: dict[str, Any],
    ) -> None:
        if not keep.any():
            raise ValueError("a coder is trained on tokens that count; there are none")
        refuse_tf32()
        self.model, self.tokens, self.keep, self.cfg, self.settings = model, tokens, keep, cfg, settings
        width = cfg.d_in + cfg.d_out
        numbers = 4 * cfg.n_latents * width + settings.rows * tokens.shape[1] * 4 * width
        numbers += 4 * settings.batch_tokens * cfg.n_latents
        require(numbers * dtype.itemsize, f"a coder of {cfg.n_latents:,} latents", str(model.cfg.device))
        self.coder = Coder(cfg, dtype, model.cfg.device)
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=0.0)
        self.since = torch.zeros(cfg.n_latents, dtype=torch.long, device=model.cfg.device)
        self.passes, self.steps, self.tokens_seen, self.log = 0, 0, 0, ""
        self.found: list[float] = []
        self.folder: Path | None = None
        digest = hashlib.sha256(tokens.cpu().numpy().tobytes() + keep.numpy().tobytes()).hexdigest()
        entry = {**described, **dataclasses.asdict(settings), "tokens_sha256": digest, "dtype": str(dtype)[6:]}
        self.described = json.loads(json.dumps(entry))

    def train(self, progress: bool) -> Coder:
        total = self.settings.n_tokens
        done = min(self.tokens_seen, total)
        with tqdm(total=total, initial=done, unit="tok", unit_scale=True, disable=None if progress else True) as bar:
            while self.tokens_seen < total:
                x, y = self._pass_tokens()
                if self.steps == 0:
                    initialise(self.coder, x, y, self.settings.seed)
                self._learn(x, y)
                self.passes += 1
                bar.update(min(len(x), total - bar.n))
                bar.set_postfix_str(f"fvu {self.found[-1]:.4f}")
                ended = self.tokens_seen >= total
                if ended or self.passes % self.settings.save_every == 0:
                    self._write_log()
                    self._save(ended)
        return self.coder.eval().requires_grad_(False)

    def _pass_tokens(self) -> tuple[Float[Tensor, "token d_in"], Float[Tensor, "token d_out"]]:
        """The next pass's tokens at the site, in random order; at most what is left of n_tokens."""
        draw = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.passes)
        while True:
            rows = self._rows(self.passes)
            if self.keep[rows].any():
                break
            self.passes += 1
        batch = next(iter(site_batches(self.model, self.cfg, self.tokens[rows], None, self.keep[rows], len(rows))))
        x, y = (of[batch.keep].to(self.coder.W_enc.dtype) for of in (batch.x, batch.y))
        order = torch.randperm(len(x), generator=draw)[: self.settings.n_tokens - self.tokens_seen].to(x.device)
        return x[order], y[order]

    def _rows(self, number: int) -> Int[Tensor, " row"]:
        """The rows of a pass: those of a random order, a new one for each time through."""
        each = -(-len(self.tokens) // self.settings.rows)
        epoch, part = divmod(number, each)
        draw = torch.Generator().manual_seed(self.settings.seed * 7_919 + 17 * epoch + 1)
        order = torch.randperm(len(self.tokens), generator=draw)
        return order[part * self.settings.rows : (part + 1) * self.settings.rows]

    def _learn(self, x: Tensor, y: Tensor) -> None:
        """A few optimizer steps, on equal parts of a pass's tokens."""
        n_steps = max(1, round(len(x) / self.settings.batch_tokens))
        found = []
        for part_x, part_y in zip(x.tensor_split(n_steps), y.tensor_split(n_steps), strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr()
            dead = self.since > self.settings.dead_tokens if self.settings.aux else None
            self.optimizer.zero_grad()
            unexplained, aux, latents = losses(self.coder, part_x, part_y, dead)
            (unexplained + self.settings.aux * aux).backward()
            if self.cfg.kind == "sae":
                remove_parallel_gradient(self.coder)
            self.optimizer.step()
            if self.cfg.kind == "sae":
                unit_rows(self.coder)
            self.since += len(part_x)
            self.since[latents.indices[latents.values > 0]] = 0
            self.steps += 1
            self.tokens_seen += len(part_x)
            found.append(unexplained.detach())
        values = torch.stack(found).tolist()
        if not all(math.isfinite(value) for value in values):
            good = f"the last good state is in {self.folder}" if self._saved() else "nothing was saved yet"
            raise TrainingStopped(f"step {self.steps}: the loss is not finite; lower the learning rate; {good}")
        self.found += values

    def _lr(self) -> float:
        """Linear warm-up, then linearly to 0 at the last token."""
        s = self.settings
        peak = 2e-4 / math.sqrt(self.cfg.n_latents / REFERENCE_LATENTS) if s.lr is None else s.lr
        warm = min(s.warmup_steps * s.batch_tokens, s.n_tokens / 10)
        seen = self.tokens_seen + 1
        return peak * min(seen / warm if warm else 1.0, (s.n_tokens - seen + 1) / max(1.0, s.n_tokens - warm))

    def _write_log(self) -> None:
        line = {
            "step": self.steps,
            "tokens": self.tokens_seen,
            "fvu": round(sum(self.found) / len(self.found), 6),
            "silent_for_dead_tokens": int((self.since > self.settings.dead_tokens).sum()),
        }
        self.log += json.dumps(line) + "\n"
        self.found = []

    def _save(self, ended: bool) -> None:
        if self.folder is None:
            return
        names = [name for name, _ in self.coder.named_parameters()]
        tensors = {
            f"{kind}.{names[i]}": value
            for i, of in self.optimizer.state_dict()["state"].items()
            for kind, value in of.items()
        }
        counters = {"passes": self.passes, "steps": self.steps, "tokens_seen": self.tokens_seen}
        state = None if ended else ({**tensors, "since": self.since}, counters)
        save_coder(self.coder, self.folder, training={**self.described, **counters}, log=self.log, state=state)

    def _saved(self) -> bool:
        return self.folder is not None and (self.folder / checkpoint.CONFIG).is_file()

    def resume(self) -> None:
        """Take up the run from its folder."""
        folder = self.folder
        if folder is None or not (folder / checkpoint.CONFIG).is_file():
            raise ValueError(f"{folder} has no coder to resume from; start it without resume")
        entries = read_entries(folder)
        if (theirs := read_config(folder)) != self.cfg:
            raise ValueError(f"{folder} is another coder: {theirs}")
        for name, value in self.described.items():
            if entries["training"].get(name) != value:
                raise ValueError(f"{folder} was trained with {name}={entries['training'].get(name)!r}; got {value!r}")
        self.log = (folder / LOG).read_text(encoding="utf-8")
        if not (folder / STATE[1]).is_file():
            self.coder = load_coder(folder, device=str(self.model.cfg.device))
            self.tokens_seen = self.settings.n_tokens
            return
        read = coder_of(self.cfg, checkpoint.read_weights(folder / WEIGHTS), folder / WEIGHTS)
        self.coder.load_state_dict(read.state_dict())
        tensors, counters = checkpoint.read_state(folder)
        try:
            state = {
                i: {kind: tensors[f"{kind}.{name}"] for kind in ("step", "exp_avg", "exp_avg_sq")}
                for i, (name, _) in enumerate(self.coder.named_parameters())
            }
            self.passes, self.steps, self.tokens_seen = (int(counters[n]) for n in ("passes", "steps", "tokens_seen"))
            self.since.copy_(tensors["since"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{folder}: its training state is not whole ({error})") from None
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
