"""Small transformers that learn two tasks at once, with a sparse autoencoder beside them.

    from sat_lens.toy import ToyConfig, task_data, train_toy, load_toy

The two tasks are adding (`B12+7E` -> `B19E`) and concatenating (`B12C7E` -> `B127E`) two numbers. One protocol, two
architectures: `decoder` (a SelfAblatingTransformer, with masks or without) and `seq2seq` (encoder and decoder).
Whoever wants two skills in one model, with the truth about both, takes them from here.

Source: the blog posts "Untangling Tasks in a Toy Transformer" and "Deeper Untangling" (C. Calin, 2026).
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "MaximalMunch": "munch",
    "Problems": "arithmetic",
    "SideSAE": "side_sae",
    "TaskData": "arithmetic",
    "ToyConfig": "config",
    "ToyModel": "model",
    "build_toy": "model",
    "load_toy": "runs",
    "operator_task": "task",
    "task_data": "arithmetic",
    "toy_config": "config",
    "train_toy": "training",
}
__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sat_lens.toy' has no attribute {name!r}")
    return getattr(import_module(f"sat_lens.toy.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
