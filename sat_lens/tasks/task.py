"""A task: prompts with a right and a wrong next token, and a counterfactual of every prompt."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class TaskError(ValueError):
    """A task that cannot be read or built; the message says which prompt and what must hold."""


@dataclasses.dataclass(frozen=True)
class Task:
    """Prompts as tokens, one row a prompt, padded on the right.

    The question is asked at `positions["end"]`, the last token of a prompt. A causal model never sees
    the padding behind it, so that no attention mask is needed. A clean prompt and its counterfactual
    have the same length.

    Args:
        name: what the task is called in tables.
        clean: tokens of the prompts.
        corrupt: tokens of the counterfactuals, row by row of the same length.
        answers: the right next token. One id: of an answer of several tokens it is the first, and the
            wrong answer's first differs.
        wrong_answers: the next token that the right one is compared with.
        positions: column of the tokens that matter, by name; `end` is always there. For `ioi` also
            `IO`, `S1`, `S2`.
        prompts: the clean prompts as text, when known.

    Raises:
        TaskError: rows that do not fit together, or an answer that equals the wrong answer.
    """

    name: str
    clean: Int[Tensor, "n pos"]
    corrupt: Int[Tensor, "n pos"]
    answers: Int[Tensor, " n"]
    wrong_answers: Int[Tensor, " n"]
    positions: dict[str, Int[Tensor, " n"]]
    prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n == 0:
            raise TaskError(f"a task needs at least 1 prompt; {self.name} has none")
        if "end" not in self.positions:
            raise TaskError(f"positions must hold 'end'; got {', '.join(self.positions) or 'none'}")
        for name, at in self.positions.items():
            if at.min() < 0 or at.max() >= self.clean.shape[1]:
                raise TaskError(f"position {name!r} must lie in 0..{self.clean.shape[1] - 1}; got {at.tolist()}")
        if (same := (self.answers == self.wrong_answers).nonzero()).numel():
            raise TaskError(f"answer and wrong answer of prompt {same[0].item()} are the same token")

    @property
    def n(self) -> int:
        """Number of prompts."""
        return self.clean.shape[0]

    @property
    def lengths(self) -> Int[Tensor, " n"]:
        """Tokens of each prompt, the beginning-of-text token included, the padding not."""
        return self.positions["end"] + 1

    def require_fit(self, cfg: Any) -> None:
        """Refuse a model whose context or vocabulary is too small.

        Args:
            cfg: its HookedTransformerConfig.

        Raises:
            ValueError: prompts longer than the context, or ids beyond the vocabulary.
        """
        if (longest := int(self.lengths.max())) > cfg.n_ctx:
            raise ValueError(f"prompts must fit the model's context of {cfg.n_ctx} tokens; the longest has {longest}")
        if max(int(ids.max()) for ids in (self.clean, self.corrupt, self.answers, self.wrong_answers)) >= cfg.d_vocab:
            raise ValueError(f"the task's ids must be below the model's {cfg.d_vocab}; is it the right tokenizer?")

    def subset(self, index: Int[Tensor, " m"] | Sequence[int] | slice) -> "Task":
        """The prompts of these rows, in this order."""
        rows = torch.arange(self.n)[index if isinstance(index, slice) else torch.as_tensor(index)]
        return dataclasses.replace(
            self,
            clean=self.clean[rows],
            corrupt=self.corrupt[rows],
            answers=self.answers[rows],
            wrong_answers=self.wrong_answers[rows],
            positions={name: at[rows] for name, at in self.positions.items()},
            prompts=tuple(self.prompts[row] for row in rows.tolist()) if self.prompts else (),
        )

    def at_end(self, values: Float[Tensor, "n pos *rest"]) -> Float[Tensor, "n *rest"]:
        """Row by row, what stands at the last token of the prompt."""
        return values[torch.arange(self.n), self.positions["end"]]

    def logit_difference(self, logits: Float[Tensor, "n pos d_vocab"]) -> Float[Tensor, " n"]:
        """Logit of the answer minus logit of the wrong answer at `end`; positive is right."""
        at_end = self.at_end(logits)
        right, wrong = (at_end.gather(1, ids[:, None])[:, 0] for ids in (self.answers, self.wrong_answers))
        return right - wrong
