"""How much of all latents, and of their activation, has an explanation that is more than a constant."""

from collections.abc import Sequence
from typing import Any

import torch

from analyses.explain import Explanation
from analyses.explain.selection import covered
from analyses.rewriting.setting import Setting, mass, n_active


def coverage_of(setting: Setting, explanations: Sequence[Explanation]) -> dict[str, Any]:
    """Of the stories to explain from: latents that were never active are dead, those with a mere constant silent.

    Returns:
        `n_latents`, `n_explained` (with an explanation of any kind), `n_dead` and `n_silent` of these, and the shares
        of all latents (`by_count`) and of all activation (`by_mass`) that have more than a constant.
    """
    acts = setting.of("explain")
    latents = torch.tensor([e.unit for e in explanations], dtype=torch.long)
    weight = mass(acts)
    one = covered(explanations, n_active(acts)[latents], weight[latents])
    total = float(weight.sum())
    return {
        "n_latents": setting.n_latents,
        "n_explained": len(explanations),
        "n_dead": len(one.dead),
        "n_silent": len(one.silent),
        "by_count": one.by_count * len(explanations) / setting.n_latents,
        "by_mass": one.by_mass * float(weight[latents].sum()) / total if total else float("nan"),
    }
