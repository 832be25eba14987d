"""An explanation of one unit: what it says, the rule that a simulator reads, its length, and what it was made from.

On disk: JSON, `{"format": "sat_lens explanations 1", "explanations": [...]}`; what cannot be one is refused.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analyses.explain.rule import checked_rule
from sat_lens.files import write_whole

FORMAT = "sat_lens explanations 1"
LARGEST_FILE = 2**28
LONGEST_TEXT = 2**16


@dataclasses.dataclass(frozen=True)
class Explanation:
    """One unit's explanation.

    Args:
        unit: its place among the units that were explained together.
        explainer: what made it: `rules:token`, `rules:ngram`, `rules:n2g`, `rules:tree`, `rules:output`, or a
            language model, by name.
        text: in English.
        rule: see `analyses.explain.rule`; None for an explanation that is text alone.
        bits: description length, in the code that `analyses.explain.rule` states.
        train_rows: sha256 of the stories it was made from.
    """

    unit: int
    explainer: str
    text: str
    rule: dict[str, Any] | None
    bits: float | int
    train_rows: str

    def __post_init__(self) -> None:
        _check(vars(self))


def save_explanations(explanations: Sequence[Explanation], path: Path | str) -> None:
    """Write them, whole or not at all."""
    document = {"format": FORMAT, "explanations": [dataclasses.asdict(e) for e in explanations]}
    write_whole(path, json.dumps(document, allow_nan=False) + "\n")


def load_explanations(path: Path | str) -> list[Explanation]:
    """What `save_explanations` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that it did not write.
    """
    path = Path(path)
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ValueError(f"{path} must hold explanations; it has {size:,} bytes, more than {LARGEST_FILE:,}")
    try:
        document = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refused)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        if set(document) != {"format", "explanations"} or not isinstance(document["explanations"], list):
            raise ValueError("it has no list of explanations")
        return [_explanation(entry) for entry in document["explanations"]]
    except RecursionError:
        raise ValueError(f"{path} must hold explanations: it is nested too deep") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} must hold explanations: {reason}") from None


def _explanation(entry: Any) -> Explanation:
    names = {field.name for field in dataclasses.fields(Explanation)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise ValueError(f"an explanation has {', '.join(sorted(names))}")
    _check(entry)
    return Explanation(**entry)


def _check(values: Any) -> None:
    unit, bits, rule = values["unit"], values["bits"], values["rule"]
    if type(unit) is not int or unit < 0:
        raise ValueError(f"a unit must be a number from 0 up; got {unit!r}")
    for name in ("explainer", "text", "train_rows"):
        if not isinstance(values[name], str) or len(values[name]) > LONGEST_TEXT:
            raise ValueError(f"{name} must be text of at most {LONGEST_TEXT:,} characters")
    if isinstance(bits, bool) or not isinstance(bits, int | float) or not 0 <= bits < math.inf:
        raise ValueError(f"bits must be a number from 0 up; got {bits!r}")
    if rule is not None:
        try:
            checked_rule(rule)
        except ValueError as error:
            raise ValueError(f"the rule of unit {unit} is none: {error}") from None


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
