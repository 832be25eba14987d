"""Tasks that circuits are looked for in: by name (`names.TASKS`), or auto-circuit JSON and EAP-IG CSV files by path.

torch is not imported before one of the names below is asked for, so that `sat_lens.tasks.names` costs
a command line nothing. How well a model does a task: `sat_lens.tasks.performance`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sat_lens.tasks.agreement import agreement_task as agreement_task
    from sat_lens.tasks.files import task_from_file as task_from_file
    from sat_lens.tasks.gendered_pronoun import gendered_pronoun_task as gendered_pronoun_task
    from sat_lens.tasks.greater_than import greater_than_task as greater_than_task
    from sat_lens.tasks.induction import induction_task as induction_task
    from sat_lens.tasks.ioi import ioi_task as ioi_task
    from sat_lens.tasks.load import load_task as load_task
    from sat_lens.tasks.repeated_name import repeated_name_task as repeated_name_task
    from sat_lens.tasks.task import Task as Task
    from sat_lens.tasks.task import TaskError as TaskError

_HOMES = {
    "Task": "task",
    "TaskError": "task",
    "agreement_task": "agreement",
    "gendered_pronoun_task": "gendered_pronoun",
    "greater_than_task": "greater_than",
    "induction_task": "induction",
    "ioi_task": "ioi",
    "load_task": "load",
    "repeated_name_task": "repeated_name",
    "task_from_file": "files",
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sat_lens.tasks' has no attribute {name!r}")
    return getattr(import_module(f"sat_lens.tasks.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
