"""Parses cells of text as labels of tasks and as splits, and finds tasks among columns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from kerasmtl.data.readers import place
from kerasmtl.tasks import MISSING_CODES, Task, as_number, as_tasks, code_text
from kerasmtl.utils.text import check_columns, listed, shortened

_SPLIT_CODES = {
    **{code: "train" for code in ("train", "training")},
    **{code: "val" for code in ("val", "valid", "validation", "dev")},
    **{code: "test" for code in ("test", "testing")},
}
_LABEL_CODES = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
_LARGEST = 3.4028234663852886e38  # of float32
_SHOWN = 3  # how many faults one message lists
_FEW = 20  # up to so many distinct values look like classes, more like a quantity
_EXPECTED = {
    "binary": "0, 1 or missing",
    "multiclass": "a class or missing",
    "regression": "a finite number or missing",
}


def parse_labels(cells: pd.Series, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Parse the labels of a task.

    A binary label is 1, 0 or what `uncertain_as` makes of an uncertain one; a multiclass label is
    the position of its class, of those found if the task names none; a regression label is any
    number that float32 holds, and infinity is invalid.

    Args:
        cells: (rows,) str.
        task: that they belong to.

    Returns:
        (rows,) float32, NaN = missing or invalid; and (rows,) bool, True = invalid.

    Example:
        >>> values, invalid = parse_labels(pd.Series(["1", "?", "yes"]), Task("car"))
        >>> values.tolist(), invalid.tolist()
        ([1.0, nan, nan], [False, False, True])
    """
    if task.kind == "multiclass" and not task.classes:
        task = replace(task, classes=find_classes(cells, task))
    meaning = _meanings(task)
    codes, distinct = pd.factorize(cells, use_na_sentinel=False)
    values = np.full(len(distinct), np.nan, dtype="float32")
    invalid = np.zeros(len(distinct), dtype=bool)
    for position, cell in enumerate(distinct):
        value = meaning(str(cell).strip().lower())
        if value is None:
            invalid[position] = True
        else:
            values[position] = value
    return values[codes], invalid[codes]


def find_classes(cells: pd.Series, task: Task) -> tuple[str, ...]:
    """Return the classes in the cells, sorted, numbers by size; 1.0 is 1, and case is ignored."""
    missing = {code_text(code) for code in task.missing}
    found: dict[str, str] = {}
    for cell in sorted({str(cell).strip() for cell in cells.unique()}):
        if cell.lower() not in MISSING_CODES and code_text(cell) not in missing:
            found.setdefault(code_text(cell), cell)
    numeric = all(as_number(text) is not None for text in found)
    return tuple(found[text] for text in sorted(found, key=as_number if numeric else None))


def _meanings(task: Task) -> Callable[[str], float | None]:
    """Return a function of a cell's text, lower case: its label, NaN = missing, None = invalid."""
    nan, missing = float("nan"), {code_text(code) for code in task.missing}
    both = sorted(set(map(code_text, task.uncertain)) & set(MISSING_CODES))
    if both:
        raise ValueError(
            f"`uncertain` of task {task.name!r} must be other codes than {MISSING_CODES}, which "
            f"always mean missing, got {both}"
        )
    doubt = {"ignore": nan, "zero": 0.0, "one": 1.0}.get(task.uncertain_as, task.uncertain_as)
    special = dict.fromkeys([*MISSING_CODES, *missing], nan)
    special |= dict.fromkeys(map(code_text, task.uncertain), doubt)
    classes = {code_text(label): float(at) for at, label in enumerate(task.classes)}

    def binary(text: str) -> float | None:
        if text in special:  # first: a task may say that "false" means missing
            return special[text]
        return _LABEL_CODES.get(text, special.get(code_text(text)))

    def multiclass(text: str) -> float | None:
        known = classes.get(code_text(text))
        return known if known is not None else special.get(text, special.get(code_text(text)))

    def regression(text: str) -> float | None:
        if text in special or missing and code_text(text) in missing:
            return nan
        number = as_number(text)
        return number if number is not None and abs(number) <= _LARGEST else None

    return {"binary": binary, "multiclass": multiclass, "regression": regression}[task.kind]


def infer_tasks(table: pd.DataFrame, source: Path) -> tuple[Task, ...]:
    """Return the columns that look like binary labels, as tasks.

    A named column is a task if 0 and 1 occur in it at least as often as what is not a label, or if
    both occur in it besides one other number. A column of labels with a typing error, or of three
    states, is thus a task, whose error `read_labels` then reports.

    Raises:
        ValueError: there is no such column.
    """
    found, left_out = [], []
    for name in table.columns:
        labels, invalid = parse_labels(table[name], Task("any"))
        known = int((~np.isnan(labels)).sum())
        majority = known and known >= invalid.sum()
        if name and (majority or _has_three_states(table[name], labels, invalid)):
            found.append(name)
        else:
            left_out.append(name)
    if not found:
        raise ValueError(
            f"`tasks` must be named where {source} has no column of 0, 1 and missing labels, got "
            f"the columns {listed(left_out)}. Call with tasks=[…]; a column of "
            'classes or of numbers is Task(name, kind="multiclass") or Task(name, '
            'kind="regression").'
        )
    return as_tasks(found)


def _has_three_states(cells: pd.Series, labels: np.ndarray, invalid: np.ndarray) -> bool:
    other = {code_text(cell) for cell in cells[invalid].unique()[:100]}
    return (
        len(other) == 1
        and as_number(other.pop()) is not None
        and (labels == 0).any()
        and (labels == 1).any()
    )


def read_labels(
    table: pd.DataFrame, tasks: tuple[Task, ...], source: Path
) -> tuple[tuple[Task, ...], np.ndarray]:
    """Parse the labels of all tasks.

    Args:
        table: (rows, columns) of str, indexed by line.
        tasks: to read.
        source: the file, for messages.

    Returns:
        The tasks, with the classes that were found; and (rows, tasks) float32, NaN = missing.

    Raises:
        ValueError: a task has no column or fewer than two classes, or a cell is not a label; names
            lines and columns, and the call that reads them.
    """
    check_columns("tasks", [task.name for task in tasks], table.columns, source)
    tasks = tuple(_with_classes(table[task.name], task, source) for task in tasks)
    labels = np.empty((len(table), len(tasks)), dtype="float32")
    faults: dict[Task, np.ndarray] = {}
    for column, task in enumerate(tasks):
        labels[:, column], invalid = parse_labels(table[task.name], task)
        if invalid.any():
            faults[task] = np.flatnonzero(invalid)
    if faults:
        raise ValueError(_label_faults(table, faults, source))
    return tasks, labels


def _with_classes(cells: pd.Series, task: Task, source: Path) -> Task:
    if task.kind != "multiclass" or task.classes:
        return task
    classes = find_classes(cells, task)
    if len(classes) < 2:
        raise ValueError(
            f"`classes` of task {task.name!r} must be two or more labels in {source}, got "
            f"{list(classes)}. Name them: Task({task.name!r}, "
            'kind="multiclass", classes=(…)).'
        )
    infinite = [label for label in classes if math.isinf(as_number(label) or 0.0)]
    if infinite:
        line = cells.index[cells.str.strip() == infinite[0]][0]
        raise ValueError(
            f"`labels` in {source}, {place(source)} {line}, column {task.name!r}, must be classes "
            f"or missing, got {infinite[0]!r}. If it is one, name all: "
            f'Task({task.name!r}, kind="multiclass", classes=(…)).'
        )
    return replace(task, classes=classes)


def uncertain_cells(table: pd.DataFrame, tasks: tuple[Task, ...]) -> np.ndarray | None:
    """Return where a cell is uncertain and still counts as a label, (rows, tasks) bool.

    None if it is nowhere. Shapes: table (rows, columns) of str.
    """
    if all(task.uncertain_as == "ignore" or not task.uncertain for task in tasks):
        return None
    doubtful = np.zeros((len(table), len(tasks)), dtype=bool)
    for at, task in enumerate(tasks):
        if task.uncertain and task.uncertain_as != "ignore":
            marks = {code_text(code) for code in task.uncertain}
            doubtful[:, at] = table[task.name].map(code_text).isin(marks)
    return doubtful


def _label_faults(table: pd.DataFrame, faults: dict[Task, np.ndarray], source: Path) -> str:
    """Return the message: the first invalid cells, and how to read the first such column."""
    places = sorted(
        (table.index[row], task.name, table[task.name].iloc[row])
        for task, rows in faults.items()
        for row in rows[:_SHOWN]
    )
    shown = [f"{place(source)} {line}, column {name!r}: {cell!r}" for line, name, cell in places]
    said = shortened(shown[:_SHOWN], _SHOWN, sum(map(len, faults.values())))
    hints = {t: _hint(table[t.name], t, table[t.name].iloc[rows]) for t, rows in faults.items()}
    first = next((task for task in faults if hints[task]), next(iter(faults)))
    alike = [
        task.name
        for task in faults
        if task != first and hints[task] == hints[first].replace(repr(first.name), repr(task.name))
    ]
    return " ".join(
        [
            f"`labels` in {source} must be {', or '.join({_EXPECTED[t.kind]: 0 for t in faults})} "
            f"(empty or ?), got {said}.",
            *([hints[first]] if hints[first] else []),
            *([f"Likewise: {listed(alike)}."] if alike else []),
            *([f"In project.toml: {{name = {first.name!r}, …}}."] * ("Task(" in hints[first])),
            "If a column is not a task, name those that are: tasks=[…] (command line: --task).",
        ]
    )


def _hint(cells: pd.Series, task: Task, wrong: pd.Series) -> str:
    """Return what the values of a column suggest that it is, and how to say so."""
    others = list(dict.fromkeys(code_text(cell) for cell in wrong.unique()[:1000]))
    name = repr(task.name)
    if task.kind == "multiclass":
        return f"The classes of {name} are {list(task.classes)}; name all, or name none."
    if task.kind == "regression":
        texts = [other for other in others if as_number(other) is None][:3]  # never infinity
        call = f"Task({name}, kind='regression', missing={texts})"
        return f"If that means missing: {call}." if texts else ""
    if any(math.isinf(as_number(other) or 0.0) for other in others):
        return f"Infinite values cannot be labels: empty those cells of {name}."
    values = find_classes(cells, Task(task.name, "multiclass"))
    numbers = [as_number(other) for other in others]
    if others == ["-1"]:
        return (
            f"If -1 means missing: Task({name}, missing=-1); if it means uncertain: "
            f"Task({name}, uncertain=-1)."
        )
    if len(values) > _FEW and None not in numbers:
        return f"If {name} is a quantity: Task({name}, kind='regression')."
    if len(values) == 2:
        return f"Write 1 and 0 for {' and '.join(values)}, or Task({name}, kind='multiclass')."
    if len(values) <= _FEW:
        return f"If these are classes: Task({name}, kind='multiclass')."
    return ""


def read_splits(cells: pd.Series, source: Path) -> np.ndarray:
    """Return the split, "train", "val" or "test", of each row, (rows,).

    Raises:
        ValueError: a cell is another text; names its line.
    """
    splits = cells.str.strip().str.lower().map(_SPLIT_CODES)
    wrong = cells[splits.isna()]
    if len(wrong):
        raise ValueError(
            f"`split_column` in {source}, {place(source)} {wrong.index[0]}, column {cells.name!r}, "
            f"must be train, val or test, got {wrong.iloc[0]!r} ({len(wrong)} such rows). "
            "Call with another split_column=… if this column means something else."
        )
    return splits.to_numpy(dtype=object)


def is_missing(cells: pd.Series) -> np.ndarray:
    """Return which cells of text mean missing, (rows,) bool."""
    return cells.astype(str).str.strip().str.lower().isin(MISSING_CODES).to_numpy()
