"""Sums and concatenations of two numbers, as tokens, in three parts that never meet.

    B12+7E -> B19E        B12C7E -> B127E

A part is `train`, `val` (which chooses the checkpoint, and on which removals are chosen) or `test` (for the last
number). Split by `example`, a + b and b + a, or the sum and the concatenation of one pair, can lie on both sides;
split by `pair` everything that can be asked of an unordered pair lies on one.

Source: "Untangling Tasks in a Toy Transformer"; differs: a third part, splits by pair, tight lengths by default.
"""

import dataclasses
import re
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from sat_lens.toy.munch import BEGIN, CONCAT, END, PLUS, MaximalMunch, character_tokenizer, number_tokenizer

TASKS = {"sum": PLUS, "concat": CONCAT}
"""Name of a task -> its operator. The number of a task is its place here."""

SPLITS = ("example", "pair")
TOKENIZERS = ("munch", "characters")
LARGEST = 1000
"""Operands are below this: 2 x 1,000,000 examples."""


@dataclasses.dataclass(frozen=True)
class Problems:
    """Examples as tokens, one row each.

    Args:
        source: `B a op b E`, padded on the right.
        answer: what follows the answer's B: its tokens, E, padding.
        task: place in TASKS.
        left, right: the operands.
    """

    source: Int[Tensor, "example source"]
    answer: Int[Tensor, "example answer"]
    task: Int[Tensor, " example"]
    left: Int[Tensor, " example"]
    right: Int[Tensor, " example"]

    def __len__(self) -> int:
        return len(self.task)

    def subset(self, rows: Tensor) -> "Problems":
        """The examples of these rows (indices, or True where wanted), in this order."""
        return Problems(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))

    def of(self, task: str) -> "Problems":
        """The examples of one task."""
        return self.subset(self.task == task_number(task))

    @property
    def pair(self) -> Int[Tensor, " example"]:
        """A number for each unordered pair of operands."""
        return torch.minimum(self.left, self.right) * LARGEST + torch.maximum(self.left, self.right)

    def texts(self) -> list[str]:
        """`12+7` and `12C7`."""
        signs = list(TASKS.values())
        columns = (self.left.tolist(), self.task.tolist(), self.right.tolist())
        return [f"{a}{signs[k]}{b}" for a, k, b in zip(*columns, strict=True)]


@dataclasses.dataclass(frozen=True)
class TaskData:
    """All examples of both tasks, and which of them lie in which part."""

    tokenizer: MaximalMunch
    operands: int
    problems: Problems
    rows: dict[str, Int[Tensor, " row"]]

    def part(self, name: str) -> Problems:
        """`train`, `val`, `test`, or `all`."""
        if name == "all":
            return self.problems
        if name not in self.rows:
            raise ValueError(f"a part is one of {', '.join(self.rows)}, all; got {name!r}")
        return self.problems.subset(self.rows[name])

    def ask(self, texts: Sequence[str]) -> Problems:
        """The examples that are written `12+7` or `12C7`.

        Raises:
            ValueError: an operator or operand that this data does not know.
        """
        asked = [parsed(text, self.operands) for text in texts]
        side = self.operands
        rows = [(a * side + b) * len(TASKS) + list(TASKS).index(task) for a, task, b in asked]
        return self.problems.subset(torch.tensor(rows, dtype=torch.long))


def task_number(task: str) -> int:
    """Place of a task in TASKS. Raises: ValueError for an unknown one."""
    if task not in TASKS:
        raise ValueError(f"a task is one of {', '.join(TASKS)}; got {task!r}")
    return list(TASKS).index(task)


def parsed(text: str, operands: int) -> tuple[int, str, int]:
    """Left operand, task and right operand of `12+7`.

    Raises:
        ValueError: anything else than two numbers below `operands` with an operator between them.
    """
    found = re.fullmatch(r"([0-9]{1,9})(.)([0-9]{1,9})", text)
    if not found:
        raise ValueError(f"a problem is written 12+7 or 12C7; got {text!r}")
    by_sign = {sign: task for task, sign in TASKS.items()}
    if found[2] not in by_sign:
        raise ValueError(f"operator must be one of {' '.join(by_sign)}; got {found[2]!r} in {text!r}")
    for number in (found[1], found[3]):
        if int(number) >= operands:
            raise ValueError(f"operands must be 0 to {operands - 1}; got {number} in {text!r}")
    return int(found[1]), by_sign[found[2]], int(found[3])


def answer_text(left: int, task: str, right: int) -> str:
    """`19` for a sum, `127` for a concatenation."""
    return str(left + right) if task == "sum" else f"{left}{right}"


def task_data(
    operands: int = 100,
    *,
    tokenizer: str = "munch",
    split: str = "pair",
    train_share: float = 0.8,
    val_share: float = 0.1,
    source_length: int | None = None,
    answer_length: int | None = None,
    seed: int = 0,
) -> TaskData:
    """Every a op b with a, b below `operands`, in three parts.

    Args:
        tokenizer: `munch` or `characters`.
        split: what is dealt to the parts: an `example`, or an unordered `pair` of operands with all that it can be
            asked in.
        train_share, val_share: of examples or pairs; the rest is `test`.
        source_length, answer_length: tokens to pad to (the answer without its B); None: as many as the longest has.
        seed: of the split.

    Raises:
        ValueError: a name or number out of range, or a source or answer longer than it may be.
    """
    if not 2 <= operands <= LARGEST:
        raise ValueError(f"operands must be 2 to {LARGEST}; got {operands}")
    for name, value, choices in (("tokenizer", tokenizer, TOKENIZERS), ("split", split, SPLITS)):
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    if not (0 < train_share < 1 and 0 < val_share and train_share + val_share <= 1):
        raise ValueError(
            f"train_share and val_share must be above 0 and at most 1 together; got {train_share} and {val_share}"
        )
    munch = number_tokenizer(operands) if tokenizer == "munch" else character_tokenizer()
    asked = [(a, task, b) for a in range(operands) for b in range(operands) for task in TASKS]
    sources = [munch.encode(f"{BEGIN}{a}{TASKS[task]}{b}{END}") for a, task, b in asked]
    answers = [munch.encode(f"{BEGIN}{answer_text(*problem)}{END}")[1:] for problem in asked]
    problems = Problems(
        padded(sources, source_length, "source", asked),
        padded(answers, answer_length, "answer", asked),
        torch.tensor([task_number(task) for _, task, _ in asked]),
        torch.tensor([a for a, _, _ in asked]),
        torch.tensor([b for _, _, b in asked]),
    )
    keys = problems.pair if split == "pair" else torch.arange(len(problems))
    return TaskData(munch, operands, problems, dealt(keys, train_share, val_share, seed))


def padded(rows: list[list[int]], length: int | None, name: str, asked: list[tuple[int, str, int]]) -> Tensor:
    """Rows as one tensor [example length], with zeros behind them."""
    longest = max(range(len(rows)), key=lambda i: len(rows[i]))
    size = len(rows[longest]) if length is None else length
    if len(rows[longest]) > size:
        a, task, b = asked[longest]
        raise ValueError(
            f"{name}_length must be at least {len(rows[longest])}, the tokens of the {name} of {a}{TASKS[task]}{b}; "
            f"got {length}"
        )
    return torch.tensor([row + [0] * (size - len(row)) for row in rows])


def dealt(keys: Tensor, train_share: float, val_share: float, seed: int) -> dict[str, Tensor]:
    """Rows of `train`, `val` and `test`; rows with one key lie together.

    Raises:
        ValueError: shares so small that `train` or `val` is empty.
    """
    different, group = keys.unique(return_inverse=True)
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed))
    ends = [round(train_share * len(order)), round((train_share + val_share) * len(order))]
    place = torch.empty(len(order), dtype=torch.long)
    place[order] = torch.arange(len(order))
    at = place[group]
    parts = {"train": at < ends[0], "val": (at >= ends[0]) & (at < ends[1]), "test": at >= ends[1]}
    if empty := [name for name in ("train", "val") if not parts[name].any()]:
        raise ValueError(f"{empty[0]} would have no examples: shares {train_share} and {val_share} of {len(order)}")
    return {name: mask.nonzero().flatten() for name, mask in parts.items()}
