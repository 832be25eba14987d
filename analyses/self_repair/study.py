"""A study of how self-repair comes about, with the question's words for its knobs."""

from typing import Any

from analyses import needs
from analyses.result import Result
from analyses.self_repair.mechanisms import OF_ONE, OWN_ABLATION, OWN_TOKENS, STUDIES
from analyses.self_repair.repair import SELECTIONS, ablations
from analyses.texts import Stories


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
        ablation, select: as in `story_self_repair`; not for studies that say so themselves (`OWN_ABLATION`,
            `OWN_TOKENS`).

    Raises:
        ValueError: an unknown study, or a component for a study of all of them.
    """
    needs.require(model, "self_repair")
    if name not in STUDIES:
        raise ValueError(f"a study must be one of {', '.join(STUDIES)}; got {name!r}")
    if component is not None and name not in OF_ONE:
        raise ValueError(f"--component is for {', '.join(OF_ONE)}; {name} is of all components")
    knobs: dict[str, Any] = {} if name == "erasure_projection" else {"seed": seed}
    if name not in OWN_ABLATION:
        knobs["ablation"] = ablations(seed)[ablation]
    if name not in OWN_TOKENS:
        knobs["select"] = SELECTIONS[select]()
    if name in OF_ONE:
        knobs["component"] = component
    return STUDIES[name][0](model, texts, progress=progress, **knobs)
