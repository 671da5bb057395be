"""The table of tasks; each family of tasks is one file of this package."""

from __future__ import annotations

from typing import Any

from minibert.errors import InputError, did_you_mean
from minibert.tasks.base import Task
from minibert.tasks.classification import ClassificationTask
from minibert.tasks.qa import QATask
from minibert.tasks.similarity import SimilarityTask
from minibert.tasks.summarization import SummarizationTask
from minibert.tasks.tagging import TaggingTask
from minibert.tasks.translation import TranslationTask

FAMILIES: list[type[Task[Any, Any]]] = [
    ClassificationTask,
    TaggingTask,
    QATask,
    TranslationTask,
    SummarizationTask,
    SimilarityTask,
]
TASKS: dict[str, type[Task[Any, Any]]] = {name: f for f in FAMILIES for name in f.names}


def add_family(family: type[Task[Any, Any]]) -> None:
    """Makes a family of tasks known by its names."""
    FAMILIES.append(family)
    TASKS.update(dict.fromkeys(family.names, family))


def find_task(name: str) -> type[Task[Any, Any]]:
    """The family of a task by the task's name.

    Raises:
        InputError: unknown name; the nearest is offered.
    """
    if name not in TASKS:
        raise InputError(f"--task {name!r} is unknown{did_you_mean(name, TASKS)}")
    return TASKS[name]
