"""How much worse each example gets without one part: nats a token, mean over its answer's tokens.

    analytic    the edit moves logits by (fill_j - a_j) (d_j W_U): no forward pass, and nothing to do where the
                activation does not change. At the last residual stream alone, where it is exact.
    hooks       a forward pass a part; anywhere.

The source sums over its examples; `summed` converts.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from analyses.untangling.bench import Bench
from sat_lens.toy.model import answer_losses, counted

METHODS = ("analytic", "hooks")
PAIRS = 1 << 15
"""(token, part) pairs whose logits are held at once: 27 MB at 204 ids."""


def importance(
    bench: Bench, *, given: list[int] | None = None, method: str | None = None
) -> Float[Tensor, "part example"]:
    """The change of each example's loss when one part more is taken out.

    Args:
        given: parts that are out already (jointly); their own change is 0.
        method: `analytic` or `hooks`; None: analytic where it applies.

    Raises:
        ValueError: analytic importance of parts that something nonlinear follows.

    Cost: `hooks`: a forward pass over the examples a part. `analytic`: memory for PAIRS x d_vocab logits.
    """
    method = method or ("analytic" if bench.is_last else "hooks")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if method == "analytic" and not bench.is_last:
        raise ValueError("analytic importance needs parts at the last residual stream; ask with method 'hooks'")
    given = given or []
    return analytic(bench, given) if method == "analytic" else by_hooks(bench, given)


def by_hooks(bench: Bench, given: list[int]) -> Float[Tensor, "part example"]:
    """A forward pass with hooks a part."""
    from sat_lens.toy.model import answer_logits

    def losses(chosen: list[int]) -> Tensor:
        hooks = bench.parts.hooks(bench.toy, chosen, fill=bench.fill) if chosen else []
        logits = answer_logits(bench.toy, bench.problems, hooks, batch_size=len(bench.problems))
        return answer_losses(logits, bench.problems.answer, bench.padding)

    base = losses(given)
    rows = [base if j in given else losses([*given, j]) for j in range(len(bench.parts))]
    return torch.stack(rows) - base


def analytic(bench: Bench, given: list[int]) -> Float[Tensor, "part example"]:
    """The same from the readout alone."""
    parts, answer = bench.parts, bench.problems.answer
    counts = counted(answer, bench.padding)
    logits = bench.edited_logits(given)
    with torch.no_grad():
        a = parts.activations(bench.state)
        change = (-a if bench.fill is None else bench.fill - a) * counts[..., None]
        change[..., given] = 0.0
        moves = parts.directions @ bench.toy.unembedding  # [part, d_vocab]
        example, at, part = change.nonzero(as_tuple=True)
        found = torch.zeros(len(parts), len(answer), dtype=logits.dtype)
        before = F.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="none").view(answer.shape)
        for pairs in torch.arange(len(part)).split(PAIRS):
            i, t, j = example[pairs], at[pairs], part[pairs]
            after = F.cross_entropy(logits[i, t] + change[i, t, j, None] * moves[j], answer[i, t], reduction="none")
            found.index_put_((j, i), after - before[i, t], accumulate=True)
    return found / counts.sum(1)


def summed(importances: Float[Tensor, "part example"]) -> Float[Tensor, " part"]:
    """The source's number: the sum over examples, n times the mean."""
    return importances.sum(1)
