"""Targets of probes: which classes of a label are asked for, and what is said when there is nothing to ask.

Classes with fewer than `AT_LEAST` labelled tokens are left out, and of the others the `MOST` most frequent are kept:
what stays is stated by name and share.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from analyses.labels import Labels, known_target, labels
from analyses.texts import Stories

DEFAULT: tuple[str, ...] = ("role", "part_of_speech", "n_names", "holder")
AT_LEAST, MOST = 20, 32


@dataclasses.dataclass(frozen=True)
class Target:
    """Labels whose classes are all frequent enough to be probed.

    Args:
        labels: of the classes that are kept, -1 elsewhere.
        kept: share of the labelled tokens whose class is kept.
        left_out: classes that are not.
    """

    labels: Labels
    kept: float
    left_out: int

    @property
    def name(self) -> str:
        """Of the target."""
        return self.labels.name


def target(found: Labels, *, at_least: int = AT_LEAST, most: int = MOST) -> Target:
    """The classes of some labels that are worth a probe.

    Raises:
        ValueError: no label in these stories, or one class only.
    """
    counts = torch.bincount(found.values[found.values >= 0], minlength=len(found.classes))
    if not int(counts.sum()):
        raise ValueError(f"target {found.name} has no label in these stories: take another target or corpus")
    order = counts.argsort(descending=True, stable=True)[:most]
    kept = order[counts[order] >= at_least].sort().values
    if len(kept) < 2:
        only = found.classes[int(order[0])]
        raise ValueError(
            f"a probe needs at least 2 classes of {at_least} tokens each; target {found.name} has "
            f"{len(kept)} here (most frequent: {only!r}, {int(counts.max())} tokens): take more stories "
            "or another target"
        )
    renumbered = torch.full((len(found.classes) + 1,), -1)
    renumbered[kept] = torch.arange(len(kept))
    classes = tuple(found.classes[i] for i in kept.tolist())
    share = float(counts[kept].sum() / counts.sum())
    return Target(
        Labels(found.name, classes, renumbered[found.values], found.source), share, int((counts > 0).sum()) - len(kept)
    )


def targets(names: Sequence[str] | None, stories: Stories, tokenizer: Any) -> tuple[list[Target], dict[str, str]]:
    """Targets by name.

    Args:
        names: asked for; None: those of `DEFAULT` that these stories have.
        stories: rows of tokens.
        tokenizer: that made them.

    Returns:
        The targets, and why a default one is missing, by name.

    Raises:
        ValueError: an unknown name, a target that is asked for and cannot be had, or no default one.
    """
    for name in names or ():
        known_target(name)
    found, skipped = [], {}
    for name in names or DEFAULT:
        try:
            found.append(target(labels(name, stories, tokenizer)))
        except ValueError as error:
            if names:
                raise
            skipped[name] = str(error)
    if not found:
        raise ValueError(f"none of the targets can be had: {'; '.join(skipped.values())}")
    return found, skipped
