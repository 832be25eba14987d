"""Self-repair of a token and its shares, in closed form from scores and scales.

With the scores f = x . v of the clean and the ablated last stream (f0, f1) and the scales of the final norm (s0, s1):

    DE  = what the component adds to f0, over s0          direct effect, clean
    ADE = the same of its replacement, over s0            direct effect, ablated; the clean scale, too
    change of the logit = f1 / s1 - f0 / s0
    self-repair = change of the logit - (ADE - DE)        positive: compensation

It is made up of what later heads and MLPs change, of the norm, and (not in the order `clean`) of the removal itself,
which the norm scales anew. With D_heads, D_mlps and D_own the changes of f, so that f1 - f0 is their sum:

| order | heads, mlps | norm | own |
| --- | --- | --- | --- |
| `clean`, as in the source's code | D / s0 | f1 (1/s1 - 1/s0) | 0 |
| `ablated`, as in its text | D / s1 | f0 (1/s1 - 1/s0) | D_own (1/s1 - 1/s0) |
| `symmetric` | D times the mean of 1/s0, 1/s1 | (f0 + f1)/2 (1/s1 - 1/s0) | D_own (1/s1 - 1/s0)/2 |

All orders sum to the same self-repair, exactly; which part is "the norm's" is a convention. Apart from the order,
`ln_own` is the self-repair that would be there if no later block reacted: (f0 + D_own)(1/s - 1/s0) with the scale s of
the stream from which only the removal is taken. `self_repair - ln_own` is what the later blocks' reactions bring about,
directly or through the norm.

Source: arXiv 2402.15390, equation 1 and section 4; differs: the norm's share is computed by itself, not left over.
"""

from jaxtyping import Float
from torch import Tensor

ORDERS = ("clean", "ablated", "symmetric")
FIELDS = (
    "de",
    "ade",
    "dlogit",
    "sr_heads",
    "sr_mlps",
    "sr_ln",
    "sr_own",
    "sr_gate",
    "ln_own",
    "ln_clipped",
    "scale_ratio",
)
"""What is averaged of each token: logits, but for `ln_clipped` (norm's share / DE, clipped to 0..1) and s0 / s1.

`sr_gate` is what changed masks bring about; 0 where there are none.
"""

Token = Float[Tensor, "copy pos"]


def effects(
    *,
    f0: Token,
    f1: Token,
    s0: Token,
    s1: Token,
    s_own: Token,
    de: Token,
    own: Token,
    heads: Token,
    mlps: Token,
    order: str,
) -> tuple[dict[str, Token], Token]:
    """The FIELDS of each token.

    Args:
        f0, f1, s0, s1: scores and scales, clean and ablated.
        s_own: scale of the clean stream from which only the removal is taken.
        de: direct effect, already over s0.
        own, heads, mlps: changes of the score by the removal, by other heads, by other MLPs.
        order: one of ORDERS.

    Returns:
        The fields; and by how much the shares fail to sum to the change of the logit, which they do unless
        something else writes to the stream.
    """
    removed = own / s0
    shift = 1 / s1 - 1 / s0
    per_unit = {"clean": 1 / s0, "ablated": 1 / s1, "symmetric": (1 / s0 + 1 / s1) / 2}[order]
    acted_on = {"clean": f1, "ablated": f0, "symmetric": (f0 + f1) / 2}[order]
    ln = acted_on * shift
    dlogit = f1 / s1 - f0 / s0
    found = {
        "de": de,
        "ade": de + removed,
        "dlogit": dlogit,
        "sr_heads": heads * per_unit,
        "sr_mlps": mlps * per_unit,
        "sr_ln": ln,
        "sr_own": own * (per_unit - 1 / s0),
        "sr_gate": de.new_zeros(de.shape),
        "ln_own": (f0 + own) * (1 / s_own - 1 / s0),
        "ln_clipped": (ln / de.where(de != 0, 1.0)).where(de != 0, 0.0).clamp(0, 1),
        "scale_ratio": s0 / s1,
    }
    shares = found["sr_heads"] + found["sr_mlps"] + found["sr_ln"] + found["sr_own"] + found["sr_gate"]
    return found, dlogit - removed - shares


def zone(dlogit: float, de: float) -> str:
    """Where a token or a component lies in the plane of direct effect and change of the logit.

    `repaired`: less than the direct effect is lost; `over-repaired`: the logit moves the other way; `breakage`:
    more is lost. No self-repair is the line between the first and the last, dlogit = -de.
    """
    if not de or dlogit != dlogit:
        return "none"
    ratio = dlogit / de
    if ratio > 0:
        return "over-repaired"
    return "repaired" if ratio > -1 else "breakage"
