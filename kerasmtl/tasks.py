"""What is learnt: a task is one column of the labels and one output of the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Task:
    """One thing to predict: the column of that name in the CSV, and the output of that name.

    `kind` is "binary": labels 1, 0 or missing, one sigmoid probability.

    Raises:
        ValueError: the name is empty or has blanks at its ends, or the kind is unknown.
    """

    name: str
    kind: Literal["binary"] = "binary"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or self.name != self.name.strip():
            raise ValueError(
                "`name` is not a task name. Expected a non-empty string without blanks at its "
                f"ends. Received: {self.name!r}"
            )
        if self.kind != "binary":
            raise ValueError(f"`kind` is unknown. Expected: 'binary'. Received: {self.kind!r}")


def as_tasks(tasks: Iterable[Task | str]) -> tuple[Task, ...]:
    """The tasks as a tuple of `Task`; a string stands for a binary task of that name.

    Raises:
        ValueError: no task at all, a name that stands twice, or one string instead of a list.
    """
    if isinstance(tasks, str | Task):
        raise ValueError(
            f"`tasks` is a single task. Expected a list. Received: {tasks!r}. "
            f"Call with tasks=[{tasks!r}]."
        )
    result = tuple(task if isinstance(task, Task) else Task(task) for task in tasks)
    if not result:
        raise ValueError("`tasks` is empty. Expected at least one task.")
    names = [task.name for task in result]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`tasks` names a task twice. Expected distinct names. Received: {twice}")
    return result
