"""Settings in a YAML file: of a run, or of a sweep."""

from pathlib import Path
from typing import Any

from sat_lens.files import regular

MOST_VALUES = 100_000
"""In a configuration file."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a file, dashes as underscores.

    Raises:
        ValueError: no YAML, no settings, or aliases that stand for too much.
        OSError: a file that cannot be read.
    """
    import yaml

    text = regular(path).read_bytes()
    try:
        content = yaml.safe_load(text.decode("utf-8"))
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
    ) as error:
        raise ValueError(f"{path}: not YAML ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must map settings to values; got {type(content).__name__}")
    if written_out(content, {}) > MOST_VALUES:
        raise ValueError(f"{path}: its aliases stand for more than {MOST_VALUES:,} values, or for themselves")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def written_out(content: Any, known: dict[int, float | int]) -> float | int:
    """How many values a YAML document would have without aliases; infinite where one contains itself."""
    if not isinstance(content, dict | list | tuple | set):
        return 1
    if id(content) not in known:
        known[id(content)] = float("inf")
        inner = [*content, *content.values()] if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(written_out(value, known) for value in inner)
    return known[id(content)]
