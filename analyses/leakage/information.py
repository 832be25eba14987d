"""Conditional mutual information I(mask; prediction | token), from the counts of single units.

The plug-in estimate of whole masks says nothing here: masks hardly repeat, so that own and shuffled ones alike give
all of H(prediction | token), and their difference is 0 (`plug_in` has both). In its place stands the held-out rate

    bits = log2 p(prediction | mask, token) - log2 p(prediction | token)
    p(prediction | mask, token) ~ p(prediction | token) x product over units [O / E] ^ power

O: how often the unit was on (or off) with that prediction; E: how often it would be if, given the token, the two were
independent. Counts are from some stories, bits from others, so that there is no bias of small counts to correct; the
units that are used (those with the most evidence) and the power, which makes up for units that say the same twice,
are chosen on stories of neither. A lower bound on average. No gradient, no rotation of units: what single units tell.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse, special

from analyses.leakage.conditional import Fold, folds, shuffled
from analyses.leakage.finding import Finding
from analyses.leakage.judged import MARGIN_BITS, information_spread, judged
from analyses.leakage.observed import Observed
from analyses.leakage.softmax_probe import mask_features
from analyses.leakage.usage import labels
from analyses.leakage.variants import story_means

UNITS: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
POWERS: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0, 1.5)
ALPHA = 0.5
"""Added to counts and expected counts."""
LISTED = 20


def information(observed: Observed, controls: Sequence[Observed], *, seed: int = 0) -> Finding:
    """Bits a token that masks tell of the clean stream's prediction, beyond the current token.

    Winners only: the weights of soft masks are not read.

    Args:
        controls: the same positions with masks of random heads, a draw each.

    Returns:
        `detail`: `shuffled`, bits of masks of other stories' positions with the same token; `entropy`, of the
        prediction given the token (loss of the bigram, bits), and `share` of it that is told; `capacity`, of the mask,
        sum of log2 C(n, k), and `share_of_capacity`; `units`, how many were used, and `powers`; `by_unit`, layer, unit
        and evidence (bits a token, alone) of the strongest; `plug_in`, of whole masks, own and shuffled.
    """
    found = folds(observed, observed.prediction, seed=seed)
    bits, chosen, evidence = _bits(observed, found)
    nulls = [_bits(one, found)[0] for one in controls]
    other = shuffled(observed, seed)
    mixed = _bits(other, found)[0]
    bigram = np.empty(observed.n)
    for fold in found:
        bigram[fold.judged] = fold.bits(fold.judged)
    mean, before = (float(story_means(observed, one).mean()) for one in (bits, bigram))
    strongest = np.argsort(-evidence)[:LISTED]
    return judged(
        "mutual information",
        "bits of the prediction that single units of masks tell, given the current token",
        story_means(observed, bits),
        [story_means(observed, null) for null in nulls],
        n=observed.n,
        spread=information_spread(MARGIN_BITS, observed.n),
        detail={
            "shuffled": float(story_means(observed, mixed).mean()),
            "entropy": before,
            "share": mean / before if before > 0 else 0.0,
            "capacity": capacity(observed),
            "share_of_capacity": mean / max(capacity(observed), 1e-12),
            "units": [units for units, _ in chosen],
            "powers": [power for _, power in chosen],
            "by_unit": [[int(i // observed.width), int(i % observed.width), float(evidence[i])] for i in strongest],
            "plug_in": {"own": plug_in(observed), "shuffled": plug_in(other)},
        },
    )


def _bits(
    observed: Observed, found: Sequence[Fold]
) -> tuple[Float[np.ndarray, " position"], list[tuple[int, float]], Float[np.ndarray, " unit"]]:
    """Bits a position; units and power of each fold; evidence of each unit alone, bits a token."""
    x = mask_features(winners_alone(observed))
    bits, chosen, evidence = np.empty(observed.n), [], np.zeros(x.shape[1])
    for fold in found:
        weights, off, alone = log_ratios(x, fold)
        evidence += np.maximum(alone, 0) / len(found)
        order = np.argsort(-alone, kind="stable")
        best: tuple[float, int, float] = (0.0, 0, 0.0)
        for n in sorted({min(n, len(order)) for n in (*UNITS, len(order))}):
            kept = order[:n]
            score = x[fold.inner][:, kept] @ weights[kept] + off[kept].sum(0)
            for power in POWERS:
                gain = float(_gain(power * score, fold, fold.inner).mean())
                best = max(best, (gain, n, power))
        kept, power = order[: best[1]], best[2]
        score = x[fold.judged][:, kept] @ weights[kept] + off[kept].sum(0)
        bits[fold.judged] = _gain(power * score, fold, fold.judged) if best[1] else 0.0
        chosen.append(best[1:])
    return bits, chosen, evidence


def winners_alone(observed: Observed) -> Observed:
    """The same positions with bits alone."""
    return dataclasses.replace(observed, soft=None)


def log_ratios(
    x: Any, fold: Fold
) -> tuple[Float[np.ndarray, "unit class_"], Float[np.ndarray, "unit class_"], Float[np.ndarray, " unit"]]:
    """log O/E of a unit that is on minus that of one that is off, the latter, and the evidence for each unit.

    The evidence is the likelihood ratio of the counts, bits a token, less what chance gives it: half a nat for each
    prediction that was seen.
    """
    token, label, n = fold.token[fold.fit], fold.label[fold.fit], len(fold.fit)
    one = np.ones(n, dtype=np.float32)
    of_token = sparse.csr_array((one, (token, np.arange(n))), shape=(fold.n_tokens, n))
    of_label = sparse.csr_array((one, (np.arange(n), label)), shape=(n, fold.n_classes))
    xf = x[fold.fit]
    on = (xf.T @ of_label).toarray()
    share = (of_token @ xf).toarray() / np.maximum(np.bincount(token, minlength=fold.n_tokens), 1)[:, None]
    expected = share.T @ (of_token @ of_label).toarray()
    total = np.bincount(label, minlength=fold.n_classes)
    off, off_expected = total - on, np.maximum(total - expected, 0)
    ratio_on, ratio_off = (np.log((a + ALPHA) / (b + ALPHA)) for a, b in ((on, expected), (off, off_expected)))
    nats = (
        special.xlogy(on, on) - special.xlogy(on, expected) + special.xlogy(off, off) - special.xlogy(off, off_expected)
    )
    chance = ((expected > 0) & (off_expected > 0)).sum(1) / 2
    evidence = (np.nan_to_num(nats, posinf=0.0).sum(1) - chance) / n / np.log(2)
    return (ratio_on - ratio_off).astype(np.float32), ratio_off.astype(np.float32), evidence


def _gain(score: Float[np.ndarray, "row class_"], fold: Fold, rows: np.ndarray) -> Float[np.ndarray, " row"]:
    logits = fold.offset(rows) + score
    label = fold.label[rows]
    own = np.take_along_axis(logits, label[:, None], 1)[:, 0] - special.logsumexp(logits, axis=1)
    return own.astype(np.float64) / np.log(2) + fold.bits(rows)


def capacity(observed: Observed) -> float:
    """Bits that a mask could carry: sum over layers and kinds of units of log2 C(n, k), with the k of each layer.

    Where k is shared by all layers, it is C(layers x n, layers x k).
    """
    masks = observed.masks(slice(0, 64))
    bits = 0.0
    for part in np.split(masks, [observed.attn_width], axis=-1):
        k, n = part.sum(-1), part.shape[-1]
        if not n:
            continue
        shared = (k != k[:1]).any()
        sizes = [(n * observed.n_layers, int(k[0].sum()))] if shared else [(n, int(one)) for one in k[0]]
        bits += sum(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1) for n, k in sizes)
    return float(bits / np.log(2))


def plug_in(observed: Observed) -> dict[str, float]:
    """Plug-in I(mask; prediction | token) of whole masks, bits, and the same corrected as Miller and Madow do.

    H(mask, token) + H(prediction, token) - H(token) - H(mask, prediction, token); each entropy corrected by
    (distinct values - 1) / (2 n ln 2).
    """
    token, prediction, mask = (
        observed.token.astype(np.int64),
        observed.prediction.astype(np.int64),
        labels(observed.bits),
    )
    pair = token * observed.d_vocab + prediction
    plain = corrected = 0.0
    for sign, parts in ((1, (token, mask)), (1, (pair,)), (-1, (token,)), (-1, (pair, mask))):
        counts = np.unique(np.stack(parts), axis=1, return_counts=True)[1]
        entropy = -float((counts / observed.n * np.log2(counts / observed.n)).sum())
        plain += sign * entropy
        corrected += sign * (entropy + (len(counts) - 1) / (2 * observed.n * np.log(2)))
    return {"plain": float(plain), "miller_madow": float(corrected)}
