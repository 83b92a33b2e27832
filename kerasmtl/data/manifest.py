"""The labels file: a CSV becomes validated rows, their coverage and their splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from kerasmtl.data.audit import Audit, audit, check_classes, class_faults, coverage
from kerasmtl.data.duplicates import identical_files, merge_duplicates, picture_keys
from kerasmtl.data.image_files import Fault, invalid_images, missing_images
from kerasmtl.data.labels import (
    check_images,
    check_split_column,
    infer_tasks,
    read_groups,
    read_labels,
    read_splits,
    uncertain_cells,
)
from kerasmtl.data.leaks import Leak, find_leaks, leak_table
from kerasmtl.data.readers import read_table
from kerasmtl.data.splits import POLICIES, split_rows, units, warn_of_cuts, warn_of_parts
from kerasmtl.tasks import Task, as_tasks
from kerasmtl.utils.text import check_columns

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """Rows of pictures and labels.

    Shapes: images (rows,) str as written in the CSV; labels (rows, tasks) float32, 1, 0, a class's
    position or a number, NaN = missing; lines (rows,) int, the line in the file, header = 1;
    splits (rows,) of "train", "val" or "test", or None without such a column; groups (rows,) str,
    or None. `split_by`: how `split` draws rows where nothing else decides; `ignored`: the columns
    that are nothing here.
    """

    source: Path
    root: Path
    tasks: tuple[Task, ...]
    images: np.ndarray
    labels: np.ndarray
    lines: np.ndarray
    splits: np.ndarray | None = None
    groups: np.ndarray | None = None
    split_by: str = "stratified"
    ignored: tuple[str, ...] = ()
    unit: ClassVar[str] = "pictures"  # what a row is about, for messages

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        tasks: Iterable[Task | str] | None = None,
        image_column: str = "image",
        split_column: str = "split",
        root: str | os.PathLike[str] | None = None,
        allow_outside: bool = False,
        encoding: str = "utf-8",
        group_column: str | None = None,
        split_by: str = "stratified",
    ) -> Manifest:
        """Read a CSV with a header, an image column and one column per task.

        "", "?", NA, N/A, NaN, none and null are missing, in any case, and so are a task's own
        codes. Rows of the same picture that do not contradict each other become one, with a
        warning. Classes that a task does not name are found, and stand in `manifest.tasks`.

        Args:
            path: the file, comma-separated.
            tasks: the columns to learn; by default every column of 0, 1 and missing.
            image_column: the column with the paths of the pictures.
            split_column: the column with train, val or test; one of another name than "split"
                must be there.
            root: the folder the paths start from; by default the folder of the CSV.
            allow_outside: accept pictures outside of `root`.
            encoding: the text encoding of the file.
            group_column: the column that says which rows belong together (frames of a video,
                pictures of a patient); `split` never parts them.
            split_by: how `split` draws rows: "stratified" or "hash".

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: empty or malformed file, wrong encoding, absent or doubled column, a cell
                that is no label of its task, rows of one picture that contradict each other, no
                picture named, a picture outside of `root`, an unknown split. The message names
                file, line and column.
        """
        source = Path(path)
        _check_policy("split_by", split_by)
        table = read_table(source, encoding)
        check_columns("image_column", [image_column], table.columns, source)
        check_split_column(list(table.columns), split_column, source)
        named = (image_column, split_column, group_column)
        others = [column for column in table.columns if column not in named]
        chosen = as_tasks(tasks) if tasks is not None else infer_tasks(table[others], source)
        folder = Path(os.path.abspath(root if root is not None else source.parent))
        images = table[image_column].str.strip()
        check_images(images, source, image_column, folder, allow_outside)
        chosen, labels = read_labels(table, chosen, source)
        splits = read_splits(table[split_column], source) if split_column in table else None
        groups = None
        if group_column:
            keys = picture_keys(images.to_numpy(dtype=object), folder)
            groups = read_groups(table, group_column, keys, source)
        read = cls(
            source=source,
            root=folder,
            tasks=chosen,
            images=images.to_numpy(dtype=object),
            labels=labels,
            lines=table.index.to_numpy(),
            splits=splits,
            groups=groups,
            split_by=split_by,
            ignored=tuple(name for name in others if name not in {task.name for task in chosen}),
        )
        alike = {split_column: splits, str(group_column): groups}
        rows, merged = merge_duplicates(
            read.images,
            labels,
            read.lines,
            alike,
            chosen,
            source,
            folder,
            uncertain_cells(table, chosen),
        )
        return read if len(rows) == len(read) else replace(read.take(rows), labels=merged)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"Manifest({str(self.source)!r}, {len(self)} rows, {len(self.tasks)} tasks)"

    @property
    def paths(self) -> list[str]:
        """The pictures' paths, in the order of the rows."""
        return [os.path.join(self.root, image) for image in self.images]

    def take(self, rows: Sequence[int] | np.ndarray) -> Manifest:
        """The manifest of these rows, in this order."""
        rows = np.asarray(rows, dtype=int)
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            lines=self.lines[rows],
            splits=None if self.splits is None else self.splits[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def where(self, row: int) -> str:
        """The place of a row, for messages: file, line and picture."""
        return f"{self.source}, line {self.lines[row]}: picture {self.images[row]!r}"

    def coverage(self) -> pd.DataFrame:
        """By task: kind, and how many labels are known, positive and negative, and the share known.

        With tasks of other kinds, also the rows of each class, and mean and standard deviation;
        what a kind does not have is NA.
        """
        return coverage(self.labels, self.tasks)

    def audit(self) -> Audit:
        """What the known labels say about the missing ones, and what to do about it.

        The first split is that of the CSV's own column, if it has one.
        """
        return audit(self.labels, self.tasks, self.splits)

    def class_faults(self) -> dict[str, str]:
        """Why a task cannot be learnt from these rows, by its name: no label, or one class."""
        return class_faults(self.labels, self.tasks)

    def check_classes(self) -> None:
        """Warn of tasks with one class only; refuse tasks with no known label.

        Raises:
            ValueError: a task has no known label. The message names it.
        """
        check_classes(self.labels, self.tasks, self.source, stacklevel=4)

    def missing_files(self) -> list[Fault]:
        """The rows whose picture does not exist."""
        return missing_images(self.paths, self.images, self.lines)

    def check_images(self, progress: Callable[[], None] | None = None) -> list[Fault]:
        """Decode every picture, and return the rows whose picture cannot be used.

        `progress` is called once a row.
        """
        return invalid_images(self.paths, self.images, self.lines, progress)

    def split(
        self,
        fractions: Sequence[float] | None = None,
        seed: int = 0,
        by: str | None = None,
        groups: Sequence[object] | np.ndarray | None = None,
    ) -> tuple[Manifest, ...]:
        """Train, validation and test rows.

        By default the CSV's own split column decides; a part that it does not name, 15 % of all
        rows, is drawn from its train rows. Without such a column, or with `fractions`, all rows
        are drawn. Rows that are drawn stay together with those identical to them, see
        `identical_rows`, and with their group; so do groups that share identical rows. Warns of
        tasks without two different labels in a part, though the whole has them, and of groups and
        identical rows that the split column cuts.

        Args:
            fractions: the share of each part, for example (0.7, 0.15, 0.15).
            seed: of the drawing; the same seed gives the same parts.
            by: "stratified", every part has its share of each task's answers; or "hash", the name
                of the picture (of its group) decides, so that no row changes sides when others
                are added, unless they are identical to it. By default what the manifest says, see
                `from_csv`.
            groups: which rows belong together, (rows,); by default the CSV's group column.

        Raises:
            ValueError: fractions are not positive or do not sum to 1, `by` is unknown, `groups`
                has another length, or a part stays empty.
        """
        rows = self if groups is None else self._grouped(groups)
        alike = rows.identical_rows()
        parts = rows._parts(alike, fractions, seed, by)
        names = _part_names(parts)
        warn_of_parts(self.labels, self.tasks, parts, names, self.source)
        said = self.lines, parts, names, self.source
        if rows.groups is not None:
            warn_of_cuts("groups", rows.groups, rows.groups, *said)
        warn_of_cuts("identical rows", alike, self.images, *said)
        return tuple(rows.take(part) for part in parts)

    def identical_rows(self) -> np.ndarray:
        """Number the rows by content, (rows,): the same number for images of the same bytes.

        Files of equal size are opened; an absent file is like no other.
        """
        return identical_files(self.paths)

    def _parts(
        self,
        alike: np.ndarray,
        fractions: Sequence[float] | None = None,
        seed: int = 0,
        by: str | None = None,
    ) -> list[np.ndarray]:
        """The numbers of the rows of each part, see `split`; `alike` are the `identical_rows`."""
        by = self.split_by if by is None else by
        _check_policy("by", by)
        if fractions is None and self.splits is not None:
            parts = self._named_parts(alike, seed, by)
        else:
            shares = (0.7, 0.15, 0.15) if fractions is None else fractions
            parts = self._draw(np.arange(len(self)), alike, shares, seed, by)
        empty = [i for i, part in enumerate(parts) if not len(part)]
        if empty:
            part = _part_names(parts)[empty[0]]
            raise ValueError(
                f"`split` leaves the part {part} empty. Expected at least one row in each. "
                f"Received: {len(self)} rows{self._in_units(alike)} of {self.source}, fractions "
                f"{fractions}"
            )
        return parts

    def leaks(
        self,
        fractions: Sequence[float] | None = None,
        seed: int = 0,
        by: str | None = None,
        pictures: bool = True,
        progress: Callable[[], None] | None = None,
    ) -> pd.DataFrame:
        """What stands in two parts of `split(fractions, seed, by)`: files, pictures and groups.

        Returns one row for each leak: its kind ("same file", "same bytes", "near-duplicate" or
        "same group"), and part, line and image of both sides.

        Args:
            fractions, seed, by: those of the split.
            pictures: look for near-duplicate pictures, too; this reads every file.
            progress: called once a picture looked at.
        """
        split = self._parts(self.identical_rows(), fractions, seed, by)
        parts = np.empty(len(self), dtype=object)
        for name, rows in zip(_part_names(split), split, strict=True):
            parts[rows] = name
        found = self._find_leaks(parts, pictures, progress)
        return leak_table(found, parts, self.lines, self.images)

    def _find_leaks(
        self, parts: np.ndarray, pictures: bool, progress: Callable[[], None] | None
    ) -> list[Leak]:
        return find_leaks(self.paths, parts, self.groups, pictures, progress)

    def _grouped(self, groups: Sequence[object] | np.ndarray) -> Manifest:
        given = np.asarray(groups, dtype=object)
        if given.shape != (len(self),):
            raise ValueError(
                f"`groups` does not fit. Expected one for each of {len(self)} rows. "
                f"Received: shape {given.shape}"
            )
        alone = np.flatnonzero(pd.isna(given))  # without a group, a picture is one of its own
        if len(alone):
            given = given.copy()
            given[alone] = [f"\0{name}" for name in self._names()[alone]]
        return replace(self, groups=given)

    def _names(self) -> np.ndarray:
        """What a row is known by, (rows,), wherever it stands in the file."""
        return self.images

    def _in_units(self, alike: np.ndarray) -> str:
        """What is never parted, for a message: " in 3 groups"."""
        grouped = np.arange(len(self)) if self.groups is None else self.groups
        count = len(set(units(grouped, alike)))
        if count == len(set(grouped)):
            return "" if self.groups is None else f" in {count} groups"
        return f" in {count} groups, since only a split column parts identical rows,"

    def _draw(
        self, rows: np.ndarray, alike: np.ndarray, fractions: Sequence[float], seed: int, by: str
    ) -> list[np.ndarray]:
        groups = None if self.groups is None else self.groups[rows]
        names = (self._names() if by == "hash" else self.images)[rows]
        parts = split_rows(
            self.labels[rows], self.tasks, names, fractions, seed, by, groups, alike[rows]
        )
        return [rows[part] for part in parts]

    def _named_parts(self, alike: np.ndarray, seed: int, by: str) -> list[np.ndarray]:
        parts = {name: np.flatnonzero(self.splits == name) for name in SPLITS}
        for number, name in enumerate(SPLITS[1:]):
            if not len(parts[name]):
                share = 0.15  # by hash it must not depend on how many rows there are
                if by != "hash":
                    share = min(share * len(self) / max(len(parts["train"]), 1), 0.5)
                parts["train"], parts[name] = self._draw(
                    parts["train"], alike, (1 - share, share), seed + number, by
                )
        return [parts[name] for name in SPLITS]


def _part_names(parts: Sequence[np.ndarray]) -> Sequence[str]:
    return SPLITS if len(parts) == len(SPLITS) else [str(n + 1) for n in range(len(parts))]


def _check_policy(argument: str, value: str) -> None:
    if value not in POLICIES:
        raise ValueError(
            f"`{argument}` is no way to split. Expected one of {POLICIES}. Received: {value!r}"
        )
