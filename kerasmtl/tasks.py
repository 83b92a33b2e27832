"""What is learnt: a task is one column of the labels and one output of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

KINDS = ("binary", "multiclass", "regression")
POLICIES = ("ignore", "zero", "one")
BINARY = "binary"  # the output that all binary tasks share in a model of mixed kinds

# What always means "missing" in a file, compared without case and surrounding blanks.
MISSING_CODES = ("", "?", "na", "n/a", "nan", "none", "null")

Code = str | int | float


@dataclass(frozen=True)
class Task:
    """One thing to predict: the column of that name in the CSV, and the output of that name.

    Kinds: "binary", labels 1, 0 or missing, one sigmoid probability; "multiclass", one of
    `classes`, a softmax over them; "regression", any finite number.

    Args:
        name: of the column and of the output.
        kind: see above.
        classes: for "multiclass", the labels as they stand in the file, in the order of the
            outputs; empty: those of the file, sorted. What is named here is a class, even "none".
        weight: of the task in the loss, 0 or more.
        missing: codes for missing besides "", ?, NA, N/A, NaN, none and null, such as -1.
        uncertain: for "binary", codes for a label of which nobody is sure (CheXpert's -1).
        uncertain_as: what an uncertain label counts as: "ignore" (missing), "zero", "one", or a
            number in [0, 1] (https://arxiv.org/abs/1901.07031, section 4.1).

    Raises:
        ValueError: a wrong name, kind, weight, class or policy, or a code that is both missing and
            uncertain, or both a code and a label.
    """

    name: str
    kind: Literal["binary", "multiclass", "regression"] = "binary"
    classes: tuple[str, ...] = ()
    weight: float = 1.0
    missing: tuple[Code, ...] = ()
    uncertain: tuple[Code, ...] = ()
    uncertain_as: Literal["ignore", "zero", "one"] | float = "ignore"

    def __post_init__(self) -> None:
        for name in ("classes", "missing", "uncertain"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, Iterable):
                value = (value,)
            object.__setattr__(self, name, tuple(value))
        object.__setattr__(self, "classes", tuple(str(label).strip() for label in self.classes))
        if not isinstance(self.name, str) or not self.name or self.name != self.name.strip():
            raise ValueError(
                "`name` is not a task name. Expected a non-empty string without blanks at its "
                f"ends. Received: {self.name!r}"
            )
        if self.kind not in KINDS:
            raise ValueError(
                f"`kind` of task {self.name!r} is unknown. Expected one of {KINDS}. "
                f"Received: {self.kind!r}"
            )
        self._check_numbers()
        self._check_codes()

    def _check_numbers(self) -> None:
        if not isinstance(self.weight, Real) or not 0 <= self.weight < math.inf:
            raise ValueError(
                f"`weight` of task {self.name!r} is no weight. Expected a finite number, 0 or "
                f"more. Received: {self.weight!r}"
            )
        policy = self.uncertain_as
        number = isinstance(policy, Real) and 0.0 <= policy <= 1.0
        known = policy in POLICIES if isinstance(policy, str) else number
        if not known:
            raise ValueError(
                f"`uncertain_as` of task {self.name!r} is no policy. Expected one of {POLICIES} or "
                f"a number in [0, 1]. Received: {policy!r}"
            )

    def _check_codes(self) -> None:
        missing, uncertain = (
            {code_text(code) for code in codes} for codes in (self.missing, self.uncertain)
        )
        both = sorted(missing & uncertain)
        if both:
            raise ValueError(
                f"`missing` and `uncertain` of task {self.name!r} share a code. Expected different "
                f"codes. Received: {both}"
            )
        if self.kind != "binary" and self.uncertain:
            raise ValueError(
                f"`uncertain` of task {self.name!r} is for binary tasks. Received: kind "
                f"{self.kind!r}"
            )
        if self.kind != "multiclass" and self.classes:
            raise ValueError(
                f"`classes` of task {self.name!r} are for multiclass tasks. Received: kind "
                f"{self.kind!r}"
            )
        labels = {"0", "1"} if self.kind == "binary" else {code_text(c) for c in self.classes}
        if self.classes and (len(labels) != len(self.classes) or len(labels) < 2):
            raise ValueError(
                f"`classes` of task {self.name!r} are no classes. Expected two or more distinct "
                f"labels. Received: {list(self.classes)}"
            )
        clash = sorted(labels & (missing | uncertain))
        if clash:
            raise ValueError(
                f"`missing` or `uncertain` of task {self.name!r} names a label. Expected codes "
                f"that are none. Received: {clash}"
            )

    @property
    def outputs(self) -> int:
        """How many numbers a model gives for this task.

        Raises:
            ValueError: a multiclass task whose classes are not known yet.
        """
        if self.kind == "multiclass" and not self.classes:
            raise ValueError(
                f"`classes` of task {self.name!r} are not known yet. Expected their names. Read "
                "the labels with Manifest.from_csv, which finds them, or name them in the Task."
            )
        return len(self.classes) or 1


def code_text(code: Code) -> str:
    """A code as it is compared: -1, -1.0 and "-1.0" are the same, case and blanks do not count."""
    text = str(code).strip().lower()
    number = as_number(text)
    if number is None:
        return text
    return str(int(number)) if math.isfinite(number) and number == int(number) else str(number)


def as_number(text: str) -> float | None:
    """The number that a text writes in plain digits, also nan and inf; None if it writes none."""
    try:
        # float() also takes 1_000 and the digits of other scripts.
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


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
    if not any(task.weight for task in result):
        raise ValueError(
            "`weight` is 0 for all tasks, so that the loss is nothing. Expected one above 0 for at "
            f"least one task. Received: {names}"
        )
    if BINARY in names and not all_binary(result) and len(result) > 1:
        raise ValueError(
            f"`tasks` has a task named {BINARY!r}, which is the name of the output that binary "
            "tasks share. Rename that task."
        )
    return result


def all_binary(tasks: Sequence[Task]) -> bool:
    """Whether one sigmoid output (batch, tasks) serves all tasks."""
    return all(task.kind == "binary" for task in tasks)


def output_columns(tasks: Sequence[Task]) -> dict[str, tuple[int, ...]]:
    """The outputs of a model, and which tasks, by position, each one serves.

    Binary tasks share the output "binary", in their order; every other task has its own, under its
    name. A model of binary tasks only has this one output, and no dict.
    """
    found: dict[str, tuple[int, ...]] = {}
    for position, task in enumerate(tasks):
        key = BINARY if task.kind == "binary" else task.name
        found[key] = (*found.get(key, ()), position)
    return found


def by_task(outputs: Any, tasks: Sequence[Task]) -> dict[str, Any]:
    """A model's outputs by task name.

    Shapes: outputs as `task_head` makes them; returns (batch,) probabilities of a binary task,
    (batch,) numbers of a regression task, (batch, classes) probabilities of a multiclass task.
    """
    if not isinstance(outputs, dict):
        return {task.name: outputs[:, column] for column, task in enumerate(tasks)}
    named = {}
    for key, columns in output_columns(tasks).items():
        for position, column in enumerate(columns):
            whole = tasks[column].kind == "multiclass"
            named[tasks[column].name] = outputs[key] if whole else outputs[key][:, position]
    return {task.name: named[task.name] for task in tasks}
