"""Rows that are the same: merged or refused by name, found for splits by content.

`Manifest` calls `merge_duplicates` for rows of one name, and `warn_of_equal_rows` for tables whose
rows have none. Splits and leaks use keys of content: `row_keys` of numbers, `identical_files` of
images. Rows that are the same in training and test would make scores too good.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from kerasmtl.data.readers import place
from kerasmtl.tasks import Task
from kerasmtl.utils.files import file_sha256
from kerasmtl.utils.text import shortened, warn

if TYPE_CHECKING:
    from kerasmtl.data.manifest import Manifest

_SHOWN = 5
_END = 4096  # bytes
_BLOCK = 256  # files that a thread looks at in one go


def merge_duplicates(
    rows: Manifest, others: Mapping[str, np.ndarray], doubtful: np.ndarray
) -> Manifest:
    """Merge rows of the same key, which complement each other; warns of what is merged.

    Args:
        rows: with labels, NaN = missing; `rows.keys()` says which are the same.
        others: by name, columns that must agree, too, (rows,) each.
        doubtful: (rows, tasks) bool, labels of uncertain cells, which give way to certain ones.

    Returns:
        The first row of each key, with their merged labels.

    Raises:
        ValueError: two rows of one key have different known labels, or differ in one of `others`;
            names both lines.
    """
    names, labels, lines = rows.names, rows.labels, rows.lines
    source, at = rows.source, place(rows.source)
    codes = pd.factorize(rows.keys())[0]
    leader = np.unique(codes, return_index=True)[1][codes]  # the first row of the same key
    again = np.flatnonzero(leader != np.arange(len(rows)))
    if not len(again):
        return rows

    def refuse(name: str, first: int, second: int, said: Sequence[str]) -> None:
        raise ValueError(
            f"`labels` in {source}, column {name!r}, must agree in rows of the same name, got for "
            f"{names[second]!r} {said[0]} in {at} {lines[first]} and {said[1]} in {at} "
            f"{lines[second]}. Remove one of the {at}s, or leave the label that is in doubt empty "
            "in both."
        )

    # Splits, groups and features before labels: rows that differ in them are not the same thing.
    for name, values in others.items():
        ours, theirs = values[again], values[leader[again]]
        differ = (ours != theirs) & ~(pd.isna(ours) & pd.isna(theirs))
        if differ.any():
            row = again[np.argmax(differ)]
            pair = [values[leader[row]], values[row]]
            said = [
                "no value" if pd.isna(v) else repr(v) if isinstance(v, str) else f"{v:g}"
                for v in pair
            ]
            refuse(name, leader[row], row, said)
    # An uncertain label, which counts as 0 or 1, contradicts no certain one, and gives way to it.
    certain = np.where(doubtful, np.float32("nan"), labels)
    for column, first, second in _clashes(certain, codes)[0]:
        said = [_shown(labels[row, column], rows.tasks[column]) for row in (first, second)]
        refuse(rows.tasks[column].name, first, second, said)
    several = np.flatnonzero(np.isin(codes, codes[again]))
    sure, guess = (_first_known(of[several], codes[several]) for of in (certain, labels))
    merged = labels.copy()
    merged[several] = np.where(np.isnan(sure), guess, sure)
    shown = [f"{names[r]!r} in {at}s {lines[leader[r]]} and {lines[r]}" for r in again[:_SHOWN]]
    warn(
        f"{source} names {len(set(codes[again]))} rows more than once; they agree, and are "
        f"merged: {shortened(shown, _SHOWN, len(again))}"
    )
    return replace(rows, labels=merged).take(np.unique(leader))


def warn_of_equal_rows(rows: Manifest) -> None:
    """Warn of rows of the same content and different known labels, which no name tells apart.

    Args:
        rows: with labels, NaN = missing; `rows.keys()` says which are the same.
    """
    (clashes, count), at = _clashes(rows.labels, pd.factorize(rows.keys())[0]), place(rows.source)
    if not clashes:
        return
    shown = []
    for column, first, other in clashes:
        task = rows.tasks[column]
        one, two = (_shown(rows.labels[row, column], task) for row in (first, other))
        lines = f"{at} {rows.lines[first]} and {two} in {at} {rows.lines[other]}"
        shown.append(f"{task.name!r} is {one} in {lines}")
    warn(
        f"{rows.source} has rows with the same features and different labels: "
        f"{shortened(shown, _SHOWN, count)}. Name rows with id_column=… if the same thing is there "
        "twice; if not, no model can tell them apart."
    )


def _first_known(labels: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return the first known label among the rows of the same code, (rows, tasks)."""
    return pd.DataFrame(labels).groupby(codes).transform("first").to_numpy(labels.dtype)


def _clashes(labels: np.ndarray, codes: np.ndarray) -> tuple[list[tuple[int, int, int]], int]:
    """Find labels that differ from the first known one of the same code.

    Returns:
        Column, row of the first label and row of the other one, of a few of them; and their number.
    """
    rows = np.flatnonzero(pd.Series(codes).duplicated(keep=False))
    labels, codes = labels[rows], codes[rows]
    first = _first_known(labels, codes) if len(rows) else labels
    cells = np.argwhere(~np.isnan(labels) & (labels != first))
    found = []
    for at, column in cells[:_SHOWN]:
        same = (codes == codes[at]) & (labels[:, column] == first[at, column])
        found.append((int(column), int(rows[np.argmax(same)]), int(rows[at])))
    return found, len(cells)


def _shown(value: float, task: Task) -> str:
    """Return a label as the file has it: the name of a class, or a number."""
    return repr(task.classes[int(value)]) if task.kind == "multiclass" else f"{value:g}"


def path_keys(paths: np.ndarray, root: Path) -> np.ndarray:
    """Return one key for all ways to write a path below `root`; reads no disk.

    Args:
        paths: (rows,) str, none of them empty.
        root: the folder that they start from.

    Returns:
        (rows,) str, relative to the root. Links are not resolved: that would need the disk, and two
        names of one file are a leak, not a duplicate.
    """
    keys = paths.copy()
    for row, path in enumerate(paths):
        # `relpath` is slow for a million rows; most paths are plain already.
        if "./" in path or "//" in path or "\\" in path or path[0] == "/" or path[-1] in "./":
            keys[row] = os.path.relpath(os.path.join(root, path), root)
    return keys


def row_keys(features: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """Return a key of the numbers in each row, (rows,) uint64, the same in every file.

    Shapes: features (rows, columns) float32, NaN = missing. Neither the order of rows nor that of
    columns matters; 0.0 and -0.0 are alike.
    """
    keys = np.zeros(len(features), dtype="uint64")
    for at, name in enumerate(columns):
        salt = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=8).digest(), "<u8")
        # There are many bit patterns of NaN, and two of zero: each becomes one before bits are
        # compared.
        values = np.where(np.isnan(features[:, at]), np.float32("nan"), features[:, at] + 0.0)
        bits = values.astype("float32").view("uint32").astype("uint64")
        # A sum over columns, each salted with its name: the order of the columns changes nothing.
        # Overflow wraps around, as it should.
        keys += pd.util.hash_array(bits + salt)
    return keys


def identical_files(paths: Sequence[str]) -> np.ndarray:
    """Give files numbers by content, (rows,) int: the same number for the same bytes.

    Only files that have their size and their last 4 KiB in common with another one are read whole.
    A file that is empty, absent or cannot be read is like no other.
    """
    numbers = np.arange(len(paths))
    ends = pd.Series(by_threads(_end, paths), dtype=object)
    shared = np.flatnonzero(ends.notna() & ends.duplicated(keep=False))
    digests = pd.Series(by_threads(file_sha256, [paths[row] for row in shared]), shared)
    numbers[shared] = pd.Series(shared, shared).groupby(digests).transform("first")
    return numbers


def _end(path: str) -> tuple[int, bytes] | None:
    """Return the size and a hash of the end of a file, which tell most files apart."""
    if not os.path.isfile(path):  # such as a pipe, which would be waited for
        return None
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _END, 0))
            return (size, hashlib.sha256(file.read(_END)).digest()) if size else None
    except OSError:
        return None


def by_threads(look: Callable[[str], Any], paths: Sequence[str]) -> list[Any]:
    """Return what `look` says of each path; several threads wait for the disk together.

    Args:
        look: called once per path, from several threads; what it raises is raised here.
        paths: of any number of files.

    Returns:
        In the order of the paths.
    """
    # Blocks, since every call that waits in the pool takes memory.
    blocks = [paths[at : at + _BLOCK] for at in range(0, len(paths), _BLOCK)]
    with ThreadPoolExecutor() as pool:
        done = pool.map(lambda block: [look(path) for path in block], blocks)
        return [found for block in done for found in block]
