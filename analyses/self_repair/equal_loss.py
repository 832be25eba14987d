"""Self-repair of models that predict differently well, compared on tokens which they predict equally well.

A model with less loss has larger direct effects on easier tokens, and may repair more or less for that alone. So each
model's selected tokens fall into BINS by the model's own loss of the token, in the stream that is read. A bin counts as
much for every model: as much as the fewest tokens that any of them has there.

    ratio of a model = sum over bins of fewest(b) * mean self-repair(b) / the same of the removed direct effect

What remains of the difference in loss, and the share of tokens that is left to count, are told. Tokens of equal loss
are no models of equal loss: at the same loss the weaker model stands on easier tokens. Where there are models of equal
loss they are compared, too (`comparison.matched_pairs`).

Source: coarsened exact matching (Iacus, King and Porro 2012), of tokens.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analyses.result import Result
from analyses.self_repair.halves import SHARES
from sat_lens.repair.effects import FIELDS

EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.55, 0.8, 1.1, 1.5, 2.0, 2.6, 3.3, 4.2, 5.4, 7.0, 10.0)
"""Bits at which the bins begin; the last one has no end."""
BINNED = ("n", "loss", "self_repair", "removed", *SHARES)
RESAMPLES = 1000


def sums_by_bin(found: Any, layers: Sequence[int], bits: np.ndarray) -> dict[str, Any]:
    """Sums over the selected tokens of some layers' components, by story and bin of the token's loss.

    Args:
        found: a SelfRepairResult with values by token.
        bits: loss of the token that follows, [story pos].

    Returns:
        `edges` (bits), and by name of BINNED [story bin] as lists: logits, `loss` in bits, `n` in tokens.
    """
    dose, component, row, pos = found.places[:, :4].long().numpy().T
    of_layers = np.array([one.layer in set(layers) for one in found.components])
    mine = of_layers[component] & (dose == 0)
    row, pos = row[mine], pos[mine]
    values = dict(zip(FIELDS, found.values[:, : len(FIELDS)].double().numpy()[mine].T, strict=True))
    values["removed"] = values["de"] - values["ade"]
    values["self_repair"] = values["dlogit"] + values["removed"]
    values["n"], values["loss"] = np.ones(len(row)), bits[row, pos]
    shape = (len(bits), len(EDGES))
    cell = row * len(EDGES) + np.searchsorted(EDGES, values["loss"], side="right").clip(1) - 1
    sums = {name: np.bincount(cell, values[name], shape[0] * shape[1]).reshape(shape) for name in BINNED}
    return {"edges": list(EDGES), **{name: np.round(of, 5).tolist() for name, of in sums.items()}}


def matched(results: Sequence[Result], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every measure of every model on equal terms.

    Args:
        weights: how often each story counts, [resample story].

    Returns:
        `self_repair` and SHARES over the removed direct effect, `loss` (bits a token), and `kept`, the share of the
        model's tokens that count, [resample model].
    """
    sums = {name: np.array([r.meta["by_loss"][name] for r in results], dtype=np.float64) for name in BINNED}
    drawn = {name: np.einsum("ws,msb->wmb", weights, of, optimize=True) for name, of in sums.items()}
    fewest = drawn["n"].min(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = {name: np.where(fewest > 0, fewest * of / drawn["n"], 0.0).sum(-1) for name, of in drawn.items()}
        found = {name: means[name] / means["removed"] for name in ("self_repair", *SHARES)}
        found["loss"] = means["loss"] / means["n"]
        found["kept"] = means["n"] / drawn["n"].sum(-1)
    return found


def matched_rows(results: Sequence[Result], names: dict[str, str], seed: int = 0) -> list[list[dict[str, Any]]]:
    """Rows of a comparison for each model: the ratios on tokens of equal loss, with intervals over stories.

    Args:
        names: metric by `self_repair`, SHARES, `loss` or `kept`.
    """
    n_stories = len(results[0].meta["by_loss"]["n"])
    whole = matched(results, np.ones((1, n_stories)))
    draw = np.random.default_rng(seed)
    drawn = matched(results, draw.multinomial(n_stories, np.full(n_stories, 1 / n_stories), size=RESAMPLES))
    rows: list[list[dict[str, Any]]] = [[] for _ in results]
    for i, of_model in enumerate(rows):
        n = int(np.sum(results[i].meta["by_loss"]["n"]) * whole["kept"][0, i] + 0.5)
        for name, metric in names.items():
            values = drawn[name][:, i]
            values = values[np.isfinite(values)]
            low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
            row = {"metric": metric, "value": float(whole[name][0, i]), "ci_low": float(low), "ci_high": float(high)}
            of_model.append({**row, "n": n})
    return rows
