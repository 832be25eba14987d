"""A model, what can be taken out of it, and examples: what every selection and every judgement asks.

Where the parts lie at the last residual stream nothing nonlinear follows them, and the logits of an edit are the
readout of the edited state: no forward pass. Elsewhere they come from a forward pass with hooks.
"""

import dataclasses

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analyses.untangling.parts import Directions, Units
from sat_lens.ablate import other_rows
from sat_lens.toy.arithmetic import TASKS, Problems, task_number
from sat_lens.toy.model import ToyModel, answer_logits, answer_losses, counted, exact_match, states

FILLS = ("zero", "mean", "resample")


@dataclasses.dataclass(frozen=True)
class Bench:
    """See the module.

    Args:
        toy, parts, problems: the model, what can be taken out, and the examples.
        logits: of the examples, nothing taken out.
        state: activations at the parts' hook point; None for Units.
        fill: what takes the place of activations; None: 0.
        padding: whether the positions behind an answer count (reproduction) in losses.
    """

    toy: ToyModel
    parts: Directions | Units
    problems: Problems
    logits: Float[Tensor, "example answer d_vocab"]
    state: Float[Tensor, "example answer d"] | None
    fill: Tensor | None = None
    padding: bool = False

    @property
    def is_last(self) -> bool:
        """Whether edits are linear in the logits."""
        return isinstance(self.parts, Directions) and self.parts.site == self.toy.site

    def edited_logits(self, chosen: list[int], order: str = "joint") -> Float[Tensor, "example answer d_vocab"]:
        """Logits of all examples without the chosen parts."""
        if not chosen:
            return self.logits
        if self.is_last:
            with torch.no_grad():
                return self.toy.readout(self.parts.edited(self.state, chosen, order=order, fill=self.fill))
        hooks = self.parts.hooks(self.toy, chosen, order=order, fill=self.fill)
        return answer_logits(self.toy, self.problems, hooks, batch_size=len(self.problems))

    def losses(self, chosen: list[int] | None = None, order: str = "joint") -> Float[Tensor, " example"]:
        """Mean cross-entropy of each answer, nats a token."""
        return answer_losses(self.edited_logits(chosen or [], order), self.problems.answer, self.padding)

    def right(self, chosen: list[int] | None = None, order: str = "joint") -> Bool[Tensor, " example"]:
        """Which examples are answered rightly."""
        return exact_match(self.edited_logits(chosen or [], order), self.problems.answer)

    def of_task(self, task: str) -> Bool[Tensor, " example"]:
        return self.problems.task == task_number(task)

    def magnitude(self) -> Float[Tensor, " part"]:
        """Mean size of what taking each part out would move, over the positions that count."""
        if not isinstance(self.parts, Directions) or self.state is None:
            raise ValueError("magnitudes are of directions")
        x = self.state[counted(self.problems.answer, self.padding)]
        return self.parts.activations(x).abs().mean(0) * self.parts.directions.norm(dim=1)

    def subset(self, rows: Tensor) -> "Bench":
        """The bench of these examples (their fill stays their own)."""
        fill = self.fill if self.fill is None or self.fill.ndim == 1 else self.fill[rows]
        state = None if self.state is None else self.state[rows]
        return dataclasses.replace(
            self, problems=self.problems.subset(rows), logits=self.logits[rows], state=state, fill=fill
        )


def bench(
    toy: ToyModel,
    parts: Directions | Units,
    problems: Problems,
    *,
    fill: str = "zero",
    padding: bool = False,
    seed: int = 0,
) -> Bench:
    """A bench over some examples.

    Args:
        fill: what takes the place of an activation: `zero`, its `mean` over the positions of all examples that
            count, or another example's at the same position (`resample`).
        padding: count the positions behind an answer too.
        seed: of the other examples.
    """
    if fill not in FILLS:
        raise ValueError(f"an ablation is one of {', '.join(FILLS)}; got {fill!r}")
    if isinstance(parts, Units):
        if fill != "zero":
            raise ValueError(f"units are set to zero; got {fill!r}")
        return Bench(toy, parts, problems, answer_logits(toy, problems), None, padding=padding)
    logits, held = states(toy, problems, [parts.site])
    state = held[parts.site]
    filled = None
    if fill != "zero":
        a = parts.activations(state)
        filled = a[counted(problems.answer, padding)].mean(0) if fill == "mean" else a[other_rows(len(a), seed)]
    return Bench(toy, parts, problems, logits, state, filled, padding)


def accuracies(right: Bool[Tensor, " example"], problems: Problems) -> dict[str, float]:
    """Share of right answers by task, 0..1; NaN for a task without examples."""
    return {task: right[problems.task == i].double().mean().item() for i, task in enumerate(TASKS)}
