"""A study of how self-repair comes about, with the question's words for its knobs."""

from typing import Any

from analyses.result import Result
from analyses.self_repair.mechanisms import STUDIES
from analyses.self_repair.repair import SELECTIONS, ablations
from analyses.texts import Stories

OF_ONE = ("erasure", "self_repression", "mediation", "dose", "share_of_repair")
"""Studies of a single component."""


def study(
    model: Any,
    texts: Stories,
    name: str,
    *,
    component: tuple[int, int] | None = None,
    ablation: str = "resample",
    select: str = "top",
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """The answer of one of `STUDIES`.

    Args:
        component: layer and head that is taken out; None: the head of the greatest direct effect.
        ablation, select: as in `story_self_repair`; not for `hydra` and `erasure_projection`, which say what they do.

    Raises:
        ValueError: an unknown study, or a component for a study of all of them.
    """
    if name not in STUDIES:
        raise ValueError(f"a study must be one of {', '.join(STUDIES)}; got {name!r}")
    if component is not None and name not in OF_ONE:
        raise ValueError(f"--component is for {', '.join(OF_ONE)}; {name} is of all components")
    knobs: dict[str, Any] = {} if name == "erasure_projection" else {"seed": seed}
    if name not in ("hydra", "erasure_projection"):
        knobs |= {"ablation": ablations(seed)[ablation], "select": SELECTIONS[select]()}
    if name in OF_ONE:
        knobs["component"] = component
    return STUDIES[name][0](model, texts, progress=progress, **knobs)
