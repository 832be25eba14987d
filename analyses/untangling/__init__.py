"""Can one of a toy model's tasks be removed, and the other kept? See `python -m analyses.untangling --help`.

In Python: `untangling([load_toy("decoder-n50-joint-l0.01-s0")], [("concat", "sum")])` gives a Result, and
`untangling_figures(result)` its figures.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "untangling": "answer",
    "untangling_figures": "figures",
    "tolerance_sweep": "sweep",
    "reproduction": "reproduction",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'analyses.untangling' has no attribute {name!r}")
    return getattr(import_module(f"analyses.untangling.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
