"""What a network learns, and how it is scored: the tasks, by name."""

from __future__ import annotations

from functools import cache

from groupnorm.errors import ArgumentError, UnknownNameError
from groupnorm.import_path import resolve
from groupnorm.lab.common.trial import Cell
from groupnorm.lab.tasks.base import Data, Task
from groupnorm.lab.tasks.classification import Classification
from groupnorm.lab.tasks.regression import Regression

__all__ = ["TASKS", "Data", "Task", "find", "task_of"]

TASKS: dict[str, Task] = {task.name: task for task in (Classification(), Regression())}


@cache
def find(name: str | None) -> Task:
    """The task of a name, or of ``package.module:Class``; None is classification.

    A path to a class that is no task names a regime of classification, as it did when there was no other task.

    Raises:
        UnknownNameError: there is no such task.
        ArgumentError: the class cannot be imported or made.
    """
    if name is None:
        return TASKS["classification"]
    if name in TASKS:
        return TASKS[name]
    if ":" not in name:
        raise UnknownNameError("task", name, [*TASKS, "package.module:Class"])
    kind = resolve(name, "task")
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        return TASKS["classification"]
    try:
        return kind()
    except TypeError as error:
        raise ArgumentError(f"task {name!r} cannot be made: {error}; expected a class without arguments") from error


def task_of(cell: Cell) -> Task:
    """The task of a trial."""
    return find(cell.task)
