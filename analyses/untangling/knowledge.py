"""Is what was removed gone, or only not read any more?

probe     a linear classifier is trained to give the first token of the answer from the edited state, on other
          examples than it is judged on. What it still finds is there; the readout alone lost it.
relearn   the model is trained on, the edit staying in place, for a few steps on the removed task's training
          examples. What comes back at once was not gone. Beside it the same of a set of other parts of the same
          size, and of a model that starts from fresh weights.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from analyses.untangling.parts import Directions
from sat_lens.toy.arithmetic import Problems
from sat_lens.toy.model import DecoderToy, Seq2SeqToy, build_toy, counted, exact_match, states
from sat_lens.toy.runs import ToyRun

MOST_ROWS = 4000
"""Training examples of a probe."""


def softmax_probe(
    x: Float[Tensor, "row d"], labels: Int[Tensor, " row"], n_classes: int, ridge: float = 1e-3, steps: int = 100
) -> Float[Tensor, "_ n_classes"]:
    """Weights (the last row is the bias) of a ridge-penalised softmax regression, by L-BFGS on standardised columns."""
    spread = x.std(0).clamp(min=1e-6)
    columns = torch.cat([(x - x.mean(0)) / spread, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    weights = torch.zeros(columns.shape[1], n_classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(columns @ weights, labels) + ridge * weights[:-1].square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        scaled = weights[:-1] / spread[:, None]
        return torch.cat([scaled, (weights[-1] - x.mean(0) @ scaled)[None]])


def probed(
    run_toy: Any, parts: Directions, chosen: list[int], train: Problems, judged: Problems, d_vocab: int
) -> float:
    """Accuracy (0..1) with which a probe gives the first token of the answer from edited states.

    Args:
        train, judged: examples of the removed task on which the probe is fitted and judged.
    """
    train = train.subset(torch.arange(len(train))[:MOST_ROWS])
    found = []
    for part in (train, judged):
        _, held = states(run_toy, part, [parts.site])
        found.append(parts.edited(held[parts.site], chosen)[:, 0])
    weights = softmax_probe(found[0], train.answer[:, 0], d_vocab)
    guesses = (found[1] @ weights[:-1] + weights[-1]).argmax(-1)
    return (guesses == judged.answer[:, 0]).double().mean().item()


def relearned(
    toy: DecoderToy | Seq2SeqToy, parts: Directions, chosen: list[int], train: Problems, judged: Problems, *,
    at: Sequence[int] = (0, 5, 10, 20, 40), lr: float = 3e-4, batch_size: int = 128, seed: int = 0,
) -> list[float]:  # fmt: skip
    """Exact match on `judged` after so many steps of training on `train`, the edit in place. 0..1.

    Args:
        toy: left as it is; a copy is trained.
        at: steps, increasing.
    """
    toy = copy.copy(toy)
    toy.net = copy.deepcopy(toy.net)
    hooks = parts.hooks(toy, chosen) if chosen else []
    optimizer = torch.optim.AdamW(toy.net.parameters(), lr=lr, weight_decay=0.0)
    generator, found = torch.Generator().manual_seed(seed), []
    for step in range(max(at) + 1):
        if step in at:
            logits, _ = states(toy, judged, (), hooks)
            found.append(exact_match(logits, judged.answer).double().mean().item())
        batch = train.subset(torch.randint(len(train), (batch_size,), generator=generator))
        with toy.net.hooks(fwd_hooks=list(hooks)):
            logits, _ = toy.run(batch.source, batch.answer)
            counts = counted(batch.answer)
            loss = F.cross_entropy(logits[counts], batch.answer[counts])
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    return found


def knowledge(
    run: ToyRun, parts: Directions, chosen: list[int], other: list[int], target: str, judged: Problems, *,
    at: Sequence[int] = (0, 5, 10, 20, 40), seed: int = 0,
) -> list[dict[str, Any]]:  # fmt: skip
    """Both tests for the chosen set, for another one of its size, and for what they are to be read against.

    Args:
        chosen, other: parts taken out, and others of the same number.
        judged: examples of the target task.

    Returns:
        Rows of `edit` (`none`, `chosen`, `other`, `fresh weights`), `test` (`readout`: the model's own first token;
        `probe`; `relearn`), `steps`, `accuracy` (0..1), `n`.
    """
    train, d_vocab, rows = run.data.part("train").of(target), len(run.data.tokenizer), []
    for edit, out in (("none", []), ("chosen", chosen), ("other", other)):
        _, held = states(run.toy, judged, [parts.site])
        if parts.site == run.toy.site:
            with torch.no_grad():
                first = run.toy.readout(parts.edited(held[parts.site], out))[:, 0].argmax(-1)
            own = (first == judged.answer[:, 0]).double().mean().item()
            rows.append({"edit": edit, "test": "readout", "steps": 0, "accuracy": own})
        score = probed(run.toy, parts, out, train, judged, d_vocab)
        rows.append({"edit": edit, "test": "probe", "steps": 0, "accuracy": score})
        if edit != "none":
            curve = relearned(run.toy, parts, out, train, judged, at=at, seed=seed)
            rows += [
                {"edit": edit, "test": "relearn", "steps": s, "accuracy": a} for s, a in zip(at, curve, strict=True)
            ]
    fresh = build_toy(run.config, run.data)
    curve = relearned(fresh, parts, [], train, judged, at=at, seed=seed)
    rows += [
        {"edit": "fresh weights", "test": "relearn", "steps": s, "accuracy": a} for s, a in zip(at, curve, strict=True)
    ]
    return [{**row, "target": target, "run": run.name, "n": len(judged)} for row in rows]
