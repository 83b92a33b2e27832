"""A table of numbers instead of pictures: rows of features and labels, both with holes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from kerasmtl.columns import infer_tasks, read_groups, read_labels, read_splits
from kerasmtl.leaks import Leak, find_row_leaks
from kerasmtl.manifest import Fault, Manifest
from kerasmtl.table_files import (
    as_text,
    check_finite,
    file_format,
    read_columns,
    read_frame,
    read_npz,
)
from kerasmtl.tasks import Task, as_tasks


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Table(Manifest):
    """Rows of numbers and labels: a `Manifest` whose rows have features instead of pictures.

    Shapes: features (rows, columns) float32, NaN = missing; labels, lines and splits as in
    `Manifest`; images (rows,) str, the names of the rows: their ids, or their numbers.
    `lines` are lines of a CSV (header = 1), or rows of another file, from 0.
    """

    unit: ClassVar[str] = "rows"

    features: np.ndarray
    columns: tuple[str, ...]

    def _find_leaks(
        self, parts: np.ndarray, pictures: bool, progress: Callable[[], None] | None
    ) -> list[Leak]:
        return find_row_leaks(self.features, parts, self.groups)

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
            ignore: columns that are neither.
            split_column: the column with train, val or test, if the file has one.
            group_column: the column that says which rows belong together.
            id_column: the column with the names of the rows; by default they are numbered.
            split_by: how `split` draws rows: "stratified", or "hash" of their names.
            packed_bits: of an NPZ, the bits of X are the columns (numpy.packbits, axis=1).
            encoding: the text encoding of a CSV.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: malformed file, absent column, a label that is none, a feature that is text
                or infinite, an unknown split, or no way to tell tasks from features. The message
                names file, line (row) and column.
        """
        source = Path(path)
        special = [name for name in (split_column, group_column, id_column) if name]
        if file_format(source) == ".npz":
            numbers, frame, named = _npz_parts(source, packed_bits)
            tasks = named if tasks is None else tasks
        else:
            _refuse_packed(packed_bits, source)
            numbers, frame = None, read_frame(source, encoding)
        _check_named(frame, {"group_column": group_column, "id_column": id_column}, source)
        left = [name for name in frame if name not in {*special, *ignore, *(features or ())}]
        asked = _chosen_tasks(frame[left], tasks, source)
        names = {task.name for task in asked}
        known = left if numbers is None else [n for n in numbers.columns if n not in ignore]
        columns = _chosen_features(features, known, names, source)
        text = as_text(frame[[name for name in frame if name in names or name in special]])
        found, labels = read_labels(text, asked, source)
        rows = frame.index.to_series().astype(str) if not id_column else text[id_column].str.strip()
        return cls._made(
            read_columns(frame if numbers is None else numbers, columns, source),
            columns,
            source=source,
            tasks=found,
            images=rows.to_numpy(dtype=object),
            labels=labels,
            lines=frame.index.to_numpy(),
            splits=read_splits(text[split_column], source) if split_column in text else None,
            groups=read_groups(text, group_column, rows, source) if group_column else None,
            split_by=split_by,
        )

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


def _npz_parts(
    source: Path, packed_bits: bool
) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """X as a table, Y and what else there is a row as another, and the names of the tasks."""
    arrays = read_npz(source, packed_bits)
    if arrays.labels is None:
        raise ValueError(f"`path` {source} has no array Y. Expected labels (rows, tasks).")
    names = arrays.tasks or tuple(f"y{number}" for number in range(arrays.labels.shape[1]))
    rest = pd.DataFrame(arrays.labels, columns=list(names)).assign(**arrays.others)
    return pd.DataFrame(arrays.features, columns=list(arrays.columns), copy=False), rest, names


def _refuse_packed(packed_bits: bool, source: Path) -> None:
    if packed_bits:
        raise ValueError(
            f"`packed_bits` is for NPZ files. Received: {source}. Call with packed_bits=False."
        )


def _check_named(frame: pd.DataFrame, named: dict[str, str | None], source: Path) -> None:
    for argument, name in named.items():
        if name is not None and name not in frame:
            raise ValueError(
                f"`{argument}` {name!r} is not in {source}. Expected one of the columns "
                f"{list(frame.columns)[:100]}"
            )


def _chosen_tasks(
    frame: pd.DataFrame, tasks: Iterable[Task | str] | None, source: Path
) -> tuple[Task, ...]:
    """The tasks named, or all columns of 0, 1 and missing if nothing there may be a feature."""
    if tasks is not None:
        return as_tasks(tasks)
    found = infer_tasks(as_text(frame), source)
    _, labels = read_labels(as_text(frame[[task.name for task in found]]), found, source)
    holes = np.isnan(labels).any(axis=0)
    if holes.any() and not holes.all():
        with_holes = [task.name for task, hole in zip(found, holes, strict=True) if hole]
        without = [task.name for task, hole in zip(found, holes, strict=True) if not hole]
        raise ValueError(
            f"`tasks` cannot be told from features in {source}: columns of 0 and 1 with holes are "
            f"{with_holes[:20]}, without {without[:20]}. Name those to learn: "
            f"tasks={with_holes[:20]} (command line: --task)."
        )
    return found


def _chosen_features(
    features: Sequence[str] | None, known: Sequence[str], tasks: set[str], source: Path
) -> list[str]:
    """The columns named, or all that are no tasks."""
    columns = [name for name in known if name not in tasks] if features is None else list(features)
    both = sorted(set(columns) & tasks)
    twice = sorted(name for name, count in Counter(columns).items() if count > 1)
    if both or twice or not columns:
        raise ValueError(
            f"`features` of {source} are no list of columns besides the tasks. Expected at least "
            f"one, each once, none of them a task. Received: {columns[:20]}, of these tasks "
            f"{both}, twice {twice}"
        )
    return columns


def _check_lengths(
    columns: tuple[str, ...], features: np.ndarray, given: dict[str, Any], source: Any
) -> None:
    wanted = {"columns": features.shape[1], **dict.fromkeys(given, len(features))}
    for name, values in {"columns": columns, **given}.items():
        if values is not None and len(values) != wanted[name]:
            raise ValueError(
                f"`{name}` of {source} do not fit. Expected {wanted[name]}. Received: {len(values)}"
            )
