"""Where in a model is a task done? See `python -m analyses.localization --help`.

    from analyses.localization import unit_effects
    result = unit_effects(model, load_task("ioi", model.tokenizer, n=128))
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "unit_effects": "units",
    "concentration_figure": "figures",
    "effects_figure": "figures",
    "head_figure": "figures",
    "unit_figures": "figures",
}
__all__ = ["concentration_figure", "effects_figure", "head_figure", "unit_effects", "unit_figures"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'analyses.localization' has no attribute {name!r}")
    return getattr(import_module(f"analyses.localization.{_HOMES[name]}"), name)
