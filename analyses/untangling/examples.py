"""On which examples a removal is chosen, and on which it is judged.

Examples come as pairs, the sum and the concatenation of the same operands, both answered rightly by the intact model:
accuracy is 1 before anything is taken out. Folds keep what belongs to one unordered pair of operands together.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from sat_lens.toy.arithmetic import TASKS, Problems, TaskData
from sat_lens.toy.model import ToyModel, answer_logits, exact_match

FEWEST = 6


def matched_examples(toy: ToyModel, data: TaskData, part: str, n: int, seed: int = 0) -> Problems:
    """Up to `n` pairs of operands of a part of the data, two examples each, all answered rightly.

    Raises:
        ValueError: fewer than FEWEST pairs whose two examples lie in the part and are right.
    """
    problems = data.part(part)
    right = exact_match(answer_logits(toy, problems), problems.answer)
    key = problems.left * data.operands + problems.right
    ok = [set(key[right & (problems.task == i)].tolist()) for i in range(len(TASKS))]
    both = torch.tensor(sorted(set.intersection(*ok)), dtype=torch.long)
    if len(both) < FEWEST:
        raise ValueError(
            f"{part} has {len(both)} pairs of operands of which both tasks are answered rightly; at least {FEWEST} are "
            "needed: train longer, or take --part all"
        )
    taken = both[torch.randperm(len(both), generator=torch.Generator().manual_seed(seed))[:n]]
    rows = torch.cat([(right & (problems.task == i) & torch.isin(key, taken)).nonzero().flatten() for i in (0, 1)])
    return problems.subset(rows)


def source_examples(toy: ToyModel, data: TaskData, n: int = 50, seed: int = 0, *, others: bool = False) -> Problems:
    """Examples as the source draws them: n sums of the validation part, and the concatenations of the same operands.

    A concatenation that lies in the training part is dropped, and so is all that the model gets wrong; the two tasks
    may have unequal numbers. `others`: the next n sums of the same shuffle, of which none is among the first.
    """
    val, train = data.part("val"), data.part("train")
    sums = val.of("sum")
    order = torch.randperm(len(sums), generator=torch.Generator().manual_seed(seed))
    sums = sums.subset(order[n : 2 * n] if others else order[:n])
    all_rows = data.part("all").of("concat")
    size = data.operands
    twins = all_rows.subset(torch.isin(all_rows.left * size + all_rows.right, sums.left * size + sums.right))
    seen = train.of("concat")
    twins = twins.subset(~torch.isin(twins.left * size + twins.right, seen.left * size + seen.right))
    both = Problems(*(torch.cat([getattr(sums, f), getattr(twins, f)]) for f in sums.__dataclass_fields__))
    return both.subset(exact_match(answer_logits(toy, both), both.answer))


def folds(problems: Problems, k: int, seed: int = 0) -> Int[Tensor, " example"]:
    """The fold of each example, 0 to k - 1; pairs of operands are dealt whole.

    Raises:
        ValueError: fewer than 2 folds, or fewer pairs than folds.
    """
    pairs, group = problems.pair.unique(return_inverse=True)
    if not 2 <= k <= len(pairs):
        raise ValueError(f"folds must be 2 to {len(pairs)}, the pairs of operands; got {k}")
    place = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
    return (place % k)[group]
