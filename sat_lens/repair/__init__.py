"""Self-repair: what is taken out of a model is partly made up for by what comes after it.

| file | idea |
| --- | --- |
| `readout` | from the last residual stream to a logit, with the final norm taken apart |
| `components` | what is ablated: heads, layers, neurons, sets |
| `ablations` | by what: another text's activation, a mean, zero, a fitted constant, a dose of these |
| `selection` | at which tokens |
| `effects` | direct effects, self-repair and its shares, in closed form |
| `runner` | running a model from the middle |
| `downstream` | who is behind them, told apart |
| `measure` | all of it together: `self_repair` |
| `result` | the tables |
| `origin` | weights and versions that a result is of |

Source: arXiv 2402.15390, Explorations of Self-Repair in Language Models.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    **dict.fromkeys(("Readout", "LogitDiff", "FinalNorm"), "readout"),
    **dict.fromkeys(
        ("Component", "head", "heads", "attn_layers", "mlp_layers", "neurons", "joint", "as_components"), "components"
    ),
    **dict.fromkeys(("Resample", "Mean", "Zero", "Optimal", "Dose"), "ablations"),
    **dict.fromkeys(("TopDE", "Bottom", "All", "AbsDE", "MinRemoved"), "selection"),
    **dict.fromkeys(("Runner", "make_runner", "Point"), "runner"),
    "SelfRepairResult": "result",
    "self_repair": "measure",
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sat_lens.repair' has no attribute {name!r}")
    return getattr(import_module(f"sat_lens.repair.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
