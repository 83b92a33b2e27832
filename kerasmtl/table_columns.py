"""Which columns of a table are tasks, which are features, and which are neither."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from kerasmtl.columns import infer_tasks, is_missing, read_labels
from kerasmtl.csv_table import place
from kerasmtl.listing import check_columns
from kerasmtl.table_files import as_text, read_npz
from kerasmtl.tasks import Task, as_tasks

_UNNAMED = re.compile(r"(Unnamed: \d+)?")  # what pandas writes, and reads again, for its index
_SHOWN = 20


def check_named(known: Sequence[str], named: dict[str, str | None], source: Path) -> None:
    """Raise ValueError for a column that an argument names and that is absent."""
    for argument, name in named.items():
        if name is not None:
            check_columns(argument, [name], known, source)


def check_ignored(known: Sequence[str], ignore: Sequence[str], source: Path) -> None:
    """Raise ValueError for columns that are to be ignored and are absent."""
    if isinstance(ignore, str):
        raise ValueError(
            f"`ignore` is a single name. Expected a list. Received: {ignore!r}. "
            f"Call with ignore=[{ignore!r}]."
        )
    check_columns("ignore", ignore, known, source)


def check_roles(first: str, some: set[str], second: str, others: set[str], source: Path) -> None:
    """Raise ValueError for columns that two arguments claim."""
    both = sorted(some & others)
    if both:
        raise ValueError(
            f"`{first}` and `{second}` both name columns of {source}. Expected one meaning of "
            f"each. Received: {both[:_SHOWN]}"
        )


def left_out(frame: pd.DataFrame, named: set[str], source: Path, stacklevel: int) -> list[str]:
    """The columns that can be no feature, unless they are named: without a name, or all empty.

    Warns of each.
    """
    found = []
    for number, name in enumerate(frame):
        if name in named:
            continue
        cells = frame[name]
        why = None
        if _UNNAMED.fullmatch(name):
            why = "has no name: an index that pandas wrote? (to_csv(…, index=False) writes none)"
        elif _empty(cells[:100]) and _empty(cells):  # few are looked at as a whole
            why = "has no known value"
        if why:
            warnings.warn(
                f"column {number + 1}, {name!r}, of {source} {why}; it is left out.",
                stacklevel=stacklevel,
            )
            found.append(name)
    return found


def _empty(cells: pd.Series) -> bool:
    known = cells[cells.notna()]
    if pd.api.types.is_numeric_dtype(cells.dtype):
        return not len(known)
    return bool(is_missing(known.astype(str)).all())


def warn_of_labels(
    features: np.ndarray, columns: Sequence[str], source: Path, stacklevel: int
) -> None:
    """Warn of features that look like labels: 0, 1 and holes, or 0, 1 and -1.

    Shapes: features (rows, columns) float32, NaN = missing.
    """
    found = [name for at, name in enumerate(columns) if _like_labels(features[:, at])]
    if found:
        warnings.warn(
            f"{len(found)} columns of {source} that are no tasks hold 0, 1 and missing or -1, as "
            f"labels do, and are learnt from: {found[:_SHOWN]}"
            f"{', …' if len(found) > _SHOWN else ''}. If they are labels, name them in tasks=[…], "
            "with -1 as Task(name, missing=-1) or Task(name, uncertain=-1), or leave them out "
            "with ignore=[…]; if not, name all features in features=[…].",
            stacklevel=stacklevel,
        )


def _like_labels(values: np.ndarray) -> bool:
    def states(some: np.ndarray) -> tuple[bool, set[float]]:
        distinct = np.unique(some)  # NaN is one
        holes = bool(np.isnan(distinct).any())
        return holes, set(distinct[~np.isnan(distinct)].tolist())

    if not states(values[:1000])[1] <= {-1, 0, 1}:  # most columns end here
        return False
    holes, found = states(values)
    return found == {0, 1} and holes or found == {-1, 0, 1}


def chosen_tasks(
    frame: pd.DataFrame, tasks: Iterable[Task | str] | None, source: Path
) -> tuple[Task, ...]:
    """The tasks named, or all columns of 0, 1 and missing if nothing there may be a feature."""
    if tasks is not None:
        return as_tasks(tasks)
    text = as_text(frame)
    found = infer_tasks(text, source)
    _, labels = read_labels(text[[task.name for task in found]], found, source)
    holes = np.isnan(labels).any(axis=0)
    if holes.any() and not holes.all():
        with_holes = [task.name for task, hole in zip(found, holes, strict=True) if hole]
        without = [task.name for task, hole in zip(found, holes, strict=True) if not hole]
        raise ValueError(
            f"`tasks` cannot be told from features in {source}: columns of 0 and 1 with holes are "
            f"{with_holes[:_SHOWN]}, without {without[:_SHOWN]}. Name those to learn: "
            f"tasks={with_holes[:_SHOWN]} (command line: --task)."
        )
    return found


def chosen_features(
    features: Sequence[str] | None, known: Sequence[str], tasks: set[str], source: Path
) -> list[str]:
    """The columns named, or all that are no tasks."""
    columns = [name for name in known if name not in tasks] if features is None else list(features)
    both = sorted(set(columns) & tasks)
    twice = sorted(name for name, count in Counter(columns).items() if count > 1)
    if both or twice or not columns:
        raise ValueError(
            f"`features` of {source} are no list of columns besides the tasks. Expected at least "
            f"one, each once, none of them a task. Received: {columns[:_SHOWN]}, of these tasks "
            f"{both}, twice {twice}"
        )
    return columns


def read_ids(text: pd.DataFrame, column: str, source: Path) -> pd.Series:
    """The names of the rows; ValueError for a row without one."""
    unnamed = np.flatnonzero(is_missing(text[column]))
    if len(unnamed):
        raise ValueError(
            f"`id_column` in {source}, {place(source)} {text.index[unnamed[0]]}, column {column!r} "
            f"is empty. Expected a name for each row. {len(unnamed)} such rows. Received: "
            f"{text[column].iloc[unnamed[0]]!r}"
        )
    return text[column].str.strip()


def npz_parts(
    source: Path, packed_bits: bool, named: dict[str, str | None]
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """X as a table, Y and what else there is a row as another, and the names of the tasks."""
    arrays = read_npz(source, packed_bits)
    if arrays.labels is None:
        raise ValueError(f"`path` {source} has no array Y. Expected labels (rows, tasks).")
    for argument, name in named.items():
        if name in arrays.unfit:
            raise ValueError(
                f"`{argument}` of {source}: the array {name} does not fit. Expected one cell a "
                f"row, shape ({len(arrays.features)},). Received: {arrays.unfit[name]}"
            )
    names = arrays.tasks or tuple(f"y{number}" for number in range(arrays.labels.shape[1]))
    counts = Counter([*names, *arrays.columns, *arrays.others])
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ValueError(
            f"`path` {source} has columns of X, tasks and other arrays of the same name. Expected "
            f"distinct names. Received twice: {twice[:_SHOWN]}"
        )
    rest = pd.DataFrame(arrays.labels, columns=list(names)).assign(**arrays.others)
    return pd.DataFrame(arrays.features, columns=list(arrays.columns), copy=False), rest, names
