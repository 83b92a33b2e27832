"""What is known: by task, by pair of tasks, and what cannot be learnt from it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kerasmtl.tasks import Task, all_binary


def coverage(labels: np.ndarray, tasks: Sequence[Task]) -> pd.DataFrame:
    """By task: kind, labels known, positive and negative, and the share known.

    Shapes: labels (rows, tasks), NaN = missing. With tasks of other kinds, also `classes`, the rows
    of each by name, `mean` and `std`; what a kind does not have is NA. A soft label is neither
    positive nor negative.
    """
    known = (~np.isnan(labels)).sum(axis=0)
    table = pd.DataFrame(
        {
            "kind": [task.kind for task in tasks],
            "known": known,
            "positive": (labels == 1).sum(axis=0),
            "negative": (labels == 0).sum(axis=0),
            "share": known / max(len(labels), 1),
        },
        index=pd.Index([task.name for task in tasks], name="task"),
    )
    if all_binary(tasks):
        return table
    for column in ("positive", "negative"):
        table[column] = table[column].astype("Int64").where(table["kind"] == "binary")
    table["classes"] = pd.Series(
        [_classes(labels[:, at], task) for at, task in enumerate(tasks)], table.index, dtype=object
    )
    numbers = [_numbers(labels[:, at], task) for at, task in enumerate(tasks)]
    table[["mean", "std"]] = np.array(numbers)
    return table


def _classes(column: np.ndarray, task: Task) -> object:
    if task.kind != "multiclass":
        return pd.NA
    counts = np.bincount(column[~np.isnan(column)].astype(int), minlength=task.outputs)
    return {name: int(count) for name, count in zip(task.classes, counts, strict=True)}


def _numbers(column: np.ndarray, task: Task) -> tuple[float, float]:
    known = column[~np.isnan(column)].astype("float64")
    if task.kind != "regression" or not len(known):
        return float("nan"), float("nan")
    return float(known.mean()), float(known.std())


def class_faults(labels: np.ndarray, tasks: Sequence[Task]) -> dict[str, str]:
    """Why a task cannot be learnt from these rows, by its name: no label, or no two different.

    Shapes: labels (rows, tasks), NaN = missing.
    """
    faults = {}
    for column, task in zip(labels.T, tasks, strict=True):
        known = column[~np.isnan(column)]
        if not len(known):
            faults[task.name] = f"no known label among {len(labels)} rows"
        elif (known == known[0]).all():
            what = "one value" if task.kind == "regression" else "one class"
            one = task.classes[int(known[0])] if task.kind == "multiclass" else f"{known[0]:g}"
            faults[task.name] = (
                f"{what} only among {len(labels)} rows: all {len(known)} known labels are {one}"
            )
    return faults


def check_classes(
    labels: np.ndarray, tasks: Sequence[Task], source: Path, stacklevel: int = 3
) -> None:
    """Warn of tasks with one class only; raise ValueError for tasks with no known label."""
    faults = class_faults(labels, tasks)
    known = (~np.isnan(labels)).any(axis=0)
    unknown = {
        task.name: faults[task.name] for task, some in zip(tasks, known, strict=True) if not some
    }
    if unknown:
        raise ValueError(
            f"`tasks` cannot be learnt from {source}: {unknown}. Expected at least two "
            "different labels each. Label some, or leave them out of tasks=…"
        )
    for name, fault in faults.items():
        warnings.warn(
            f"task {name!r} has {fault} (of {source}); nothing can be learnt from it.",
            stacklevel=stacklevel,
        )


def co_known(labels: np.ndarray, tasks: Sequence[Task]) -> pd.DataFrame:
    """How many rows have the labels of both tasks, (tasks, tasks); the diagonal: of the one."""
    names = [task.name for task in tasks]
    both = np.zeros((len(names), len(names)))
    for at in range(0, len(labels), 2**16):  # blocks: a float copy of all would be large
        known = (~np.isnan(labels[at : at + 2**16])).astype("float32")
        both += known.T @ known
    return pd.DataFrame(both.astype(int), index=names, columns=names)


def nothing_known(labels: np.ndarray) -> int:
    """How many rows have no label at all: they teach nothing."""
    return int(np.isnan(labels).all(axis=1).sum())
