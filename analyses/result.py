"""The answer to a question: a tidy table, the unit of each column, and where it comes from.

On disk it is `table.csv` and `meta.json`, readable without this project.
"""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sat_lens.files import write_whole


@dataclasses.dataclass(frozen=True)
class Result:
    """One question's answer.

    Args:
        name: of the question, such as `localization`.
        table: one observation a row, columns named for what they index or measure.
        units: by column, what its numbers count: "nats", "logits", "index", ...
        meta: everything needed to redo it; plain JSON values.

    Raises:
        ValueError: a unit for a column that the table does not have.
    """

    name: str
    table: pd.DataFrame
    units: dict[str, str]
    meta: dict[str, Any]

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.units) - set(self.table.columns)):
            raise ValueError(f"units must name columns of the table ({', '.join(self.table)}); got {unknown[0]!r}")

    def to_json(self) -> str:
        """`{"name", "table": [rows], "units", "meta"}` as one line; what is missing or not finite is null."""
        rows = self.table.astype(object).where(self.table.notna(), None).to_dict(orient="records")
        document = {"name": self.name, "table": rows, "units": self.units, "meta": self.meta}
        return json.dumps(plain(document), allow_nan=False)

    def files(self) -> dict[str, str]:
        """By name, the text of the files that `save` writes."""
        dtypes = {column: str(dtype) for column, dtype in self.table.dtypes.items()}
        meta = {"name": self.name, "units": self.units, "dtypes": dtypes, "meta": self.meta}
        table = self.table.to_csv(index=False, lineterminator="\n")
        if "\r" in table:  # which stands unquoted, and would end a line
            table = self.table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        return {
            "table.csv": table,
            "meta.json": json.dumps(plain(meta), indent=2, allow_nan=False) + "\n",
        }

    def save(self, folder: Path | str) -> None:
        """Write `table.csv` and `meta.json`, each whole or not at all."""
        for name, text in self.files().items():
            write_whole(Path(folder) / name, text)

    @staticmethod
    def load(folder: Path | str) -> "Result":
        """What `save` wrote; an empty cell is a missing value.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: files that `save` did not write.
        """
        try:
            found = {name: (Path(folder) / name).read_bytes().decode("utf-8") for name in ("meta.json", "table.csv")}
            return Result.of_files(found)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{folder} must hold the table.csv and meta.json of a result: {error}") from None

    @staticmethod
    def of_files(found: Mapping[str, str]) -> "Result":
        """What `files` gave. Raises: KeyError, TypeError, ValueError, RecursionError for what it did not give."""
        meta = json.loads(found["meta.json"])
        if not isinstance(meta["name"], str) or not all(isinstance(meta[k], dict) for k in ("units", "dtypes", "meta")):
            raise ValueError("name must be text; units, dtypes and meta objects")
        floats = {column: dtype for column, dtype in meta["dtypes"].items() if str(dtype).startswith("float")}
        table = pd.read_csv(
            io.StringIO(found["table.csv"], newline=""),
            dtype=meta["dtypes"] | dict.fromkeys(floats, "object"),
            keep_default_na=False,
            na_values=[""],
            skip_blank_lines=False,  # a cell may be nothing but white space
            engine="python",
        ).astype(floats)  # not by pandas' own parser, which some versions round in
        return Result(meta["name"], table, meta["units"], meta["meta"])


def plain(value: Any) -> Any:
    """`value` in JSON's own types: numpy and torch scalars as numbers, tuples as lists, NaN as null."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy arrays and scalars, tensors
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return None if value is pd.NA else str(value)
