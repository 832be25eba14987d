"""What a Result holds of single tokens: points of the strongest, scales of the norm, stories with values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from analyses.labels.token_texts import token_texts
from analyses.texts import Stories
from sat_lens.repair.effects import FIELDS
from sat_lens.repair.gated_measure import gated_self_repair
from sat_lens.repair.result import SelfRepairResult
from sat_lens.repair.selection import All

STRONGEST, POINTS = 4, 800
"""Components whose tokens are shown, and tokens of each."""
SHOWN = 4
"""Stories that are shown."""
BINS = 41


def spelling(model: Any) -> Callable[[int], str]:
    """From an id to its text, with the space before its word; without a tokenizer the number."""
    if model.tokenizer is None:
        return str
    texts = token_texts(model.tokenizer, min(len(model.tokenizer), model.cfg.d_vocab))
    return lambda token: texts[token] if token < len(texts) else f"<{token}>"


def token_grid(found: SelfRepairResult, table: Any, spell: Callable[[int], str] = str) -> list[dict[str, Any]]:
    """Direct effect and change of the logit at tokens of the components with the largest mean direct effects.

    `texts` are the token that is read and the next one; `stories` is the mean self-repair of each story.
    """
    order = table.de.abs().fillna(-1).to_numpy().argsort()[::-1][:STRONGEST]
    grid = []
    for i in order:
        of = found.per_token(str(table.component.iloc[int(i)]))
        rows = of.iloc[np.unique(np.linspace(0, len(of) - 1, min(POINTS, len(of))).astype(int))] if len(of) else of
        grid.append(
            {
                "component": str(table.component.iloc[int(i)]), "n": len(of),
                "removed": rows.de.sub(rows.ade).round(4).tolist(), "de": rows.de.round(4).tolist(),
                "dlogit": rows.dlogit.round(4).tolist(),
                "texts": [f"{spell(a)!r} then {spell(b)!r}" for a, b in zip(rows.token, rows.target, strict=True)],
                "stories": of.groupby("seq").self_repair.mean().round(4).tolist(),
            }
        )  # fmt: skip
    return grid


def scale_ratios(found: SelfRepairResult) -> dict[str, Any]:
    """Histogram of clean over ablated scale of the final norm, over all selected tokens of all components."""
    assert found.values is not None
    ratio = found.values[:, FIELDS.index("scale_ratio")].double().numpy()
    low, high = np.quantile(ratio, [0.005, 0.995])
    counts, edges = np.histogram(ratio, np.linspace(low, high if high > low else low + 1e-6, BINS))
    return {
        "edges": edges.tolist(), "counts": counts.tolist(), "n": len(ratio), "median": float(np.median(ratio)),
        "above_1": float((ratio > 1).mean()),
    }  # fmt: skip


def shown_texts(
    model: Any, texts: Stories, component: Any, ablation: Any, masks: str, knobs: dict[str, Any]
) -> dict[str, Any]:
    """The first stories with self-repair of one component at every token that can be measured.

    Returns:
        `component`; `stories`, each a list of tokens as text; by story `self_repair`, `removed` and `dlogit`, logits,
        None where there is none.
    """
    part = texts.subset(torch.arange(min(SHOWN, texts.n)))
    found = gated_self_repair(
        model, part.tokens, [component], ablation, lengths=part.lengths, select=All(), masks=masks, **knobs
    )
    rows = found.per_token(component.name)
    values = {name: [[None] * int(n) for n in part.lengths] for name in ("self_repair", "removed", "dlogit")}
    for row in rows.itertuples():
        for name, value in (("self_repair", row.self_repair), ("removed", row.de - row.ade), ("dlogit", row.dlogit)):
            values[name][row.seq][row.pos] = round(float(value), 4)
    spell = spelling(model)
    words = [[spell(t) for t in row[:n].tolist()] for row, n in zip(part.tokens, part.lengths, strict=True)]
    return {"component": component.name, "stories": words, **values}
