"""The table of named tasks; each family of tasks is one file of this package."""

from __future__ import annotations

from minibert.errors import InputError, did_you_mean
from minibert.tasks.classification import IMDB, ClassificationTask

TASKS: dict[str, ClassificationTask] = {task.name: task for task in (IMDB,)}


def find_task(name: str) -> ClassificationTask:
    """A task by name.

    Raises:
        InputError: unknown name; the nearest is offered.
    """
    if name not in TASKS:
        raise InputError(f"--task {name!r} is unknown{did_you_mean(name, TASKS)}")
    return TASKS[name]
