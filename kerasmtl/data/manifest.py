"""`Manifest`: the rows of a labels file with their inputs, labels, groups and splits.

The center of `kerasmtl.data`: `Manifest.from_csv` reads a file with `readers`, `inputs` and
`labels`, and checks it with `duplicates`; its methods divide and examine the rows with `splits`,
`audit` and `leaks`; `make_dataset` turns rows into batches. It imports no TensorFlow, and a
manifest never changes: methods return new ones with the chosen rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kerasmtl.data.audit import Audit, audit, check_classes, class_faults, coverage
from kerasmtl.data.duplicates import merge_duplicates, warn_of_equal_rows
from kerasmtl.data.inputs import Fault, Image, Input
from kerasmtl.data.labels import is_missing, read_labels, read_splits, uncertain_cells
from kerasmtl.data.leaks import find_leaks, leak_table
from kerasmtl.data.readers import LabelsFile, as_text, place
from kerasmtl.data.splits import POLICIES, split_rows, units, warn_of_cuts, warn_of_parts
from kerasmtl.tasks import Task, as_tasks
from kerasmtl.utils.text import check_columns, listed
from kerasmtl.utils.validation import check_choice

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """Rows of inputs and labels.

    Attributes:
        source: the labels file.
        input: the kind of input, see `kerasmtl.data.Input`.
        tasks: what the labels answer; classes that a task did not name were found.
        values: (rows, …), one input per row: paths of images, or (rows, columns) float32.
        labels: (rows, tasks) float32: 1, 0, the position of a class, or a number; NaN = missing.
        lines: (rows,) int, the line of a CSV (header = 1), or the row of another file, from 0.
        names: (rows,) str, what a row is called in messages.
        named: whether names say which rows are the same; if not, their content does.
        splits: (rows,) of "train", "val" or "test", or None without such a column.
        groups: (rows,) of what belongs together, or None.
        split_by: how `split` draws rows where nothing else decides: "stratified" or "hash".
        ignored: the columns of the file that were not read.

    Example:
        >>> import numpy as np
        >>> import kerasmtl as kt
        >>> values, labels = np.eye(4), np.array([[1], [0], [np.nan], [1]])
        >>> manifest = kt.Manifest.from_arrays(values, labels, ["car"], kt.data.Table())
        >>> manifest.take([0, 2]).labels.tolist()
        [[1.0], [nan]]
    """

    source: Path
    input: Input
    tasks: tuple[Task, ...]
    values: np.ndarray
    labels: np.ndarray
    lines: np.ndarray
    names: np.ndarray
    named: bool = True
    splits: np.ndarray | None = None
    groups: np.ndarray | None = None
    split_by: str = "stratified"
    ignored: tuple[str, ...] = ()

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        tasks: Iterable[Task | str] | None = None,
        input: Input | None = None,
        split_column: str = "split",
        group_column: str | None = None,
        split_by: str = "stratified",
        encoding: str = "utf-8",
    ) -> Manifest:
        """Read a labels file: a CSV with a header, a Parquet file, or an NPZ with X and Y.

        "", "?", NA, N/A, NaN, none and null are missing labels, in any case, and so are a task's
        own codes. Rows of the same name (path, id) that do not contradict each other become one,
        with a warning.

        Args:
            path: the file. Parquet needs pyarrow. An NPZ may also hold `tasks`, the names of the
                columns of Y, `columns`, those of X, and arrays (rows,) in the place of columns.
            tasks: the columns to learn; by default every column of 0, 1 and missing labels.
            input: the kind of input and its columns; by default `kerasmtl.data.Image()`.
            split_column: the column of train, val and test; only "split" may be absent.
            group_column: the column of what belongs together (frames of a video, images of a
                patient), which `split` never separates.
            split_by: how `split` draws rows: "stratified", or "hash" of their names.
            encoding: of a CSV.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: a malformed file, an absent column or one with two meanings, a cell that is
                not a label of its task or not an input, rows of one name that contradict each
                other, an unknown split. The message names file, line (row) and column.

        Example:
            >>> import tempfile
            >>> from pathlib import Path
            >>> import kerasmtl as kt
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     file = Path(folder) / "labels.csv"
            ...     _ = file.write_text("image,car,bus\\na.jpg,1,?\\nb.jpg,0,1\\n")
            ...     manifest = kt.Manifest.from_csv(file)
            >>> manifest.coverage()["known"].to_dict()
            {'car': 2, 'bus': 1}
        """
        source = Path(path)
        check_choice("split_by", split_by, POLICIES)
        given = Image() if input is None else input
        file = given.open(source, encoding)
        cells = file.cells
        # No typing error makes "split", so that it can be the default of files without it.
        has_split = split_column in {*cells, *file.unfit} or split_column not in ("split", None)
        roles = {
            "split_column": (split_column,) if has_split else (),
            "group_column": (group_column,) if group_column else (),
        }
        chosen = _check_roles(
            {**roles, **given.claimed(), "ignore": given.ignore}, given, file, tasks
        )
        special = {task.name for task in chosen}.union(*roles.values())
        input, values, names = given.read(file, special)
        text = as_text(cells[[name for name in cells if name in special]])
        chosen, labels = read_labels(text, chosen, source)
        used = special.union(*input.claimed().values())
        lines, groups = cells.index.to_numpy(), None
        read = cls(
            source=source,
            input=input,
            tasks=chosen,
            values=values,
            labels=labels,
            lines=lines,
            names=lines.astype(str).astype(object) if names is None else names,
            named=names is not None,
            splits=read_splits(text[split_column], source) if has_split else None,
            split_by=split_by,
            ignored=tuple(name for name in cells if name not in used),
        )
        if group_column:
            groups = text[group_column].str.strip()
            groups = groups.mask(is_missing(groups), None).to_numpy(dtype=object)
            read = read._grouped(groups)
        if names is None:
            warn_of_equal_rows(read)
            return read
        special = {str(split_column): read.splits, str(group_column): groups}
        others = {name: column for name, column in special.items() if column is not None}
        others |= input.columns(values)
        return merge_duplicates(read, others, uncertain_cells(text, chosen))

    @classmethod
    def from_arrays(
        cls,
        values: Any,
        labels: Any,
        tasks: Iterable[Task | str],
        input: Input | None = None,
        splits: Sequence[str] | np.ndarray | None = None,
        groups: Sequence[object] | np.ndarray | None = None,
        names: Sequence[str] | np.ndarray | None = None,
        lines: Sequence[int] | np.ndarray | None = None,
        source: str | os.PathLike[str] = "arrays",
    ) -> Manifest:
        """Make a manifest of arrays; labels are taken as they are.

        Args:
            values: (rows, …), paths of images, or whatever `input` takes.
            labels: (rows, tasks) float, NaN = missing.
            tasks: the names of the columns of `labels`.
            input: the kind of input; by default `kerasmtl.data.Image()`.
            splits: (rows,) of "train", "val" and "test".
            groups: (rows,) of what belongs together.
            names: (rows,) str, which say which rows are the same; by default rows are numbered.
            lines: (rows,) int; by default from 0.
            source: what messages call the arrays.

        Raises:
            ValueError: shapes that do not fit, or values that are not such inputs.

        Example:
            >>> import kerasmtl as kt
            >>> manifest = kt.Manifest.from_arrays(["a.jpg", "b.jpg"], [[1], [0]], ["car"])
            >>> len(manifest), manifest.input.kind
            (2, 'image')
        """
        chosen = as_tasks(tasks)
        input, values = (Image() if input is None else input).adopt(values)
        labels = np.asarray(labels, dtype="float32")
        rows = len(values)
        if labels.shape != (rows, len(chosen)):
            raise ValueError(
                f"`labels` must be of shape ({rows}, {len(chosen)}), got {labels.shape}"
            )
        given = {"splits": splits, "groups": groups, "names": names, "lines": lines}
        for argument, array in given.items():
            if array is not None and len(array) != rows:
                raise ValueError(f"`{argument}` must be of length {rows}, got {len(array)}")
        lines = np.arange(rows) if lines is None else np.asarray(lines)
        shown = lines.astype(str) if names is None else [str(name) for name in names]
        made = cls(
            source=Path(source),
            input=input,
            tasks=chosen,
            values=values,
            labels=labels,
            lines=lines,
            names=np.asarray(shown, dtype=object),
            named=names is not None,
            splits=None if splits is None else np.asarray(splits, dtype=object),
        )
        return made if groups is None else made._grouped(groups)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"Manifest({str(self.source)!r}, {len(self)} {self.input.noun}, "
            f"{len(self.tasks)} tasks)"
        )

    def take(self, rows: Sequence[int] | np.ndarray) -> Manifest:
        """Return the manifest of these rows, in this order."""
        rows = np.asarray(rows, dtype=int)
        by_row = ("values", "labels", "lines", "names", "splits", "groups")
        arrays = {name: getattr(self, name) for name in by_row}
        return replace(self, **{n: a if a is None else a[rows] for n, a in arrays.items()})

    def where(self, row: int) -> str:
        """Return the place of a row, for messages: file, line and name.

        Args:
            row: its number in this manifest, from 0.
        """
        return f"{self.source}, {place(self.source)} {self.lines[row]}: {self.names[row]!r}"

    def keys(self) -> np.ndarray:
        """Return what rows are known by in any file, (rows,): names, or else content."""
        return self.input.known_by(self.names) if self.named else self.identical_rows()

    def identical_rows(self) -> np.ndarray:
        """Return a key of each row's content, (rows,): the same for identical inputs."""
        return self.input.identical(self.values)

    def coverage(self) -> pd.DataFrame:
        """Count by task how many labels are known, positive and negative, and the share known.

        With tasks of other kinds, also the rows of each class, and mean and standard deviation;
        what a kind does not have is NA.
        """
        return coverage(self.labels, self.tasks)

    def audit(self) -> Audit:
        """Find what the known labels say about the missing ones, and what to do about it.

        Where the file has a split column, it also tells whether the part predicts that a label is
        missing.
        """
        return audit(self.labels, self.tasks, self.splits)

    def class_faults(self) -> dict[str, str]:
        """Say why tasks cannot be learned from these rows, by name: no label, or one class."""
        return class_faults(self.labels, self.tasks)

    def check_classes(self) -> None:
        """Warn of tasks with one class only.

        Raises:
            ValueError: a task has no known label.
        """
        check_classes(self.labels, self.tasks, self.source)

    def missing_files(self) -> list[Fault]:
        """Find the rows whose file does not exist."""
        return self._faults(self.input.absent(self.values))

    def faults(self, progress: Callable[[], None] | None = None) -> list[Fault]:
        """Find the rows whose input cannot be used.

        Of images, every file is read and decoded.

        Args:
            progress: called per row, from several threads.

        Returns:
            Line, name and reason of each such row, in the order of the rows.
        """
        return self._faults(self.input.faults(self.values, progress))

    def _faults(self, found: dict[int, str]) -> list[Fault]:
        return [Fault(int(self.lines[row]), self.names[row], why) for row, why in found.items()]

    def split(
        self,
        fractions: Sequence[float] | None = None,
        seed: int = 0,
        by: str | None = None,
        groups: Sequence[object] | np.ndarray | None = None,
    ) -> tuple[Manifest, ...]:
        """Divide the rows into train, validation and test rows.

        By default the file's own split column decides; a part that it does not name, 15 % of all
        rows, is drawn from its train rows. Without such a column, or with `fractions`, all rows
        are drawn. Rows that are drawn stay together with those identical to them, see
        `identical_rows`, and with their group; so do groups that share identical rows. Warns of
        tasks without two different labels in a part, though the whole has them, and of groups and
        identical rows that the split column cuts.

        Args:
            fractions: the share of each part, for example (0.7, 0.15, 0.15).
            seed: of the drawing; the same seed gives the same parts.
            by: "stratified": every part has its share of each task's answers; or "hash": what the
                row (its group) is known by decides, so that no row changes sides when others are
                added, unless they are identical to it. By default `split_by`.
            groups: (rows,) of what belongs together; by default the file's group column.

        Raises:
            ValueError: fractions that are not positive or do not sum to 1, an unknown `by`,
                `groups` of another length, or a part that stays empty.

        Example:
            >>> import numpy as np
            >>> import kerasmtl as kt
            >>> values, labels = np.arange(40.0).reshape(20, 2), np.tile([[0], [1]], (10, 1))
            >>> manifest = kt.Manifest.from_arrays(values, labels, ["car"], kt.data.Table())
            >>> [len(part) for part in manifest.split((0.6, 0.2, 0.2))]
            [12, 4, 4]
        """
        rows = self if groups is None else self._grouped(groups)
        alike = rows.identical_rows()
        parts = rows._parts(alike, fractions, seed, by)
        warn_of_parts(self.labels, self.tasks, parts, self.source)
        of = _part_of(parts)
        if rows.groups is not None:
            # Rows without a group that are one of their own are identical rows.
            shared = np.array([not str(group).startswith("\0") for group in rows.groups], bool)
            named, lines = rows.groups[shared], self.lines[shared]
            warn_of_cuts("groups", named, of[shared], named, lines, self.source)
        warn_of_cuts("identical rows", alike, of, self.names, self.lines, self.source)
        return tuple(rows.take(part) for part in parts.values())

    def leaks(
        self,
        fractions: Sequence[float] | None = None,
        seed: int = 0,
        by: str | None = None,
        near: bool = True,
        progress: Callable[[], None] | None = None,
    ) -> pd.DataFrame:
        """Find what is in two parts of `split`: the same, nearly the same, and groups.

        Args:
            fractions, seed, by: those of the split.
            near: look for near-duplicates, too, where the kind of input knows any; of images this
                reads every file.
            progress: called per row looked at.

        Returns:
            One row for each leak: its kind ("same file", "same bytes", "same row",
            "near-duplicate" or "same group"), and part, line and name of both sides.
        """
        parts = _part_of(self._parts(self.identical_rows(), fractions, seed, by))
        pairs = self.input.near_duplicates(self.values, parts, progress) if near else ()
        found = find_leaks(parts, self.input.identities(self.values), pairs, self.groups)
        return leak_table(found, parts, self.lines, self.names)

    def _parts(
        self, alike: np.ndarray, fractions: Sequence[float] | None, seed: int, by: str | None
    ) -> dict[str, np.ndarray]:
        """Return the numbers of the rows of each part by name; `alike`: the `identical_rows`."""
        by = check_choice("by", self.split_by if by is None else by, POLICIES)
        keys = self.keys() if by == "hash" else self.names

        def draw(rows: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
            groups = None if self.groups is None else self.groups[rows]
            parts = split_rows(
                self.labels[rows], self.tasks, keys[rows], shares, seed, by, groups, alike[rows]
            )
            return [rows[part] for part in parts]

        if fractions is None and self.splits is not None:
            parts = [np.flatnonzero(self.splits == name) for name in SPLITS]
            for number in (1, 2):
                if not len(parts[number]):
                    share = 0.15  # by hash it must not depend on how many rows there are
                    if by != "hash":
                        share = min(share * len(self) / max(len(parts[0]), 1), 0.5)
                    parts[0], parts[number] = draw(parts[0], (1 - share, share), seed + number - 1)
        else:
            shares = (0.7, 0.15, 0.15) if fractions is None else fractions
            parts = draw(np.arange(len(self)), shares, seed)
        three = len(parts) == len(SPLITS)
        names = SPLITS if three else [str(number) for number, _ in enumerate(parts, start=1)]
        found = dict(zip(names, parts, strict=True))
        if empty := [name for name, part in found.items() if not len(part)]:
            groups = np.arange(len(self)) if self.groups is None else self.groups
            raise ValueError(
                f"`split` must leave a row in each part, got none in {listed(empty)}: "
                f"{len(self)} rows of {self.source}, {len(set(units(groups, alike)))} groups of "
                f"what stays together (groups and identical rows), fractions {fractions}"
            )
        return found

    def _grouped(self, groups: Sequence[object] | np.ndarray) -> Manifest:
        """Return these rows in groups, (rows,); a row without one gets a group of its own."""
        given = np.array(groups, dtype=object)
        if given.shape != (len(self),):
            raise ValueError(f"`groups` must be of shape ({len(self)},), got {given.shape}")
        alone = np.flatnonzero(pd.isna(given))  # without a group, a row is one of its own
        if len(alone):
            # By its key, so that rows of the same thing stay together; no group of a file begins
            # with a null byte.
            given[alone] = [f"\0{key}" for key in self.keys()[alone]]
        return replace(self, groups=given)


def _check_roles(
    roles: dict[str, Sequence[str]],
    input: Input,
    file: LabelsFile,
    tasks: Iterable[Task | str] | None,
) -> tuple[Task, ...]:
    """Find the tasks, and raise ValueError for columns that are absent or have two meanings.

    `roles` lists the columns that are not tasks, by the name of the argument that says so.
    """
    cells, source = file.cells, file.source
    for argument, names in roles.items():
        unfit = {name: file.unfit[name] for name in names if name in file.unfit}
        if unfit:
            raise ValueError(f"`{argument}` must be of shape ({len(cells)},), got {unfit}")
        check_columns(argument, names, cells.columns, source)
    if tasks is None and file.tasks is None:
        used = set().union(*roles.values())
        chosen = input.infer_tasks(cells[[name for name in cells if name not in used]], source)
    else:
        chosen = as_tasks(file.tasks if tasks is None else tasks)
    named = {**roles, "tasks": [task.name for task in chosen]}
    check_columns("tasks", named["tasks"], cells.columns, source)
    for (one, some), (other, more) in combinations(named.items(), 2):
        if both := {*some} & {*more}:
            raise ValueError(
                f"`{one}` and `{other}` must name different columns of {source}, got "
                f"{listed(sorted(both))} in both"
            )
    return chosen


def _part_of(parts: dict[str, np.ndarray]) -> np.ndarray:
    """Return the name of the part of each row, (rows,)."""
    of = np.empty(sum(map(len, parts.values())), dtype=object)
    for name, rows in parts.items():
        of[rows] = name
    return of
