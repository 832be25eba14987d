"""Where in a model is a task done? See `python -m analyses.localization --help`.

In Python: `unit_effects(model, load_task("ioi", model.tokenizer, n=128))` gives a Result, and
`unit_figures(result)` its figures.
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'analyses.localization' has no attribute {name!r}")
    return getattr(import_module(f"analyses.localization.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
