"""Table 1 and the claims as published: one run an arm, the best of two or three by perplexity.

Source: arXiv 2505.00509, table 1 and abstract; the code's results notebook.
"""

from typing import NamedTuple

FAITHFUL = ("perplexity", "IOI edges", "SAE L0", "SAE CE score", "mean_abs_weight")
"""Columns of table 1; the last one is called "Sparsity (L1)" there."""

_ROWS = {
    "none": (5.73, 79, 7.22, 0.63, 0.44),
    "global k=8": (6.97, 70, 5.22, 0.65, 0.74),
    "local k=8": (6.47, 36, 5.00, 0.72, 0.67),
    "global k=4": (6.73, 41, 4.90, 0.67, 0.72),
    "local k=4": (6.58, 30, 4.01, 0.65, 0.76),
    "global k=2": (6.66, 30, 4.57, 0.71, 0.73),
    "local k=2": (6.55, 54, 4.90, 0.70, 0.71),
    "global k=1": (6.49, 38, 5.48, 0.66, 0.62),
    "local k=1": (6.58, 36, 5.33, 0.69, 0.70),
}
ROWS = {arm: dict(zip(FAITHFUL, values, strict=True)) for arm, values in _ROWS.items()}
"""By arm, as `analyses.arms` names them."""


class Claim(NamedTuple):
    """What the paper says, and the number of ours that speaks of it.

    Args:
        text: the claim.
        published: on what it rests there.
        metric: of ours.
        sign: of arm minus baseline, if the claim is right; 0 where it is that nothing is lost.
        margin: where nothing is lost, the ratio to the baseline that counts as none (`equivalence`); more is a loss.
    """

    text: str
    published: str
    metric: str
    sign: int
    margin: float | None = None


NO_HARM = 1.05
"""Perplexity within 5 % of the baseline's (.049 nats a token) counts as no loss; the paper states no margin."""


CLAIMS = (
    Claim("language modelling is not compromised", "perplexity +13 % to +22 %", "perplexity", 0, NO_HARM),
    Claim("circuits are smaller", "30 to 70 IOI edges against 79 (ACDC, tau 0.03)", "IOI edges", -1),
    Claim("circuits are smaller", "the same", "edges at faithfulness 0.9", -1),
    Claim("features are sparser", "SAE L0 4.0 to 5.5 against 7.2", "SAE L0 at FVU", -1),
    Claim("features are easier to read", "CE score 0.65 to 0.72 against 0.63", "SAE CE score at FVU", 1),
    Claim("overall sparsity is reduced", "mean |weight| 0.62 to 0.76 against 0.44", "mean_abs_weight", 1),
    Claim("overall sparsity is reduced", "the same", "weight Hoyer", -1),
    Claim("overall sparsity is reduced", "the same", "neuron Hoyer", -1),
)
"""Each with the published measure, and with one that is sound."""
