"""What sums say of each unit: information, variance explained, effective number of contexts, sparsity.

Each measure is a plain function of `tables.Sums`; all are plug-in values, biased upwards where classes are many and
activity is rare. The same measure of a null has the same bias, and their difference next to none.

Sources: Hoyer 2004 (JMLR 5) for the measure of his name; Hurley and Rickard (arXiv 0811.4706) on the Gini
coefficient as one of sparsity.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.specialization.tables import Sums

Key = tuple[str, str]
"""Measure and target."""
NONE = "-"
"""Where there is no target, or no null: an empty cell of a CSV file would be read as missing."""

BY_LABEL = ("mutual information", "information share", "variance explained")
UNITS = {
    "usage": "share of tokens",
    "live stories": "share of stories",
    "negative share": "share of magnitude",
    "kurtosis": "excess kurtosis",
    "hoyer": "0..1",
    "gini": "0..1",
    "context entropy": "bits",
    "effective contexts": "tokens of the vocabulary",
    "mutual information": "bits",
    "information share": "share of the unit's entropy",
    "variance explained": "share of variance",
    "logit kurtosis": "excess kurtosis",
    "modularity": "-0.5..1",
}
"""Every measure and its unit."""


def measures(sums: Sums) -> dict[Key, Float[Tensor, " unit"]]:
    """All that these sums hold enough of, float64; NaN where a unit has none (such as the contexts of a dead one)."""
    found: dict[Key, Tensor] = {}
    if "n" in sums:
        found |= {(name, NONE): value for name, value in distribution(sums).items()}
    if "strength" in sums:
        entropy = context_entropy(sums["strength"][:-1])
        found["context entropy", NONE], found["effective contexts", NONE] = entropy, entropy.exp2()
    for name in [key.removeprefix("active/") for key in sums if key.startswith("active/")]:
        counts, labelled = sums[f"active/{name}"][:-1], sums[f"labelled/{name}"][:-1]
        information, entropy = mutual_information(counts, labelled)
        found["mutual information", name] = information
        found["information share", name] = _ratio(information, entropy)
        found["variance explained", name] = variance_explained(
            sums[f"values/{name}"][:-1], sums[f"squares/{name}"], labelled
        )
    return found


def mutual_information(
    active: Float[Tensor, "label unit"], labelled: Float[Tensor, " label"]
) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
    """I(active; label) and H(active), bits, plug-in.

    Args:
        active: tokens of each class at which a unit is active.
        labelled: tokens of each class.
    """
    on, tokens = active.double(), labelled.double()
    n, total = tokens.sum(), on.sum(0)
    split = _xlogx(on).sum(0) + _xlogx(tokens[:, None] - on).sum(0)
    alone = _xlogx(total) + _xlogx(n - total)
    per_bit = n * torch.log(n.new_tensor(2.0))
    information = (split - _xlogx(tokens).sum() - alone + _xlogx(n)) / per_bit
    return information.clamp(min=0), ((_xlogx(n) - alone) / per_bit).clamp(min=0)


def best_labels(
    active: Float[Tensor, "label unit"], labelled: Float[Tensor, " label"]
) -> tuple[Int[Tensor, " unit"], Float[Tensor, " unit"]]:
    """The class that a unit's activity speaks for most, and its lift P(active | class) / P(active).

    The class with the largest P(class, active) log [P(class | active) / P(class)]: over-represented, and often
    enough to matter. -1 and NaN for a unit that is never active.
    """
    on, tokens = active.double(), labelled.double()[:, None]
    rate = on.sum(0) / tokens.sum()
    lift = _ratio(on / tokens.clamp(min=1), rate[None])
    spoken = torch.where(on > 0, on * lift.clamp(min=1e-300).log(), 0.0)
    best = spoken.argmax(0)
    dead = rate == 0
    return best.where(~dead, -1), lift.gather(0, best[None])[0].where(~dead, torch.nan)


def variance_explained(
    values: Float[Tensor, "label unit"], squares: Float[Tensor, " unit"], labelled: Float[Tensor, " label"]
) -> Float[Tensor, " unit"]:
    """Eta squared: the share of the values' variance over tokens that lies between the means of classes. 0..1."""
    summed, tokens = values.double(), labelled.double()[:, None]
    level = summed.sum(0).square() / tokens.sum()
    between = (summed.square() / tokens.clamp(min=1)).sum(0) - level
    within_and_between = squares.double() - level
    flat = within_and_between <= 1e-12 * squares.double()  # a constant, up to rounding
    return _ratio(between, within_and_between.masked_fill(flat, 0.0)).clamp(0, 1)


def context_entropy(strength: Float[Tensor, "label unit"]) -> Float[Tensor, " unit"]:
    """Entropy, bits, of the current token where each token counts with the unit's strength there."""
    weights = strength.double()
    total = weights.sum(0)
    entropy = _ratio(total * total.clamp(min=1e-300).log() - _xlogx(weights).sum(0), total)
    return entropy.clamp(min=0) / torch.log(total.new_tensor(2.0))


def distribution(sums: Sums) -> dict[str, Float[Tensor, " unit"]]:
    """Usage, and how the strength is spread over tokens, whatever these are."""
    n = sums["n"].double()
    first, second, third, fourth = (power.double() / n for power in sums["powers"])
    variance = second - first.square()
    central = fourth - 4 * first * third + 6 * first.square() * second - 3 * first.pow(4)
    flat = variance <= 1e-12 * second
    return {
        "usage": sums["n_active"].double() / n,
        "negative share": _ratio(sums["negative"].double(), sums["magnitude"].double()),
        "kurtosis": _ratio(central, variance.square().masked_fill(flat, 0.0)) - 3,
        "hoyer": hoyer(first, second, n),
        "gini": binned_gini(*sums["bins"]),
    }


def hoyer(first: Tensor, second: Tensor, n: Tensor) -> Tensor:
    """(sqrt n - L1 / L2) / (sqrt n - 1) of n numbers, from their mean magnitude and mean square. 0..1."""
    return (1 - _ratio(first, second.sqrt())) * n.sqrt() / (n.sqrt() - 1)


def binned_gini(counts: Float[Tensor, "bin unit"], totals: Float[Tensor, "bin unit"]) -> Float[Tensor, " unit"]:
    """Gini coefficient from how many values lie in each bin, bins ascending, and their sums. 0..1.

    Values of one bin count as equal: with bins of 10 % it comes out too low by less than 0.005.
    """
    share = totals / totals.sum(0)
    held = share.cumsum(0)
    return 1 - (counts / counts.sum(0) * (2 * held - share)).sum(0)


def _xlogx(x: Tensor) -> Tensor:
    return torch.special.xlogy(x, x)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, NaN where whole is 0."""
    return torch.where(whole == 0, torch.nan, part / whole.where(whole != 0, 1.0))
