"""Parses cells of text as labels of tasks and as splits, and finds tasks among columns.

`Manifest.from_csv` calls `read_labels` with the text that `kerasmtl.data.readers` found, after
`infer_tasks` where the user names no tasks. Nothing is guessed about a single cell: one that is not
a label is an error, with its line and with the call that would read it, since a cell that is taken
for missing by mistake would never be noticed.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    # Each distinct text is parsed once: millions of rows have a handful of them.
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
    """Find the classes in a column.

    Case is ignored and 1.0 is 1; of several spellings the one that sorts first is kept.

    Args:
        cells: (rows,) str.
        task: says which codes mean missing besides the usual ones.

    Returns:
        The classes, sorted; as numbers if all of them are.
    """
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
    # Otherwise `uncertain_as` is a probability, which becomes a soft label.
    doubt = {"ignore": nan, "zero": 0.0, "one": 1.0}.get(task.uncertain_as, task.uncertain_as)
    special = dict.fromkeys([*MISSING_CODES, *missing], nan)
    special |= dict.fromkeys(map(code_text, task.uncertain), doubt)
    classes = {code_text(label): float(at) for at, label in enumerate(task.classes)}

    def meaning(text: str) -> float | None:
        code = code_text(text)
        if code in classes:  # first: what is named as a class is one, even "none"
            return classes[code]
        if text in special:  # before labels: a task may say that "false" means missing
            return special[text]
        if task.kind == "binary" and text in _LABEL_CODES:
            return _LABEL_CODES[text]
        if task.kind == "regression" and code not in missing:
            number = as_number(text)
            return number if number is not None and abs(number) <= _LARGEST else None
        return special.get(code)

    return meaning


def infer_tasks(table: pd.DataFrame, source: Path) -> tuple[Task, ...]:
    """Return the columns that look like binary labels, as tasks.

    A named column is a task if 0 and 1 occur in it at least as often as what is not a label, or if
    both occur in it besides one other number. A column of labels with a typing error, or of three
    states, is thus a task, whose error `read_labels` then reports.

    Args:
        table: (rows, columns) of str, the columns that nothing else claims.
        source: the file, for messages.

    Raises:
        ValueError: no column looks like one.
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
            f"the columns {listed(left_out)}. Call with tasks=[…] (command line: --task); a column "
            f"of classes is {task_call('NAME', 'multiclass')}, one of numbers "
            f"{task_call('NAME', 'regression')}."
        )
    return as_tasks(found)


def _has_three_states(cells: pd.Series, labels: np.ndarray, invalid: np.ndarray) -> bool:
    """Return whether cells are 0, 1 and one other number, such as the -1 of CheXpert."""
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
    """Return a multiclass task with the classes that its column has, if it names none."""
    if task.kind != "multiclass" or task.classes:
        return task
    classes = find_classes(cells, task)
    if len(classes) < 2:
        raise ValueError(
            f"`classes` of task {task.name!r} must be two or more labels in {source}, got "
            f"{list(classes)}. Name them: {task_call(task.name, 'multiclass', classes=['A', 'B'])}."
        )
    # "inf" among classes is most often the result of a division, so that it has to be named.
    infinite = [label for label in classes if math.isinf(as_number(label) or 0.0)]
    if infinite:
        line = cells.index[cells.str.strip() == infinite[0]][0]
        raise ValueError(
            f"`labels` in {source}, {place(source)} {line}, column {task.name!r}, must be classes "
            f"or missing, got {infinite[0]!r}. If it is one, name all classes."
        )
    return replace(task, classes=classes)


def uncertain_cells(table: pd.DataFrame, tasks: tuple[Task, ...]) -> np.ndarray:
    """Find the cells that are uncertain and still count as labels.

    Args:
        table: (rows, columns) of str, with a column per task.
        tasks: whose codes and policies decide; those that ignore uncertain cells have none.

    Returns:
        (rows, tasks) bool.
    """
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
    hints = {task: _hint(task, table[task.name].iloc[rows]) for task, rows in faults.items()}
    first = next((task for task in faults if hints[task]), next(iter(faults)))
    columns = listed(task.name for task in faults)
    in_project = (
        f"In project.toml: {{name = {first.name!r}, …}}." if "Task(" in hints[first] else ""
    )
    said = [
        f"`labels` in {source} must be {', or '.join({_EXPECTED[t.kind]: 0 for t in faults})} "
        f"(empty or ?), got {said}.",
        hints[first],
        f"Columns with such cells: {columns}." if len(faults) > 1 else "",
        in_project,
        "If a column is not a task, name those that are: tasks=[…] (command line: --task).",
    ]
    return " ".join(filter(None, said))


def _hint(task: Task, wrong: pd.Series) -> str:
    """Return what the invalid cells of a column suggest that it is, and how to say so."""
    others = list(dict.fromkeys(code_text(cell) for cell in wrong.unique()[:1000]))
    numbers = [as_number(other) for other in others]
    name = task.name
    if task.kind == "multiclass":
        return f"The classes of {name!r} are {list(task.classes)}; name all, or name none."
    if task.kind == "regression":  # infinity never means missing
        texts = [other for other in others if as_number(other) is None][:3]
        return f"If that means missing: {task_call(name, 'regression', missing=texts)}." * any(
            texts
        )
    if others == ["-1"]:
        missing, uncertain = task_call(name, missing=-1), task_call(name, uncertain=-1)
        return f"If -1 means missing: {missing}; if it means uncertain: {uncertain}."
    classes = f"If these are classes: {task_call(name, 'multiclass')}."
    quantity = f" If they are quantities: {task_call(name, 'regression')}."
    finite = all(number is not None and math.isfinite(number) for number in numbers)
    return classes + quantity if finite else classes


def task_call(name: str, kind: str = "", **options: Any) -> str:
    """Spell a task in Python, and as the command line takes it, for messages.

    Example:
        >>> task_call("stop sign", "regression", missing=["x", "y"])
        "Task('stop sign', 'regression', missing=['x', 'y']) (command line: --task 'stop sign:regression:missing=x,y')"
    """  # noqa: E501
    call = [repr(word) for word in (name, kind) if word]
    words = [word for word in (name, kind) if word]
    for key, value in options.items():
        call.append(f"{key}={value!r}")
        words.append(f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return f"Task({', '.join(call)}) (command line: --task {shlex.quote(':'.join(words))})"


def read_splits(cells: pd.Series, source: Path) -> np.ndarray:
    """Read a split column; common other spellings, such as "validation" or "dev", are known.

    Args:
        cells: (rows,) str, indexed by line.
        source: the file, for messages.

    Returns:
        (rows,) of "train", "val" and "test".

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
