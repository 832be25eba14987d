"""How well a model does a task: to be known before anything of it is localized."""

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sat_lens.activations import inference
from sat_lens.evaluate import streams_of, wilson
from sat_lens.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Performance:
    """Means over the prompts of a task; intervals are Wilson's, 95 %.

    Args:
        name: of the task.
        stream: `clean` or `ablated`.
        n: prompts.
        accuracy: share of prompts on which the answer has the larger logit of the two; a tie is wrong.
        informed: share of prompts whose logit difference is larger than their counterfactual's. 0 for a
            model that prefers some answers whatever the prompt says: it leaves nothing to localize.
        logit_diff: answer minus wrong answer, logits.
        corrupt_logit_diff: the same on the counterfactuals.
        loss_nats: of the answer, over the whole vocabulary.
    """

    name: str
    stream: str
    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    informed: float
    informed_low: float
    informed_high: float
    logit_diff: float
    corrupt_logit_diff: float
    loss_nats: float

    @property
    def solved(self) -> bool:
        """Whether chance, 0.5, is ruled out for both shares."""
        return self.accuracy_low > 0.5 and self.informed_low > 0.5

    def summary(self) -> dict[str, Any]:
        """All of it as plain values, `solved` included."""
        return {**dataclasses.asdict(self), "solved": self.solved}


def performance(model: Any, task: Task, *, stream: str = "clean", batch: int = 64) -> Performance:
    """Accuracy, logit difference and loss of one stream on a task.

    Args:
        model: a HookedTransformer, or one with masks.
        task: prompts; the logits at `end` count.
        stream: `clean`, or `ablated` for a model with masks.
        batch: prompts of a forward pass, all of one length.

    Raises:
        ValueError: a stream that the model does not have, prompts longer than its context, ids beyond its
            vocabulary.

    Cost: two forward passes over the task, prompts and counterfactuals.
    """
    _check(model, task, stream, batch)
    knobs = {} if stream == "clean" else {"stream": stream}
    diff, corrupt_diff, loss = (torch.empty(task.n, dtype=torch.float64) for _ in range(3))
    with inference(model):
        for length in task.lengths.unique().tolist():
            for rows in (task.lengths == length).nonzero()[:, 0].split(batch):
                answers = torch.stack((task.answers[rows], task.wrong_answers[rows]), 1)
                for tokens, differences in ((task.clean, diff), (task.corrupt, corrupt_diff)):
                    logits = model(tokens[rows, :length].to(model.cfg.device), **knobs)[:, -1].double().cpu()
                    differences[rows] = _difference(logits, answers)
                    if tokens is task.clean:
                        loss[rows] = F.cross_entropy(logits, answers[:, 0], reduction="none")
    right, moved = int((diff > 0).sum()), int((diff > corrupt_diff).sum())
    return Performance(
        task.name, stream, task.n,
        right / task.n, *wilson(right, task.n),
        moved / task.n, *wilson(moved, task.n),
        diff.mean().item(), corrupt_diff.mean().item(), loss.mean().item(),
    )  # fmt: skip


def require_solved(found: Performance, *, forced: bool = False) -> None:
    """Let a model pass that does the task better than chance, or any that is forced.

    Raises:
        ValueError: chance is not ruled out; the message has the figure.
    """
    if found.solved or forced:
        return
    who = "the model" if found.stream == "clean" else f"the {found.stream} stream of the model"
    if found.accuracy_low <= 0.5:
        where = "at" if found.accuracy_high >= 0.5 else "below"
        what = f"{who} is {where} chance on {found.name}: accuracy "
        share = (found.accuracy, found.accuracy_low, found.accuracy_high)
    else:
        what = (
            f"{who} does {found.name} with accuracy {found.accuracy:.2f}, but not for what the counterfactual changes: "
            "the answer's lead is larger on the prompt in a share of "
        )
        share = (found.informed, found.informed_low, found.informed_high)
    figure = "{:.2f} ({:.2f} to {:.2f}, n {})".format(*share, found.n)
    raise ValueError(f"{what}{figure}; a circuit of it means nothing; pass --force to go on")


def _difference(logits: Float[Tensor, "rows d_vocab"], ids: Int[Tensor, "rows 2"]) -> Float[Tensor, " rows"]:
    right, wrong = logits.gather(1, ids).unbind(1)
    return right - wrong


def _check(model: Any, task: Task, stream: str, batch: int) -> None:
    if stream not in streams_of(model):
        raise ValueError(f"stream must be {' or '.join(streams_of(model))} for this model; got {stream!r}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1 prompt; got {batch}")
    task.require_fit(model.cfg)
