"""A table of numbers instead of pictures: rows of features and labels, both with holes."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from kerasmtl.data.duplicates import merge_duplicates, row_keys, warn_of_equal_rows
from kerasmtl.data.labels import (
    check_split_column,
    infer_tasks,
    is_missing,
    read_groups,
    read_labels,
    read_splits,
    uncertain_cells,
)
from kerasmtl.data.leaks import Leak, find_row_leaks
from kerasmtl.data.manifest import Fault, Manifest
from kerasmtl.data.readers import (
    as_text,
    check_finite,
    file_format,
    place,
    read_columns,
    read_frame,
    read_npz,
)
from kerasmtl.tasks import Task, as_tasks
from kerasmtl.utils.text import check_columns

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


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Table(Manifest):
    """Rows of numbers and labels: a `Manifest` whose rows have features instead of pictures.

    Shapes: features (rows, columns) float32, NaN = missing; labels, lines and splits as in
    `Manifest`; images (rows,) str, the names of the rows: their ids, or their numbers.
    `lines` are lines of a CSV (header = 1), or rows of another file, from 0. `named`: rows have
    ids, by which a split "hash" knows them; else it knows them by their features.
    """

    unit: ClassVar[str] = "rows"

    features: np.ndarray
    columns: tuple[str, ...]
    named: bool = False

    def _names(self) -> np.ndarray:
        return self.images if self.named else self.identical_rows()

    def _find_leaks(
        self, parts: np.ndarray, pictures: bool, progress: Callable[[], None] | None
    ) -> list[Leak]:
        return find_row_leaks(self.identical_rows(), parts, self.groups)

    def identical_rows(self) -> np.ndarray:
        """Number the rows by content, (rows,) uint64: the same number for the same features.

        Missing features are alike, and so are 0.0 and -0.0.
        """
        return row_keys(self.features, self.columns)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        tasks: Iterable[Task | str] | None = None,
        features: Sequence[str] | None = None,
        ignore: Sequence[str] = (),
        split_column: str = "split",
        group_column: str | None = None,
        id_column: str | None = None,
        split_by: str = "stratified",
        packed_bits: bool = False,
        encoding: str = "utf-8",
    ) -> Table:
        """Read a CSV, a Parquet file (needs pyarrow) or an NPZ with the arrays X and Y.

        Labels and their codes are those of `Manifest.from_csv`; an empty cell of a feature is
        missing, too. An NPZ may also hold `tasks`, the names of the columns of Y, `columns`, those
        of X, and further arrays (rows,) that stand for columns, such as `split`.

        Args:
            path: the file; its ending says what it is.
            tasks: the columns to learn; by default every column of 0, 1 and missing, if either
                all or none of them have holes; of an NPZ, all of Y.
            features: the columns to learn from; by default all others, which must be numbers.
                Columns without a name or without a known value are left out, with a warning.
            ignore: columns that are neither.
            split_column: the column with train, val or test; one of another name than "split"
                must be there.
            group_column: the column that says which rows belong together.
            id_column: the column with the names of the rows; by default they are numbered. Rows of
                one name are merged, with a warning, if they do not contradict each other.
            split_by: how `split` draws rows: "stratified", or "hash" of their names, or of their
                features if they have none.
            packed_bits: of an NPZ, the bits of X are the columns (numpy.packbits, axis=1).
            encoding: the text encoding of a CSV.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: malformed file, absent column, a label that is none, a feature that is text
                or infinite, an unknown split, rows of one name that contradict each other, or no
                way to tell tasks from features. The message names file, line (row) and column.
        """
        source = Path(path)
        named = {
            "split_column": split_column,
            "group_column": group_column,
            "id_column": id_column,
        }
        special = {name for name in named.values() if name}
        if file_format(source) == ".npz":
            numbers, frame, of_file = npz_parts(source, packed_bits, named)
            tasks = of_file if tasks is None else tasks
        else:
            _refuse_packed(packed_bits, source)
            numbers, frame = None, read_frame(source, encoding)
        present = list(frame) + ([] if numbers is None else list(numbers))
        check_named(list(frame), {"group_column": group_column, "id_column": id_column}, source)
        check_split_column(list(frame), split_column, source)
        check_ignored(present, ignore, source)
        chosen = None if tasks is None else as_tasks(tasks)
        asked_for = {*special, *ignore, *(features or ()), *(task.name for task in chosen or ())}
        taken = {
            "tasks": {task.name for task in chosen or ()},
            "features": set(features or ()),
        }
        for role, names in taken.items():
            check_roles("ignore", set(ignore), role, names, source)
            for argument, name in named.items():
                check_roles(argument, {name} & {*frame}, role, names, source)
        empty = left_out(frame, asked_for, source, 3) if numbers is None and not features else []
        left = [n for n in frame if n not in {*special, *ignore, *(features or ()), *empty}]
        asked = chosen_tasks(frame[left], chosen, source)
        names = {task.name for task in asked}
        known = left if numbers is None else [n for n in numbers if n not in ignore]
        columns = chosen_features(features, known, names, source)
        text = as_text(frame[[name for name in frame if name in names or name in special]])
        found, labels = read_labels(text, asked, source)
        matrix = read_columns(frame if numbers is None else numbers, columns, source)
        if numbers is None and features is None:
            warn_of_labels(matrix, columns, source, 3)
        splits = read_splits(text[split_column], source) if split_column in text else None
        if id_column:
            keys = rows = read_ids(text, id_column, source).to_numpy(dtype=object)
        else:
            rows = frame.index.astype(str).to_numpy(dtype=object)
            keys = row_keys(matrix, columns)
            warn_of_equal_rows(keys, labels, frame.index.to_numpy(), found, source)
        groups = read_groups(text, group_column, keys, source) if group_column else None
        table = cls._made(
            matrix,
            columns,
            source=source,
            tasks=found,
            images=rows,
            labels=labels,
            lines=frame.index.to_numpy(),
            splits=splits,
            groups=groups,
            split_by=split_by,
            ignored=tuple(n for n in present if n not in {*names, *columns, *special}),
            named=bool(id_column),
        )
        if not id_column:
            return table
        alike = {str(split_column): splits, str(group_column): groups}
        alike |= {name: matrix[:, at] for at, name in enumerate(columns)}
        doubtful = uncertain_cells(text, found)
        kept, merged = merge_duplicates(
            rows, labels, table.lines, alike, found, source, None, doubtful
        )
        return table if len(kept) == len(table) else replace(table.take(kept), labels=merged)

    @classmethod
    def _made(cls, features: np.ndarray, columns: Sequence[str], **fields: Any) -> Table:
        root = fields["source"].absolute().parent
        return cls(root=root, features=features, columns=tuple(columns), **fields)

    @classmethod
    def from_arrays(
        cls,
        features: np.ndarray,
        labels: np.ndarray,
        tasks: Iterable[Task | str],
        columns: Sequence[str] | None = None,
        splits: Sequence[str] | None = None,
        ids: Sequence[str] | None = None,
        lines: np.ndarray | None = None,
        source: str | os.PathLike[str] = "arrays",
    ) -> Table:
        """A table of arrays that are at hand; labels are taken as they are.

        Shapes: features (rows, columns) and labels (rows, tasks) float, NaN = missing; splits
        (rows,) of "train", "val" and "test"; ids (rows,) str; lines (rows,) int.

        Raises:
            ValueError: shapes that do not fit, no column, or an infinite feature.
        """
        chosen = as_tasks(tasks)
        with np.errstate(over="ignore"):
            features = np.asarray(features, dtype="float32")
        labels = np.asarray(labels, dtype="float32")
        if features.ndim != 2 or not features.shape[1]:
            raise ValueError(
                f"`features` of {source} are no matrix. Expected shape (rows, columns), at least "
                f"one column. Received: {features.shape}"
            )
        rows = len(features)
        if labels.shape != (rows, len(chosen)):
            raise ValueError(
                f"`labels` of {source} do not fit. Expected shape ({rows}, {len(chosen)}). "
                f"Received: {labels.shape}"
            )
        names = (
            tuple(f"x{n}" for n in range(features.shape[1])) if columns is None else tuple(columns)
        )
        _check_lengths(names, features, {"splits": splits, "ids": ids, "lines": lines}, source)
        check_finite(features, names, source)
        numbers = np.arange(rows) if lines is None else np.asarray(lines)
        return cls._made(
            features,
            names,
            source=Path(source),
            tasks=chosen,
            images=np.asarray([str(n) for n in (numbers if ids is None else ids)], dtype=object),
            labels=labels,
            lines=numbers,
            splits=None if splits is None else np.asarray(splits, dtype=object),
            named=ids is not None,
        )

    def __repr__(self) -> str:
        return (
            f"Table({str(self.source)!r}, {len(self)} rows, {len(self.columns)} columns, "
            f"{len(self.tasks)} tasks)"
        )

    def take(self, rows: Sequence[int] | np.ndarray) -> Table:
        """The table of these rows, in this order."""
        rows = np.asarray(rows, dtype=int)
        return replace(super().take(rows), features=self.features[rows])

    def with_columns(self, columns: Sequence[str]) -> Table:
        """The table with these columns only, in this order.

        Raises:
            ValueError: a column is absent, or none is named.
        """
        absent = [name for name in columns if name not in self.columns]
        if absent or not len(columns):
            raise ValueError(
                f"`columns` are not all in {self.source}. Expected some of: "
                f"{list(self.columns)[:100]}. Received: {absent or list(columns)}"
            )
        at = {name: position for position, name in enumerate(self.columns)}
        kept = self.features[:, [at[name] for name in columns]]
        return replace(self, features=kept, columns=tuple(columns))

    def where(self, row: int) -> str:
        """The place of a row, for messages: file, line or row, and its name."""
        place = "line" if self.source.suffix.lower() == ".csv" else "row"
        return f"{self.source}, {place} {self.lines[row]}: {self.images[row]!r}"

    def missing_files(self) -> list[Fault]:
        """No row of a table names a file."""
        return []

    def check_images(self, progress: Any = None) -> list[Fault]:
        """No row of a table names a picture."""
        return []


def _refuse_packed(packed_bits: bool, source: Path) -> None:
    if packed_bits:
        raise ValueError(
            f"`packed_bits` is for NPZ files. Received: {source}. Call with packed_bits=False."
        )


def _check_lengths(
    columns: tuple[str, ...], features: np.ndarray, given: dict[str, Any], source: Any
) -> None:
    wanted = {"columns": features.shape[1], **dict.fromkeys(given, len(features))}
    for name, values in {"columns": columns, **given}.items():
        if values is not None and len(values) != wanted[name]:
            raise ValueError(
                f"`{name}` of {source} do not fit. Expected {wanted[name]}. Received: {len(values)}"
            )
