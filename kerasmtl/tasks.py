"""Tasks: each is one column of the labels file and one output of the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kerasmtl.utils.validation import check_choice, check_number

KINDS = ("binary", "multiclass", "regression")
POLICIES = ("ignore", "zero", "one")
BINARY = "binary"  # the output that all binary tasks share in a model of mixed kinds

# What always means "missing" in a file, compared without case and surrounding blanks.
MISSING_CODES = ("", "?", "na", "n/a", "nan", "none", "null")

Code = str | int | float


@dataclass(frozen=True)
class Task:
    """One thing to predict: a column of the labels file and an output of the model.

    Kinds: "binary", labels 1, 0 or missing, one sigmoid probability; "multiclass", one of
    `classes`, a softmax over them; "regression", any finite number.

    Args:
        name: of the column and of the output.
        kind: "binary", "multiclass" or "regression".
        classes: for "multiclass", the labels as written in the file, in the order of the outputs;
            by default those of the file, sorted. What is named here is a class, even "none".
        weight: of the task in the loss, 0 or more.
        missing: codes for missing besides "", ?, NA, N/A, NaN, none and null, such as -1.
        uncertain: for "binary", codes for a label that is uncertain (CheXpert's -1).
        uncertain_as: what an uncertain label counts as: "ignore" (missing), "zero", "one", or a
            number from 0 to 1 (https://arxiv.org/abs/1901.07031, section 4.1).

    Raises:
        ValueError: an invalid name, kind, weight, class or policy, or a code that is both missing
            and uncertain, or both a code and a label.

    Example:
        >>> import kerasmtl as kt
        >>> kt.Task("cat", missing=-1)
        Task(name='cat', kind='binary', ..., missing=(-1,), ...)
        >>> kt.Task("colour", "multiclass", classes=["red", "green"]).outputs
        2
        >>> kt.Task("cat", kind="ranking")
        Traceback (most recent call last):
        ValueError: `kind` must be one of 'binary', 'multiclass', 'regression', got 'ranking'
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
                f"`name` must be a non-empty string without blanks at its ends, got {self.name!r}"
            )
        check_choice("kind", self.kind, KINDS)
        check_number("weight", self.weight, 0)
        if isinstance(self.uncertain_as, str):
            check_choice("uncertain_as", self.uncertain_as, POLICIES)
        else:
            check_number("uncertain_as", self.uncertain_as, 0, 1)
        self._check_codes()

    def _check_codes(self) -> None:
        """Raise ValueError for codes with two meanings, or that the kind of the task has not."""
        of = f"of task {self.name!r} must be"
        for argument, kind in (("uncertain", "binary"), ("classes", "multiclass")):
            if getattr(self, argument) and self.kind != kind:
                raise ValueError(f"`{argument}` {of} empty unless it is {kind}, got {self.kind!r}")
        missing, uncertain = set(map(code_text, self.missing)), set(map(code_text, self.uncertain))
        labels = {"0", "1"} if self.kind == "binary" else set(map(code_text, self.classes))
        if self.classes and (len(labels) != len(self.classes) or len(labels) < 2):
            raise ValueError(
                f"`classes` {of} two or more distinct labels, got {list(self.classes)}"
            )
        if both := sorted(missing & uncertain):
            raise ValueError(f"`missing` and `uncertain` {of} different codes, got {both} in both")
        if clash := sorted(labels & (missing | uncertain)):
            raise ValueError(f"`missing` and `uncertain` {of} other than labels, got {clash}")

    @property
    def outputs(self) -> int:
        """The number of outputs that a model has for this task.

        Raises:
            ValueError: a multiclass task whose classes are not known yet.
        """
        if self.kind == "multiclass" and not self.classes:
            raise ValueError(
                f"`classes` of task {self.name!r} must be known, got none. Read the labels with "
                "Manifest.from_csv, which finds them, or name them in the Task."
            )
        return len(self.classes) or 1


def code_text(code: Code) -> str:
    """Return a code as it is compared: -1, -1.0 and "-1.0" are the same; case does not matter."""
    text = str(code).strip().lower()
    number = as_number(text)
    if number is None:
        return text
    return str(int(number)) if math.isfinite(number) and number == int(number) else str(number)


def as_number(text: str) -> float | None:
    """Return the number that a text is in plain digits, also nan and inf, or None."""
    try:
        # float() also takes 1_000 and the digits of other scripts.
        return float(text) if text.isascii() and "_" not in text else None
    except ValueError:
        return None


def as_tasks(tasks: Iterable[Task | str]) -> tuple[Task, ...]:
    """Return tasks as a tuple of `Task`; a string is a binary task of that name.

    Raises:
        ValueError: no task at all, a name that occurs twice, or one task instead of a list.
    """
    if isinstance(tasks, str | Task):
        raise ValueError(
            f"`tasks` must be a list, got a single task: {tasks!r}. Call with tasks=[{tasks!r}]."
        )
    result = tuple(task if isinstance(task, Task) else Task(task) for task in tasks)
    if not result:
        raise ValueError("`tasks` must have at least one task, got none")
    names = [task.name for task in result]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`tasks` must have distinct names, got {twice} twice")
    if not any(task.weight for task in result):
        raise ValueError(
            f"`weight` must be above 0 for at least one task, got 0 for all of {names}: there "
            "would be no loss"
        )
    if BINARY in names and not all_binary(result) and len(result) > 1:
        raise ValueError(
            f"`tasks` must not have a task named {BINARY!r} among other kinds: it is the name of "
            "the output that binary tasks share. Rename that task."
        )
    return result


def all_binary(tasks: Sequence[Task]) -> bool:
    """Return whether one sigmoid output (batch, tasks) serves all tasks."""
    return all(task.kind == "binary" for task in tasks)


def output_columns(tasks: Sequence[Task]) -> dict[str, tuple[int, ...]]:
    """Return the outputs of a model, and the positions of the tasks that each one serves.

    Binary tasks share the output "binary", in their order; every other task has its own, under its
    name. A model of binary tasks only has this one output, and no dict.
    """
    found: dict[str, tuple[int, ...]] = {}
    for position, task in enumerate(tasks):
        key = BINARY if task.kind == "binary" else task.name
        found[key] = (*found.get(key, ()), position)
    return found


def by_task(outputs: Any, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return a model's outputs by task name.

    Args:
        outputs: as `build_model`'s models give them: (batch, tasks), or a dict as in
            `output_columns`.
        tasks: of the model, in order.

    Returns:
        (batch,) probabilities of a binary task, (batch,) numbers of a regression task,
        (batch, classes) probabilities of a multiclass task.
    """
    if not isinstance(outputs, dict):
        return {task.name: outputs[:, column] for column, task in enumerate(tasks)}
    named = {}
    for key, columns in output_columns(tasks).items():
        for position, column in enumerate(columns):
            whole = tasks[column].kind == "multiclass"
            named[tasks[column].name] = outputs[key] if whole else outputs[key][:, position]
    return {task.name: named[task.name] for task in tasks}
