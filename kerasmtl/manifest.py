"""The labels file: a CSV becomes validated rows, their coverage and their splits."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from kerasmtl.csv_table import read_table
from kerasmtl.masking import MISSING_CODES, parse_labels
from kerasmtl.tasks import Task, as_tasks

SPLITS = ("train", "val", "test")
_SPLIT_CODES = {
    **{code: "train" for code in ("train", "training")},
    **{code: "val" for code in ("val", "valid", "validation", "dev")},
    **{code: "test" for code in ("test", "testing")},
}
_SHOWN = 5  # how many faults one message lists


@dataclass(frozen=True)
class Fault:
    """A picture that cannot be used: its line in the CSV, its name there, and why."""

    line: int
    image: str
    reason: str


@dataclass(frozen=True, eq=False, repr=False)
class Manifest:
    """Rows of pictures and labels.

    Shapes: images (rows,) str as written in the CSV; labels (rows, tasks) float32, 1, 0 or
    NaN = missing; lines (rows,) int, the line in the file, header = 1; splits (rows,) of
    "train", "val" or "test", or None without such a column.
    """

    source: Path
    root: Path
    tasks: tuple[Task, ...]
    images: np.ndarray
    labels: np.ndarray
    lines: np.ndarray
    splits: np.ndarray | None = None

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
    ) -> Manifest:
        """Read a CSV with a header, an image column and one column per task.

        Labels are 1, 0 or missing; "", "?", NA, N/A, NaN, none and null are missing, in any case.

        Args:
            path: the file, comma-separated.
            tasks: the columns to learn; by default every column of 0, 1 and missing.
            image_column: the column with the paths of the pictures.
            split_column: the column with train, val or test, if the file has one.
            root: the folder the paths start from; by default the folder of the CSV.
            allow_outside: accept pictures outside of `root`.
            encoding: the text encoding of the file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: empty or malformed file, wrong encoding, absent or doubled column, a label
                that is none of 0, 1 or missing, no picture named, a picture outside of `root`, an
                unknown split. The message names file, line and column.
        """
        source = Path(path)
        table = read_table(source, encoding)
        if image_column not in table:
            raise ValueError(
                f"`image_column` {image_column!r} is not in {source}. Expected one of the columns "
                f"{list(table.columns)}. Call with image_column=… (command line: --image-column)."
            )
        others = [c for c in table.columns if c not in (image_column, split_column)]
        chosen = as_tasks(tasks) if tasks is not None else _infer_tasks(table[others], source)
        folder = Path(os.path.abspath(root if root is not None else source.parent))
        images = table[image_column].str.strip()
        _check_images(images, source, image_column, folder, allow_outside)
        return cls(
            source=source,
            root=folder,
            tasks=chosen,
            images=images.to_numpy(dtype=object),
            labels=_read_labels(table, chosen, source),
            lines=table.index.to_numpy(),
            splits=_read_splits(table[split_column], source) if split_column in table else None,
        )

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
        splits = None if self.splits is None else self.splits[rows]
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            lines=self.lines[rows],
            splits=splits,
        )

    def where(self, row: int) -> str:
        """The place of a row, for messages: file, line and picture."""
        return f"{self.source}, line {self.lines[row]}: picture {self.images[row]!r}"

    def coverage(self) -> pd.DataFrame:
        """By task: how many labels are known, positive and negative, and the share known."""
        known = ~np.isnan(self.labels)
        positive = (self.labels == 1).sum(axis=0)
        return pd.DataFrame(
            {
                "known": known.sum(axis=0),
                "positive": positive,
                "negative": known.sum(axis=0) - positive,
                "share": known.sum(axis=0) / max(len(self), 1),
            },
            index=pd.Index([task.name for task in self.tasks], name="task"),
        )

    def class_faults(self) -> dict[str, str]:
        """Why a task cannot be learnt from these rows, by its name: no label, or one class."""
        faults = {}
        for name, row in self.coverage().iterrows():
            if not row.known:
                faults[str(name)] = f"no known label among {len(self)} rows"
            elif not row.positive or not row.negative:
                only = 1 if row.positive else 0
                faults[str(name)] = (
                    f"one class only among {len(self)} rows: all {row.known:.0f} known labels "
                    f"are {only}"
                )
        return faults

    def check_classes(self) -> None:
        """Warn of tasks with one class only; refuse tasks with no known label.

        Raises:
            ValueError: a task has no known label. The message names it.
        """
        faults = self.class_faults()
        known = self.coverage().known
        unknown = {name: fault for name, fault in faults.items() if not known[name]}
        if unknown:
            raise ValueError(
                f"`tasks` cannot be learnt from {self.source}: {unknown}. Expected at least one 0 "
                "and one 1 each. Label some, or leave them out of tasks=…"
            )
        for name, fault in faults.items():
            warnings.warn(
                f"task {name!r} has {fault} (of {self.source}); nothing can be learnt from it.",
                stacklevel=3,
            )

    def missing_files(self) -> list[Fault]:
        """The rows whose picture does not exist."""
        return [
            Fault(int(self.lines[row]), self.images[row], "absent")
            for row, path in enumerate(self.paths)
            if not os.path.isfile(path)
        ]

    def check_images(self, progress: Callable[[], None] | None = None) -> list[Fault]:
        """Decode every picture, and return the rows whose picture cannot be used.

        `progress` is called once a row.
        """
        from kerasmtl.inputs import picture_fault

        def check(rows: range) -> list[Fault]:
            faults = []
            for row in rows:
                reason = picture_fault(os.path.join(self.root, self.images[row]))
                if reason:
                    faults.append(Fault(int(self.lines[row]), self.images[row], reason))
                if progress is not None:
                    progress()
            return faults

        # Blocks, since every call that waits in the pool takes memory.
        blocks = [range(at, min(at + 64, len(self))) for at in range(0, len(self), 64)]
        with ThreadPoolExecutor() as pool:
            return [fault for faults in pool.map(check, blocks) for fault in faults]

    def split(
        self, fractions: Sequence[float] | None = None, seed: int = 0
    ) -> tuple[Manifest, ...]:
        """Train, validation and test rows.

        By default the CSV's own split column decides; a part that it does not name, 15 % of all
        rows, is drawn at random from its train rows. Without such a column, or with `fractions`,
        rows are drawn at random.

        Args:
            fractions: the share of each part, for example (0.7, 0.15, 0.15).
            seed: of the drawing; the same seed gives the same parts.

        Raises:
            ValueError: fractions are not positive or do not sum to 1, or a part stays empty.
        """
        if fractions is None and self.splits is not None:
            parts = self._named_parts(seed)
        else:
            shares = (0.7, 0.15, 0.15) if fractions is None else fractions
            parts = _draw(np.arange(len(self)), shares, seed)
        empty = [i for i, part in enumerate(parts) if not len(part)]
        if empty:
            part = SPLITS[empty[0]] if len(parts) == len(SPLITS) else f"number {empty[0] + 1}"
            raise ValueError(
                f"`split` leaves the part {part} empty. Expected at least one row in each. "
                f"Received: {len(self)} rows of {self.source}, fractions {fractions}"
            )
        return tuple(self.take(part) for part in parts)

    def _named_parts(self, seed: int) -> list[np.ndarray]:
        parts = {name: np.flatnonzero(self.splits == name) for name in SPLITS}
        for name in SPLITS[1:]:
            if not len(parts[name]):
                share = min(0.15 * len(self) / max(len(parts["train"]), 1), 0.5)
                parts["train"], parts[name] = _draw(parts["train"], (1 - share, share), seed)
        return [parts[name] for name in SPLITS]


def _draw(rows: np.ndarray, fractions: Sequence[float], seed: int) -> list[np.ndarray]:
    shares = np.asarray(fractions, dtype=float)
    if (shares <= 0).any() or not np.isclose(shares.sum(), 1.0):
        raise ValueError(
            "`fractions` is no partition. Expected positive shares that sum to 1, for example "
            f"(0.7, 0.15, 0.15). Received: {tuple(fractions)}"
        )
    mixed = np.random.default_rng(seed).permutation(rows)
    ends = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(int)
    return [np.sort(part) for part in np.split(mixed, ends)]


def _infer_tasks(table: pd.DataFrame, source: Path) -> tuple[Task, ...]:
    """A named column is a task if 0 and 1 stand in it at least as often as what is no label.

    A column of labels with a typing error is thus a task, whose error is then reported.
    """
    found, left_out = [], []
    for name in table.columns:
        labels, invalid = parse_labels(table[name])
        known = int((~np.isnan(labels)).sum())
        if name and known and known >= invalid.sum():
            found.append(name)
        else:
            left_out.append(name)
    if not found:
        raise ValueError(
            f"`tasks` cannot be inferred: {source} has no column of 0, 1 and missing. Expected "
            f"at least one. Received the columns: {left_out}"
        )
    return as_tasks(found)


def _read_labels(table: pd.DataFrame, tasks: tuple[Task, ...], source: Path) -> np.ndarray:
    absent = [task.name for task in tasks if task.name not in table]
    if absent:
        raise ValueError(
            f"`tasks` names columns that {source} lacks: {absent}. Expected some of: "
            f"{list(table.columns)}"
        )
    labels = np.empty((len(table), len(tasks)), dtype="float32")
    faults = []
    for column, task in enumerate(tasks):
        labels[:, column], invalid = parse_labels(table[task.name])
        for row in np.flatnonzero(invalid)[: _SHOWN + 1]:
            faults.append((table.index[row], task.name, table[task.name].iloc[row]))
    if faults:
        places = [f"line {line}, column {name!r}: {cell!r}" for line, name, cell in sorted(faults)]
        codes = ", ".join(repr(code) for code in MISSING_CODES)
        raise ValueError(
            f"`labels` in {source} are none of 0, 1 or missing ({codes}). Received: "
            + "; ".join(places[:_SHOWN])
            + ("; …" if len(places) > _SHOWN else "")
            + ". If a column is no task, name those that are: tasks=[…] (command line: --task)."
        )
    return labels


def _read_splits(cells: pd.Series, source: Path) -> np.ndarray:
    splits = cells.str.strip().str.lower().map(_SPLIT_CODES)
    wrong = cells[splits.isna()]
    if len(wrong):
        raise ValueError(
            f"`split_column` in {source}, line {wrong.index[0]}, column {cells.name!r} is unknown. "
            f"Expected train, val or test. Received: {wrong.iloc[0]!r} ({len(wrong)} such rows). "
            "Call with another split_column=… if this column means something else."
        )
    return splits.to_numpy(dtype=object)


def _check_images(
    images: pd.Series, source: Path, column: str, root: Path, allow_outside: bool
) -> None:
    unnamed = images.index[images == ""]
    if len(unnamed):
        raise ValueError(
            f"`images` in {source}, line {unnamed[0]}, column {column!r} is empty. Expected the "
            f"path of a picture. {len(unnamed)} such rows."
        )
    if allow_outside:
        return
    inside = os.path.join(root, "")
    for line, image in zip(images.index, images, strict=True):
        if image != "." and ".." not in image and ":" not in image and image[0] not in "/\\":
            continue  # a plain name below the root, without a look at every part of the path
        if not os.path.normpath(os.path.join(root, image)).startswith(inside):
            raise ValueError(
                f"`images` in {source}, line {line}, column {column!r} leaves the data folder "
                f"{root}. Expected a path inside it. Received: {image!r}. Call with "
                "allow_outside=True (in a project: allow_outside = true) if that is meant."
            )
