"""How self-repair comes about: one study a file, each a function of a model and stories that gives a Result.

`STUDIES` names them all; nothing heavy is imported before one is called.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

_LINES = {
    "erasure": "MLP neurons that erase what a head says, and erase less without it: which, how few, the same ones?",
    "layer_shift": "do heads react to a lost head as they do to a lost layer?",
    "self_repression": "does a head say less when its own output is in the stream already?",
    "cosine": "do later components turn towards what a head wrote when it is out?",
    "signal": "is it the answer in a head's output that is repaired and erased, or the rest of it?",
    "hydra": "whole layers ablated at the last token: how much do later layers make up for?",
    "backups": "which heads take over when seeds are out: completion scores, growth of direct effects, ROC-AUC",
    "repair_matrix": "who repairs whom, head by head and MLP by MLP",
    "mediation": "through what repair runs: shares lost when the norm, heads, MLPs or a set are frozen",
    "dose": "what later components do when a head is taken out in part: is the response affine?",
    "erasure_projection": "later components that write the negative of what earlier ones wrote",
    "share_of_repair": "the share of a head's repair that a given set carries, by sum and by freezing",
    "ln_ratio": "the final norm's scale, clean / ablated, when a head is resampled, its mean, zero",
    "thresholds": "the answer as the selection of tokens narrows to large direct effects",
}
OF_ONE = ("erasure", "self_repression", "cosine", "signal", "mediation", "dose", "share_of_repair", "ln_ratio")
"""Studies of a single component."""
OWN_ABLATION = ("hydra", "erasure_projection", "ln_ratio")
"""Studies that say themselves what replaces a component."""
OWN_TOKENS = ("hydra", "erasure_projection", "thresholds")
"""Studies that say themselves at which tokens."""


def _study(name: str) -> Callable[..., Any]:
    def run(model: Any, stories: Any, **knobs: Any) -> Any:
        return getattr(import_module(f"{__name__}.{name}"), name)(model, stories, **knobs)

    run.__name__ = run.__qualname__ = name
    return run


STUDIES: Mapping[str, tuple[Callable[..., Any], str]] = {name: (_study(name), line) for name, line in _LINES.items()}
"""By name: the function (model, stories, **knobs) -> Result, and one line on what it asks."""


def study_figures(result: Any) -> Mapping[str, Any]:
    """The figures of any study's Result, by file name."""
    from analyses.self_repair.mechanisms.figures import FIGURES

    return FIGURES[result.name](result)
