"""What the page of latents shows: explanations, scores, and examples with true and simulated activation.

Latents are taken at even ranks of their score, from the best to the worst, so that the page is no choice of the best.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from analyses.explain import Explanation, RuleSimulator
from analyses.explain.output import output_explanations
from analyses.explain.records import AFTER, Example
from analyses.result import Result
from analyses.rewriting.explaining import material_of
from analyses.rewriting.scoring import OWN, SHUFFLED
from analyses.rewriting.setting import Setting

LISTS = {"top": 4, "spread": 4, "negative": 2}
"""Examples of each list."""
NAMED = 8
LONGEST_TEXT = 1200
UNITS = {"latent": "index", "r": "correlation", "floor": "correlation", "bits": "bits", "density": "share of tokens"}


def latents_shown(
    setting: Setting, explanations: Sequence[Explanation], scores: Result, n: int, checkpoint: str
) -> Result:
    """One row a latent, best first; lists are JSON.

    Args:
        explanations: of which latents are shown.
        scores: of the same, by `scoring.scores_result`.
        n: latents, at most.

    Cost: two passes over the latents of the stories to explain from.
    """
    own = scores.table[scores.table.source == OWN].set_index("latent")
    floor = scores.table[scores.table.source == SHUFFLED].set_index("latent").r
    ranked = own[own.r.notna()].sort_values("r", ascending=False, kind="stable")
    places = np.unique(np.linspace(0, len(ranked) - 1, min(n, len(ranked))).round().astype(int))
    latents = torch.tensor(ranked.index.to_numpy()[places], dtype=torch.long)
    by_latent = {e.unit: e for e in explanations}
    chosen = [by_latent[latent] for latent in latents.tolist()]
    material = material_of(setting, latents)
    simulator = RuleSimulator(chosen, setting.vocabulary) if all(e.rule is not None for e in chosen) else None
    promoted = _promoted(setting, latents)
    rows = []
    for i, explanation in enumerate(chosen):
        record = material.records[i]
        examples = {
            name: [_example(e, record.maximum, setting, simulator, i) for e in record.examples[name][:most]]
            for name, most in LISTS.items()
        }
        scored = own.loc[explanation.unit]
        rows.append({
            "latent": explanation.unit, "r": scored.r, "floor": floor.get(explanation.unit, np.nan),
            "bits": explanation.bits, "density": record.n_active / record.n, "maximum": record.maximum,
            "text": explanation.text[:LONGEST_TEXT], **{name: json.dumps(found) for name, found in examples.items()},
            **{side: json.dumps(tokens) for side, tokens in promoted[i].items()},
        })  # fmt: skip
    meta = {
        "checkpoint": checkpoint, "explainer": chosen[0].explainer if chosen else "",
        "n_latents": setting.n_latents, "simulated": simulator is not None, "n_explained": len(explanations),
    }  # fmt: skip
    columns = ["latent", "r", "floor", "bits", "density", "maximum", "text", *LISTS, "promoted", "suppressed"]
    return Result("rewriting latents", pd.DataFrame(rows, columns=columns), UNITS, meta)


def _example(
    example: Example, maximum: float, setting: Setting, simulator: RuleSimulator | None, unit: int
) -> dict[str, Any]:
    """Texts of its tokens, and activations in hundredths of the maximum."""
    texts = [setting.vocabulary.texts[t] if t < setting.vocabulary.n else f"id {t}" for t in example.tokens]
    found: dict[str, Any] = {"tokens": texts, "at": example.at, "true": _hundredths(example.values, maximum)}
    if simulator is not None:
        first = example.pos - example.at
        row = setting.stories.tokens[example.story : example.story + 1, : example.pos + AFTER + 1]
        said = simulator(row, torch.tensor([row.shape[1]]))[0, first : first + len(texts), unit]
        found["simulated"] = _hundredths(said.tolist(), maximum)
    return found


def _hundredths(values: Sequence[float], maximum: float) -> list[int]:
    if not maximum > 0:
        return [0] * len(values)
    return [int(min(100, max(0, round(100 * v / maximum)))) if v == v else 0 for v in values]


def _promoted(setting: Setting, latents: Int[Tensor, " latent"]) -> list[dict[str, list[str]]]:
    """Tokens that each latent's decoder row promotes and suppresses most; none where it writes to no stream."""
    sides = ("promoted", "suppressed")
    if setting.coder.cfg.d_out != setting.model.cfg.d_model:
        return [{side: [] for side in sides} for _ in latents]
    rows = setting.coder.W_dec[latents.to(setting.coder.W_dec.device)].float()
    said = output_explanations(rows, setting.model, setting.vocabulary, min(NAMED, setting.vocabulary.n))
    texts = setting.vocabulary.texts
    return [{side: [texts[token] for token, _ in (e.rule or {})[side]] for side in sides} for e in said]
