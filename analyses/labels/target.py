"""What a probe, a selectivity or an explanation is asked about: one class per token."""

import dataclasses

import torch
from jaxtyping import Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Labels:
    """One class per token of a set of stories.

    Args:
        name: of the target, a key of `analyses.labels.TARGETS`.
        classes: names of the classes, in the order of their numbers.
        values: class of each token, -1 where it has none (beginning of text, padding, not labelled).
        source: "generator" (known truth), "rules" (a documented tagger) or "tokens" (the ids themselves).

    Raises:
        ValueError: a value that is neither -1 nor the number of a class.
    """

    name: str
    classes: tuple[str, ...]
    values: Int[Tensor, "story pos"]
    source: str

    def __post_init__(self) -> None:
        if self.values.numel() and not -1 <= int(self.values.min()) <= int(self.values.max()) < len(self.classes):
            raise ValueError(
                f"labels of {self.name} must be -1 to {len(self.classes) - 1}; got {int(self.values.min())} to "
                f"{int(self.values.max())}"
            )

    def frequent(self, at_least: int) -> "Labels":
        """The same classes, with -1 in place of those that fewer than `at_least` tokens have."""
        kept = self.counts() >= at_least
        values = torch.where((self.values >= 0) & kept[self.values.clamp(min=0)], self.values, -1)
        return dataclasses.replace(self, values=values)

    def compact(self) -> "Labels":
        """Only the classes that occur, renumbered in the same order."""
        occurs = self.counts() > 0
        numbers = torch.where(occurs, occurs.long().cumsum(0) - 1, -1)
        values = torch.where(self.values >= 0, numbers[self.values.clamp(min=0)], -1)
        classes = tuple(name for name, here in zip(self.classes, occurs.tolist(), strict=True) if here)
        return dataclasses.replace(self, classes=classes, values=values)

    def counts(self) -> Int[Tensor, " class"]:
        """Tokens of each class."""
        return torch.bincount(self.values[self.values >= 0], minlength=max(len(self.classes), 1))[: len(self.classes)]
