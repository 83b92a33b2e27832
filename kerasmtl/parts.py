"""What is wrong with the parts of a split: tasks that cannot be scored there, and cut groups."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kerasmtl.csv_table import place
from kerasmtl.tasks import Task

_SHOWN = 5


def part_faults(
    labels: np.ndarray, tasks: Sequence[Task], parts: Sequence[np.ndarray]
) -> list[list[str]]:
    """For each part the tasks without two different labels there, though the whole has them.

    Shapes: labels (rows, tasks), NaN = missing; parts, the numbers of rows.
    """
    whole = _both(labels)
    return [
        [tasks[at].name for at in np.flatnonzero(whole & ~_both(labels[part]))] for part in parts
    ]


def _both(labels: np.ndarray) -> np.ndarray:
    """Which tasks have two different known labels, (tasks,) bool."""
    if not len(labels):
        return np.zeros(labels.shape[1], dtype=bool)
    return np.fmax.reduce(labels, axis=0) > np.fmin.reduce(labels, axis=0)


def cut_groups(groups: np.ndarray, parts: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Of each group that stands in two parts, two rows of different parts.

    Shapes: groups (rows,) str; parts, the numbers of rows.
    """
    rows = np.concatenate(parts)
    part = np.repeat(np.arange(len(parts)), [len(rows) for rows in parts])
    codes, distinct = pd.factorize(groups[rows])
    first = np.full(len(distinct), len(rows))
    np.minimum.at(first, codes, np.arange(len(rows)))
    cut = np.flatnonzero(part != part[first[codes]])
    _, once = np.unique(codes[cut], return_index=True)
    return [(int(rows[first[codes[at]]]), int(rows[at])) for at in cut[np.sort(once)]]


def warn_of_parts(
    labels: np.ndarray,
    tasks: Sequence[Task],
    parts: Sequence[np.ndarray],
    names: Sequence[str],
    source: Path,
    stacklevel: int = 3,
) -> None:
    """Warn of what `part_faults` finds."""
    for name, found in zip(names, part_faults(labels, tasks, parts), strict=True):
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            warnings.warn(
                f"the part {name} of {source} has no two different labels of {found[:_SHOWN]}"
                f"{more}: nothing there can be learnt, or scored by rank, of them.",
                stacklevel=stacklevel,
            )


def warn_of_cuts(
    what: str,
    groups: np.ndarray,
    called: np.ndarray,
    lines: np.ndarray,
    parts: Sequence[np.ndarray],
    names: Sequence[str],
    source: Path,
    stacklevel: int = 3,
) -> None:
    """Warn of what `cut_groups` finds, `what` for short.

    Shapes: groups, called (what the message calls a row) and lines (rows,).
    """
    cut = cut_groups(groups, parts)
    if not cut:
        return
    few = {row for pair in cut[:_SHOWN] for row in pair}
    part = {row: name for name, rows in zip(names, parts, strict=True) for row in few & {*rows}}
    at = place(source)
    shown = "; ".join(
        f"{called[a]!r}, {part[a]} in {at} {lines[a]} and {part[b]} in {at} {lines[b]}"
        for a, b in cut[:_SHOWN]
    )
    warnings.warn(
        f"{source} has {what} on two sides of its split column, {len(cut)} in all, so that scores "
        f"may be too good: {shown}{'; …' if len(cut) > _SHOWN else ''}.",
        stacklevel=stacklevel,
    )
