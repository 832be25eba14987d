"""Tasks from files: auto-circuit's JSON and EAP-IG's CSV.

JSON: `{"prompts": [{"clean", "corrupt", "answers": [" A"], "wrong_answers": [" B"]}]}`, texts.
CSV: columns `clean`, `corrupted`, and `correct`, `incorrect` (texts that continue the prompt) or
`correct_idx`, `incorrect_idx` (ids of the model's own tokenizer; a text is taken there as well).
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sat_lens.files import regular
from sat_lens.tasks.encoding import continuation_ids, start_ids, task_from_ids, text_ids
from sat_lens.tasks.task import Task, TaskError


class Prompt(NamedTuple):
    """One prompt of a file; an answer is a text that continues it, or an id."""

    clean: str
    corrupt: str
    answer: str | int
    wrong_answer: str | int


def auto_circuit_prompts(text: str) -> list[Prompt]:
    """Prompts of an auto-circuit JSON; of several answers the first counts."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"not valid JSON ({error})") from None
    rows = document.get("prompts") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise TaskError("must be an object with a list 'prompts'")
    return [_auto_circuit_prompt(i, row) for i, row in enumerate(rows)]


def _auto_circuit_prompt(i: int, row: object) -> Prompt:
    keys = ("clean", "corrupt", "answers", "wrong_answers")
    if not isinstance(row, dict) or not row.keys() >= set(keys):
        raise TaskError(f"prompt {i} must be an object with {', '.join(keys)}")
    answers = [row[key] for key in keys[2:]]
    if not all(isinstance(a, list) and a and type(a[0]) in (str, int) for a in answers):
        raise TaskError(f"answers and wrong_answers of prompt {i} must be lists of at least one text")
    if not all(isinstance(row[key], str) for key in keys[:2]):
        raise TaskError(f"clean and corrupt of prompt {i} must be texts")
    return Prompt(row["clean"], row["corrupt"], answers[0][0], answers[1][0])


def eap_prompts(text: str) -> list[Prompt]:
    """Prompts of an EAP-IG CSV; a text answer is preferred to an id, which belongs to one tokenizer."""
    try:
        reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise TaskError(f"not valid CSV ({error})") from None
    columns = []
    for names in (("clean",), ("corrupted", "corrupt"), ("correct", "correct_idx"), ("incorrect", "incorrect_idx")):
        found = next((name for name in names if name in (reader.fieldnames or ())), None)
        if found is None:
            raise TaskError(f"must have a column {' or '.join(names)}; got {', '.join(reader.fieldnames or ())}")
        columns.append(found)
    for i, row in enumerate(rows):
        if any(not row[column] for column in columns):
            raise TaskError(f"row {i} must have {', '.join(columns)}")
    return [Prompt(row[columns[0]], row[columns[1]], _id_or_text(row[columns[2]]), _id_or_text(row[columns[3]]))
            for row in rows]  # fmt: skip


def _id_or_text(cell: str) -> str | int:
    return int(cell) if cell.isascii() and cell.isdigit() and len(cell) < 10 else cell


READERS: dict[str, Callable[[str], list[Prompt]]] = {".json": auto_circuit_prompts, ".csv": eap_prompts}


def task_from_file(path: Path | str, tokenizer: Any) -> Task:
    """All prompts of a file, in its order.

    Raises:
        TaskError: what is wrong with it, and in which prompt.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise TaskError(f"{path.name}: a task file ends in {' or '.join(READERS)}; got {path.suffix!r}")
    try:
        prompts = READERS[path.suffix.lower()](regular(path).read_bytes().decode("utf-8-sig"))
        return task_from_prompts(path.stem, prompts, tokenizer)
    except UnicodeDecodeError as error:
        raise TaskError(f"{path.name}: not UTF-8 (byte {error.start})") from None
    except TaskError as error:
        raise TaskError(f"{path.name}: {error}") from None


def task_from_prompts(name: str, prompts: list[Prompt], tokenizer: Any) -> Task:
    """Tokenise prompts and their answers; `end` is the last token of each prompt.

    Raises:
        TaskError: no prompt, an answer that is not one token, or a pair of unequal length.
    """
    if not prompts:
        raise TaskError("must hold at least 1 prompt; got none")
    rows = []
    for i, prompt in enumerate(prompts):
        if any(isinstance(text, str) and _has_lone_surrogate(text) for text in prompt):
            raise TaskError(f"prompt {i}: not valid Unicode (a lone surrogate)")
        clean, corrupt = (start_ids(tokenizer) + text_ids(t, tokenizer) for t in (prompt.clean, prompt.corrupt))
        if not clean or len(clean) != len(corrupt):
            raise TaskError(
                f"prompt {i}: clean and corrupt must have equally many tokens, at least 1; "
                f"got {len(clean)} and {len(corrupt)}"
            )
        answers = tuple(_single_id(i, prompt.clean, a, tokenizer) for a in (prompt.answer, prompt.wrong_answer))
        rows.append((clean, corrupt, answers))
    clean, corrupt, answers = zip(*rows, strict=True)
    return task_from_ids(name, clean, corrupt, answers, {}, [prompt.clean for prompt in prompts])


def _single_id(i: int, prompt: str, answer: str | int, tokenizer: Any) -> int:
    if isinstance(answer, int):
        if not 0 <= answer < len(tokenizer):
            raise TaskError(f"prompt {i}: an id must lie in 0..{len(tokenizer) - 1}; got {answer}")
        return answer
    try:
        ids = continuation_ids(prompt, answer, tokenizer)
    except TaskError as error:
        raise TaskError(f"prompt {i}: {error}") from None
    if len(ids) != 1:
        raise TaskError(f"prompt {i}: an answer must be one token; {answer!r} is {len(ids)}")
    return ids[0]


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
